"""suggest_quantizer against counts by hand, on MNIST and on noise."""

from __future__ import annotations

import numpy as np
import pytest

from keras_qusec import datasets, suggest_quantizer

pytestmark = pytest.mark.once

NOISE = np.random.default_rng(0).random((50, 28, 28, 1)).astype("float32")


@pytest.fixture(scope="module")
def mnist():
    return datasets.mnist5k().x_train[:500]


def movable(x, thresholds, epsilon):
    return np.mean(np.min(np.abs(x[..., None] - np.asarray(thresholds)), axis=-1) <= epsilon + 1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_the_movable_share_is_counted(mnist, epsilon):
    for choice in suggest_quantizer(mnist, epsilon, levels=[2, 3, 5]).choices:
        assert choice.movable == pytest.approx(movable(mnist, choice.thresholds, epsilon))
        assert len(choice.thresholds) == choice.levels - 1
        assert sorted(choice.thresholds) == list(choice.thresholds)


def test_an_adversary_moves_exactly_those(mnist):
    suggestion = suggest_quantizer(mnist, 0.3)
    layer = suggestion.layer(hard=True)
    low, high = (np.asarray(layer(np.clip(mnist + s * 0.3, 0, 1))) for s in (-1, 1))
    assert np.mean(low != high) == pytest.approx(suggestion.best.movable, abs=1e-4)


def test_bits_by_hand():
    x = np.array([[0.1, 0.1, 0.9, 0.45]], "float32")
    (equal, _) = suggest_quantizer(x, 0.1, levels=[2]).choices
    # One of four moves; of the others two are black and one is white.
    entropy = -(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3))
    assert equal.movable == pytest.approx(0.25)
    assert equal.bits == pytest.approx(0.75 * entropy)


def test_mnist_wants_two_levels_and_noise_more(mnist):
    two = suggest_quantizer(mnist, 0.3)
    assert two.best.levels == 2
    assert 0.05 < two.best.movable < 0.07
    assert "an adversary can move 6." in two.meaning
    # A uniform histogram and a small epsilon leave more levels.
    many = suggest_quantizer(NOISE, 0.02)
    assert many.best.levels > 4
    assert suggest_quantizer(NOISE, 0.3).best.movable > 0.5
    assert "That is much" in suggest_quantizer(NOISE, 0.3).meaning


def test_chosen_thresholds_leave_less_to_move(mnist):
    choices = suggest_quantizer(mnist, 0.1).choices
    for equal, chosen in zip(choices[::2], choices[1::2], strict=True):
        assert (equal.kind, chosen.kind) == ("equal", "chosen")
        assert chosen.movable <= equal.movable + 1e-9
        gaps = np.diff([0, *chosen.thresholds, 1])
        assert gaps.min() >= 0.59 / chosen.levels


def test_it_is_deterministic_and_scales(mnist):
    one, other = suggest_quantizer(mnist, 0.3), suggest_quantizer(mnist.copy(), 0.3)
    assert one.choices == other.choices
    scaled = suggest_quantizer(mnist * 255, 0.3 * 255, value_range=(0, 255))
    assert scaled.best.levels == one.best.levels
    assert np.allclose(scaled.best.thresholds, np.array(one.best.thresholds) * 255)
    assert scaled.layer().value_range == (0.0, 255.0)


def test_shown(mnist, tmp_path):
    suggestion = suggest_quantizer(mnist, 0.3)
    assert max(map(len, str(suggestion).splitlines())) <= 80
    assert "| 2, equal |" in suggestion._repr_markdown_()
    assert suggestion.plot(tmp_path / "s.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": (NOISE * 255).astype("uint8")}, "scale them, x.astype"),
        ({"x": NOISE * 255}, "inside value_range"),
        ({"x": NOISE[0, :, 0, 0]}, "x\\[None\\]"),
        ({"epsilon": 8}, "8 / 255"),
        ({"epsilon": 0}, "above 0"),
        ({"levels": [1]}, "levels"),
        ({"levels": []}, "at least one of levels"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        suggest_quantizer(**{"x": NOISE, "epsilon": 0.1, **arguments})
