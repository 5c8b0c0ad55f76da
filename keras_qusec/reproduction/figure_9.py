"""Fig. 9: FGSM, white- and black-box, with and without adversarial training, every defence."""

from __future__ import annotations

from keras_qusec.comparison import contenders
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import (
    Make,
    defended,
    on_fgsm,
    source,
)
from keras_qusec.reproduction.results import Row

# On MNIST at 0.3, white-box.
_PAPER = {"none": 0.0148, "CQ": 0.9751, "BReLU + GDA": 0.94}
_OTHERS = {
    "feature squeezing": "squeezing", "BReLU + GDA": "brelu-gda", "distillation": "distillation",
    "DQA": "dqa", "APE-GAN": "ape-gan", "Defense-GAN": "defense-gan",
    "thermometer": "thermometer",
}  # fmt: skip


class Figure9(Figure):
    """FGSM accuracy of each defence."""

    name = "figure-9"
    title = "FGSM against each defence, white- and black-box"
    claim = (
        "constant quantization is the best defence against white-box FGSM (1.48 to 97.51 % on "
        "MNIST), variable quantization the best with adversarial training."
    )
    remarks = "BReLU's number is that of its authors, as the paper quotes it."

    def rows(self, laboratory: Laboratory) -> list[Row]:
        networks: dict[str, tuple[str, Make]] = {
            **defended(),
            "none, FGSM training": ("fgsm-none", on_fgsm(None)),
            "CQ, FGSM training": ("fgsm-cq", on_fgsm(lambda: QuSecQuantization(2))),
            "VQ, FGSM training": ("fgsm-vq", on_fgsm(lambda: TrainableQuSecQuantization(2))),
        }
        others = ["BReLU + GDA"] if laboratory.quick else _OTHERS
        networks |= {n: (f"other-{_OTHERS[n]}", contenders.get(_OTHERS[n]).make) for n in others}
        origin, rows = source(laboratory), []
        for series, (name, make) in networks.items():
            report = laboratory.attacked(
                f"figure-9-{name}", laboratory.model(name, make),
                threat_models=["white-box", "adaptive", "black-box"],
                source_model={"undefended": origin},
            )  # fmt: skip
            paper = None if laboratory.is_colour else _PAPER.get(series)
            rows += [
                laboratory.row(report, series, "fgsm", measure="FGSM, white-box", paper=paper),
                laboratory.row(
                    report, series, "fgsm", measure="FGSM, black-box", threat_model="black-box"
                ),
            ]
        return rows
