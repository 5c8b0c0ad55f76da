"""The headline of the paper over several seeds: no defence, and constant quantization."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import defended
from keras_qusec.reproduction.results import Row

# On MNIST at 0.3; those on CIFAR-10 are read as black-box, in figure 1.
_PAPER = {"none": 0.0148, "CQ": 0.9751}


class Headline(Figure):
    """FGSM accuracy with and without CQ; meant for three seeds or more."""

    name = "headline"
    title = "constant quantization against FGSM, over seeds"
    claim = "1.48 to 97.51 % on MNIST, by quantization alone."
    remarks = (
        "Each seed trains a network of its own; the numbers are means, with half their spread. "
        "FGSM follows the log-odds here; `explanations` has it on the cross-entropy."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series in _PAPER:
            name, make = defended()[series]
            model = experiment.model(name, make)
            attacked = experiment.attacked(f"headline-{name}", model)
            rows += [
                experiment.share(
                    series, 0.0, "clean", attacked.clean_accuracy(), experiment.images
                ),
                experiment.row(
                    attacked, series, "fgsm", measure="FGSM, white-box",
                    paper=None if experiment.data.is_colour else _PAPER[series],
                ),
            ]  # fmt: skip
        return rows
