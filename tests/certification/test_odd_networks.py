"""Networks built so that a careless proof would be wrong: each has an image that contradicts it."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_qusec import QuSecQuantization, certify_robustness
from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.certification import curves
from keras_qusec.certification.box import front_quantizer
from keras_qusec.defenses import BitDepthReduction
from keras_qusec.verify import verified

L = keras.layers


def status_and_attack(model, x, candidate, epsilon, value_range=(0.0, 1.0)):
    """What is proved of an image of class 0, and whether a candidate is an adversarial example."""
    x, candidate = (np.array([values], "float32") for values in (x, candidate))
    attacked = AttackedModel(model, value_range)
    proof = certify_robustness(model, x, [0], epsilons=[epsilon], value_range=value_range)
    _, distances = verified(attacked, x, candidate, Goal(np.array([0])), "linf", epsilon)
    return proof.status()[0], bool(np.isfinite(distances["linf"][0]))


def test_a_scale_before_the_quantizer_is_computed_as_the_model_does():
    """A threshold between what float32 gives and what a scale put together otherwise would."""
    scale, offset = np.float32(0.6579172), np.float32(0.1575149)
    x = np.random.default_rng(0).uniform(0.3, 0.7, 4000).astype("float32")
    layer = L.Rescaling(float(scale), offset=float(offset))
    received = np.array(ops.convert_to_numpy(layer(x[:, None])))[:, 0]
    other = x * np.float32(np.float32(scale + offset) - offset) + offset
    # Pixels whose neighbours' rounding decides.
    for place in np.flatnonzero(received > other)[:20]:
        model = keras.Sequential(
            [keras.Input((1,)), layer,
             QuSecQuantization(2, thresholds=[float(received[place])], hard=True,
                               value_range=(float(offset), float(offset + scale))), L.Dense(2)]
        )  # fmt: skip
        model.set_weights([np.array(50.0), np.array([[-1.0, 1.0]]), np.array([0.5, -0.5])])
        epsilon = float(np.float64(x[place]) - 0.25)
        state, broken = status_and_attack(model, [0.25], [x[place]], epsilon)
        assert not (state == "proved" and broken)


def test_levels_between_the_ends_are_known_but_for_their_rounding():
    """Near zero of a grid from -1 to 1 a level cancels, and its error is that of larger numbers."""
    step = 2 / 255
    target = -1 + 127 * step
    layer = BitDepthReduction(8, value_range=(-1.0, 1.0))
    level = ops.convert_to_numpy(layer(np.array([[target]], "float32")))[0, 0]
    for share in (0.3, 0.5, 0.7):
        model = keras.Sequential(
            [keras.Input((1,)), layer, L.Dense(2, activation="relu"), L.Dense(2)]
        )
        gap = abs(float(level) - target)
        model.set_weights(
            [np.array([[1.0, -1.0]]), np.array([-level, level]),
             np.array([[0, -1e7], [0, -1e7]]), np.array([0.0, 1e7 * share * gap])]
        )  # fmt: skip
        state, broken = status_and_attack(
            model, [target + 0.9 * step], [target], 1.5 * step, (-1.0, 1.0)
        )
        assert not (state == "proved" and broken)


@pytest.mark.parametrize("name", sorted(set(curves.CURVES) - {"tanh_gelu"}))
def test_float32_activations_are_within_their_margin(name):
    """On a dense grid, in vectors and one by one: what cancels is off by shares of the input."""
    if not hasattr(keras.activations, name):
        pytest.skip("not in this Keras")
    function, curve = getattr(keras.activations, name), curves.CURVES[name]
    values = np.concatenate(
        [np.linspace(-15, 15, 20_001), np.geomspace(1e-6, 1, 500), -np.geomspace(1e-6, 1, 500)]
    ).astype("float32")
    found = [ops.convert_to_numpy(function(ops.convert_to_tensor(values)))]
    few = values[::400]
    alone = [
        ops.convert_to_numpy(function(ops.convert_to_tensor(few[i : i + 1])))
        for i in range(len(few))
    ]
    exact = curve.function(values.astype("float64"))
    size = np.abs(exact) + (0.0 if curve.linear else np.abs(values) + 1.0)
    allowed = curve.roundings * (2.0**-24 * size + 2.0**-126)
    assert (np.abs(found[0] - exact) <= allowed).all()
    assert (np.abs(np.concatenate(alone) - exact[::400]) <= allowed[::400]).all()


def test_elu_with_a_negative_alpha_turns():
    model = keras.Sequential([keras.Input((1,)), L.Dense(1), L.ELU(alpha=-1.0), L.Dense(2)])
    model.set_weights(
        [np.array([[2.0]]), np.array([-1.0]), np.array([[1.0, 0.0]]), np.array([0.0, 0.1])]
    )
    assert status_and_attack(model, [0.75], [0.5], 0.6) == ("broken", True)


def test_a_path_beside_the_quantizer():
    """It is zero on the levels and nearly everywhere else, so that only the graph shows it."""
    image = keras.Input((1,))
    quantized = L.Dense(2, name="main")(QuSecQuantization(2, hard=True)(image))
    rise = L.ReLU()(image - 0.42)
    fall = L.ReLU()(0.42 - image)
    bump = L.ReLU()(1.0 - 30.0 * (rise + fall))
    model = keras.Model(image, L.Add()([quantized, L.Dense(2, name="side")(bump)]))
    model.get_layer("main").set_weights([np.zeros((1, 2)), np.array([0.5, -0.5])])
    model.get_layer("side").set_weights([np.array([[-2.0, 2.0]]), np.zeros(2)])
    assert front_quantizer(AttackedModel(model), np.zeros((1, 1), "float32")) is None
    assert status_and_attack(model, [0.3], [0.42], 0.15) == ("broken", True)


def test_weights_that_are_not_finite():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            QuSecQuantization(2, hard=True),
            L.Dense(1, activation="relu"),
            L.Dense(2),
        ]
    )
    model.set_weights(
        [np.array(50.0), np.ones((2, 1)), np.zeros(1), np.array([[0.0, -np.inf]]), np.zeros(2)]
    )
    with pytest.raises(ValueError, match="finite"):
        certify_robustness(model, np.full((1, 2), 0.55, "float32"), [0], epsilons=[0.1])


def test_sums_that_may_leave_the_range_of_float32():
    model = keras.Sequential(
        [keras.Input((10,)), QuSecQuantization(2, hard=True), L.Dense(1, activation="relu"), L.Dense(2)]
    )  # fmt: skip
    model.set_weights(
        [np.array(50.0), np.full((10, 1), 1e38), np.array([-9e38]).clip(-3e38), np.array([[1.5e10, 1e10]]),
         np.array([1.0, 0.0])]
    )  # fmt: skip
    x = np.full((1, 10), 0.45, "float32")
    # On some backends the random images of the check reach infinity already.
    with contextlib.suppress(ValueError):
        assert certify_robustness(model, x, [0], epsilons=[0.1]).status()[0] != "proved"


def test_a_squashed_branch_is_no_ending():
    x = keras.Input((3,))
    model = keras.Model(x, L.Concatenate()([L.Dense(2, activation="sigmoid")(x), L.Dense(1)(x)]))
    generator = np.random.default_rng(0)
    images = generator.random((20, 3)).astype("float32")
    y = ops.convert_to_numpy(model(images)).argmax(axis=1)
    proof = certify_robustness(model, images, y, epsilons=[1e-4], outputs="logits")
    assert (proof.status() == "proved").mean() > 0.5
