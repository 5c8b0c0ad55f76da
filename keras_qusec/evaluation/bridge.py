"""A Keras classifier as attacks see it: its logits, and a Foolbox model that counts its use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks.gradient_attacks import last_layer, outputs_probabilities

Tensor = Any


def import_foolbox() -> Any:
    """Foolbox, or an ImportError that names the extra to install."""
    # Foolbox imports GitPython, which fails without a git binary unless told to be quiet.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            'Attacks need Foolbox. Install it with: pip install "keras-qusec[evaluate]"'
        ) from error
    return foolbox


class Counter:
    """How often a model was used: images passed forward, and backward."""

    def __init__(self) -> None:
        self.queries = 0
        self.gradients = 0


def logits_function(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """A function from images to a classifier's logits, in inference mode.

    A softmax at the end of a model saturates in float32: its gradient is then exactly zero,
    and attacks fail for no good reason. It is left out.

    Args:
        model: built Keras classifier, logits or softmax probabilities ``(n, classes)``.

    Raises:
        ValueError: if the end of the model is a softmax that cannot be left out.

    Example:

    >>> softmax = keras.layers.Dense(2, activation="softmax", kernel_initializer="ones")
    >>> model = keras.Sequential([keras.Input((1,)), softmax])
    >>> logits = logits_function(model)(np.array([[300.0]], "float32"))
    >>> keras.ops.convert_to_numpy(logits).tolist()
    [[300.0, 300.0]]
    """

    def run(network: Any, images: Tensor) -> Tensor:
        # Half precision is the model's affair; losses of attacks need more.
        return keras.ops.cast(network(images, training=False), "float32")

    if not outputs_probabilities(model):
        return lambda images: run(model, images)
    layer: Any = last_layer(model)
    if hasattr(layer, "activation"):

        def logits(images: Tensor) -> Tensor:
            activation = layer.activation
            layer.activation = keras.activations.linear
            try:
                return run(model, images)
            finally:
                layer.activation = activation

        return logits
    if layer is model.layers[-1] and getattr(model, "inputs", None):
        shared = keras.Model(model.inputs, layer.input)
        return lambda images: run(shared, images)
    raise ValueError(
        f"Expected a model whose logits can be reached. Received: {model.name!r}, whose "
        f"softmax is inside {model.layers[-1].name!r}. Make a model without the softmax that "
        "shares its layers, and evaluate that."
    )


def foolbox_model(
    model: keras.Model,
    value_range: tuple[float, float] = (0.0, 1.0),
    counter: Counter | None = None,
) -> Any:
    """Wrap a Keras model for Foolbox's attacks, compiled where the backend compiles.

    Logits are attacked, also of a model that ends in a softmax. Gradients reach the images
    only: none is computed for the weights, which on a small CNN saves a third of the time.
    The model runs in inference mode. It is traced at its first use, so surrogate gradients
    must be set before (`keras_qusec.layers.surrogate_gradients`), and a model whose weights
    change must be wrapped again.

    Args:
        model: built Keras model, images ``(n, ...)`` to logits or probabilities
            ``(n, classes)``.
        value_range: smallest and largest pixel value an attack may use.
        counter: counts the images passed forward and backward.

    Returns:
        A `foolbox.models.Model` of the current Keras backend.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.
        ValueError: if the end of the model is a softmax that cannot be left out.

    Example:
    >>> import keras
    >>> from keras_qusec.evaluation.bridge import foolbox_model
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    >>> foolbox_model(model).bounds
    Bounds(lower=0.0, upper=1.0)
    """
    foolbox = import_foolbox()
    counter = Counter() if counter is None else counter
    logits = logits_function(model)
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    wrap = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    return wrap(foolbox, logits, variables, value_range, counter)


def _tensorflow(
    foolbox: Any, logits: Any, variables: Any, bounds: tuple[float, float], counter: Counter
) -> Any:
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def forward(images: Any) -> Any:
        # Without stop_gradient the backward function would hold the weights' gradients too.
        frozen = [(variable, tf.stop_gradient(variable.value)) for variable in variables]
        with keras.StatelessScope(state_mapping=frozen):
            return logits(images)

    @tf.custom_gradient
    def counted(images: Any) -> Any:
        counter.queries += len(images)

        def backward(upstream: Any) -> Any:
            counter.gradients += len(images)
            return upstream

        return tf.identity(images), backward

    # Left to itself, Foolbox asks for the device in a way that TensorFlow warns about.
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    return foolbox.TensorFlowModel(
        lambda images: forward(counted(images)), bounds=bounds, device=device
    )


def _jax(
    foolbox: Any, logits: Any, variables: Any, bounds: tuple[float, float], counter: Counter
) -> Any:
    import jax

    @jax.jit
    def forward(values: Any, images: Any) -> Any:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return logits(images)

    values = [variable.value for variable in variables]

    def counted(images: Any) -> Any:
        counter.queries += len(images)
        if isinstance(images, jax.core.Tracer):  # Foolbox differentiates anew in each step
            counter.gradients += len(images)
            return forward(values, images)
        return forward(values, padded(images))[: len(images)]

    return foolbox.JAXModel(counted, bounds=bounds, data_format="channels_last")


def padded(images: Any) -> Any:
    """A batch on JAX, which compiles for each shape anew, filled up to a power of two."""
    rows = max(16, 1 << (len(images) - 1).bit_length())
    return np.concatenate([images, np.repeat(images[-1:], rows - len(images), axis=0)])


def _torch(
    foolbox: Any, logits: Any, variables: Any, bounds: tuple[float, float], counter: Counter
) -> Any:
    import torch

    def count_backward(gradient: Any) -> None:
        counter.gradients += len(gradient)

    class Frozen(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            counter.queries += len(images)
            if images.requires_grad:
                images = images.view_as(images)  # hooks on a leaf would pile up
                images.register_hook(count_backward)
            mapping = [(variable, variable.value.detach()) for variable in variables]
            with keras.StatelessScope(state_mapping=mapping):
                return logits(images)

    device = next((variable.value.device for variable in variables), None)
    wrapped = foolbox.PyTorchModel(Frozen().eval(), bounds=bounds, device=device)
    wrapped.data_format = "channels_last"
    return wrapped


def to_tensor(array: np.ndarray) -> Any:
    """A NumPy array as a tensor of the current backend, labels as int64 where it matters."""
    if np.issubdtype(array.dtype, np.integer):
        # Foolbox's losses on TensorFlow and PyTorch take no other integers.
        array = array.astype("int64")
    return keras.ops.convert_to_tensor(array)
