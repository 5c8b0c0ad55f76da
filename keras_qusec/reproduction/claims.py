"""The paper's claims, each judged by the numbers of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

from keras_qusec.report.tables import Table
from keras_qusec.reproduction.results import Reproduction, Row
from keras_qusec.statistics import share_interval

HOLDS = "holds"
WEAK = "holds only for the paper's attack"
FAILS = "does not hold"
OPEN = "not decided"
UNMEASURED = "not measured yet"

# A number comes out if it is no more than so far below the paper's.
POINTS = 0.05
# A gain below is little.
LITTLE = 0.2
# Shares below are not told apart.
FLOOR = 0.02


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


class Reading(NamedTuple):
    """A number of a figure, over all seeds.

    Attributes:
        ours: under the paper's attack.
        worst: in the worst case, or None.
        images: number of images, of each seed: seeds share the images.
    """

    ours: float
    worst: float | None
    images: int


def measured(
    figure: Reproduction, series: str, measure: str, value: float | None = None
) -> Reading:
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
    return Reading(fmean(row.ours for row in rows), fmean(worst) if worst else None, rows[0].images)


def higher(share: float, other: float, images: int) -> bool:
    """Whether a share of images is above another beyond chance: their 95 % intervals are apart."""
    low, _ = share_interval(share, images)
    _, high = share_interval(other, images)
    return low > high


def compared(
    figure: Reproduction, better: str, worse: str, measure: str, value: float | None = None
) -> Verdict:
    """Whether one series is above another, under the paper's attack and in the worst case."""
    one, other = (measured(figure, series, measure, value) for series in (better, worse))
    reason = f"{better}: {_percent(one.ours)}, against {worse}: {_percent(other.ours)}"
    if one.worst is not None and other.worst is not None:
        reason += f"; worst case {_percent(one.worst)} and {_percent(other.worst)}"
    if higher(other.ours, one.ours, one.images):
        return Verdict(FAILS, reason)
    if not higher(one.ours, other.ours, one.images):
        return Verdict(OPEN, reason)
    if one.worst is None or other.worst is None or higher(one.worst, other.worst, one.images):
        return Verdict(HOLDS, reason)
    return Verdict(WEAK, reason)


def number(
    figure: Reproduction, series: str, measure: str, paper: float, value: float | None = None
) -> Verdict:
    """Whether a number is at least the paper's, and holds in the worst case."""
    found = measured(figure, series, measure, value)
    reason = f"paper {_percent(paper)}, ours {_percent(found.ours)}"
    if found.worst is not None:
        reason += f", worst case {_percent(found.worst)}"
    if found.ours < paper - POINTS:
        return Verdict(FAILS, reason)
    if found.worst is None or found.worst >= paper - POINTS:
        return Verdict(HOLDS, reason)
    return Verdict(WEAK, reason)


def _all(*verdicts: Verdict) -> Verdict:
    """The weakest of several verdicts, and all of their reasons."""
    order = [FAILS, OPEN, WEAK, HOLDS]
    weakest = min((one.verdict for one in verdicts), key=order.index)
    return Verdict(weakest, "; ".join(dict.fromkeys(one.reason for one in verdicts)))


_FGSM = "FGSM, white-box"
_WITHIN_L2 = "worst case within L2 epsilon"
_WITHIN_LINF = "worst case within L-infinity epsilon"
_BLACK_BOX = "FGSM, black-box"


def _three_levels(figure: Reproduction) -> Verdict:
    return _all(
        compared(figure, "n = 2", "n = 3", _BLACK_BOX),
        compared(figure, "n = 3", "no quantization", _BLACK_BOX),
    )


def _masks(figure: Reproduction) -> Verdict:
    zeros = measured(figure, "DQA", "gradients of zero").ours
    accuracy, clean = (measured(figure, "DQA", measure) for measure in (_FGSM, "clean"))
    worst = accuracy.worst or 0.0
    reason = (
        f"{_percent(zeros)} of its gradients are zero; FGSM leaves {_percent(accuracy.ours)} of "
        f"{_percent(clean.ours)} clean, the worst case {_percent(worst)}"
    )
    nothing = accuracy.ours == clean.ours
    masked = zeros > 0.99 and nothing and higher(accuracy.ours, worst, accuracy.images)
    return Verdict(HOLDS if masked else FAILS, reason)


