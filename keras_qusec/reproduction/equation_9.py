"""Eq. 9: how the hardness z of variable quantization lets thresholds train."""

from __future__ import annotations

import keras
import numpy as np

from keras_qusec.defenses import find_quantizers
from keras_qusec.quantization import equal_thresholds
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import input_gradients, trainable
from keras_qusec.reproduction.results import Row

_HARDNESSES = (1.0, 5.0, 20.0, 40.0, 100.0)


class Equation9(Figure):
    """Movement of thresholds, accuracies and gradients by z."""

    name = "equation-9"
    title = "training of variable quantization by hardness z"
    claim = "z between 5 and 40 trains; larger values make a constant of it and training halts."
    axis = "z"
    remarks = (
        "Adam on the cross-entropy, whose steps hardly depend on the size of a gradient; the paper "
        "derives gradient descent on the squared error."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        hardnesses = (1.0, 5.0, 100.0) if experiment.quick else _HARDNESSES
        rows = []
        for z in hardnesses:
            model = experiment.model("vq" if z == 5 else f"vq-z{z:g}", trainable(hardness=z))
            moved = _movement(model)
            size = float(np.abs(input_gradients(model, experiment)).mean())
            report = experiment.attacked(f"equation-9-z{z:g}", model)
            clean = report.clean_accuracy()
            rows += [
                experiment.number("VQ, n = 2", z, "thresholds moved by", moved),
                experiment.number("VQ, n = 2", z, "mean gradient", size),
                experiment.share("VQ, n = 2", z, "clean", clean, experiment.images),
                experiment.row(report, "VQ, n = 2", "fgsm", measure="FGSM, white-box")._replace(
                    value=z
                ),
            ]
        return rows


def _movement(model: keras.Model) -> float:
    """By how much the thresholds of a model moved in training, on average."""
    (layer,) = find_quantizers(model)
    start = equal_thresholds(layer.levels, layer.value_range)
    start = np.reshape(start, (-1, *[1] * (layer.thresholds.ndim - 1)))
    return float(np.abs(layer.thresholds - start).mean())
