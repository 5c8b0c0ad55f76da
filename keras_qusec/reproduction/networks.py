"""The networks of the paper's figures: the same CNN behind each defence, trained or not on FGSM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.training import AdversarialTraining

Make = Callable[[Training], keras.Model]


def undefended(training: Training) -> keras.Model:
    """The CNN alone."""
    return training.fitted(training.network())


def constant(levels: int) -> Make:
    """The CNN behind constant quantization, z = 50."""
    return lambda training: training.fitted(training.network(QuSecQuantization(levels)))


def trainable(levels: int = 2, hardness: float = 5.0) -> Make:
    """The CNN behind variable quantization, thresholds for each pixel."""

    def make(training: Training) -> keras.Model:
        layer = TrainableQuSecQuantization(levels, hardness=hardness)
        return training.fitted(training.network(layer))

    return make


def fgsm_training(training: Training, **settings: Any) -> AdversarialTraining:
    """FGSM on half of each batch."""
    return AdversarialTraining(
        "fgsm", epsilon=training.epsilon, ratio=0.5, seed=training.seed, **settings
    )


def on_fgsm(front: Callable[[], Any] | None) -> Make:
    """The CNN behind a layer, trained on FGSM examples."""

    def make(training: Training) -> keras.Model:
        layer = None if front is None else front()
        return training.fitted(training.network(layer), fgsm_training(training))

    return make


def zero_gradients(model: keras.Model, x: Any, y: Any) -> float:
    """The share of the values of the input gradient that are exactly zero."""
    attacked = AttackedModel(model)
    gradients = attacked.ascent(x, Goal(y.astype("int64")))
    return float((gradients == 0).mean())


def source(laboratory: Laboratory) -> keras.Model:
    """The network that black-box examples are made on: undefended, of another seed."""
    return laboratory.model("source", undefended, seed=laboratory.seed + 1000)
