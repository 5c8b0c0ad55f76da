"""The paper's claims, each judged by the numbers of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import NamedTuple

from keras_qusec.report.figures import wilson_interval
from keras_qusec.report.tables import Table
from keras_qusec.reproduction.results import Reproduction

HOLDS = "holds"
WEAK = "holds only for the paper's attack"
FAILS = "does not hold"


class Verdict(NamedTuple):
    """Whether a claim holds, and the numbers that decide it, in a few words."""

    verdict: str
    reason: str


class Claim(NamedTuple):
    """A sentence of the paper.

    Attributes:
        text: what it says.
        figure: where it is measured again.
        judge: function of the figure that returns a `Verdict`.
        data: the one data set it is about, ``"MNIST"`` or ``"CIFAR-10"``, or None for both.
    """

    text: str
    figure: str
    judge: Callable[[Reproduction], Verdict]
    data: str | None = None


class Measured(NamedTuple):
    """A number of a figure, over all seeds.

    Attributes:
        ours: under the paper's attack.
        worst: in the worst case, or None.
        images: number of images, over all seeds.
    """

    ours: float
    worst: float | None
    images: int


def measured(
    figure: Reproduction, series: str, measure: str, value: float | None = None
) -> Measured:
    """The number of a series of a figure, the last one if there are several values.

    Args:
        figure: where it is.
        series: line of the figure.
        measure: what the number is.
        value: where on its axis.

    Raises:
        KeyError: if the figure has none.
    """
    rows = [
        row for row in figure.rows
        if (row.series, row.measure) == (series, measure) and value in (None, row.value)
    ]  # fmt: skip
    if not rows:
        raise KeyError(f"{figure.figure} has no {measure!r} of {series!r}.")
    last = max(row.value for row in rows)
    rows = [row for row in rows if row.value == last]
    worst = [row.worst for row in rows if row.worst is not None]
    return Measured(
        fmean(row.ours for row in rows),
        fmean(worst) if worst else None,
        sum(row.images for row in rows),
    )


def higher(share: float, other: float, images: int) -> bool:
    """Whether a share of images is above another beyond chance: their 95 % intervals are apart."""
    low, _ = wilson_interval(round(share * images), images)
    _, high = wilson_interval(round(other * images), images)
    return low > high


def compared(
    figure: Reproduction, better: str, worse: str, measure: str, value: float | None = None
) -> Verdict:
    """Whether one series is above another, under the paper's attack and in the worst case."""
    one, other = (measured(figure, series, measure, value) for series in (better, worse))
    reason = f"{better}: {_percent(one.ours)}, against {worse}: {_percent(other.ours)}"
    if one.worst is not None and other.worst is not None:
        reason += f"; worst case {_percent(one.worst)} and {_percent(other.worst)}"
    if not higher(one.ours, other.ours, one.images):
        return Verdict(FAILS, reason)
    if one.worst is None or other.worst is None or higher(one.worst, other.worst, one.images):
        return Verdict(HOLDS, reason)
    return Verdict(WEAK, reason)


def number(
    figure: Reproduction, series: str, measure: str, paper: float, value: float | None = None
) -> Verdict:
    """Whether a number of the paper comes out within five points, and stands in the worst case."""
    found = measured(figure, series, measure, value)
    reason = f"paper {_percent(paper)}, ours {_percent(found.ours)}"
    if found.worst is not None:
        reason += f", worst case {_percent(found.worst)}"
    if abs(found.ours - paper) > 0.05:
        return Verdict(FAILS, reason)
    if found.worst is None or found.worst >= paper - 0.05:
        return Verdict(HOLDS, reason)
    return Verdict(WEAK, reason)


def _both(*verdicts: Verdict) -> Verdict:
    """The weakest of several verdicts, and all of their reasons."""
    order = [FAILS, WEAK, HOLDS]
    weakest = min((one.verdict for one in verdicts), key=order.index)
    return Verdict(weakest, "; ".join(dict.fromkeys(one.reason for one in verdicts)))


_FGSM = "FGSM, white-box"


