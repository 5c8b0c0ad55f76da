"""What tests of several rooms share: gradients through a function, and small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.backends import backend

BACKEND = keras.backend.backend()


def value_and_gradients(
    f: Callable[..., Any], *arrays: np.ndarray, upstream: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """f's value and the gradients of sum(upstream * f) for each array, in a compiled function."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def compiled(*xs: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(xs)
                y = f(*xs)
            return y, tape.gradient(y, xs, output_gradients=_ones(y, upstream))

        y, gradients = compiled(*map(tf.constant, arrays))
    elif BACKEND == "jax":
        import jax

        @jax.jit
        def compiled(*xs: Any) -> Any:
            y, pull_back = jax.vjp(f, *xs)
            return y, pull_back(_ones(y, upstream))

        y, gradients = compiled(*arrays)
    else:
        import torch

        xs = [torch.tensor(array, requires_grad=True) for array in arrays]
        y = f(*xs)
        gradients = torch.autograd.grad(y, xs, _ones(y, upstream))
    return ops.convert_to_numpy(y), [ops.convert_to_numpy(g) for g in gradients]


def slope(f: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """The gradient of a scalar function, zero also where no backend finds a path."""
    gradient, _ = backend().input_gradient(lambda x: (f(x), ()), ops.convert_to_tensor(x))
    return ops.convert_to_numpy(gradient)


def _ones(y: Any, upstream: np.ndarray | None) -> Any:
    return ops.ones_like(y) if upstream is None else ops.cast(upstream, y.dtype)


def compiled_value(f: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """f's value from a compiled function (PyTorch: eager, without gradients)."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return ops.convert_to_numpy(tf.function(f)(*map(tf.constant, arrays)))
    if BACKEND == "jax":
        import jax

        return ops.convert_to_numpy(jax.jit(f)(*arrays))
    import torch

    with torch.no_grad():
        return ops.convert_to_numpy(f(*map(torch.tensor, arrays)))


FEATURES = 10
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=FEATURES).astype("float32")
X = RNG.uniform(0.35, 0.65, (60, FEATURES)).astype("float32")
MARGIN = (X @ WEIGHTS + 0.1).astype("float64")
Y = (MARGIN > 0).astype("int64")
# The exact distance of the nearest adversarial example; the bounds are out of reach.
NEAREST = {
    "linf": np.abs(MARGIN) / np.abs(WEIGHTS).sum(),
    "l2": np.abs(MARGIN) / np.linalg.norm(WEIGHTS),
}
# Between two images' distances, so that rounding decides nothing.
EPSILONS = {
    norm: [float(np.sort(found)[place : place + 2].mean()) for place in (11, 29, 47)]
    for norm, found in NEAREST.items()
}


def set_random_weights(model, seed, scale=0.5):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, scale, w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(weights)
    return model


def small_cnn(seed=1, quantizer=None, activation=None):
    layers = [quantizer] if quantizer is not None else []
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *layers,
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation=activation),
        ],
        name=f"cnn{seed}",
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


IMAGES = np.random.default_rng(5).uniform(0, 1, (24, 8, 8, 1)).astype("float32")


def predicted(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)


def without_clock(report):
    """All of a report but the clock."""
    content = report.to_dict()
    for part in (*content["rows"], *content["results"]):
        part.pop("seconds")
    return content
