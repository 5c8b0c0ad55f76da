"""An attack without bounds that fails."""

from __future__ import annotations

from keras_qusec.attacks import Attack
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.audit.rising_accuracy import sweep, unbroken_at


class UnboundedAttack(Check):
    """Does the attack break every image when all images are allowed?"""

    identifier = "unbounded"
    title = "an unbounded attack breaks every image"
    rule = "Fails if, with 95 % confidence, more than 0.5 % of the images stand"
    explanation = "Within the whole value range lie images of every class."
    source = "Athalye et al. 2018; Carlini et al. 2019; Pintor et al. 2022, indicator 6"
    remedy = "The attack fails; do not use its figures at smaller radii. Try surrogate gradients."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return sweep(epsilon, width)

    def judge(self, evidence: Evidence) -> Finding:
        unbroken = unbroken_at(evidence, evidence.width)
        return passed_or_failed(
            unbroken.low > 0.005,
            f"{unbroken.words}, the whole value range",
            numbers={"unbroken": unbroken.share},
            images=tuple(unbroken.images.tolist()),
        )
