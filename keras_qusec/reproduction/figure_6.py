"""Fig. 6: adversarial examples for QuSecNets and for DQA, and what their gradients are."""

from __future__ import annotations

from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import constant, dqa, input_gradients, trainable, undefended
from keras_qusec.reproduction.results import Row


class Figure6(Figure):
    """The share of zero gradients, and FGSM accuracy, of each quantization."""

    name = "figure-6"
    title = "zero gradients and FGSM accuracy of QuSecNets and DQA"
    claim = "the signum function of DQA masks the gradient; the adversary finds no examples."

    def rows(self, laboratory: Laboratory) -> list[Row]:
        networks = {
            "CNN": ("noquantization", undefended),
            "CQ, n = 2": ("n2", constant(2)),
            "VQ, n = 2": ("vq", trainable()),
            "DQA": ("dqa", dqa),
        }
        rows = []
        for series, (name, make) in networks.items():
            model = laboratory.model(name, make)
            zeros = float((input_gradients(model, laboratory) == 0).mean())
            rows.append(laboratory.number(series, laboratory.epsilon, "zero gradients", zeros))
            report = laboratory.attacked(f"figure-6-{name}", model)
            rows.append(laboratory.row(report, series, "fgsm", measure="FGSM, white-box"))
        return rows
