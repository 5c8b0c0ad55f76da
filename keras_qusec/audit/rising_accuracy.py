"""Accuracy that rises with epsilon."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from keras_qusec.attacks import PGD, Attack
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import AtRadius, Budget, Evidence
from keras_qusec.statistics import wilson_interval


def radii_of(epsilon: float, width: float) -> dict[str, float]:
    """The radii of the sweep by the name of its attacks, in rising order."""
    some = {epsilon / 4, epsilon / 2, epsilon, min(2 * epsilon, width), width / 2, width}
    return {_name(radius): radius for radius in sorted(some)}


def _name(radius: float) -> str:
    return f"pgd at {radius:g}"


def sweep(epsilon: float, width: float) -> dict[str, Attack]:
    """PGD at each radius on its own."""
    pgd = PGD()
    return {name: AtRadius(pgd, r) for name, r in radii_of(epsilon, width).items()}


class Unbroken(NamedTuple):
    """What stands against PGD at a radius: which images, their share's interval, in words."""

    images: np.ndarray
    share: float
    low: float
    words: str


def unbroken_at(evidence: Evidence, radius: float) -> Unbroken:
    """What stands at a radius of the sweep."""
    unbroken = evidence.correct & ~evidence.found(_name(radius), radius)
    count, n = int(unbroken.sum()), len(evidence.rows)
    low, high = wilson_interval(count, n)
    words = (
        f"{count} of {n} images ({100 * low:.1f}-{100 * high:.1f} %) stand against PGD with "
        f"epsilon {radius:g}"
    )
    return Unbroken(np.flatnonzero(unbroken), count / n, low, words)


class RisingAccuracy(Check):
    """Does a larger ball never help the defender?"""

    identifier = "rising-accuracy"
    title = "accuracy does not rise with epsilon"
    rule = (
        "Fails if at some radius, with 95 % confidence, more than 0.5 % of the images fall that "
        "stand at the next larger one, and more of them than the other way round"
    )
    explanation = "The larger ball contains the smaller one, so only a failing attack explains it."
    source = "Carlini et al. 2019"
    remedy = "Look at the step size and the gradient at large radii; use surrogate gradients."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        return sweep(epsilon, width)

    def judge(self, evidence: Evidence) -> Finding:
        n = len(evidence.rows)
        radii = radii_of(evidence.epsilon, evidence.width)
        fell = {radius: evidence.found(name, radius) for name, radius in radii.items()}
        accuracy = {r: 1 - f[evidence.rows].mean() for r, f in fell.items()}
        worst, place = 0, None
        for small, large in itertools.pairwise(fell):
            lost = int((fell[small] & ~fell[large]).sum())
            won = int((fell[large] & ~fell[small]).sum())
            if lost > max(won, worst):
                worst, place = lost, (small, large)
        low, _ = wilson_interval(worst, n)
        shares = ", ".join(f"{100 * a:.1f} % at {r:g}" for r, a in accuracy.items())
        seen = f"accuracy by PGD at each radius alone: {shares}"
        if place is not None:
            seen += f"; from {place[0]:g} to {place[1]:g} {worst} of {n} images come back"
        return passed_or_failed(
            low > 0.005,
            seen,
            numbers={f"accuracy at {r:g}": float(a) for r, a in accuracy.items()},
        )
