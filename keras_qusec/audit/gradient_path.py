"""A path from the loss to the image that is cut."""

from __future__ import annotations

import numpy as np

from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence


class GradientPath(Check):
    """Does the gradient reach the image, wherever in the ball the image is?"""

    identifier = "gradient-path"
    title = "gradients reach the input"
    rule = (
        "Fails if the gradient is exactly zero at every image and at random points of every "
        "ball, though the outputs change there"
    )
    explanation = (
        "A rounding, an argmax or a stop_gradient lets nothing through; white-box attacks are "
        "then random search."
    )
    source = "Athalye et al. 2018, shattered gradients; Tramer et al. 2020"
    remedy = "Give the layer a surrogate gradient (BPDA), or attack it without gradients."

    def judge(self, evidence: Evidence) -> Finding:
        rows = evidence.looked_at(evidence.budget.looked_at)
        clean, goal = evidence.x[rows], evidence.goal(rows)
        reach = evidence.rng().uniform(-evidence.epsilon, evidence.epsilon, clean.shape)
        moved = np.clip(clean + reach, *evidence.model.value_range).astype("float32")
        sizes = [
            np.abs(model.ascent(images, goal)).max()
            for model in evidence.followed
            for images in (clean, moved)
        ]
        change = np.abs(evidence.model.logits(moved) - evidence.model.logits(clean)).max()
        largest = float(np.max(sizes))
        return passed_or_failed(
            largest == 0 and change > 0,
            f"the largest gradient on {len(rows)} images and as many random points is "
            f"{largest:.3g}, while the logits change by up to {change:.3g}",
            numbers={"largest gradient": largest, "largest change": float(change)},
        )
