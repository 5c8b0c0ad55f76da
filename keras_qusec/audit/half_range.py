"""More than chance at half of the value range."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import Attack
from keras_qusec.audit.check import Check, Finding, passed_or_raised
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.audit.rising_accuracy import sweep
from keras_qusec.report.figures import wilson_interval


class HalfRange(Check):
    """Is nothing left where every image can be made grey?"""

    identifier = "half-range"
    question = "epsilon of half the value range leaves more than chance"
    rule = "Raised if, with 95 % confidence, more than one in the number of classes stands"
    explanation = "At that radius all images can be made the same one, which has one class."
    source = "Carlini et al. 2019"
    remedy = "The attack fails; do not use its figures at smaller radii. Try surrogate gradients."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return sweep(epsilon, width)

    def judge(self, evidence: Evidence) -> Finding:
        radius = evidence.width / 2
        standing = evidence.correct & ~evidence.found(f"pgd at {radius:g}", radius)
        count, n = int(standing.sum()), len(evidence.rows)
        low, high = wilson_interval(count, n)
        _, frequent = np.unique(evidence.labels[evidence.rows], return_counts=True)
        # A grey image may have the most frequent class.
        chance = float(frequent.max() / n)
        return passed_or_raised(
            low > chance,
            f"{count} of {n} images ({100 * low:.1f}-{100 * high:.1f} %) stand against PGD with "
            f"epsilon {radius:g}; the most frequent class has {100 * chance:.1f} %",
            numbers={"standing": count / n, "chance": chance},
            images=tuple(np.flatnonzero(standing).tolist()),
        )
