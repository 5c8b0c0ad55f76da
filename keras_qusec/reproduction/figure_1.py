"""Fig. 1: adversarial accuracy on CIFAR-10 without quantization, with two and with three levels."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import (
    Make,
    constant,
    explained,
    report,
    shown,
    undefended,
)
from keras_qusec.reproduction.results import Row
from keras_qusec.results import Example

_PAPER = {"no quantization": 0.0887, "n = 2": 0.2466, "n = 3": 0.196}
_NETWORKS: dict[str, tuple[str, Make]] = {
    "no quantization": ("noquantization", undefended),
    "n = 2": ("n2", constant(2)),
    "n = 3": ("n3", constant(3)),
}


class Figure1(Figure):
    """FGSM at 0.1 on CIFAR-10."""

    name = "figure-1"
    title = "accuracy on FGSM examples without quantization, with two and with three levels"
    claim = "quantization raises the accuracy on adversarial images of CIFAR-10, n = 2 most."
    remarks = (
        "The paper names no attack, epsilon or threat model for these numbers. It speaks of the "
        "accuracy of a network 'just by introducing the quantization in an attack image', which "
        "we read as black-box: images made on an undefended CNN, here one of another seed. "
        "White-box is beside it, on the log-odds and on the cross-entropy."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in _NETWORKS.items():
            paper = _PAPER[series] if experiment.data.is_colour else None
            attacked = report(experiment, name, make)
            model = experiment.model(name, make)
            rows.append(experiment.share(
                series, 0.0, "clean", attacked.clean_accuracy(), experiment.images
            ))  # fmt: skip
            rows += [
                experiment.row(
                    attacked, series, "fgsm", measure=f"FGSM, {threat}", threat_model=threat,
                    paper=paper,
                )
                for threat in ("black-box", "white-box")
            ]  # fmt: skip
            rows.append(experiment.row(
                explained(experiment, name, make), series, "cross-entropy",
                measure="FGSM on the cross-entropy, white-box", paper=paper,
            ))  # fmt: skip
            rows += experiment.strong(name, model, series, attacked)
        return rows

    def gallery(self, experiment: Experiment) -> list[Example]:
        return shown({s: report(experiment, *network) for s, network in _NETWORKS.items()})
