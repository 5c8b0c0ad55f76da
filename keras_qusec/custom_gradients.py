"""Gradients of one's own, the same on each backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any


def upstream_gradient(args: tuple, upstream: Tensor | None) -> Tensor:
    """The incoming gradient: TensorFlow and JAX pass it by position, PyTorch by name."""
    return args[0] if upstream is None else upstream


def straight_through(output: Tensor, stand_in: Tensor) -> Tensor:
    """The values of `output` with the gradient of `stand_in`, to the last bit.

    Args:
        output: float tensor.
        stand_in: float tensor of the same shape, differentiated instead of `output`.

    Source: Athalye et al. 2018.

    Example: see `Defense`.
    """

    @ops.custom_gradient
    def replaced(_: Tensor, output: Tensor) -> Any:
        def grad(*args: Tensor, upstream: Tensor | None = None) -> Any:
            gradient = upstream_gradient(args, upstream)
            return gradient, ops.zeros_like(gradient)

        return output, grad

    result: Callable[..., Any] = replaced
    return result(stand_in, ops.stop_gradient(output))
