"""More than chance at half of the value range."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import Attack
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.audit.rising_accuracy import sweep, unbroken_at


class HalfRange(Check):
    """Is nothing left where every image can be made grey?"""

    identifier = "half-range"
    title = "half the value range leaves no more than chance"
    rule = "Fails if, with 95 % confidence, more stands than the share of the most frequent class"
    explanation = "At that radius all images can be made the same one, which has one class."
    source = "Carlini et al. 2019"
    remedy = "The attack fails; do not use its figures at smaller radii. Try surrogate gradients."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return sweep(epsilon, width)

    def judge(self, evidence: Evidence) -> Finding:
        unbroken = unbroken_at(evidence, evidence.width / 2)
        _, frequent = np.unique(evidence.labels[evidence.rows], return_counts=True)
        # A grey image may have the most frequent class.
        chance = float(frequent.max() / len(evidence.rows))
        return passed_or_failed(
            unbroken.low > chance,
            f"{unbroken.words}; the most frequent class has {100 * chance:.1f} %",
            numbers={"unbroken": unbroken.share, "chance": chance},
            images=tuple(unbroken.images.tolist()),
        )
