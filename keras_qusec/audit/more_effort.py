"""More steps or restarts still find more."""

from __future__ import annotations

from keras_qusec.attacks import PGD, Attack
from keras_qusec.audit.check import Check, Finding, more_found
from keras_qusec.audit.evidence import Budget, Evidence


class MoreEffort(Check):
    """Has the judged attack converged?"""

    identifier = "more-effort"
    title = "more steps and restarts gain nothing"
    rule = "Fails if, with 95 % confidence, they break more than 2 % of the images in addition"
    explanation = "An attack that gains from more work has not found the worst case."
    source = "Carlini et al. 2019; Tramer et al. 2020"
    remedy = 'Use more steps and restarts, or attacks="standard" and "strong".'
    shows_masking = False

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return {"pgd-more": PGD(steps=budget.steps, restarts=budget.restarts)}

    def judge(self, evidence: Evidence) -> Finding:
        budget = evidence.budget
        by = f"PGD of {budget.steps} steps with {budget.restarts} restarts"
        return more_found(evidence, evidence.found("pgd-more"), by, 0.02, judged_alone=True)
