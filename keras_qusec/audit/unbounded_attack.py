"""An attack without bounds that fails."""

from __future__ import annotations

from keras_qusec.attacks import Attack
from keras_qusec.audit.check import Check, Finding, passed_or_raised
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.audit.rising_accuracy import standing_at, sweep


class UnboundedAttack(Check):
    """Does the attack break every image when all images are allowed?"""

    identifier = "unbounded"
    question = "an unbounded attack does not reach 100 %"
    rule = "Raised if, with 95 % confidence, more than 0.5 % of the images stand"
    explanation = "Within the whole value range lie images of every class."
    source = "Athalye et al. 2018; Carlini et al. 2019; Pintor et al. 2022, indicator 6"
    remedy = "The attack fails; do not use its figures at smaller radii. Try surrogate gradients."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return sweep(epsilon, width)

    def judge(self, evidence: Evidence) -> Finding:
        standing = standing_at(evidence, evidence.width)
        return passed_or_raised(
            standing.low > 0.005,
            f"{standing.words}, the whole value range",
            numbers={"standing": standing.share},
            images=tuple(standing.images.tolist()),
        )
