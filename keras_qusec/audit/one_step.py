"""One step finds what many steps do not."""

from __future__ import annotations

from keras_qusec.attacks import FGSM, Attack
from keras_qusec.audit.check import Check, Finding, more_found
from keras_qusec.audit.evidence import Budget, Evidence


class OneStep(Check):
    """Is the attack of many steps at least as strong as that of one?"""

    identifier = "one-step"
    title = "one step finds no more than many"
    rule = "Fails if, with 95 % confidence, it breaks more than 0.5 % of the images in addition"
    explanation = "Many steps lose to one only where the gradient misleads after the first."
    source = "Athalye et al. 2018; Carlini et al. 2019"
    remedy = "Look at the loss along the path; use surrogate gradients or attacks without them."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return {"fgsm": FGSM()}

    def judge(self, evidence: Evidence) -> Finding:
        return more_found(evidence, evidence.found("fgsm"), "FGSM", 0.005)
