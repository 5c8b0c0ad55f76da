"""Fig. 9: FGSM, white- and black-box, with and without adversarial training, every defence."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import every_defense, of_the_paper, report, trained_as
from keras_qusec.reproduction.results import Row

# On MNIST at 0.3, white-box.
_PAPER = {"none": 0.0148, "CQ": 0.9751, "BReLU + GDA": 0.94}


class Figure9(Figure):
    """FGSM accuracy of each defence."""

    name = "figure-9"
    title = "FGSM against each defence, white- and black-box"
    claim = (
        "constant quantization is the best defence against white-box FGSM (1.48 to 97.51 % on "
        "MNIST), variable quantization the best with adversarial training."
    )
    remarks = (
        "BReLU's number is that of its authors, as the paper quotes it. Feature squeezing is the "
        "detector of its authors: an adversarial example that it rejects does not count. "
        "Defense-GAN is left out: it would train for days. The worst case is the same for "
        "white-box and black-box: over all attacks. Where examples of another "
        "network do better than a network's own gradient, that gradient is masked or trained away."
    )

    def settings(self, experiment: Experiment) -> dict[str, str]:
        return trained_as(experiment)

    def rows(self, experiment: Experiment) -> list[Row]:
        own, rows = of_the_paper(), []
        for series, (name, make) in every_defense(experiment).items():
            attacked = report(experiment, name, make)
            paper = None if experiment.data.is_colour else _PAPER.get(series)
            white = experiment.row(attacked, series, "fgsm", measure="FGSM, white-box", paper=paper)
            black = experiment.row(
                attacked, series, "fgsm", measure="FGSM, black-box", threat_model="black-box"
            )
            rows += [white, black]
            if series in own:
                rows += experiment.strong(name, experiment.model(name, make), series, attacked)
        return rows
