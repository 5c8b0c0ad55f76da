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
from keras_qusec.attacks.attacked_model import Ascent
from keras_qusec.attacks.minimum_norm import FAR, MinimumNormAttack, View


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


class Counting(MinimumNormAttack):
    """Adds its number to the images at each step."""

    def __init__(self, steps):
        self.steps = steps

    def begin(self, x):
        return ()

    def step(self, view, x, state, place, values):
        best, distance = state
        return best + 1.0 + place, distance


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_every_step_is_made_once(steps):
    attacked = AttackedModel(closed_forms.model())
    images, _ = Counting(steps).closest(attacked, X, Goal(Y), None, None)
    np.testing.assert_allclose(images - X, sum(range(1, steps + 1)), rtol=1e-5)


class TestOneStep:
    """A step of each attack against NumPy in float64, from a state in the middle of a search."""

    N, D = 6, 8

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(5)

    @staticmethod
    def view(gradient, value):
        unbroken = (value < 0).astype("float32")
        tensors = [ops.convert_to_tensor(part.astype("float32")) for part in (gradient, value)]
        seen = Ascent(*tensors, ops.convert_to_tensor(unbroken))
        return View(lambda images: seen, lambda images: ops.ones(len(value)))

    def stepped(self, attack, view, x, state, place, values=(0.0, 1.0)):
        tensors = [ops.convert_to_tensor(np.asarray(part, "float32")) for part in state]
        after = attack.step(view, ops.convert_to_tensor(x), tuple(tensors), place, values)
        return [ops.convert_to_numpy(part) for part in after]

    def test_fab_weighs_the_clean_image(self, rng):
        """Both go to the hyperplane and beyond; the clean one weighs at most a tenth."""
        x = rng.uniform(0.45, 0.55, (self.N, self.D)).astype("float32")
        images = (x + 0.05 * rng.normal(size=x.shape)).astype("float32")
        gradient = rng.normal(size=x.shape)
        value = -np.array([1e-4, 1e-3, 5e-3, 0.02, 0.1, 0.2])
        state = (x, np.full(self.N, FAR), images)
        moved = self.stepped(FAB(norm="l2"), self.view(gradient, value), x, state, 0.0)[2]

        def towards(points):
            # From the linear model of the boundary at the image.
            gap = -value - (gradient * (points - images)).sum(axis=1)
            return (gap / (gradient**2).sum(axis=1))[:, None] * gradient

        x, images = x.astype("float64"), images.astype("float64")
        from_image, from_clean = towards(images), towards(x)
        far, near = (np.linalg.norm(part, axis=1) for part in (from_image, from_clean))
        weight = np.minimum(far / (far + near), 0.1)[:, None]
        assert len(set(weight.ravel().round(4).tolist())) > 1
        expected = (1 - weight) * (images + 1.05 * from_image) + weight * (x + 1.05 * from_clean)
        np.testing.assert_allclose(moved, expected, atol=2e-5)

    def test_fmn_changes_the_number_of_pixels(self, rng):
        """By a twentieth, at least by one, and never above that of the closest example."""
        x = rng.uniform(0.3, 0.7, (self.N, 100)).astype("float32")
        radius = np.array([1, 10, 40, 60, 80, 3], "float32")
        distance = np.array([FAR, FAR, FAR, 50, 60, FAR], "float32")
        value = np.array([-1, -1, 1, 1, 1, 1.0])
        state = (x, distance, x, radius, np.zeros(self.N))
        attack = FMN(norm="l0", steps=100, gamma=0.05)
        after = self.stepped(attack, self.view(0 * x + 1, value), x, state, 0.0)
        assert after[3].tolist() == [2, 11, 0, 0, 0, 0]  # the image itself is adversarial, at 0
        far = x + 0.1
        state = (x, distance, far, radius, np.zeros(self.N))
        after = self.stepped(attack, self.view(0 * x + 1, value), x, state, 0.0)
        assert after[3].tolist() == [2, 11, 38, 50, 60, 2]

    @pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 255.0)])
    def test_sigma_zero_is_adam_on_loss_and_sparsity(self, rng, values):
        attack, place, width = SigmaZero(steps=50), 7.0, values[1]
        x = rng.uniform(0.3, 0.7, (self.N, self.D))
        images = x + rng.normal(0, 0.05, x.shape)
        first, second = rng.normal(0, 0.1, x.shape), rng.uniform(0, 0.1, x.shape)
        threshold = np.full(self.N, 0.02)
        gradient = rng.normal(size=x.shape)
        value = np.array([-1, -0.5, 0.5, -2, 1, -0.1])
        state = (width * x, np.full(self.N, FAR), width * images, first, second, threshold)
        after = self.stepped(
            attack, self.view(gradient, value), (width * x).astype("float32"), state, place, values
        )
        unbroken = value < 0
        change = images - x
        uphill = -gradient / np.abs(gradient).max(axis=1, keepdims=True) * unbroken[:, None]
        uphill = uphill + 2 * 0.001 * change / (change**2 + 0.001) ** 2 / self.D
        uphill = uphill / np.abs(uphill).max(axis=1, keepdims=True)
        first = 0.9 * first + 0.1 * uphill
        second = 0.999 * second + 0.001 * uphill**2
        falling = [0.1 + 0.45 * (1 + np.cos(np.pi * number / 50)) for number in (6, 7)]
        mean, spread = first / (1 - 0.9**8), np.sqrt(second / (1 - 0.999**8)) + 1e-8
        moved = np.clip(x + change - falling[0] * mean / spread, 0, 1)
        threshold = np.clip(threshold + 0.01 * falling[1] * np.where(unbroken, -1, 1), 0, 1)
        kept = np.abs(moved - x) >= threshold[:, None]
        np.testing.assert_allclose(after[5], threshold, atol=1e-6)
        np.testing.assert_allclose(after[2] / width, np.where(kept, moved, x), atol=1e-4, rtol=1e-4)