def _masks(figure: Reproduction) -> Verdict:
    zeros = measured(figure, "DQA", "zero gradients").ours
    accuracy = measured(figure, "DQA", _FGSM)
    reason = (
        f"{_percent(zeros)} of its gradients are zero; FGSM leaves {_percent(accuracy.ours)}, the "
        f"worst case {_percent(accuracy.worst or 0.0)}"
    )
    return Verdict(HOLDS if zeros > 0.99 else FAILS, reason)


def _trains(figure: Reproduction) -> Verdict:
    hardnesses = sorted({row.value for row in figure.rows})
    moved = {z: measured(figure, "VQ, n = 2", "thresholds moved by", z).ours for z in hardnesses}
    inside = min(moved[z] for z in hardnesses if 5 <= z <= 40)
    beyond = moved[max(hardnesses)]
    reason = ", ".join(f"z = {z:g}: {moved[z]:.2g}" for z in hardnesses)
    halts = beyond < inside / 2
    return Verdict(HOLDS if halts else FAILS, f"thresholds move by ({reason})")


def _levels(figure: Reproduction) -> Verdict:
    most = max(
        int(row.series.rpartition(" ")[2]) for row in figure.rows if row.series.startswith("CQ")
    )
    epsilon = 0.1 if any(row.value == 0.1 for row in figure.rows) else figure.rows[0].value
    at = [epsilon, 0.3] if any(row.value == 0.3 for row in figure.rows) else [epsilon]
    return _both(*(compared(figure, "CQ, n = 2", f"CQ, n = {most}", "fgsm", e) for e in at))


def _visible(series: str) -> Callable[[Reproduction], Verdict]:
    def judge(figure: Reproduction) -> Verdict:
        none, other = (
            measured(figure, name, "median L2 distance").ours for name in ("none", series)
        )
        reason = f"median L2 distance: none {none:.2f}, {series} {other:.2f}"
        return Verdict(HOLDS if other > 1.1 * none else FAILS, reason)

    return judge


def _best_alone(figure: Reproduction) -> Verdict:
    others = dict.fromkeys(
        row.series for row in figure.rows if row.series != "CQ" and "training" not in row.series
    )
    best = max(others, key=lambda series: measured(figure, series, _FGSM).ours)
    strongest = max(others, key=lambda series: measured(figure, series, _FGSM).worst or 0.0)
    return _both(
        compared(figure, "CQ", best, _FGSM), compared(figure, "CQ", strongest, _FGSM)
    )  # fmt: skip


def _cw(paper: float, threat: str) -> Callable[[Reproduction], Verdict]:
    def judge(figure: Reproduction) -> Verdict:
        weak = number(figure, "CQ", f"cw-paper, untargeted, {threat}", paper, math.inf)
        strong = measured(figure, "CQ", f"cw, untargeted, {threat}", math.inf).ours
        reason = f"{weak.reason}; strong settings {_percent(strong)}"
        holds = weak.verdict == HOLDS
        return Verdict((HOLDS if strong >= paper - 0.05 else WEAK) if holds else FAILS, reason)

    return judge


def _little(figure: Reproduction) -> Verdict:
    none, cq = (measured(figure, series, "JSMA, targeted") for series in ("none", "CQ"))
    gain = cq.ours - none.ours
    reason = f"none {_percent(none.ours)}, CQ {_percent(cq.ours)}"
    return Verdict(HOLDS if gain < 0.2 else FAILS, reason)


def _gains(low: float, high: float) -> Callable[[Reproduction], Verdict]:
    def judge(figure: Reproduction) -> Verdict:
        rows = [row for row in figure.rows if row.series == "CQ"]
        fgsm = [row for row in rows if row.worst is not None and "white" in row.measure]
        gains = [row.ours for row in rows]
        worst = sum(row.worst or 0.0 for row in fgsm) / len(fgsm)
        reason = (
            f"CQ gains {100 * min(gains):.0f} to {100 * max(gains):.0f} points, in the worst case "
            f"{100 * worst:.0f}"
        )
        inside = min(gains) >= low - 0.05 and max(gains) <= high + 0.05
        if not inside:
            return Verdict(FAILS, reason)
        return Verdict(HOLDS if worst >= low else WEAK, reason)

    return judge


