"""Fig. 11: targeted JSMA."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import defended
from keras_qusec.reproduction.results import Row

# A radius beside the paper's attack, which has none.
_PIXELS = 20.0


class Figure11(Figure):
    """JSMA with the paper's settings, towards the next class, and the worst case in pixels."""

    name = "figure-11"
    title = "targeted JSMA"
    claim = "QuSecNets help little against noise at few pixels."
    axis = "pixels"
    evidence = "JSMA, sigma-zero and behind a quantizer its own attack, white-box and adaptive"
    remarks = (
        "Settings of CleverHans' tutorial: at most 10 % of the pixels change, to the end of their "
        "range. The target is the class after the true one; an image is robust that is not driven "
        "there. JSMA follows the network's own gradient: what is left at any distance only says "
        "that it failed. What counts is the worst case within a radius."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in defended().items():
            report = experiment.attacked(
                f"figure-11-{name}", experiment.model(name, make),
                {"jsma-paper": "jsma-paper", "sigma-zero": "sigma-zero"},
                epsilons={"l0": [_PIXELS]}, images=min(10 if experiment.quick else 100,
                                                       experiment.images), targets="next",
            )  # fmt: skip
            rows += [
                experiment.at_any_distance(report, series, "jsma-paper", "JSMA, targeted"),
                experiment.row(
                    report, series, "jsma-paper", value=_PIXELS,
                    measure="JSMA, targeted, within 20 pixels", norm="l0",
                ),
            ]  # fmt: skip
        return rows
