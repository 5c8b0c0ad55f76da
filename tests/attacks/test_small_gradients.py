"""Gradients that are tiny and not zero lead where the same gradients lead at their usual size."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import slope
from keras import ops

from keras_qusec import AdversarialTraining, QuSecQuantization, evaluate_robustness, norms
from keras_qusec.attacks import FGSM, AttackedModel, Goal, registry

# A power of two, by which numbers are multiplied exactly; its square is 0 in float32.
TINY = 2.0**-83
RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (12, 6, 6, 1)).astype("float32")


class Times(keras.layers.Layer):
    """Multiplies the gradient, or its inputs too."""

    def __init__(self, factor, values_too=False, **settings):
        super().__init__(**settings)
        self.factor, self.values_too = factor, values_too

    def call(self, inputs):
        if self.values_too:
            return inputs * self.factor

        def grad(*arguments, upstream=None):
            if upstream is None:
                (upstream,) = arguments
            return upstream * self.factor

        return ops.custom_gradient(lambda x: (x + 0.0, grad))(inputs)


def network(factor=1.0, *, values_too=False, front=(), policy="float32"):
    rng = np.random.default_rng(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            *(make() for make in front),
            keras.layers.Conv2D(6, 3, activation="relu", dtype=policy),
            keras.layers.Flatten(dtype=policy),
            keras.layers.Dense(5, dtype=policy),
            Times(factor, values_too, dtype="float32"),
        ],
        name="net",
    )
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return model


def found(name, model, epsilon, **settings):
    attacked = AttackedModel(model, outputs="logits")
    goal = Goal(attacked.predictions(X))
    attack = registry.get(name, **settings)
    search = attack.on_batch(attacked, X, goal)
    images = search(np.arange(len(X)), None if attack.minimizes else epsilon, 0)
    return np.asarray(images), attacked.is_adversarial(np.asarray(images), goal)


FRONT = (lambda: QuSecQuantization(4, hard=True, gradient_hardness=10.0),)
# Those that follow the direction of the gradient alone.
DIRECTIONS = {
    "fgsm": (0.05, {}), "fgsm-l2": (0.3, {}), "pgd": (0.05, {"steps": 5}),
    "pgd-l2": (0.3, {"steps": 5}), "bim-l2": (0.3, {"steps": 5}),
    "apgd-ce": (0.05, {"steps": 6}), "apgd-t": (0.05, {"steps": 4}),
    "apgd-ce-l2": (0.3, {"steps": 6}), "apgd-t-l2": (0.3, {"steps": 4}),
    "apgd-ce-l1": (2.0, {"steps": 6}), "sigma-zero": (None, {"steps": 30}),
    "fmn-l0": (None, {"steps": 20}), "jsma": (None, {}),
    "reachable-levels": (0.1, {"steps": 5}), "cheapest-levels-l2": (None, {}),
    "cheapest-levels-l0": (None, {}),
}  # fmt: skip
# Those that divide a difference of logits by the gradient, and need both in one unit.
DISTANCES = {
    "fab": {"steps": 8}, "fab-l2": {"steps": 8}, "fab-l1": {"steps": 8},
    "fmn-linf": {"steps": 20}, "fmn-l2": {"steps": 20}, "fmn-l1": {"steps": 20},
}  # fmt: skip


def cases():
    """Each attack in float32, and one of each kind under bfloat16; the others take minutes."""
    for name in DIRECTIONS:
        yield pytest.param(name, "float32", id=name)
        marks = [] if name in ("pgd-l2", "apgd-ce-l2", "sigma-zero") else [pytest.mark.slow]
        yield pytest.param(name, "mixed_bfloat16", marks=marks, id=f"{name}, bfloat16")


@pytest.mark.parametrize(("name", "policy"), list(cases()))
def test_a_tiny_gradient_changes_no_attack(name, policy):
    epsilon, settings = DIRECTIONS[name]
    own = registry.get(name).attacks_defense
    shared = {"front": FRONT if own else (), "policy": policy}
    images, fooled = found(name, network(**shared), epsilon, **settings)
    tiny, fooled_too = found(name, network(TINY, **shared), epsilon, **settings)
    assert fooled.any()
    np.testing.assert_array_equal(fooled_too, fooled)
    np.testing.assert_allclose(tiny, images, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_tiny_logits_change_no_attack(name):
    images, fooled = found(name, network(), None, **DISTANCES[name])
    tiny, fooled_too = found(name, network(TINY, values_too=True), None, **DISTANCES[name])
    assert fooled.all()
    assert fooled_too.all()
    np.testing.assert_allclose(tiny, images, atol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_tiny_gradient_beside_usual_logits_still_leads_there(name):
    """How far the boundary is cannot be told from such a gradient, but where it is.

    FAB steps onto the boundary of the model made linear, and so far beyond the true one; FMN's
    radius shrinks again.
    """
    settings = {"steps": 100}
    images, fooled = found(name, network(), None, **settings)
    tiny, fooled_too = found(name, network(TINY), None, **settings)
    norm = norms.get(registry.get(name).norm)
    ratio = norm.distance(X, tiny) / norm.distance(X, images)
    assert fooled_too.all()
    assert fooled.all()
    assert name.startswith("fab") or np.median(ratio) < 1.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_directions_and_dual_norms_do_not_depend_on_the_unit(norm, dtype):
    gradient = RNG.normal(size=(5, 7)).astype("float32")
    gradient[3] = 0
    usual, tiny = (ops.cast(factor * gradient, dtype) for factor in (1.0, TINY))
    norm = norms.get(norm)
    one, other = (
        ops.convert_to_numpy(ops.cast(norm.direction(g), "float32")) for g in (usual, tiny)
    )
    np.testing.assert_array_equal(one, other)
    if dtype == "float32":
        size, small = (ops.convert_to_numpy(norm.dual(g)) for g in (usual, tiny))
        np.testing.assert_allclose(small / TINY, size, rtol=1e-6)
        order = {"linf": 1, "l2": 2, "l1": np.inf}[norm.name]
        expected = [np.linalg.norm(row, order) for row in gradient]
        np.testing.assert_allclose(size, expected, rtol=1e-6)
    assert (one[3] == 0).all()


def test_black_and_white_images_behind_a_steep_quantizer_are_attacked():
    """The sigmoids' derivatives are about 1e-16 there, and say where to go all the same."""
    x = (RNG.random((40, 6, 6, 1)) > 0.5).astype("float32")
    model = network(front=[lambda: QuSecQuantization(2, hardness=80.0)])
    gradient = slope(lambda images: ops.sum(ops.max(model(images), axis=-1)), x)
    assert 0 < np.abs(gradient).max() < 1e-13
    labels = AttackedModel(model, outputs="logits").predictions(x)
    report = evaluate_robustness(
        model, x, labels, attacks=["fgsm-l2"], epsilons={"l2": [4.0]}, outputs="logits",
        threat_models=["white-box"], progress=False,
    )  # fmt: skip
    images = FGSM(4.0, norm="l2")(model, x, labels, outputs="logits")
    moved = np.linalg.norm((images - x).reshape(len(x), -1), axis=1)
    assert moved.min() > 1.0
    assert report.robust_accuracy() < 0.7


def test_foolbox_in_l2_is_noted():
    """Its attacks hardly move along such gradients (findings/foolbox_small_gradients.sh)."""
    labels = AttackedModel(network(), outputs="logits").predictions(X)
    settings = {"epsilons": {"l2": [0.3]}, "outputs": "logits", "progress": False}
    for factor, attack, noted in ((TINY, "deepfool", True), (TINY, "pgd-l2", False),
                                  (1.0, "deepfool", False)):  # fmt: skip
        report = evaluate_robustness(network(factor), X, labels, attacks=[attack], **settings)
        assert any("Foolbox's attacks in L2" in note for note in report.notes) == noted


def test_training_attacks_along_tiny_gradients():
    """The images that a step trains on are those of the usual gradient."""
    logs = []
    y = np.arange(12) % 5
    for factor in (1.0, TINY):
        model = network(factor)
        model.compile(
            keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        attack = AdversarialTraining("pgd", epsilon=0.5, norm="l2", steps=2, random_start=False)
        history = model.fit(X, y, verbose=0, shuffle=False, callbacks=[attack]).history
        logs.append(history["adversarial_loss"][0])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
