"""An attack without gradients that finds what gradients missed."""

from __future__ import annotations

from keras_qusec.attacks import Attack, Square
from keras_qusec.audit.check import Check, Finding, more_found
from keras_qusec.audit.evidence import Budget, Evidence


class GradientFree(Check):
    """Do gradients find at least what a search without them finds?"""

    identifier = "gradient-free"
    title = "Square finds no more than gradients"
    rule = "Fails if, with 95 % confidence, it breaks more than 2 % of the images in addition"
    explanation = "A search that asks for outputs only is weaker, unless gradients mislead."
    source = "Andriushchenko et al. 2020; Croce and Hein 2020"
    remedy = 'Judge by attacks="standard", which has Square, and by surrogate gradients.'

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return {"square": Square(queries=budget.queries)}

    def judge(self, evidence: Evidence) -> Finding:
        by = f"Square with {evidence.budget.queries} queries"
        return more_found(evidence, evidence.found("square"), by, 0.02)
