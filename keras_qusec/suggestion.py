"""suggest_quantizer: levels and thresholds that the data and an epsilon ask for."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_qusec import checks
from keras_qusec.defenses import QuSecQuantization
from keras_qusec.plots import THRESHOLD_COLOUR, pyplot, save
from keras_qusec.quantization import equal_thresholds
from keras_qusec.report.tables import WIDTH, Table, markdown_table, text_table

# Pixels that float rounding may carry over a threshold count as moved.
_ROUNDING = 1e-6
# Values of pixels that are told apart; images of 8 bits have 256.
_BINS = 1024
# Places where a threshold is tried, and how often each is moved.
_PLACES = 64
_SWEEPS = 4


class Choice(NamedTuple):
    """A quantizer that could be used.

    Attributes:
        levels: number of output levels n.
        thresholds: where the n - 1 thresholds are, in pixel values.
        kind: ``"equal"`` for k / n of the value range, ``"chosen"`` near them for the data.
        movable: share of the pixels that an adversary can move across a threshold.
        bits: entropy of the levels of the other pixels, a pixel: what no adversary can change.
    """

    levels: int
    thresholds: tuple[float, ...]
    kind: str
    movable: float
    bits: float


class QuantizerSuggestion(NamedTuple):
    """What `suggest_quantizer` found.

    Attributes:
        best: the choice with the most bits that no adversary can change.
        choices: all choices, by levels.
        epsilon: L-infinity radius, in units of the pixel values.
        value_range: darkest and brightest pixel value.
        values: the pixel values of the data, in rising order.
        shares: how many pixels have each value, a sum of 1.
        pixels: number of values of an image.
    """

    best: Choice
    choices: Sequence[Choice]
    epsilon: float
    value_range: tuple[float, float]
    values: np.ndarray
    shares: np.ndarray
    pixels: int

    def layer(self, **settings: Any) -> QuSecQuantization:
        """The suggested layer.

        Args:
            **settings: of `QuSecQuantization`, such as ``hard=True``.
        """
        return QuSecQuantization(
            self.best.levels, thresholds=list(self.best.thresholds),
            value_range=self.value_range, **settings,
        )  # fmt: skip

    @property
    def meaning(self) -> str:
        """The suggestion in words."""
        best = self.best
        where = ", ".join(f"{threshold:.3g}" for threshold in best.thresholds)
        moved = best.movable * self.pixels
        text = (
            f"{best.levels} levels, thresholds at {where}: within epsilon {self.epsilon:g} an "
            f"adversary can move {100 * best.movable:.1f} % of the values across a threshold, "
            f"{moved:.0f} of {self.pixels} an image, and none of the others."
        )
        if best.movable > 0.25:
            text += (
                " That is much: at this epsilon a quantizer alone will not make a classifier "
                "robust on such data. Train adversarially behind it, and evaluate."
            )
        return text

    def table(self) -> Table:
        """All choices as a table."""
        rows = [
            [
                f"{choice.levels}, {choice.kind}", f"{100 * choice.movable:.1f}",
                f"{choice.movable * self.pixels:.0f}", f"{choice.bits:.2f}",
                _listed(choice.thresholds),
            ]
            for choice in self.choices
        ]  # fmt: skip
        return Table(
            f"Values that an adversary can move across a threshold, L-inf epsilon {self.epsilon:g}",
            ["levels", "% moved", "an image", "safe bits", "thresholds"],
            rows, (list(self.choices).index(self.best),), spare=True,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{text_table(self.table())}\n\n{textwrap.fill(self.meaning, WIDTH)}"

    def _repr_markdown_(self) -> str:
        return f"{markdown_table(self.table())}\n\n{self.meaning}"

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw the data's histogram with what can move, and the choices side by side.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        low, high = self.value_range
        edges = np.linspace(low, high, 65)
        within = np.min(np.abs(self.values[:, None] - np.array(self.best.thresholds)), axis=1)
        can_move = within <= self.epsilon + _ROUNDING * (high - low)
        for rows, colour, label in (
            (~can_move, "#1f4e79", "stay on their level"), (can_move, "#e69f00", "can be moved"),
        ):  # fmt: skip
            left.hist(
                self.values[rows], edges, weights=100 * self.shares[rows], color=colour,
                label=label, log=True,
            )  # fmt: skip
        for place, threshold in enumerate(self.best.thresholds):
            left.axvline(
                threshold, color=THRESHOLD_COLOUR, linestyle="--",
                label="threshold" if place == 0 else None,
            )  # fmt: skip
        left.set_xlabel("pixel value")
        left.set_ylabel("% of the values")
        left.set_title(f"{self.best.levels} levels, epsilon {self.epsilon:g}", fontsize=10)
        left.legend(fontsize=8, frameon=False)
        for kind, marker in (("equal", "o-"), ("chosen", "s--")):
            own = [choice for choice in self.choices if choice.kind == kind]
            right.plot(
                [choice.levels for choice in own], [100 * choice.movable for choice in own],
                marker, color="#e69f00", alpha=1 if kind == "equal" else 0.6, markersize=4,
                label=f"% moved, {kind} thresholds",
            )  # fmt: skip
        right.set_xlabel("levels")
        right.set_xticks(sorted({choice.levels for choice in self.choices}))
        right.set_ylabel("% of the values moved")
        right.set_ylim(0)
        bits = right.twinx()
        for kind, marker in (("equal", "o-"), ("chosen", "s--")):
            own = [choice for choice in self.choices if choice.kind == kind]
            bits.plot(
                [choice.levels for choice in own], [choice.bits for choice in own],
                marker, color="#1f4e79", alpha=1 if kind == "equal" else 0.6, markersize=4,
                label=f"safe bits, {kind} thresholds",
            )  # fmt: skip
        bits.set_ylabel("bits a value that no adversary can change")
        bits.set_ylim(0)
        lines = [*right.get_legend_handles_labels(), *bits.get_legend_handles_labels()]
        right.legend(
            lines[0] + lines[2], lines[1] + lines[3], fontsize=8, frameon=False,
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2,
        )  # fmt: skip
        return save(figure, path)


def suggest_quantizer(
    x: Any,
    epsilon: float,
    *,
    levels: Sequence[int] = range(2, 17),
    value_range: tuple[float, float] = (0.0, 1.0),
) -> QuantizerSuggestion:
    """Levels and thresholds for a quantizer, from the histogram of the data and epsilon.

    An adversary within L-infinity epsilon moves a pixel across a threshold only if the pixel is
    within epsilon of it. For each number of levels this counts the pixels that can be moved, with
    equal thresholds and with thresholds chosen near them so that fewest can, and suggests the
    choice that leaves the most bits which no adversary can change: the share of the other pixels
    times the entropy of their levels. It looks at pixels and not at labels: whether a classifier
    can use what is left, only an evaluation tells.

    Args:
        x: images ``(n, ...)``, floats in `value_range`; a few hundred of all classes are enough.
        epsilon: L-infinity radius, in units of the pixel values, above 0.
        levels: numbers of levels to consider, each 2 or more.
        value_range: darkest and brightest pixel value.

    Returns:
        `QuantizerSuggestion`; the same data give the same.

    Raises:
        ValueError: for unusable arguments, integer images, or images outside the value range.

    Source: the pixels within epsilon of a threshold decide; Schott et al. 2019, on binarised MNIST.

    Example:

    >>> from keras_qusec import datasets, suggest_quantizer
    >>> suggestion = suggest_quantizer(datasets.mnist5k().x_train[:500], epsilon=0.3)
    >>> suggestion.best.levels
    2
    >>> suggestion.layer(hard=True).levels
    2
    """
    low, high = checks.value_range(value_range)
    images = np.asarray(x)
    checks.float_images(images)
    images = images.astype("float64")
    if images.ndim < 2 or not images.size:
        raise ValueError(
            f"Expected images (n, ...). Received: an array of shape {images.shape}. One image is "
            "x[None]."
        )
    checks.images_inside(images, (low, high))
    radius = checks.number(epsilon, "epsilon", above=0)
    checks.epsilon_inside(radius, (low, high))
    numbers = [checks.whole_number(number, "levels", least=2) for number in levels]
    if not numbers:
        raise ValueError("Expected at least one of levels. Received: none. Example: levels=[2, 4]")
    values, shares = _histogram(images, low, high)
    reach = radius + _ROUNDING * (high - low)
    choices: list[Choice] = []
    for number in sorted(set(numbers)):
        if choices and min(choice.movable for choice in choices[-2:]) > 0.999:
            break  # more levels leave no more
        equal = tuple(float(t) for t in equal_thresholds(number, (low, high)))
        choices.append(_judged(equal, "equal", values, shares, reach))
        chosen = _chosen(equal, (low, high), values, shares, reach)
        choices.append(_judged(chosen, "chosen", values, shares, reach))
    # The first of equals has fewer levels, and equal thresholds.
    best = max(choices, key=lambda choice: round(choice.bits, 3))
    pixels = int(np.prod(images.shape[1:]))
    return QuantizerSuggestion(best, choices, radius, (low, high), values, shares, pixels)


def _histogram(images: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The values of the pixels and their shares; values are put together if they are many."""
    values, counts = np.unique(images, return_counts=True)
    if len(values) > _BINS:
        bins = np.minimum(((values - low) / (high - low) * _BINS).astype(int), _BINS - 1)
        total = np.bincount(bins, counts, _BINS)
        middle = np.bincount(bins, counts * values, _BINS)
        values, counts = (middle / np.maximum(total, 1))[total > 0], total[total > 0]
    return values, counts / counts.sum()


