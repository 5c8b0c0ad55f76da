"""What a figure of the paper is, to be measured again."""

from __future__ import annotations

from typing import Any

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.results import Row
from keras_qusec.results import Example


class Figure:
    """A table or figure of the paper.

    A subclass sets the attributes and writes `rows`.

    Attributes:
        name: what users call it.
        title: what it shows.
        claim: what the paper concludes from it.
        axis: what the numbers are measured at.
        remarks: what must be known to compare with the paper.
        evidence: what the worst case is over.
    """

    name: str
    title: str
    claim: str
    axis: str = "epsilon"
    remarks: str = ""
    evidence: str = "FGSM and the standard evaluation"

    def rows(self, experiment: Experiment) -> list[Row]:
        """Train, attack and measure."""
        raise NotImplementedError(f"{type(self).__name__} needs a method rows.")

    def settings(self, experiment: Experiment) -> dict[str, Any]:
        """How the networks were trained, for the reader."""
        return {"epochs": experiment.epochs}

    def gallery(self, experiment: Experiment) -> list[Example]:
        """Adversarial examples to be shown; called after `rows`, whose attacks are kept."""
        return []

    def logs(self, experiment: Experiment) -> dict[str, dict[str, list[float]]]:
        """Training logs to be shown, by series and quantity; called after `rows`."""
        return {}
