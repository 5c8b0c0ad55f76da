"""The abstract: by how much quantization raises the accuracy on adversarial images."""

from __future__ import annotations

import math

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.figure_10 import L2, cw_report
from keras_qusec.reproduction.networks import defended, report
from keras_qusec.reproduction.results import Row


class Abstract(Figure):
    """Gains of CQ and VQ over no defence, under the paper's attacks and in the worst case."""

    name = "abstract"
    title = "gain in accuracy on adversarial images over no defence"
    claim = (
        "quantization raises the accuracy on adversarial images by 50 to 96 points on MNIST and "
        "by 10 to 50 on CIFAR-10."
    )
    remarks = (
        "In points, with the intervals of differences of two shares. Black-box, the network "
        "without defence is attacked by examples of another one as well. CW has no radius, and in "
        "the worst case at any distance every network is at 0: the gains that count are those in "
        "the worst case within a radius. "
        "Where the undefended network keeps much, as under transferred CW, little can be gained."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        reports = {series: report(experiment, *network) for series, network in defended().items()}
        cw = {series: cw_report(experiment, *network) for series, network in defended().items()}
        rows = []
        for series in ("CQ", "VQ"):
            for threat in ("white-box", "black-box"):
                fgsm, none = (
                    experiment.row(
                        reports[name], name, "fgsm", measure=f"FGSM, {threat}", threat_model=threat
                    )
                    for name in (series, "none")
                )
                rows.append(_gain(fgsm, none))
                weak, none = (
                    experiment.at_any_distance(
                        cw[name], name, "cw-paper", f"CW of the paper, {threat}", threat
                    )
                    for name in (series, "none")
                )
                rows.append(_gain(weak, none))
            near, none = (
                experiment.worst_case(reports[name], name, "linf", experiment.epsilon)
                for name in (series, "none")
            )
            rows.append(_gain(near, none)._replace(measure="worst case within L-infinity epsilon"))
            for radius in L2:
                near, none = (
                    experiment.worst_case(cw[name], name, "l2", radius) for name in (series, "none")
                )
                rows.append(_gain(near, none)._replace(measure="worst case within L2 epsilon"))
        return rows


def _gain(defended: Row, undefended: Row) -> Row:
    """The difference of two shares, with Newcombe's interval from the intervals of both."""
    gain = defended.ours - undefended.ours
    (below, above), (other_below, other_above) = (
        (row.ours - (row.low or 0.0), (row.high or 0.0) - row.ours)
        for row in (defended, undefended)
    )
    return defended._replace(
        ours=gain, low=gain - math.hypot(below, other_above),
        high=gain + math.hypot(above, other_below), paper=None, worst=None,
    )  # fmt: skip