def _judged(
    thresholds: tuple[float, ...], kind: str, values: np.ndarray, shares: np.ndarray, reach: float
) -> Choice:
    """How much of the data some thresholds leave to an adversary."""
    places = np.asarray(thresholds)
    moved = (np.abs(values[:, None] - places) <= reach).any(axis=1)
    level = np.searchsorted(places, values, side="right")
    safe = np.bincount(level[~moved], shares[~moved], len(places) + 1)
    total = safe.sum()
    part = safe[safe > 0] / total if total else safe[:0]
    bits = float(-(part * np.log2(part)).sum() * total)
    return Choice(len(places) + 1, thresholds, kind, float(1 - total), bits + 0.0)


def _chosen(
    equal: tuple[float, ...],
    value_range: tuple[float, float],
    values: np.ndarray,
    shares: np.ndarray,
    reach: float,
) -> tuple[float, ...]:
    """Thresholds moved one at a time, each near its equal one, to where fewest values can move."""
    # A fifth of their distance, so that no two of them become one.
    half = (value_range[1] - value_range[0]) / (5 * (len(equal) + 1))
    present = list(equal)
    for _ in range(_SWEEPS):
        before = list(present)
        for place, middle in enumerate(equal):
            candidates = middle + half * np.linspace(-1, 1, _PLACES + 1)[1:-1]
            tried = [(*present[:place], float(t), *present[place + 1 :]) for t in candidates]
            moved = [_judged(t, "chosen", values, shares, reach).movable for t in tried]
            least = int(np.argmin(np.round(moved, 6)))
            if (
                moved[least]
                < _judged(tuple(present), "chosen", values, shares, reach).movable - 1e-6
            ):
                present = list(tried[least])
        if present == before:
            break
    return tuple(present)


def _listed(thresholds: tuple[float, ...]) -> str:
    shown = [f"{threshold:.2f}".removeprefix("0") for threshold in thresholds]
    return " ".join(shown) if len(shown) <= 4 else " ".join([*shown[:2], "...", shown[-1]])
