"""Zero, NaN or infinite input gradients, image by image."""

from __future__ import annotations

import functools

import numpy as np

from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence


class GradientValues(Check):
    """Is the input gradient a number other than zero on every image?"""

    identifier = "gradient-values"
    title = "input gradients are finite and not zero"
    rule = "Fails if more than 1 % of the images have one, and on none of them another is followed"
    explanation = "An attack that follows such a gradient stands still, which proves nothing."
    source = "Carlini et al. 2019, On evaluating adversarial robustness; Athalye et al. 2018"
    remedy = (
        "Find the operation with steps or overflow in front of the loss, give it a surrogate "
        "gradient (BPDA), and judge adaptively."
    )

    def judge(self, evidence: Evidence) -> Finding:
        rows = evidence.rows
        zero, broken = np.ones(len(rows), bool), np.zeros(len(rows), bool)
        for model in evidence.followed:
            found = evidence.on_each(rows, functools.partial(_zero_and_not_finite, model))
            zero &= found[:, 0]
            broken |= found[:, 1]
        bad = zero | broken
        return passed_or_failed(
            bad.mean() > 0.01,
            f"the gradient is zero on {zero.sum()} and not finite on {broken.sum()} of "
            f"{len(rows)} images",
            numbers={"zero": float(zero.mean()), "not finite": float(broken.mean())},
            images=tuple(rows[bad].tolist()),
        )


def _zero_and_not_finite(model: AttackedModel, x: np.ndarray, goal: Goal) -> np.ndarray:
    """Whether the gradient of each image is zero, and whether it is not finite, ``(n, 2)``."""
    gradients = model.ascent(x, goal).reshape(len(x), -1)
    return np.stack([(gradients == 0).all(axis=1), ~np.isfinite(gradients).all(axis=1)], axis=1)
