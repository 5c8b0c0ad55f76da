"""Fig. 5: FGSM adversarial training by epoch, plain CNN against variable quantization."""

from __future__ import annotations

from typing import Any

import keras

from keras_qusec.comparison.contenders import Training, fgsm_callback
from keras_qusec.defenses import TrainableQuSecQuantization
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.results import Row


class Figure5(Figure):
    """Accuracy on FGSM examples after each epoch of training on them."""

    name = "figure-5"
    title = "accuracy on FGSM examples by epoch of adversarial training"
    claim = "variable quantization highly assists adversarial training."
    axis = "epoch"

    def rows(self, laboratory: Laboratory) -> list[Row]:
        rows = []
        for series, levels in {"CNN": None, "VQ, n = 2": 2}.items():
            curve: list[float] = []

            def make(training: Training, levels: Any = levels, curve: Any = curve) -> keras.Model:
                callback = fgsm_callback(training, validation_data=laboratory.test())
                front = None if levels is None else TrainableQuSecQuantization(levels)
                model = training.fitted(training.network(front), callback)
                curve += [float(v) for v in model.history.history["val_adversarial_accuracy"]]
                return model

            name = f"figure-5-{'cnn' if levels is None else 'vq'}"
            model = laboratory.model(name, make)
            accuracies = laboratory.kept(name, curve)
            rows += [
                laboratory.share(series, epoch, "FGSM, white-box", accuracy, laboratory.images)
                for epoch, accuracy in enumerate(accuracies, start=1)
            ]
            report = laboratory.attacked(name, model, {"standard": "standard"})
            rows[-1] = rows[-1]._replace(worst=report.robust_accuracy())
        return rows
