"""Fig. 1: adversarial accuracy on CIFAR-10 without quantization, with two and with three levels."""

from __future__ import annotations

from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import constant, undefended
from keras_qusec.reproduction.results import Row

_PAPER = {"no quantization": 0.0887, "n = 2": 0.2466, "n = 3": 0.196}


class Figure1(Figure):
    """FGSM at 0.1 on CIFAR-10."""

    name = "figure-1"
    title = "accuracy on FGSM examples without quantization, with two and with three levels"
    claim = "quantization raises the accuracy on adversarial images of CIFAR-10, n = 2 most."

    def rows(self, laboratory: Laboratory) -> list[Row]:
        networks = {"no quantization": undefended, "n = 2": constant(2), "n = 3": constant(3)}
        rows = []
        for series, make in networks.items():
            name = series.replace(" ", "").replace("=", "")
            model = laboratory.model(name, make)
            report = laboratory.attacked(f"figure-1-{name}", model, epsilons=[0.1])
            paper = _PAPER[series] if laboratory.is_colour else None
            rows.append(laboratory.row(report, series, "fgsm", value=0.1, paper=paper))
        return rows
