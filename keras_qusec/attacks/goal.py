"""What an adversarial example must reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_qusec.attacks.objective import Objective

# What is predicted for an image that a classifier rejects: no class.
REJECTED = -1
# What is predicted for an image on which a classifier gives NaN: no class, and so a wrong one.
NO_CLASS = -2


class Goal(NamedTuple):
    """To leave the label, or to reach a target class; never to be rejected.

    Attributes:
        labels: true classes, ``(n,)`` int64.
        targets: classes to be reached, ``(n,)`` int64, or None for untargeted attacks.
        transfer: the examples are for another model, so an attack goes on with all its steps
            also when the model at hand is fooled.
    """

    labels: np.ndarray
    targets: np.ndarray | None = None
    transfer: bool = False

    @property
    def classes(self) -> np.ndarray:
        """The classes an attack moves away from, or towards."""
        return self.labels if self.targets is None else self.targets

    @property
    def targeted(self) -> bool:
        """Whether a class is to be reached."""
        return self.targets is not None

    def objective(self, loss: str = "log-odds", *, aimed: bool = False) -> Objective:
        """What an attack raises; `aimed` at a class of its choice, also where none is asked for."""
        return Objective(loss, aimed or self.targeted, self.targeted)

    def reached(self, predictions: np.ndarray) -> np.ndarray:
        """Which predictions are the attack's success, ``(n,)`` bool."""
        if self.targets is not None:
            return predictions == self.targets
        return (predictions != self.labels) & (predictions != REJECTED)

    def take(self, rows: np.ndarray) -> Goal:
        """The goal of some of the images."""
        targets = None if self.targets is None else self.targets[rows]
        return self._replace(labels=self.labels[rows], targets=targets)
