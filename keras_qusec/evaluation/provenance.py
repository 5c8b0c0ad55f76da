"""What an evaluation is made of: hashes of models and data, settings, versions."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_qusec.evaluation.attacked import Goal
from keras_qusec.evaluation.methods import Method
from keras_qusec.evaluation.threat_models import Rules
from keras_qusec.version import __version__

# Raised when the same inputs give other results, so that old resume folders are refused.
RESULTS_VERSION = 1


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()[:16]


def digest_of(model: keras.Model) -> str:
    """A hash of a model's classes, configurations and weights.

    A subclassed model's own configuration may say nothing, so that of every layer counts.
    """
    config = [_config_of(layer) for layer in [model, *_layers_of(model)]]
    weights = [np.ascontiguousarray(weight) for weight in model.get_weights()]
    return _digest(
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


def provenance_of(
    models: Mapping[str, keras.Model],
    sources: Mapping[str, keras.Model],
    digests: Mapping[int, str],
    x: np.ndarray,
    goal: Goal,
    methods: Mapping[str, Method],
    radii: Mapping[str, tuple[float | None, ...]],
    rules: Rules,
    whole: Mapping[str, int],
) -> dict[str, Any]:
    """What the figures are made of: ``"identity"``, and what does not change them."""
    backend = keras.backend.backend()
    packages = ("keras", backend, "foolbox", "numpy")
    aimed = goal.targets
    return {
        "identity": {
            "results version": RESULTS_VERSION,
            "models": {name: digests[id(model)] for name, model in models.items()},
            "sources": {name: digests[id(model)] for name, model in sources.items()},
            "data": _digest(str(x.shape).encode(), x.tobytes(), goal.labels.tobytes()),
            "images": len(x),
            "targets": "untargeted" if aimed is None else _digest(aimed.tobytes()),
            "attacks": {name: repr(method) for name, method in methods.items()},
            "radii": {name: list(values) for name, values in radii.items()},
            "threat models": list(rules.threat_models),
            "surrogate hardnesses": list(rules.hardnesses),
            "value range": list(rules.value_range),
            "batch size": whole["batch_size"],
            "seed": whole["seed"],
            "backend": backend,
            "versions": {
                "keras-qusec": __version__,
                **{package: importlib.import_module(package).__version__ for package in packages},
            },
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
