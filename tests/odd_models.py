"""Small models whose outputs, inputs or randomness are odd, for the tables of odd inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FEATURES, WEIGHTS, X, small_cnn
from keras import ops

# Half of the images are of each class, and far enough from the ends of the range.
BIAS = float(-np.median(X @ WEIGHTS))
MARGIN = (X @ WEIGHTS + BIAS).astype("float64")
Y = (MARGIN > 0).astype("int64")
# The exact distance of the nearest adversarial example, and a radius between two images'.
NEAREST = np.abs(MARGIN) / np.abs(WEIGHTS).sum()
RADIUS = float(np.sort(NEAREST)[24:26].mean())


def linear(scale=1.0):
    """Logits [0, scale * margin], whose nearest adversarial examples are known."""
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
    weights = np.stack([0 * WEIGHTS, WEIGHTS], 1) * scale
    model.set_weights([weights.astype("float32"), np.array([0, BIAS * scale], "float32")])
    return model


def ending(make, scale=1.0):
    """A model from the logits of `linear` through a function of symbolic tensors."""
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, make(linear(scale)(inputs)))


def dense(units=2, scale=1.0, **settings):
    """One dense layer with an activation, of two outputs or one."""
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(units, **settings)])
    weights = np.stack([0 * WEIGHTS, WEIGHTS], 1)[:, -units:] * scale
    bias = np.array([0, BIAS * scale])[-units:]
    model.set_weights([weights.astype("float32"), bias.astype("float32")])
    return model


class Subclassed(keras.Model):
    """A model without a graph: logits, or what a function makes of them."""

    def __init__(self, make=None, kind=None, scale=1.0):
        super().__init__()
        self.core, self.make = linear(scale), make
        # Defined last, and no part of the end.
        self.gate = keras.layers.Dense(2, activation="sigmoid")
        if kind is not None:
            self.output_kind = kind
        self(np.zeros((1, FEATURES), "float32"))

    def call(self, x):
        logits = self.core(x) + 0.0 * self.gate(x)
        return logits if self.make is None else self.make(logits)


class OwnCall(keras.Model):
    """A functional model whose own call adds a softmax that the graph does not show."""

    def call(self, x):
        return ops.softmax(super().call(x))


def with_own_call():
    inputs = keras.Input((FEATURES,))
    return OwnCall(inputs, linear()(inputs))


class Noisy(keras.layers.Layer):
    """Noise also in inference, from a generator of its own or from Keras' global one."""

    def __init__(self, size=0.3, own=True):
        super().__init__()
        self.size = size
        self.generator = keras.random.SeedGenerator(1) if own else None

    def call(self, x):
        return x + self.size * keras.random.normal(ops.shape(x), seed=self.generator)


class BatchCentred(keras.layers.Layer):
    """Takes the mean of the batch off, so that images depend on each other."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True) + 0.5


class Scaled(keras.Model):
    """What it does is in an attribute that no configuration shows."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.core, self.output_kind = factor, linear(), "logits"
        self(np.zeros((1, FEATURES), "float32"))

    def call(self, x):
        return self.core(x) * self.factor


def in_front(*layers, scale=1.0, offset=0.0):
    """A linear model of ``scale * x + offset`` behind layers, for images in other ranges."""
    model = keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(2)])
    kernel = np.stack([0 * WEIGHTS, WEIGHTS], 1) * scale
    bias = np.array([0, BIAS + offset * WEIGHTS.sum()])
    model.layers[-1].set_weights([kernel.astype("float32"), bias.astype("float32")])
    return model


def channels_first(permuted=False):
    """A convolution that takes channels first, and the same for channels last."""
    last = small_cnn()
    inputs = keras.Input((1, 8, 8))
    if permuted:
        return last, keras.Model(inputs, last(keras.layers.Permute((2, 3, 1))(inputs)))
    x = keras.layers.Conv2D(4, 3, activation="relu", data_format="channels_first")(inputs)
    x = keras.layers.Flatten(data_format="channels_last")(keras.layers.Permute((2, 3, 1))(x))
    first = keras.Model(inputs, keras.layers.Dense(4)(x))
    first.set_weights(last.get_weights())
    try:
        first(np.zeros((1, 1, 8, 8), "float32"))
    except Exception as error:
        # On some processors TensorFlow leaves out the library that has this convolution.
        if "only supports the NHWC tensor format on the CPU" in str(error):
            pytest.skip("TensorFlow cannot convolve channels first on this processor.")
        raise
    return last, first


def compiled(model, loss=None, **settings):
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, **settings)
    return model
