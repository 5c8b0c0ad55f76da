"""What a model was trained for, as its loss says: classes, or another task that is refused."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import keras

from keras_qusec.logits import PROBABILITIES, ending_of

# What the names of losses of regressions begin with.
_REGRESSION = (
    "mean_squared", "mean_absolute", "mse", "mae", "mape", "msle", "huber", "log_cosh", "logcosh",
    "poisson", "tweedie",
)  # fmt: skip


def loss_name(model: Any) -> str:
    """The name of the loss that a model was compiled with, in lower case; empty for several.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(loss=keras.losses.MeanSquaredError())
    >>> loss_name(model)
    'mean_squared_error'
    """
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or ""
    return (name or getattr(loss, "__name__", "")).lower()


def saved_loss_name(path: str | os.PathLike) -> str:
    """The same of a model in a .keras file, which need not be compiled for it.

    Args:
        path: of the file.

    Returns:
        The name; empty if the file does not say it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""
    loss = (config.get("compile_config") or {}).get("loss")
    if isinstance(loss, dict):
        # A function has its name there, an object its settings.
        config = loss.get("config") or ""
        loss = config.get("name", "") if isinstance(config, dict) else config
    return loss.lower() if isinstance(loss, str) else ""


def check_classifier(model: keras.Model, name: str, loss: str | None = None) -> None:
    """Raise a ValueError for a model whose loss says that it is no classifier of single classes.

    A single number with the loss of a regression, and several sigmoids of which each is an answer
    of its own (multi-label), have no class that an attack could change.

    Args:
        model: the model.
        name: its name, for the error.
        loss: name of its loss, default that it was compiled with.
    """
    loss = loss_name(model) if loss is None else loss
    outputs = getattr(model, "outputs", None) or []
    width = outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else None
    if width == 1 and loss.startswith(_REGRESSION):
        if ending_of(model).kind == PROBABILITIES:
            return
        raise ValueError(
            f"Expected a classifier. Received: {name!r}, a regression: one output, trained on "
            f"{loss}. It has no classes that an adversarial example could change, and no robust "
            "accuracy. If its sign tells two classes apart, compile it with a loss of classes, "
            "such as keras.losses.BinaryCrossentropy(from_logits=True)."
        )
    if width is not None and width > 1 and loss.startswith("binary"):
        raise ValueError(
            f"Expected a classifier with one class for each image. Received: {name!r}, multi-label:"
            f" {width} outputs, each trained on {loss} as an answer of its own. If exactly one "
            "class is right for each image and the largest output decides, compile it with "
            "keras.losses.CategoricalCrossentropy or SparseCategoricalCrossentropy; it need not "
            "be trained again."
        )
