"""What users give to an evaluation, checked, in the form that the rest wants."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks.gradient_attacks import check_inside
from keras_qusec.evaluation.methods import Method
from keras_qusec.evaluation.norms import NORMS
from keras_qusec.evaluation.threat_models import THREAT_MODELS, Rules
from keras_qusec.quantization import check_hardness, check_images_dtype, check_value_range

TARGET_RULES = ("next", "random", "second", "least-likely")


def models_of(model: Any, name: str) -> dict[str, keras.Model]:
    """Built Keras models by name; `name` is the argument's, for errors."""
    models = dict(model) if isinstance(model, Mapping) else {getattr(model, "name", ""): model}
    if not models:
        raise ValueError(f"Expected {name} to be a model or several. Received: none.")
    for key, value in models.items():
        if not isinstance(value, keras.Model):
            raise ValueError(
                f"Expected {name} to be a Keras model, or a dictionary of models by name. "
                f"Received: {value!r} for {key!r}. Load a file with "
                "keras.saving.load_model(path)."
            )
        if not value.built:
            raise ValueError(
                f"Expected {name} to be built. Received: {key!r}, which has no weights yet. "
                "Train it, or start it with keras.Input(shape)."
            )
        if len(getattr(value, "outputs", None) or [0]) > 1:
            raise ValueError(
                f"Expected {name} to have one output. Received: {key!r} with "
                f"{len(value.outputs)}. Make a model of the classifier alone: "
                "keras.Model(model.inputs, model.outputs[0])."
            )
    return {str(key): value for key, value in models.items()}


def rules_of(threat_models: Any, hardnesses: Any, value_range: tuple[float, float]) -> Rules:
    """Threat models in a fixed order, hardnesses and value range."""
    listed = [threat_models] if isinstance(threat_models, str) else list(threat_models)
    unknown = [name for name in listed if name not in THREAT_MODELS]
    if unknown or not listed or len(set(listed)) < len(listed):
        raise ValueError(
            f"Expected threat_models to be some of {', '.join(THREAT_MODELS)}, each once. "
            f"Received: {threat_models!r}."
        )
    ordered = tuple(name for name in THREAT_MODELS if name in listed)
    softer = tuple(check_hardness(value, "surrogate_hardnesses") for value in hardnesses)
    if "adaptive" in ordered and not softer:
        raise ValueError(
            "Expected surrogate_hardnesses for the adaptive threat model. Received: none. "
            "The default is (3.0, 10.0)."
        )
    return Rules(ordered, softer, check_value_range(value_range))


def grid_of(epsilons: Any) -> dict[str, tuple[float, ...]]:
    """Radii by norm."""
    grid = dict(epsilons) if isinstance(epsilons, Mapping) else {"linf": epsilons}
    if not grid:
        raise ValueError('Expected epsilons of at least one norm. Example: {"linf": [0.1, 0.3]}.')
    checked = {}
    for norm, values in grid.items():
        if norm not in NORMS:
            raise ValueError(f"Expected epsilons by norm, one of {NORMS}. Received: {norm!r}.")
        radii = [values] if isinstance(values, numbers.Real) else list(values)
        real = all(isinstance(value, numbers.Real) for value in radii)
        rising = [0.0, *map(float, radii)] if real else []
        if len(rising) < 2 or not all(a < b < math.inf for a, b in itertools.pairwise(rising)):
            raise ValueError(
                "Expected epsilons above 0 in rising order, each once. "
                f"Received: {values!r}. Accuracy on clean images is reported without asking."
            )
        checked[norm] = tuple(rising[1:])
    return checked


def radii_of(
    name: str, method: Method, grid: Mapping[str, tuple[float, ...]], x: Any, rules: Rules
) -> tuple[float | None, ...]:
    """The radii at which an attack is run; None for as close as can be."""
    if method.minimizes:
        return (None,)
    if method.norm in grid:
        return grid[method.norm]
    if method.ladder:
        low, high = rules.value_range
        largest = (high - low) * math.sqrt(math.prod(np.shape(x)[1:]))
        return tuple(share * largest for share in method.ladder)
    raise ValueError(
        f"Expected epsilons for the norm {method.norm!r} of the attack {name!r}. Received: "
        f"epsilons for {', '.join(grid)}. Example: "
        f"epsilons={{{', '.join(f'{k!r}: {list(v)}' for k, v in grid.items())}, "
        f"{method.norm!r}: [0.5, 1.0, 2.0]}}"
    )