def _trains(figure: Reproduction) -> Verdict:
    hardnesses = sorted({row.value for row in figure.rows})
    moved = {z: measured(figure, "VQ, n = 2", "thresholds moved by", z).ours for z in hardnesses}
    inside = min(moved[z] for z in hardnesses if 5 <= z <= 40)
    beyond = moved[max(hardnesses)]
    reason = ", ".join(f"z = {z:g}: {moved[z]:.2g}" for z in hardnesses)
    # Adam divides by the size of a gradient, so that movement alone refutes nothing.
    return Verdict(
        HOLDS if beyond < inside / 2 else OPEN,
        f"thresholds move by ({reason}), trained by Adam, which a small gradient does not halt",
    )


def _levels(figure: Reproduction) -> Verdict:
    levels = sorted({
        int(row.series.rpartition(" ")[2]) for row in figure.rows if row.series.startswith("CQ")
    })  # fmt: skip
    epsilons = sorted({row.value for row in figure.rows if row.measure == "fgsm"})
    # Where next to nothing is left of the fewest levels there is nothing to compare.
    verdicts = [
        compared(figure, f"CQ, n = {levels[0]}", f"CQ, n = {more}", "fgsm", epsilon)
        for epsilon in epsilons
        if measured(figure, f"CQ, n = {levels[0]}", "fgsm", epsilon).ours > FLOOR
        for more in levels[1:]
    ]
    if not verdicts:
        return Verdict(OPEN, "nothing is left at any epsilon")
    kinds = [verdict.verdict for verdict in verdicts]
    least, last = levels[0], levels[-1]
    reason = (
        f"n = {least} is above more levels in {kinds.count(HOLDS) + kinds.count(WEAK)} of "
        f"{len(kinds)} comparisons, below in {kinds.count(FAILS)}; n = {least} to {last} at "
        f"epsilon {epsilons[0]:g}: "
        + ", ".join(
            _percent(measured(figure, f"CQ, n = {n}", "fgsm", epsilons[0]).ours) for n in levels
        )
    )
    if FAILS in kinds:
        return Verdict(FAILS, reason)
    known = [kind for kind in kinds if kind != OPEN]
    if not known:
        return Verdict(OPEN, reason)
    return Verdict(WEAK if WEAK in known else HOLDS, reason)


def _visible(series: str) -> Callable[[Reproduction], Verdict]:
    def judge(figure: Reproduction) -> Verdict:
        none, other = (
            measured(figure, name, "median L2 distance").ours for name in ("none", series)
        )
        reason = f"median L2 distance: none {none:.2f}, {series} {other:.2f}"
        return Verdict(HOLDS if other > 1.1 * none else FAILS, reason)

    return judge


def _best_alone(figure: Reproduction) -> Verdict:
    rivals = ("feature squeezing", "BReLU + GDA")
    there = {row.series for row in figure.rows}
    return _all(*(compared(figure, "CQ", rival, _FGSM) for rival in rivals if rival in there))


def _assists(figure: Reproduction) -> Verdict:
    """Whether training gains much by variable quantization."""
    none, quantized = (
        measured(figure, f"{series}, FGSM training", _FGSM) for series in ("none", "VQ")
    )
    verdict = compared(figure, "VQ, FGSM training", "none, FGSM training", _FGSM)
    _, high = share_interval(quantized.ours, quantized.images)
    return verdict if high - none.ours > LITTLE else Verdict(FAILS, verdict.reason)


def _competes(figure: Reproduction) -> Verdict:
    """Whether constant quantization is not below BReLU + GDA, black-box."""
    verdict = compared(figure, "CQ", "BReLU + GDA", _BLACK_BOX)
    return Verdict(HOLDS, verdict.reason) if verdict.verdict == OPEN else verdict


