"""Fig. 11: targeted JSMA."""

from __future__ import annotations

from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import defended
from keras_qusec.reproduction.results import Row


class Figure11(Figure):
    """JSMA with the paper's settings, towards the next class, and the worst case in pixels."""

    name = "figure-11"
    title = "targeted JSMA"
    claim = "QuSecNets help little against noise at few pixels."
    axis = "pixels"

    def rows(self, laboratory: Laboratory) -> list[Row]:
        pixels, rows = 20.0, []
        for series, (name, make) in defended().items():
            report = laboratory.attacked(
                f"figure-11-{name}", laboratory.model(name, make),
                {"jsma-paper": "jsma-paper", "sigma-zero": "sigma-zero"},
                epsilons={"l0": [pixels]}, images=min(10 if laboratory.quick else 100,
                                                      laboratory.images), targets="next",
            )  # fmt: skip
            rows += [
                laboratory.at_any_distance(report, series, "jsma-paper", "JSMA, targeted"),
                laboratory.worst_case(report, series, "l0", pixels),
            ]
        return rows
