"""The networks of the paper's figures: the same CNN behind each defence, trained or not on FGSM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.comparison import contenders
from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.reproduction.laboratory import Laboratory

Make = Callable[[Training], keras.Model]


# The CNN alone, and with the activation of DQA.
undefended: Make = contenders.get("undefended").make
dqa: Make = contenders.get("dqa").make


def constant(levels: int) -> Make:
    """The CNN behind constant quantization, z = 50."""
    return lambda training: training.fitted(training.network(QuSecQuantization(levels)))


def trainable(levels: int = 2, hardness: float = 5.0) -> Make:
    """The CNN behind variable quantization, thresholds for each pixel."""

    def make(training: Training) -> keras.Model:
        layer = TrainableQuSecQuantization(levels, hardness=hardness)
        return training.fitted(training.network(layer))

    return make


def defended() -> dict[str, tuple[str, Make]]:
    """No defence, constant and variable quantization: by name, the file of the model and how."""
    return {
        "none": ("noquantization", undefended),
        "CQ": ("n2", constant(2)),
        "VQ": ("vq", trainable()),
    }


def on_fgsm(front: Callable[[], Any] | None) -> Make:
    """The CNN behind a layer, trained on FGSM examples."""

    def make(training: Training) -> keras.Model:
        layer = None if front is None else front()
        return training.fitted(training.network(layer), contenders.fgsm_callback(training))

    return make


def input_gradients(model: keras.Model, laboratory: Laboratory) -> np.ndarray:
    """The gradients that attacks climb at the test images, ``(n, ...)``."""
    x, y = laboratory.test()
    return AttackedModel(model).ascent(x, Goal(y))


def source(laboratory: Laboratory) -> keras.Model:
    """The network that black-box examples are made on: undefended, of another seed."""
    return laboratory.model("source", undefended, seed=laboratory.seed + 1000)
