"""Gradients with respect to images, compiled: the only module that knows the backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

Tensor = Any


def input_gradient(
    objective: Callable[[Tensor], tuple[Tensor, Any]], images: Tensor
) -> tuple[Tensor, Any]:
    """The gradient of a scalar function of the images, and what else it returned.

    Works eagerly and inside compiled functions and graph loops of every backend. Nothing is
    recorded for an outer differentiation, and no weight gradient is computed.

    Args:
        objective: function of the images that returns a scalar and any auxiliary structure
            of tensors.
        images: float tensor.

    Returns:
        The gradient, of the shape and dtype of `images`, and the auxiliary structure.

    Example:

    >>> from keras import ops
    >>> gradient, _ = input_gradient(lambda x: (ops.sum(x * x), ()), ops.ones((2,)))
    >>> np.asarray(gradient).tolist()
    [2.0, 2.0]
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value, auxiliary = objective(images)
        # A model may ignore its input or cut the gradient; that is a gradient of zero.
        zero = tf.UnconnectedGradients.ZERO
        gradient = tape.gradient(value, images, unconnected_gradients=zero)
        return tf.stop_gradient(gradient), auxiliary
    if backend == "jax":
        import jax

        return jax.grad(objective, has_aux=True)(images)
    import torch

    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        value, auxiliary = objective(images)
    if not value.requires_grad:
        return torch.zeros_like(images), auxiliary
    (gradient,) = torch.autograd.grad(value, images, allow_unused=True)
    if gradient is None:
        gradient = torch.zeros_like(images)
    detach = keras.tree.map_structure(lambda t: t.detach(), auxiliary)
    return gradient.detach(), detach


def compiled(
    function: Callable[..., Any], variables: list[Any], *, batches: int
) -> Callable[..., Any]:
    """Compile ``function(mapping, *tensors)`` for repeated calls as ``f(*tensors)``.

    `mapping` pairs each variable with its current value, to be given to a
    `keras.StatelessScope`: on JAX the values are arguments of the compiled function, so that
    it sees weights that change between calls. PyTorch runs eagerly. The first `batches`
    tensors may change their number of rows: TensorFlow compiles once for all, JAX for each.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        traced: dict[Any, Any] = {}

        def call(*tensors: Any) -> Any:
            signature = tuple(
                tf.TensorSpec((None, *t.shape[1:]) if place < batches else t.shape, t.dtype)
                for place, t in enumerate(tensors)
            )
            if signature not in traced:
                # Made concrete at once: TensorFlow warns of retracing when several functions
                # come from one line of code.
                traced[signature] = tf.function(
                    lambda *inside: function(present_values(variables), *inside)
                ).get_concrete_function(*signature)
            return traced[signature](*tensors)

        return call
    if backend == "jax":
        import jax

        @jax.jit
        def with_values(values: Any, *tensors: Any) -> Any:
            return function(list(zip(variables, values, strict=True)), *tensors)

        return lambda *tensors: with_values([v.value for v in variables], *tensors)
    return lambda *tensors: function(present_values(variables), *tensors)


def compiled_forward(function: Callable[..., Any], variables: list[Any]) -> Callable[..., Any]:
    """Like `compiled`, for a function of one batch that nobody differentiates."""
    run = compiled(function, variables, batches=1)
    if keras.backend.backend() != "torch":
        return run
    import torch

    def without_gradients(*tensors: Any) -> Any:
        with torch.no_grad():
            return run(*tensors)

    return without_gradients


def present_values(variables: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs of each variable and its present value."""
    return [(variable, variable.value) for variable in variables]
