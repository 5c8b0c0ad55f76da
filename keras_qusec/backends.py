"""What differs between Keras' backends: each is one class here, and Foolbox's adapter knows them.

Everywhere else the package uses `keras.ops` and the public Keras API.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

Tensor = Any
Objective = Callable[[Tensor], tuple[Tensor, Any]]


class Backend(ABC):
    """What the package asks of a backend beyond Keras.

    Attributes:
        passes_state: a training step gets the values of all variables as an argument and
            returns the new ones, as on JAX.
    """

    passes_state = False

    @abstractmethod
    def input_gradient(
        self, objective: Objective, images: Tensor, *, differentiable: bool = False
    ) -> tuple[Tensor, Any]:
        """The gradient of a scalar function of the images, and what else it returned.

        Works eagerly and inside compiled functions and graph loops. Unless `differentiable`,
        nothing is recorded for an outer differentiation, and no weight gradient is computed. A
        model that ignores its input or cuts the gradient gives a gradient of zero.

        Args:
            objective: function of the images that returns a scalar and any auxiliary
                structure of tensors.
            images: float tensor.
            differentiable: the gradient will be differentiated again, as in a gradient penalty.

        Returns:
            The gradient, of the shape and dtype of `images`, and the auxiliary structure.
        """

    @abstractmethod
    def compiled(
        self, function: Callable[..., Any], variables: list[Any], *, batches: int
    ) -> Callable[..., Any]:
        """Compile ``function(mapping, *tensors)`` for repeated calls as ``f(*tensors)``.

        `mapping` pairs each variable with its current value, to be given to a
        `keras.StatelessScope`, so that weights may change between calls. The first `batches`
        tensors may change their number of rows.
        """

    def compiled_forward(
        self, function: Callable[..., Any], variables: list[Any]
    ) -> Callable[..., Any]:
        """Like `compiled`, for a function of one batch that nobody differentiates."""
        return self.compiled(function, variables, batches=1)

    def padded(self, array: np.ndarray) -> np.ndarray:
        """A batch with rows repeated until its size is one that was probably compiled."""
        return array

    def sync_variables(self, model: keras.Model) -> None:  # noqa: B027
        """Give the model's variables the values that training has reached inside an epoch."""

    def leave_busy_cores(self) -> None:  # noqa: B027
        """Take as many threads as cores are free, where more would wait for each other."""

    @abstractmethod
    def train_function_of(self, model: keras.Model, change: Callable[[Any], Any]) -> Any:
        """A function for `model.train_function` whose batches are changed before the step.

        Args:
            model: compiled model; its present `train_step` is compiled.
            change: function of a batch, outside of what is compiled.
        """

    def check_training(self) -> None:  # noqa: B027
        """Raise a ValueError if a model's training step cannot be replaced."""

    @contextlib.contextmanager
    def gradients_allowed(self) -> Iterator[None]:
        """A block in which gradients can be had, whatever mode the caller is in."""
        yield


class TensorFlow(Backend):
    """TensorFlow: compiled by `tf.function`, once for all batch sizes."""

    def input_gradient(
        self, objective: Objective, images: Tensor, *, differentiable: bool = False
    ) -> tuple[Tensor, Any]:
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value, auxiliary = objective(images)
        zero = tf.UnconnectedGradients.ZERO
        gradient = tape.gradient(value, images, unconnected_gradients=zero)
        return (gradient if differentiable else tf.stop_gradient(gradient)), auxiliary

    def compiled(
        self, function: Callable[..., Any], variables: list[Any], *, batches: int
    ) -> Callable[..., Any]:
        import tensorflow as tf

        traced: dict[Any, Any] = {}

        def call(*tensors: Any) -> Any:
            signature = tuple(
                tf.TensorSpec((None, *t.shape[1:]) if place < batches else t.shape, t.dtype)
                for place, t in enumerate(tensors)
            )
            if signature not in traced:
                # Made concrete at once: TensorFlow warns of retracing when several functions
                # come from one line of code. Keras compiles its own steps without AutoGraph, too.
                traced[signature] = tf.function(
                    lambda *inside: function(present_values(variables), *inside), autograph=False
                ).get_concrete_function(*signature)
            return traced[signature](*tensors)

        return call

    def train_function_of(self, model: keras.Model, change: Callable[[Any], Any]) -> Any:
        import tensorflow as tf

        step = model.train_step
        if not model.run_eagerly:
            step = tf.function(
                step, jit_compile=model.jit_compile, reduce_retracing=True, autograph=False
            )
        # Keras takes the batch from the iterator inside its compiled function, where nobody can
        # change it.
        return lambda iterator: step(change(next(iterator)))


