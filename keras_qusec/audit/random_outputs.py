"""Outputs that differ from call to call."""

from __future__ import annotations

import numpy as np

from keras_qusec.audit.check import Check, Finding, passed_or_raised
from keras_qusec.audit.evidence import Evidence


class RandomOutputs(Check):
    """Does the model repeat its outputs?"""

    identifier = "random-outputs"
    question = "outputs are random between calls"
    rule = "Raised if two calls on the same images differ by more than rounding"
    explanation = "Gradients of one draw say little of the next; an example must hold on average."
    source = "Athalye et al. 2018, expectation over transformation; Croce and Hein 2020"
    remedy = "Attack and judge the mean of many draws: draws=20."
    needs_one_answer = False

    def judge(self, evidence: Evidence) -> Finding:
        x = evidence.x[:64]
        first, *others = evidence.model.repeated(x, calls=3)
        scale = max(float(np.abs(first).max()), 1e-12)
        differs = max(float(np.abs(first - other).max()) / scale for other in others)
        return passed_or_raised(
            differs > 1e-3,
            f"three calls on {len(x)} images differ by up to {100 * differs:.2g} % of the largest "
            "logit",
            numbers={"difference": differs},
        )
