"""What a classifier's outputs are: logits or probabilities, and how its logits are reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any


def outputs_probabilities(model: keras.Model) -> bool:
    """True if a model ends in a softmax or sigmoid, so that its outputs are no logits."""
    last = last_layer(model)
    if isinstance(last, keras.layers.Softmax):
        return True
    activation = getattr(last, "activation", None)
    return activation in (keras.activations.softmax, keras.activations.sigmoid)


def last_layer(model: keras.Model) -> keras.layers.Layer | None:
    """The layer that gives a model its outputs, also inside nested models."""
    layers = getattr(model, "layers", [])
    last = layers[-1] if layers else None
    outputs = getattr(model, "outputs", None)
    try:
        # An operation after the last layer, such as a sum of two, makes the output itself.
        if outputs and last is not None and last.output is not outputs[0]:
            return None
    except (AttributeError, ValueError):
        pass  # not a layer of a graph
    return last_layer(last) if isinstance(last, keras.Model) else last


def logits_function(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """A function from images to a classifier's logits, in inference mode, as float32.

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
        # Losses of attacks need more than half precision.
        return ops.cast(network(images, training=False), "float32")

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


def log_probabilities(outputs: Tensor, probabilities: bool) -> Tensor:
    """Log-probabilities from outputs that a model has already given, as float32.

    Training has no others, since the outputs come from the model's own training step; so the
    logarithm of probabilities is taken here, where `logits_function` leaves the softmax out.
    """
    outputs = ops.cast(outputs, "float32")
    if probabilities:
        outputs = ops.log(ops.maximum(outputs, 1e-30))
    return ops.log_softmax(outputs, axis=-1)


def check_logits(logits: np.ndarray, name: str) -> None:
    """Raise a ValueError for outputs on clean images that are no logits of a classifier."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"Expected a classifier with outputs (n, classes), two classes or more. Received: "
            f"{name!r} with outputs {logits.shape}. A single sigmoid output can be made two "
            "logits: [0, logit]."
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            f"Expected finite outputs. Received: {name!r}, which gives NaN or infinity on clean "
            "images. Check its training."
        )


def check_logits_reached(logits: np.ndarray, outputs: np.ndarray, name: str) -> None:
    """Raise a ValueError if what is attacked is not the logits that make a model's outputs.

    Args:
        logits: what is attacked, on some images, ``(n, classes)``.
        outputs: what the model itself gives on them.
        name: name of the model.
    """
    logits, outputs = logits.astype("float64"), outputs.astype("float64")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    sigmoid = 0.5 + 0.5 * np.tanh(logits / 2)
    same = any(np.allclose(outputs, e, atol=1e-2) for e in (logits, shares, sigmoid))
    # A single row of logits may happen to be shares, but not all rows.
    probabilities = (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4)
    if probabilities or not same:
        raise ValueError(
            f"Expected logits, or a softmax as the last layer, which is left out. Received: "
            f"{name!r}, whose outputs are probabilities made in another way. Their gradients "
            "vanish; make a model that ends before them, and evaluate that."
        )
