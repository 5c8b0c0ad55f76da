"""Random numbers belong to the images: an attack finds the same on them in any company."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import IMAGES, predicted, small_cnn
from keras import ops

from keras_qusec import QuSecQuantization, evaluate_robustness, norms
from keras_qusec.attacks import APGD, PGD, AttackedModel, Ensemble, Goal, Square, get
from keras_qusec.attacks.ball import _numbers_asked, random_images
from keras_qusec.attacks.draws import ImageDraws

SEVEN = np.random.default_rng(0).random((7, 3, 2)).astype("float32")


def test_the_same_in_any_batch():
    whole, part = ImageDraws(SEVEN, 5), ImageDraws(SEVEN[[6, 2]], 5)
    for shape in ((3,), (2, 4), (300,), (3,), (), (129,), (129,)):
        together = whole.uniform(np.arange(7), *shape)
        np.testing.assert_array_equal(part.uniform([0, 1], *shape), together[[6, 2]])
    np.testing.assert_array_equal(part.normal([1], 4), whole.normal([2], 4))
    np.testing.assert_array_equal(part.permutations([0], 9), whole.permutations([6], 9))
    other = ImageDraws(SEVEN, 6).uniform(np.arange(7), 3)
    assert not np.isin(other, ImageDraws(SEVEN, 5).uniform(np.arange(7), 3)).any()


def test_an_image_that_leaves_changes_nothing_for_the_others():
    alone, beside = ImageDraws(SEVEN, 1), ImageDraws(SEVEN, 1)
    for round_ in range(200):
        rows = [3] if round_ % 2 else [1, 3]
        np.testing.assert_array_equal(
            beside.integers(rows, 10, 3)[-1], alone.integers([3], 10, 3)[0]
        )


def test_distributions():
    draws = ImageDraws(np.arange(500, dtype="float32").reshape(500, 1), 0)
    rows = np.arange(500)
    numbers = draws.uniform(rows, 100)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Standard errors of 50,000 numbers, four of each.
    assert abs(numbers.mean() - 0.5) < 4 * 0.0013
    assert abs(draws.normal(rows, 100).std() - 1) < 4 * 0.0032
    assert abs(draws.signs(rows, 100).mean()) < 4 * 0.0045
    counts = np.bincount(draws.integers(rows, 4, 100).ravel(), minlength=5)
    assert counts[4] == 0
    assert np.abs(counts[:4] / 50_000 - 0.25).max() < 4 * 0.002
    orders = draws.permutations(rows, 5)
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    assert len(np.unique(orders[:, 0])) == 5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts(cnn, norm):
    model, epsilon = AttackedModel(cnn), {"linf": 0.2, "l2": 1.0, "l1": 5.0}[norm]
    together = random_images(model, IMAGES, norm, epsilon, 3)
    alone = random_images(model, IMAGES[4:5], norm, epsilon, 3)
    np.testing.assert_allclose(alone[0], together[4], atol=1e-6)
    assert np.abs(together - IMAGES).max() > 0.01
    assert np.abs(random_images(model, IMAGES, norm, epsilon, 4) - together).max() > 0.01


@pytest.mark.parametrize(
    "attack",
    [PGD(steps=2), APGD(steps=3), Square(queries=40),
     get("pointwise"), get("local-search", rounds=3), get("reachable-levels", steps=4, rounds=2)],
    ids=lambda attack: attack.name,
)  # fmt: skip
def test_an_attack_finds_the_same_on_an_image_alone(attack):
    model = AttackedModel(small_cnn(2, QuSecQuantization(4, hard=True)))
    labels = predicted(model.model, IMAGES)
    epsilon = None if attack.minimizes else 0.1
    # None of these looks at the other images of its batch, if noise fools the model.
    together = attack.on_batch(model, IMAGES, Goal(labels))(np.arange(len(IMAGES)), epsilon, 0)
    for row in (1, 5):
        part = slice(row, row + 1)
        search = attack.on_batch(model, IMAGES[part], Goal(labels[part]))
        np.testing.assert_allclose(search(np.arange(1), epsilon, 0)[0], together[row], atol=1e-5)


ALL = ("pgd", "apgd", "apgd-t", "square")


@pytest.mark.once  # that random numbers belong to images is tested on every backend
@pytest.mark.parametrize(
    ("quantized", "names", "first"),
    [(False, ALL, True), (True, ("pgd",), False), (True, ("square",), False), (True, ALL, True)],
)
def test_an_ensemble_is_never_above_an_attack_that_it_contains(quantized, names, first):
    """On any image, at any radius, though other attacks broke some before."""
    model = small_cnn(2, QuSecQuantization(2, hard=True) if quantized else None)
    labels = predicted(model, IMAGES)
    known = {
        "pgd": PGD(steps=1, restarts=2),
        "apgd": APGD(steps=4, loss="log-odds"),
        "apgd-t": APGD(steps=4, targets=2, loss="dlr"),
        "square": Square(queries=6),
    }
    parts = {name: known[name] for name in names}
    # Without defences the adaptive threat model gives an attack alone more random starts.
    threats = ["white-box", "adaptive"] if quantized else ["white-box"]
    settings = {
        "epsilons": [0.02, 0.05, 0.1],
        "progress": False,
        "seed": 3,
        "threat_models": threats,
    }
    together = Ensemble(parts, first=tuple(parts) if first else (), evidence="strong")
    whole = evaluate_robustness(model, IMAGES, labels, attacks={"all": together}, **settings)
    alone = evaluate_robustness(model, IMAGES, labels, attacks=parts, batch_size=5, **settings)
    broken = 0
    for epsilon in settings["epsilons"]:
        left = whole.robust_images(attack="all", epsilon=epsilon)
        for name in parts:
            robust = alone.robust_images(attack=name, epsilon=epsilon)
            broken += (~robust).sum()
            assert not (left & ~robust).any()
    assert broken


class Wide(norms.Norm):
    """Its random start has limits of its own, some of them with words."""

    name, symbol = "wide", "wide"

    def distance(self, x, images):
        return np.abs(images - x).reshape(len(x), -1).max(axis=1)

    def project_inside(self, images, x, epsilon, values):
        return ops.clip(ops.clip(images, x - epsilon, x + epsilon), *values)

    def random_start(self, x, epsilon, uniform, normal):
        return x + uniform(ops.shape(x), low=-epsilon, high=epsilon) + 0.0 * normal(ops.shape(x))


def test_the_random_start_of_a_norm_of_ones_own(cnn):
    own = Wide()
    (numbers, _) = _numbers_asked(own, IMAGES[:1])
    assert numbers.shape == IMAGES.shape[1:]
    norms.register(own)
    try:
        model = AttackedModel(cnn, (-5.0, 5.0))
        moved = random_images(model, IMAGES, "wide", 0.1, 0) - IMAGES
    finally:
        norms.unregister("wide")
    assert 0.09 < np.abs(moved).max() <= 0.1 + 1e-6
    # The standard deviation of uniform numbers, not of numbers pressed to the ends.
    assert moved.std() == pytest.approx(0.1 / 3**0.5, rel=0.1)