def _ineffective(figure: Reproduction) -> Verdict:
    none, alone = (measured(figure, series, _FGSM) for series in ("none", "VQ"))
    reason = (
        f"none: {_percent(none.ours)}, VQ: {_percent(alone.ours)}; worst case "
        f"{_percent(none.worst or 0.0)} and {_percent(alone.worst or 0.0)}"
    )
    return Verdict(HOLDS if alone.ours - none.ours < LITTLE else FAILS, reason)


def _clean(figure: Reproduction) -> Verdict:
    none, quantized = (measured(figure, series, "clean").ours for series in ("none", "CQ"))
    reason = f"none: {_percent(none)}, CQ: {_percent(quantized)}"
    return Verdict(HOLDS if none - quantized < 0.01 else FAILS, reason)


def _cw(paper: float, threat: str) -> Callable[[Reproduction], Verdict]:
    def judge(figure: Reproduction) -> Verdict:
        measure = f"cw-paper, untargeted, {threat}"
        weak = number(figure, "CQ", measure, paper, math.inf)
        none = measured(figure, "none", measure, math.inf).ours
        # Transferred, the closest examples of the strong settings fool others less.
        strong = measured(figure, "CQ", f"cw, untargeted, {threat}", math.inf).ours
        reason = f"{weak.reason}; strong settings {_percent(strong)}; undefended {_percent(none)}"
        if weak.verdict == FAILS or none > POINTS:
            return Verdict(FAILS, reason + (", not 0 %" if none > POINTS else ""))
        return Verdict(HOLDS if strong >= paper - POINTS else WEAK, reason)

    return judge


def _little(figure: Reproduction) -> Verdict:
    measure, near = "JSMA, targeted", "JSMA, targeted, within 20 pixels"
    none, cq = (measured(figure, series, measure) for series in ("none", "CQ"))
    close = [measured(figure, series, near) for series in ("none", "CQ")]
    # That a defence helps little is judged by the attacks that leave least.
    worst, defended = (one.worst or 0.0 for one in close)
    low, high = share_interval(defended, cq.images)
    reason = (
        f"none: {_percent(none.ours)}, CQ: {_percent(cq.ours)} at any distance; within 20 pixels "
        f"{_percent(close[0].ours)} and {_percent(close[1].ours)}, with adaptive attacks "
        f"{_percent(worst)} and {_percent(defended)}"
    )
    if low - worst > LITTLE:
        return Verdict(FAILS, reason)
    return Verdict(HOLDS if high - worst <= LITTLE else OPEN, reason)


def _gains(low: float) -> Callable[[Reproduction], Verdict]:
    """Whether all gains reach the lower end of a range, under attack and in the worst case."""

    def judge(figure: Reproduction) -> Verdict:
        rows = [row for row in figure.rows if row.series == "CQ"]
        worst = [row for row in rows if row.measure in (_WITHIN_LINF, _WITHIN_L2)]
        attacks = [row for row in rows if row not in worst]
        gains = [row.ours for row in attacks]
        reason = (
            f"CQ gains {_points(min(gains))} to {_points(max(gains))} points; in the worst case "
        ) + (
            ", ".join(
                f"{_points(row.ours)} ({_points(row.low)} to {_points(row.high)}; "
                f"{'L-infinity' if row.measure == _WITHIN_LINF else 'L2'} {row.value:g})"
                for row in worst
            )
        )
        least = low - POINTS if low > POINTS else low
        attacked, true = (_reach(part, least) for part in (attacks, worst))
        if attacked == HOLDS:
            return Verdict(WEAK if true == FAILS else true, reason)
        return Verdict(attacked, reason)

    return judge


def _reach(rows: Iterable[Row], least: float) -> str:
    """Whether all gains are at least so large, by the ends of their intervals."""
    if any((row.high or 0.0) < least for row in rows):
        return FAILS
    return HOLDS if all((row.low or 0.0) >= least for row in rows) else OPEN


