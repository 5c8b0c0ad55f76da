"""The loss along the attack's path: does it rise, and has it come to rest?"""

from __future__ import annotations

import numpy as np

from keras_qusec.audit.check import NOT_RUN, Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence
from keras_qusec.logits import log_odds

_STEPS = 40


class LossPath(Check):
    """Does the loss rise along the attack's path, and has it converged?"""

    identifier = "loss-path"
    title = "the loss rises along the path and converges"
    rule = (
        "Fails if on the median image the loss falls by more than half of what it gains in all, "
        "or gains more than a fifth of it in the last quarter of the steps"
    )
    explanation = (
        "Steps that shrink to nothing along a true gradient climb steadily and end at a maximum; "
        "a loss that goes up and down follows noise."
    )
    source = "Pintor et al. 2022, Indicators of attack failure (3 and 5)"
    remedy = "Look at the loss surface; smooth the model for the attack, or use more steps."

    def judge(self, evidence: Evidence) -> Finding:
        if evidence.follows_surrogates:
            return Finding(
                NOT_RUN, "the judged attack follows surrogate gradients, not those of the loss"
            )
        rows = evidence.looked_at(evidence.budget.looked_at)
        values = path(evidence, rows)
        steps = np.diff(values, axis=0)
        gained = values.max(axis=0) - values[0]
        fallen = -np.minimum(steps, 0).sum(axis=0)
        late = values.max(axis=0) - values[: 3 * _STEPS // 4].max(axis=0)
        scale = np.maximum(gained, 1e-12)
        moved = gained > 0
        down = float(np.median(np.where(moved, fallen / scale, np.inf)))
        unfinished = float(np.median(np.where(moved, late / scale, 0.0)))
        return passed_or_failed(
            down > 0.5 or unfinished > 0.2,
            f"on the median of {len(rows)} images the loss falls by {100 * down:.1f} % of its "
            f"gain on the way, and gains {100 * unfinished:.1f} % of it in the last quarter of "
            f"{_STEPS} steps",
            numbers={"falls": down, "late gain": unfinished},
            images=tuple(rows[(fallen / scale > 0.5) | (late / scale > 0.2)].tolist()),
        )


def path(evidence: Evidence, rows: np.ndarray) -> np.ndarray:
    """The loss ``(steps + 1, n)`` along signed gradient steps that shrink to nothing."""
    model, goal, epsilon = evidence.model, evidence.goal(rows), evidence.epsilon
    clean = evidence.x[rows]
    images = clean
    values = [log_odds(model.logits(images), goal.labels)]
    for step in range(_STEPS):
        size = epsilon / 5 * (1 + np.cos(np.pi * step / _STEPS)) / 2
        moved = images + np.float32(size) * np.sign(model.ascent(images, goal))
        moved = np.clip(moved, clean - epsilon, clean + epsilon)
        images = np.clip(moved, *model.value_range).astype("float32")
        values.append(log_odds(model.logits(images), goal.labels))
    return np.stack(values)