def check_sources(
    rules: Rules, methods: Mapping[str, Method], sources: Mapping[str, keras.Model]
) -> None:
    """Raise a ValueError for a black box without a source, or a source without a black box."""
    with_gradients = [name for name, method in methods.items() if method.uses_gradients]
    if "black-box" in rules.threat_models and with_gradients and not sources:
        raise ValueError(
            f"Expected source_model for the black-box threat model: {with_gradients[0]!r} needs "
            "a model to make examples on. Received: none. Give an undefended model of the same "
            "task, or leave out that attack."
        )
    if sources and "black-box" not in rules.threat_models:
        raise ValueError(
            'Expected "black-box" among threat_models, since a source_model is given. Received: '
            f"{rules.threat_models}. Add it, or leave source_model out."
        )


def images_of(
    x: Any, value_range: tuple[float, float], models: Mapping[str, keras.Model]
) -> np.ndarray:
    """Finite float32 images inside the value range that fit the models."""
    x = np.asarray(x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"Expected images (n, ...), at least one. Received: shape {x.shape}. A single image "
            "is image[None]."
        )
    if x.ndim == 4 and keras.config.image_data_format() == "channels_first":
        raise ValueError(
            "Expected channels last, as L0 counts pixels. Received: Keras set to channels_first. "
            'Use keras.config.set_image_data_format("channels_last").'
        )
    check_images_dtype(x)
    x = np.ascontiguousarray(x, dtype="float32")
    if not np.isfinite(x).all():
        raise ValueError(
            f"Expected finite images. Received: {int((~np.isfinite(x)).sum())} values that are "
            "NaN or infinite. Clean the data first."
        )
    check_inside(x, value_range)
    for name, model in models.items():
        wanted = getattr(model, "input_shape", None)
        if not isinstance(wanted, tuple) or len(wanted) == 0 or isinstance(wanted[0], tuple):
            continue
        same = len(wanted) == x.ndim and all(
            w is None or w == h for w, h in zip(wanted[1:], x.shape[1:], strict=True)
        )
        if not same:
            raise ValueError(
                f"Expected images of shape {wanted} for the model {name!r}. Received: {x.shape}. "
                "Greyscale images need a channel axis: x[..., None]."
            )
    return x


def labels_of(y: Any, x: np.ndarray, classes: int) -> np.ndarray:
    """Classes ``(n,)`` int64, also from a column or one-hot rows."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.shape[1] == classes and ((y == 0) | (y == 1)).all():
        if (y.sum(axis=1) != 1).any():
            raise ValueError("Expected one-hot labels with a single one in each row.")
        y = y.argmax(axis=1)
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"Expected {len(x)} labels as integers (n,) or one-hot (n, {classes}). Received: "
            f"shape {y.shape}, dtype {y.dtype}."
        )
    _check_range(y, classes, "labels")
    return y.astype("int64")


def _check_range(y: np.ndarray, classes: int, name: str) -> None:
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"Expected {name} from 0 to {classes - 1}, since the model has {classes} outputs. "
            f"Received: {y.min()} to {y.max()}."
        )


def targets_of(
    targets: Any, labels: np.ndarray, logits: np.ndarray, seed: int
) -> np.ndarray | None:
    """Target classes ``(n,)`` int64, or None."""
    if targets is None:
        return None
    classes = logits.shape[1]
    rows = np.arange(len(labels))
    if isinstance(targets, str):
        wrong = logits.astype("float64")
        if targets == "next":
            return (labels + 1) % classes
        if targets == "random":
            shift = np.random.default_rng(seed).integers(1, classes, len(labels))
            return (labels + shift) % classes
        if targets == "second":
            wrong[rows, labels] = -np.inf
            return wrong.argmax(axis=1)
        if targets == "least-likely":
            wrong[rows, labels] = np.inf
            return wrong.argmin(axis=1)
        raise ValueError(
            f"Expected targets to be one of {', '.join(TARGET_RULES)}, or an array of classes. "
            f"Received: {targets!r}."
        )
    targets = np.asarray(targets)
    if targets.shape != labels.shape or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"Expected {len(labels)} target classes as integers. Received: shape "
            f"{targets.shape}, dtype {targets.dtype}."
        )
    _check_range(targets, classes, "targets")
    if (targets == labels).any():
        raise ValueError(
            "Expected targets that differ from the labels. Received: "
            f"{int((targets == labels).sum())} that are the label itself."
        )
    return targets.astype("int64")


def whole_numbers(**values: Any) -> dict[str, int]:
    """Whole numbers from 1 up; a seed from 0 up."""
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"Expected {name} to be a whole number from {least} up. Received: {value!r}."
            )
    return {name: int(value) for name, value in values.items()}


def check_same_classes(logits: np.ndarray, others: Mapping[str, np.ndarray], name: str) -> None:
    """Raise a ValueError if a source has another number of classes than the models."""
    for other, found in others.items():
        if found.shape[1] != logits.shape[1]:
            raise ValueError(
                f"Expected models of the same classes. Received: {name!r} with "
                f"{logits.shape[1]} and {other!r} with {found.shape[1]}."
            )