CLAIMS = (
    Claim(
        "Quantization with n = 2 raises the accuracy on adversarial images of CIFAR-10.",
        "figure-1", lambda f: compared(f, "n = 2", "no quantization", "fgsm"), "CIFAR-10",
    ),
    Claim(
        "... from 8.87 % to 24.66 %.", "figure-1",
        lambda f: number(f, "n = 2", "fgsm", 0.2466), "CIFAR-10",
    ),
    Claim(
        "Three levels raise it less, to 19.6 %.", "figure-1",
        lambda f: number(f, "n = 3", "fgsm", 0.196), "CIFAR-10",
    ),
    Claim(
        "Variable quantization highly assists adversarial training.", "figure-5",
        lambda f: compared(f, "VQ, FGSM training", "none, FGSM training", _FGSM),
    ),
    Claim("DQA masks the gradient, and FGSM finds nothing.", "figure-6", _masks),
    Claim("Variable quantization trains with z from 5 to 40; a larger z halts it.", "equation-9",
          _trains),
    Claim("More levels lower the accuracy on adversarial images.", "figure-7", _levels),
    Claim(
        "Constant quantization makes adversarial examples easier to see.", "figure-8",
        _visible("CQ"),
    ),
    Claim("... and so does variable quantization.", "figure-8", _visible("VQ")),
    Claim(
        "Constant quantization alone raises the accuracy under white-box FGSM.", "headline",
        lambda f: compared(f, "CQ", "none", _FGSM),
    ),
    Claim(
        "... from 1.48 % to 97.51 %.", "headline", lambda f: number(f, "CQ", _FGSM, 0.9751), "MNIST"
    ),
    Claim("... and outperforms every other defence.", "figure-9", _best_alone, "MNIST"),
    Claim(
        "With adversarial training, variable quantization surpasses constant quantization.",
        "figure-9", lambda f: compared(f, "VQ, FGSM training", "CQ, FGSM training", _FGSM),
    ),
    Claim(
        "On CIFAR-10, white-box FGSM, BReLU + GDA is better than quantization.", "figure-9",
        lambda f: compared(f, "BReLU + GDA", "CQ", _FGSM), "CIFAR-10",
    ),
    Claim(
        "Under CW-L2, CQ raises the accuracy from 0 to 88 %, white-box.", "figure-10",
        _cw(0.88, "white-box"), "MNIST",
    ),
    Claim("... and to 90 %, black-box.", "figure-10", _cw(0.90, "black-box"), "MNIST"),
    Claim(
        "Under CW-L2, CQ raises the accuracy from 0 to 54 %, white-box.", "figure-10",
        _cw(0.54, "white-box"), "CIFAR-10",
    ),
    Claim("... and to 50 %, black-box.", "figure-10", _cw(0.50, "black-box"), "CIFAR-10"),
    Claim("QuSecNets help little against targeted JSMA.", "figure-11", _little),
    Claim("Gains of 50 to 96 points on MNIST.", "abstract", _gains(0.5, 0.96), "MNIST"),
    Claim("Gains of 10 to 50 points on CIFAR-10.", "abstract", _gains(0.1, 0.5), "CIFAR-10"),
)  # fmt: skip


def judged(data: str, figures: Mapping[str, Reproduction]) -> Table:
    """The claims about a data set that can be judged by some figures.

    Args:
        data: ``"MNIST"`` or ``"CIFAR-10"``.
        figures: by name; a claim whose figure is missing is left out.
    """
    rows: list[list[str]] = []
    for claim in CLAIMS:
        if claim.data not in (None, data) or claim.figure not in figures:
            continue
        verdict, reason = claim.judge(figures[claim.figure])
        rows.append([claim.text, verdict, claim.figure, reason])
    return Table(data, ["the paper says", "verdict", "figure", "measured"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
