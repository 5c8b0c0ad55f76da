"""Fig. 10: Carlini and Wagner in L2, the paper's weak settings and strong ones."""

from __future__ import annotations

from keras_qusec.report import RobustnessReport
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import Make, defended, source
from keras_qusec.reproduction.results import Row

# White-box; (MNIST, CIFAR-10).
_PAPER = {"none": (0.0, 0.0), "CQ": (0.88, 0.54)}
_BLACK_BOX = {"CQ": (0.90, 0.50)}
# Radii for the worst case beside it; the paper's attack has none.
L2 = (1.0, 2.0)


class Figure10(Figure):
    """CW-L2, untargeted and targeted, accuracy at any distance and within L2 radii."""

    name = "figure-10"
    title = "Carlini and Wagner, L2"
    claim = "QuSecNets raise the accuracy under CW-L2 from 0 to 88 % (MNIST) and 54 % (CIFAR-10)."
    axis = "L2 epsilon"
    remarks = (
        "The paper's settings: 100 iterations, one search step, ten source samples if targeted; it "
        "does not say which quantization and which goal its numbers are of. CW follows the "
        "network's own gradient: what is left at any distance only says that the attack failed, "
        "for every network is at 0 there against attacks that do not. What counts is the accuracy "
        "within a radius. Transferred, the closest examples fool others less. Targets: the class "
        "after the true one, of ten images, robust if not driven there; untargeted: 100 images."
    )
    evidence = "both CW and the standard evaluation in L2"

    def rows(self, experiment: Experiment) -> list[Row]:
        colour, rows = experiment.data.is_colour, []
        for series, (name, make) in defended().items():
            for targets in (None, "next"):
                kind = "untargeted" if targets is None else "targeted"
                report = cw_report(experiment, name, make, targets)
                for threat, known in (("white-box", _PAPER), ("black-box", _BLACK_BOX)):
                    for attack in ("cw-paper", "cw"):
                        same = attack == "cw-paper" and targets is None and series in known
                        rows.append(experiment.at_any_distance(
                            report, series, attack, f"{attack}, {kind}, {threat}", threat,
                            known[series][colour] if same else None,
                        ))  # fmt: skip
                if targets is None:
                    rows += [experiment.worst_case(report, series, "l2", r) for r in L2]
        return rows


def cw_report(
    experiment: Experiment, name: str, make: Make, targets: str | None = None
) -> RobustnessReport:
    """CW-L2 with the paper's settings and strong ones, and the standard evaluation in L2.

    Args:
        experiment: that keeps it.
        name: file of the network.
        make: how it is trained.
        targets: None for untargeted, ``"next"`` for the class after the true one.
    """
    strong = ("cw", {"steps": 30, "binary_search_steps": 2}) if experiment.quick else "cw"
    return experiment.attacked(
        f"{name}-cw-{targets or 'untargeted'}", experiment.model(name, make),
        {"cw-paper": "cw-paper", "cw": strong, "standard-l2": "standard-l2"},
        epsilons={"l2": L2}, images=10 if targets else min(100, experiment.images),
        threat_models=["white-box", "adaptive", "black-box"], targets=targets,
        source_model={"undefended": source(experiment)},
    )  # fmt: skip
