"""Hashes by which models and data are told apart."""

from __future__ import annotations

import hashlib
import json

import keras
import numpy as np


def digest(*parts: bytes) -> str:
    """A hash of some bytes, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:16]


def model_digest(model: keras.Model) -> str:
    """A hash of a model's classes, configurations and weights.

    A subclassed model's own configuration may say nothing, so that of every layer counts.
    """
    config = [_config_of(layer) for layer in [model, *_layers_of(model)]]
    weights = [np.ascontiguousarray(weight) for weight in model.get_weights()]
    return digest(
        *(part.encode() for part in config),
        *(f"{w.dtype}{w.shape}".encode() + w.tobytes() for w in weights),
    )


def _layers_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers inside a layer, at any depth."""
    inside = getattr(layer, "layers", None) or []
    return [deeper for own in inside for deeper in [own, *_layers_of(own)]]


def _config_of(layer: keras.layers.Layer) -> str:
    name = type(layer).__qualname__
    try:
        return name + json.dumps(layer.get_config(), sort_keys=True, default=str)
    except Exception:  # noqa: BLE001  layers without a configuration still have weights
        return name
