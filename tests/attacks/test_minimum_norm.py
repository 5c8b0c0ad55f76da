"""FAB, FMN and sigma-zero: closest examples against closed forms."""

from __future__ import annotations

import closed_forms
import keras
import numpy as np
import pytest
from closed_forms import X, Y
from keras import ops

from keras_qusec import attacks, evaluate_robustness, norms
from keras_qusec.attacks import FAB, FMN, AttackedModel, Goal, SigmaZero
from keras_qusec.attacks.minimum_norm import FAR, View


def distances_of(attack, goal=None, model=None):
    attacked = AttackedModel(model or closed_forms.model())
    goal = goal or Goal(Y)
    images = attack.run(attacked, X, goal, epsilon=None, seed=0)
    assert attacked.is_adversarial(images, goal).all()
    assert images.min() >= 0
    assert images.max() <= 1
    return norms.get(attack.norm).distance(X, images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_finds_the_nearest_example(norm):
    found = distances_of(FAB(norm=norm, steps=30))
    exact = closed_forms.nearest(norm)
    assert (found >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(found, exact, rtol=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_comes_close_to_the_nearest_example(norm):
    found = distances_of(FMN(norm=norm, steps=200))
    exact = closed_forms.nearest(norm)
    assert (found >= exact * (1 - 1e-4)).all()
    assert np.median(found / exact) < 1.02
    assert (found / exact).max() < (1.6 if norm == "l1" else 1.1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_measures_the_distance_to_the_boundary(norm):
    """On a linear model of two classes its first radius is the exact distance, and a little more.

    The distance is the gap over the dual norm of the gradient, not over the norm itself.
    """
    rng = np.random.default_rng(0)
    x = rng.uniform(0.45, 0.55, (20, 9)).astype("float32")
    weights = rng.normal(size=9).astype("float32")
    model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([np.stack([0 * weights, weights - weights.mean()], 1)])
    attacked, attack = AttackedModel(model), FMN(norm=norm, steps=10, gamma=0.01)
    goal = Goal(attacked.predictions(x))
    radii = []

    def look(images):
        return attacked.traced_ascent(
            [(v, v.value) for v in attacked.variables], ops.convert_to_tensor(images),
            ops.convert_to_tensor(goal.labels), ops.convert_to_tensor(goal.classes),
            attack.objective(goal, False),
        )  # fmt: skip

    view = View(look, lambda images: None)
    tensors = [ops.convert_to_tensor(part) for part in (x, np.full(20, FAR), *attack.begin(x))]
    *_, radius, _ = attack.step(view, ops.convert_to_tensor(x), tuple(tensors), 0.0, (0.0, 1.0))
    radii = ops.convert_to_numpy(radius)
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    slope = (weights - weights.mean()).astype("float64")
    exact = np.abs(x.astype("float64") @ slope) / np.linalg.norm(slope, order)
    np.testing.assert_allclose(radii, exact * 1.01, rtol=1e-3)


@pytest.mark.parametrize("attack", [FMN(norm="l0"), SigmaZero(steps=300)])
def test_the_fewest_pixels(attack):
    found, exact = distances_of(attack), closed_forms.nearest("l0")
    assert (found >= exact).all()
    assert (found == exact).mean() > 0.7
    assert (found - exact).max() <= 2


@pytest.mark.parametrize("attack", [FAB(), FMN(), SigmaZero(steps=200)])
def test_a_target_is_reached(attack):
    targets = (Y + 1) % closed_forms.CLASSES
    found = distances_of(attack, Goal(Y, targets))
    assert np.isfinite(found).all()


def test_an_ending_distance_saves_passes():
    attacked = AttackedModel(closed_forms.model())
    attack = FAB(steps=50, targets=2)
    radius = 2 * closed_forms.nearest("linf").max()
    attack.run(attacked, X, Goal(Y), epsilon=None, seed=0)
    all_passes, attacked.counter.gradients = attacked.counter.gradients, 0
    attack.run(attacked, X, Goal(Y), epsilon=radius, seed=0)
    # 50 steps towards both targets, or 10 steps towards the first.
    assert all_passes == len(X) * 2 * 50
    assert attacked.counter.gradients == len(X) * 10


@pytest.mark.parametrize("name", ["fab", "fmn-linf"])
def test_other_value_ranges(name):
    """The same images in bytes' units have the same examples."""
    model = closed_forms.model()
    scaled = keras.Sequential(
        [keras.Input((closed_forms.FEATURES,)), keras.layers.Rescaling(1 / 255), model]
    )
    attack = [(name, {"steps": 60})]
    small = evaluate_robustness(model, X, Y, attacks=attack, epsilons=[0.05])
    large = evaluate_robustness(
        scaled, X * 255, Y, attacks=attack, epsilons=[0.05 * 255], value_range=(0, 255)
    )
    one, other = (r.results[0].distances["linf"] for r in (small, large))
    np.testing.assert_allclose(other / 255, one, rtol=0.01)


def test_pixels_of_several_channels_count_once():
    """Of colour images, a pixel is changed in all of its channels."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.4, 0.6, (6, 4, 4, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    )
    model.set_weights([rng.normal(size=(48, 2)).astype("float32")])
    attacked = AttackedModel(model)
    goal = Goal(attacked.predictions(x))
    for attack in (FMN(norm="l0"), SigmaZero(steps=300)):
        images = attack.run(attacked, x, goal, epsilon=None, seed=0)
        assert attacked.is_adversarial(images, goal).all()
        assert norms.get("l0").distance(x, images).max() <= 6


def test_settings_are_checked():
    with pytest.raises(ValueError, match="norm"):
        FAB(norm="l0")
    with pytest.raises(ValueError, match="Did you mean 'malt'"):
        FAB(order="mal")
    with pytest.raises(ValueError, match="steps"):
        attacks.get("fmn-l2", steps=0)
    with pytest.raises(ValueError, match="threshold"):
        SigmaZero(threshold=2)
