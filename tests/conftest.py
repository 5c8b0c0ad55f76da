"""Shared helpers: gradients through a function, compiled, on whichever backend runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


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
