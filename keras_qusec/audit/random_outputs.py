"""Outputs that differ from call to call."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import AttackedModel
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence
from keras_qusec.datasets import spread_rows

# As a share of the largest logit.
LIMIT = 1e-4
# Images that the model is called on several times.
CALLED = 64


def difference_between_calls(model: AttackedModel, x: np.ndarray) -> float:
    """By how much three calls on the same images differ, as a share of the largest logit."""
    first, *others = model.repeated(x, calls=3)
    scale = max(float(np.abs(first).max()), 1e-12)
    return max(float(np.abs(first - other).max()) / scale for other in others)


class RandomOutputs(Check):
    """Does the model repeat its outputs?"""

    identifier = "random-outputs"
    title = "each call gives the same outputs"
    rule = "Fails if calls on the same images differ by more than 0.01 % of the largest logit"
    explanation = "Gradients of one draw say little of the next; an example must hold on average."
    source = "Athalye et al. 2018, expectation over transformation; Croce and Hein 2020"
    remedy = "Attack and judge the mean of many draws: draws=20."
    needs_one_answer = False

    def judge(self, evidence: Evidence) -> Finding:
        x = evidence.x[spread_rows(len(evidence.x), CALLED)]
        differs = difference_between_calls(evidence.model, x)
        return passed_or_failed(
            differs > LIMIT,
            f"three calls on {len(x)} images differ by up to {100 * differs:.2g} % of the largest "
            "logit",
            numbers={"difference": differs},
        )
