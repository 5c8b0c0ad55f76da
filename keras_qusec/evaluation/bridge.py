"""A Keras model as a Foolbox model, compiled, on TensorFlow, JAX and PyTorch."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np


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


def foolbox_model(model: keras.Model, value_range: tuple[float, float] = (0.0, 1.0)) -> Any:
    """Wrap a Keras model that returns logits for Foolbox's attacks.

    The model runs in inference mode. It is traced at its first use, so surrogate gradients
    must be set before (`keras_qusec.layers.surrogate_gradients`), and a model whose weights
    change must be wrapped again.

    Args:
        model: built Keras model, images ``(n, height, width, channels)`` to logits ``(n, k)``.
        value_range: smallest and largest pixel value an attack may use.

    Returns:
        A `foolbox.models.Model` of the current Keras backend.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.

    Example:
    >>> import keras
    >>> from keras_qusec.evaluation.bridge import foolbox_model
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    >>> foolbox_model(model).bounds
    Bounds(lower=0.0, upper=1.0)
    """
    foolbox = import_foolbox()
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        forward = tf.function(lambda images: model(images, training=False))
        return foolbox.TensorFlowModel(forward, bounds=value_range)
    if backend == "jax":
        import jax

        trainable = [variable.value for variable in model.trainable_variables]
        state = [variable.value for variable in model.non_trainable_variables]

        def predict(images: Any) -> Any:
            return model.stateless_call(trainable, state, images, training=False)[0]

        return foolbox.JAXModel(jax.jit(predict), bounds=value_range, data_format="channels_last")
    model.eval()
    wrapped = foolbox.PyTorchModel(model, bounds=value_range)
    wrapped.data_format = "channels_last"
    return wrapped


def to_tensor(array: np.ndarray) -> Any:
    """A NumPy array as a tensor of the current backend, labels as int64 where it matters."""
    if np.issubdtype(array.dtype, np.integer):
        # Foolbox's losses on TensorFlow and PyTorch take no other integers.
        array = array.astype("int64")
    return keras.ops.convert_to_tensor(array)
