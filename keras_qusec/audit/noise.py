"""Random noise that beats the gradient attack."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import Attack, AttackedModel, Goal
from keras_qusec.audit.check import Check, Finding, more_found
from keras_qusec.audit.evidence import Budget, Evidence


class Noise(Attack):
    """Random perturbations in the ball, half of them at its corners.

    Args:
        draws: of each image.
    """

    uses_gradients, is_random = False, True

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.cost = f"{draws} queries"

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        rng, best, rows = np.random.default_rng(seed), x.copy(), np.arange(len(x))
        for draw in range(self.draws):
            change = rng.uniform(-1, 1, (len(rows), *x.shape[1:]))
            change = np.sign(change) if draw % 2 else change
            moved = x[rows] + change * (epsilon or 0.0)
            best[rows] = np.clip(moved, *model.value_range).astype("float32")
            rows = rows[~model.is_adversarial(best[rows], goal.take(rows))]
            if not len(rows):
                break
        return best


class NoiseBeatsGradients(Check):
    """Does the gradient find at least what noise finds?"""

    identifier = "noise"
    title = "noise of the same size finds no more than gradients"
    rule = "Fails if it breaks an image on which the gradient attacks failed"
    explanation = "A gradient that is worse than no gradient says nothing about robustness."
    source = "Carlini et al. 2019; Tramer et al. 2020"
    remedy = "Use surrogate gradients, and attacks without gradients such as Square."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return {"noise": Noise(budget.noise)}

    def judge(self, evidence: Evidence) -> Finding:
        by = f"{evidence.budget.noise} random perturbations of each image"
        return more_found(evidence, evidence.found("noise"), by, 0.0)
