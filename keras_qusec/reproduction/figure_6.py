"""Fig. 6: adversarial examples for QuSecNets and for DQA, and what their gradients are."""

from __future__ import annotations

from keras_qusec.evaluation.results import Example
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import (
    Make,
    constant,
    dqa,
    input_gradients,
    report,
    shown,
    trainable,
    undefended,
)
from keras_qusec.reproduction.results import Row

_NETWORKS: dict[str, tuple[str, Make]] = {
    "CNN": ("noquantization", undefended),
    "CQ, n = 2": ("n2", constant(2)),
    "VQ, n = 2": ("vq", trainable()),
    "DQA": ("other-dqa", dqa),
}


class Figure6(Figure):
    """The share of zero gradients, and FGSM accuracy, of each quantization."""

    name = "figure-6"
    title = "zero gradients and FGSM accuracy of QuSecNets and DQA"
    claim = "the signum function of DQA masks the gradient; the adversary finds no examples."

    def rows(self, laboratory: Laboratory) -> list[Row]:
        rows = []
        for series, (name, make) in _NETWORKS.items():
            model = laboratory.model(name, make)
            zeros = float((input_gradients(model, laboratory) == 0).mean())
            rows.append(laboratory.number(series, laboratory.epsilon, "zero gradients", zeros))
            attacked = report(laboratory, name, make)
            rows.append(laboratory.row(attacked, series, "fgsm", measure="FGSM, white-box"))
        return rows

    def gallery(self, laboratory: Laboratory) -> list[Example]:
        return shown({s: report(laboratory, *network) for s, network in _NETWORKS.items()})
