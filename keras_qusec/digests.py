"""Hashes by which models and data are told apart."""

from __future__ import annotations

import hashlib
import json

import keras
import numpy as np

from keras_qusec.sublayers import inside


def digest(*parts: bytes) -> str:
    """A hash of some bytes, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:16]


def model_digest(model: keras.Model) -> str:
    """A hash of a model's classes, settings and weights, of all layers at any depth.

    The names of layers are not in it, which Keras numbers, nor what a class does beyond its
    settings; an evaluation compares the outputs on its images as well.
    """
    layers = inside(model, keras.layers.Layer)
    config = [
        # The settings of a graph of layers are those of its layers, and their names.
        type(layer).__qualname__ if isinstance(layer, keras.Model) and layer.layers
        else settings_of(layer, without="name")
        for layer in layers
    ]  # fmt: skip
    weights = [np.ascontiguousarray(weight) for weight in model.get_weights()]
    return digest(
        *(part.encode() for part in config),
        *(f"{w.dtype}{w.shape}".encode() + w.tobytes() for w in weights),
    )


def settings_of(layer: keras.layers.Layer, *, without: str = "") -> str:
    """A layer's class and configuration in words, all settings but one."""
    name = type(layer).__qualname__
    try:
        config = {key: value for key, value in layer.get_config().items() if key != without}
        return name + json.dumps(config, sort_keys=True, default=str)
    except Exception:  # noqa: BLE001  layers without a configuration still have weights
        return name
