"""Fig. 5: FGSM adversarial training by epoch, plain CNN against variable quantization."""

from __future__ import annotations

from typing import Any

import keras

from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import TrainableQuSecQuantization
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import fgsm_training
from keras_qusec.reproduction.results import Row


class Figure5(Figure):
    """Accuracy on FGSM examples after each epoch of training on them."""

    name = "figure-5"
    title = "accuracy on FGSM examples by epoch of adversarial training"
    claim = "variable quantization highly assists adversarial training."
    axis = "epoch"

    def rows(self, laboratory: Laboratory) -> list[Row]:
        count = laboratory.images
        shown = laboratory.data.x_test[:count], laboratory.data.y_test[:count]
        rows = []
        for series, levels in {"CNN": None, "VQ, n = 2": 2}.items():
            curve: list[float] = []

            def make(training: Training, levels: Any = levels, curve: Any = curve) -> keras.Model:
                callback = fgsm_training(training, validation_data=shown)
                front = None if levels is None else TrainableQuSecQuantization(levels)
                model = training.fitted(training.network(front), callback)
                curve += [float(v) for v in model.history.history["val_adversarial_accuracy"]]
                return model

            name = f"figure-5-{'cnn' if levels is None else 'vq'}"
            model = laboratory.model(name, make)
            accuracies = laboratory.kept(name, curve)
            rows += [
                laboratory.share(series, epoch, "FGSM, white-box", accuracy, count)
                for epoch, accuracy in enumerate(accuracies, start=1)
            ]
            report = laboratory.attacked(name, model, {"standard": "standard"})
            worst = report.robust_accuracy()
            rows[-1] = rows[-1]._replace(worst=worst)
        return rows
