"""BReLU and Gaussian data augmentation."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import value_and_gradients
from keras import ops

from keras_qusec.defenses import BoundedReLU, brelu_gda, with_bounded_relus

X = np.random.default_rng(0).normal(0, 2, (5, 6)).astype("float32")


def network():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    x = keras.layers.ReLU()(keras.layers.Dense(8)(x))
    x = keras.layers.Activation("relu")(keras.layers.Dense(8)(x))
    return keras.Model(inputs, keras.layers.Dense(3, activation="tanh")(x))


def test_values_and_gradient():
    function = BoundedReLU(1.5)
    value, (gradient,) = value_and_gradients(function, X)
    np.testing.assert_allclose(value, np.clip(X, 0, 1.5), atol=1e-7)
    np.testing.assert_array_equal(gradient, ((X > 0) & (X < 1.5)).astype("float32"))


def test_all_relus_are_bounded_and_weights_copied():
    model = network()
    bounded = with_bounded_relus(model, 0.5)
    hidden = keras.Model(bounded.inputs[0], [layer.output for layer in bounded.layers[1:-1]])
    outputs = [ops.convert_to_numpy(part) for part in hidden(X)]
    assert max(outputs[index].max() for index in (0, 2, 4)) <= 0.5
    assert bounded.layers[-1].activation is keras.activations.tanh
    for one, two in zip(model.get_weights(), bounded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    # A bound that nothing reaches changes nothing.
    same = with_bounded_relus(model, 1e6)
    np.testing.assert_allclose(same.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)


def test_nested_models():
    model = keras.Sequential([keras.Input((6,)), network()])
    bounded = with_bounded_relus(model, 0.5)
    assert bounded.layers[0].layers[1].activation.bound == 0.5


def test_noise_in_training_alone_and_saved(tmp_path):
    model = brelu_gda(network(), noise=0.5)
    clean = model.predict(X, verbose=0)
    np.testing.assert_array_equal(model.predict(X, verbose=0), clean)
    assert np.abs(ops.convert_to_numpy(model(X, training=True)) - clean).max() > 0.01
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again.predict(X, verbose=0), clean, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundedReLU(0), "bound"),
        (lambda: brelu_gda(network(), noise=-1), "noise"),
        (lambda: with_bounded_relus(keras.Sequential([keras.layers.Dense(2)])), "no graph"),
        (lambda: with_bounded_relus(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])), "has none"),
    ],
)  # fmt: skip
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
