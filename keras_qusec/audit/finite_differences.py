"""Analytic derivatives against differences."""

from __future__ import annotations

import numpy as np

from keras_qusec.audit.check import NOT_RUN, Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence
from keras_qusec.logits import log_odds

# Widths of the differences, as shares of epsilon; the best agreement counts, since low
# precision spoils the small ones and curvature the large ones.
_WIDTHS = (0.25, 0.1, 0.03)
_DIRECTIONS = 4


class FiniteDifferences(Check):
    """Does the gradient say how the loss really changes?"""

    identifier = "finite-differences"
    title = "gradients agree with finite differences"
    rule = (
        "Fails if their correlation over images and directions is below 0.7 at every width of "
        "the differences"
    )
    explanation = "A gradient that does not say how the loss changes is of no use to an attack."
    source = "Athalye et al. 2018; Qin et al. 2019 (local linearity)"
    remedy = (
        "Look for layers with a gradient of their own, steps, or noise; use differences (SPSA)."
    )

    def judge(self, evidence: Evidence) -> Finding:
        if evidence.follows_surrogates:
            return Finding(
                NOT_RUN, "the judged attack follows surrogate gradients, which differ on purpose"
            )
        model, rng = evidence.model, evidence.rng()
        rows = evidence.looked_at(evidence.budget.looked_at)
        goal, clean = evidence.goal(rows), evidence.x[rows]
        low, high = model.value_range
        reach = rng.uniform(-evidence.epsilon, evidence.epsilon, clean.shape)
        # Away from the ends of the value range, so that both sides can be asked.
        inside = max(_WIDTHS) * evidence.epsilon
        points = np.clip(clean + reach, low + inside, high - inside).astype("float32")
        gradients = model.ascent(points, goal).reshape(len(rows), -1)
        best = -1.0
        for share in _WIDTHS:
            width, pairs = share * evidence.epsilon, []
            for number in range(_DIRECTIONS):
                random = np.sign(rng.normal(size=gradients.shape))
                # Along the gradient as well: across it all is small.
                towards = np.where(rng.random(gradients.shape) < 0.3, np.sign(gradients), random)
                direction = towards if number % 2 else random
                moved = (width * direction.reshape(points.shape)).astype("float32")
                ahead, behind = (model.logits(p) for p in (points + moved, points - moved))
                change = log_odds(ahead, goal.labels) - log_odds(behind, goal.labels)
                predicted = 2 * width * (gradients * direction).sum(axis=1)
                pairs.append((predicted, change))
            predicted, change = (np.concatenate(part) for part in zip(*pairs, strict=True))
            best = max(best, _correlation(predicted, change))
        return passed_or_failed(
            best < 0.7,
            f"the correlation over {len(rows)} images and {_DIRECTIONS} directions is {best:.2f}; "
            f"the mean size of the gradient is {np.abs(gradients).mean():.3g}",
            numbers={"correlation": best},
        )


def _correlation(predicted: np.ndarray, change: np.ndarray) -> float:
    """Of two series, 0 where one of them is constant."""
    usable = np.isfinite(predicted) & np.isfinite(change)
    predicted, change = predicted[usable], change[usable]
    if len(predicted) < 2 or predicted.std() == 0 or change.std() == 0:
        return 0.0
    return float(np.corrcoef(predicted, change)[0, 1])
