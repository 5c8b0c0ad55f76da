"""Distances to the boundary that cannot be."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import FMN, Attack
from keras_qusec.audit.check import Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.audit.rising_accuracy import radii_of, sweep
from keras_qusec.statistics import wilson_interval

_PLACES = 20
# Images that are looked at, since each is compared with each.
_MOST = 500


class Distances(Check):
    """Is the closest example that gradients find closer than a straight line's?"""

    identifier = "distances"
    title = "distances to the border are plausible"
    rule = (
        "Fails if, with 95 % confidence, on more than 10 % of the images (500 at most, spread "
        "evenly) the straight line to the nearest image of another class leaves the class more "
        "than a tenth sooner than where the minimum-norm attack ends (or, judged adaptively, PGD "
        "at any radius)"
    )
    explanation = (
        "A line between two images is the simplest attack there is, and asks for no gradient; a "
        "search for the closest example must end closer."
    )
    source = "Carlini et al. 2019; Athalye et al. 2018 (distances beyond those of other classes)"
    remedy = "Do not report these distances; search without gradients or through surrogates."

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        fmn = FMN(steps=budget.minimum_norm_steps, norm="linf")
        return {"fmn-linf": fmn, **sweep(epsilon, width)}

    def judge(self, evidence: Evidence) -> Finding:
        rows = evidence.looked_at(_MOST)
        line = line_distances(evidence, rows)
        found = evidence.distances("fmn-linf")[rows]
        if evidence.follows_surrogates:
            # Behind steps there is no slope to the nearest example; a sweep of radii needs none.
            names = radii_of(evidence.epsilon, evidence.width)
            found = np.min([found, *(evidence.distances(n)[rows] for n in names)], axis=0)
        sooner = line < 0.9 * found
        count, n = int(sooner.sum()), len(rows)
        middle, straight = float(np.median(found)), float(np.median(line))
        low, _ = wilson_interval(count, n)
        return passed_or_failed(
            low > 0.1,
            f"on the median image the nearest example is at {_word(middle)} by gradients and at "
            f"{_word(straight)} on a line to another image; {count} of {n} lines are shorter",
            numbers={"median": middle, "line": straight, "sooner": count / n},
            images=tuple(rows[sooner].tolist()),
        )


def line_distances(evidence: Evidence, rows: np.ndarray) -> np.ndarray:
    """How far some images can go towards the nearest of them of another class, L-infinity."""
    x, model = evidence.x[rows], evidence.model
    distances = np.full(len(rows), np.inf)
    classes = evidence.labels[rows]
    flat = x.reshape(len(rows), -1)
    nearest = np.full(len(rows), -1)
    for place in range(len(rows)):
        other = np.flatnonzero(classes != classes[place])
        if len(other):
            gaps = np.abs(flat[other] - flat[place]).max(axis=1)
            # Many are as far as the value range goes: then the closest on average.
            means = np.abs(flat[other] - flat[place]).mean(axis=1)
            nearest[place] = other[np.lexsort((means, gaps))[0]]
    unbroken = np.flatnonzero(nearest >= 0)
    for step in range(1, _PLACES + 1):
        if not len(unbroken):
            break
        share = np.float32(step / _PLACES)
        clean, end = x[unbroken], x[nearest[unbroken]]
        moved = clean + share * (end - clean)
        fell = model.is_adversarial(moved, evidence.goal(rows[unbroken]))
        size = np.abs(moved - clean).reshape(len(unbroken), -1).max(axis=1)
        distances[unbroken[fell]] = size[fell]
        unbroken = unbroken[~fell]
    return distances


def _word(distance: float) -> str:
    return f"{distance:.3g}" if np.isfinite(distance) else "no distance"