class Jax(Backend):
    """JAX: compiled by `jax.jit` for each shape; variables are arguments of every function."""

    passes_state = True

    def input_gradient(
        self, objective: Objective, images: Tensor, *, differentiable: bool = False
    ) -> tuple[Tensor, Any]:
        import jax

        gradient, auxiliary = jax.grad(objective, has_aux=True)(images)
        return (gradient if differentiable else jax.lax.stop_gradient(gradient)), auxiliary

    def compiled(
        self, function: Callable[..., Any], variables: list[Any], *, batches: int
    ) -> Callable[..., Any]:
        import jax

        @jax.jit
        def with_values(values: Any, *tensors: Any) -> Any:
            return function(list(zip(variables, values, strict=True)), *tensors)

        return lambda *tensors: with_values([v.value for v in variables], *tensors)

    def train_function_of(self, model: keras.Model, change: Callable[[Any], Any]) -> Any:
        model.make_train_function(force=True)
        function = model.train_function
        return lambda state, iterator: function(state, iter([change(next(iterator))]))

    def padded(self, array: np.ndarray) -> np.ndarray:
        rows = max(16, 1 << (len(array) - 1).bit_length())
        return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])

    def sync_variables(self, model: keras.Model) -> None:
        model.jax_state_sync()

    def check_training(self) -> None:
        if keras.config.is_nnx_enabled():
            raise ValueError(
                "Expected Keras on JAX without NNX, whose training step cannot be replaced. "
                "Received: NNX mode. Unset KERAS_NNX_ENABLED."
            )


class Torch(Backend):
    """PyTorch: runs eagerly."""

    def input_gradient(
        self, objective: Objective, images: Tensor, *, differentiable: bool = False
    ) -> tuple[Tensor, Any]:
        import torch

        if torch.is_inference_mode_enabled():
            with self.gradients_allowed():
                return self.input_gradient(objective, images.clone(), differentiable=differentiable)
        if differentiable:
            images = images if images.requires_grad else images.detach().requires_grad_(True)
            with torch.enable_grad():
                value, auxiliary = objective(images)
                (gradient,) = torch.autograd.grad(value, images, create_graph=True)
            return gradient, auxiliary
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
        self, function: Callable[..., Any], variables: list[Any], *, batches: int
    ) -> Callable[..., Any]:
        import torch

        def run(*tensors: Any) -> Any:
            if not torch.is_inference_mode_enabled():
                return function(present_values(variables), *tensors)
            with self.gradients_allowed(), torch.no_grad():
                usable = [t.clone() if t.is_inference() else t for t in tensors]
                return function(present_values(variables), *usable)

        return run

    def train_function_of(self, model: keras.Model, change: Callable[[Any], Any]) -> Any:
        model.make_train_function(force=True)
        function = model.train_function
        return lambda data: function([change(data[0])])

    @contextlib.contextmanager
    def gradients_allowed(self) -> Iterator[None]:
        import torch

        # In a user's inference mode no gradient can be had, and none would look like zero.
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                yield
        else:
            yield

    def leave_busy_cores(self) -> None:
        import torch

        # Said by the variable, the number of threads is the user's.
        if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "getloadavg"):
            free = round(torch.get_num_threads() - os.getloadavg()[0])
            torch.set_num_threads(max(1, free))

    def compiled_forward(
        self, function: Callable[..., Any], variables: list[Any]
    ) -> Callable[..., Any]:
        import torch

        run = self.compiled(function, variables, batches=1)

        def without_gradients(*tensors: Any) -> Any:
            with torch.no_grad():
                return run(*tensors)

        return without_gradients


_BACKENDS: dict[str, Backend] = {"tensorflow": TensorFlow(), "jax": Jax(), "torch": Torch()}


def backend() -> Backend:
    """The backend that Keras runs on.

    Raises:
        ValueError: for one that this package does not know.

    Example:

    >>> from keras import ops
    >>> square = lambda x: (ops.sum(x * x), ())
    >>> gradient, _ = backend().input_gradient(square, ops.ones((2,)))
    >>> np.asarray(gradient).tolist()
    [2.0, 2.0]
    """
    name = keras.backend.backend()
    if name not in _BACKENDS:
        raise ValueError(
            f"Expected the Keras backend to be one of {', '.join(_BACKENDS)}. Received: {name!r}. "
            "Set the environment variable KERAS_BACKEND before Keras is imported."
        )
    return _BACKENDS[name]


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of users, run where gradients can be had (PyTorch's inference mode forbids it)."""

    @functools.wraps(function)
    def run(*arguments: Any, **settings: Any) -> Any:
        with backend().gradients_allowed():
            return function(*arguments, **settings)

    return run


def present_values(variables: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs of each variable and its present value."""
    return [(variable, variable.value) for variable in variables]
