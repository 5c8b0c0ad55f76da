"""Outputs so large, or squashed so far, that cross-entropy has no gradient."""

from __future__ import annotations

import numpy as np

from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence

# Below this difference of logits exp is zero in float32, denormal numbers included.
_UNDERFLOW = 104.0
# Above it Keras' cross-entropy of probabilities is cut off. Exactly 1 would miss what TensorFlow
# gives on processors where it leaves oneDNN out, one float32 below 1.
_ONE = np.float32(1 - 1e-7)


class SaturatedOutputs(Check):
    """Has the cross-entropy of the model's own outputs a gradient?"""

    identifier = "saturated-outputs"
    title = "outputs are not saturated"
    rule = (
        "Fails if on more than half of the images the probability of the class is 1 but for "
        "1e-7 where the model gives probabilities, or that of each other class exactly 0 where "
        "it gives logits (float32)"
    )
    explanation = (
        "There the gradient of the cross-entropy is exactly zero, and attacks on it fail. The "
        "attacks of this package leave a softmax out and follow the log-odds, so their figures "
        "stand; those of others do not."
    )
    source = "Carlini and Wagner 2017; Croce and Hein 2020 (flag of AutoAttack)"
    remedy = "Attack the logits, with a loss that does not change with their scale (DLR, log-odds)."

    def judge(self, evidence: Evidence) -> Finding:
        rows = evidence.rows
        labels, model = evidence.labels[rows], evidence.model
        outputs = evidence.on_each(rows, lambda x, _: model.outputs(x).reshape(len(x), -1))
        outputs = outputs.astype("float64")
        gap = -evidence.on_each(rows, model.margins)
        probabilities = bool((outputs >= 0).all() and (outputs <= 1).all())
        if probabilities:
            shares = outputs[np.arange(len(rows)), labels] if outputs.shape[1] > 1 else np.where(
                labels == 1, outputs[:, 0], 1 - outputs[:, 0]
            )  # fmt: skip
            saturated = shares.astype("float32") >= _ONE
            seen = "the probability of the class is 1 but for 1e-7"
        else:
            saturated = gap > _UNDERFLOW
            seen = "the probability of every other class is exactly 0"
        return passed_or_failed(
            saturated.mean() > 0.5,
            f"{seen} on {saturated.sum()} of {len(rows)} images; the median difference of the two "
            f"largest logits is {np.median(gap):.3g}",
            numbers={"saturated": float(saturated.mean()), "median gap": float(np.median(gap))},
            images=tuple(rows[saturated].tolist()),
        )