CLAIMS = (
    Claim(
        "Quantizing adversarial images of CIFAR-10 with n = 2 raises the accuracy (our reading: "
        "black-box).",
        "figure-1", lambda f: compared(f, "n = 2", "no quantization", _BLACK_BOX), "CIFAR-10",
    ),
    Claim(
        "... from 8.87 % to 24.66 %.", "figure-1",
        lambda f: number(f, "n = 2", _BLACK_BOX, 0.2466), "CIFAR-10",
    ),
    Claim("Three levels raise it less.", "figure-1", _three_levels, "CIFAR-10"),
    Claim(
        "Variable quantization highly assists adversarial training.", "figure-5", _assists,
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
        lambda f: compared(f, "CQ", "none", _FGSM), "MNIST",
    ),
    Claim(
        "... from 1.48 % to 97.51 %.", "headline", lambda f: number(f, "CQ", _FGSM, 0.9751), "MNIST"
    ),
    Claim("Clean accuracy is reduced by a very small amount.", "headline", _clean, "MNIST"),
    Claim(
        "Constant quantization outperforms feature squeezing (here the detector of its authors, "
        "which may reject) and BReLU + GDA, white-box.",
        "figure-9", _best_alone, "MNIST",
    ),
    Claim(
        "Black-box, quantization competes with BReLU + GDA and often surpasses it.", "figure-9",
        _competes,
    ),
    Claim("Variable quantization alone is quite ineffective.", "figure-9", _ineffective),
    Claim(
        "With adversarial training, variable quantization surpasses constant quantization.",
        "figure-9", lambda f: compared(f, "VQ, FGSM training", "CQ, FGSM training", _FGSM),
    ),
    Claim(
        "On CIFAR-10, white-box FGSM, BReLU + GDA is better than quantization.", "figure-9",
        lambda f: compared(f, "BReLU + GDA", "CQ", _FGSM), "CIFAR-10",
    ),
    Claim(
        "Under CW-L2, quantization raises the accuracy from 0 to 88 %, white-box (our reading: CQ, "
        "untargeted).", "figure-10",
        _cw(0.88, "white-box"), "MNIST",
    ),
    Claim("... and to 90 %, black-box.", "figure-10", _cw(0.90, "black-box"), "MNIST"),
    Claim(
        "Under CW-L2, quantization raises the accuracy from 0 to 54 %, white-box (our reading: CQ, "
        "untargeted).", "figure-10",
        _cw(0.54, "white-box"), "CIFAR-10",
    ),
    Claim("... and to 50 %, black-box.", "figure-10", _cw(0.50, "black-box"), "CIFAR-10"),
    Claim("QuSecNets help little against targeted JSMA.", "figure-11", _little),
    Claim("Gains of 1 point or more on MNIST (abstract of the first version: 1 to 5).", "abstract",
          _gains(0.01), "MNIST"),
    Claim("Gains of up to 2.4 points on CIFAR-10 (abstract of the first version).", "abstract",
          _gains(0.0), "CIFAR-10"),
    Claim("Gains of 50 to 96 points on MNIST (abstract of the later version).", "abstract",
          _gains(0.5), "MNIST"),
    Claim("Gains of 10 to 50 points on CIFAR-10 (abstract of the later version).", "abstract",
          _gains(0.1), "CIFAR-10"),
)  # fmt: skip


def judged(data: str, figures: Mapping[str, Reproduction]) -> Table:
    """The claims about a data set, and what becomes of them.

    Args:
        data: ``"MNIST"`` or ``"CIFAR-10"``.
        figures: by name; a claim whose figure is missing is not measured.
    """
    rows: list[list[str]] = []
    for claim in CLAIMS:
        if claim.data not in (None, data):
            continue
        verdict, reason = UNMEASURED, ""
        if claim.figure in figures:
            verdict, reason = claim.judge(figures[claim.figure])
        rows.append([claim.text, verdict, claim.figure, reason])
    return Table(data, ["the paper says", "verdict", "figure", "measured"], rows)


def _points(share: float | None) -> str:
    return str(round(100 * (share or 0.0)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
