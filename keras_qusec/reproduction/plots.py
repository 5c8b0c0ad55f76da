"""A reproduced figure as a picture: ours under the paper's attack, and the worst case."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

from keras_qusec.plots import pyplot, save, words
from keras_qusec.report.plots import adversarial_gallery
from keras_qusec.reproduction.results import Reproduction, Row


def pictures(reproduction: Reproduction, folder: str | os.PathLike) -> list[Path]:
    """All pictures of a figure: its numbers, its adversarial examples, and how training went.

    Args:
        reproduction: what `reproduce` returned.
        folder: where they are written, named after the figure.

    Returns:
        The paths.

    Raises:
        ImportError: without matplotlib.
    """
    stem = Path(folder) / reproduction.figure
    paths = [picture(reproduction, stem.with_suffix(".png"))]
    if reproduction.gallery:
        path = stem.with_name(f"{stem.name}-examples.png")
        paths.append(adversarial_gallery(list(reproduction.gallery), path))
    if reproduction.logs:
        paths.append(_training(reproduction, stem.with_name(f"{stem.name}-training.png")))
    return paths


def _training(reproduction: Reproduction, path: Path) -> Path:
    """Accuracy on the adversarial examples of training, by epoch."""
    figure, axis = pyplot().subplots(figsize=(6, 3.4), layout="constrained")
    for series, log in reproduction.logs.items():
        accuracy = [100 * share for share in log["adversarial_accuracy"]]
        axis.plot(range(1, len(accuracy) + 1), accuracy, "o-", markersize=3, label=series)
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy on training attack in %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    return save(figure, path)


def picture(reproduction: Reproduction, path: str | os.PathLike) -> Path:
    """Lines over the axis, or bars where there is one value; dots are the paper's numbers.

    Args:
        reproduction: what `reproduce` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
    """
    plt = pyplot()
    groups = reproduction.by_seed()
    measures = list(dict.fromkeys(rows[0].measure for rows in groups))
    figure, axes = plt.subplots(
        -(-len(measures) // 2), min(2, len(measures)), squeeze=False, layout="constrained",
        figsize=(5.2 * min(2, len(measures)), 3.6 * -(-len(measures) // 2)),
    )  # fmt: skip
    for axis in axes.flat[len(measures) :]:
        axis.set_visible(False)
    for axis, measure in zip(axes.flat, measures, strict=False):
        of_measure = [rows for rows in groups if rows[0].measure == measure]
        values = {rows[0].value for rows in of_measure}
        # A line needs a series of several values.
        series = {rows[0].series for rows in of_measure}
        if len(of_measure) > len(series) and not any(map(math.isinf, values)):
            _lines(axis, of_measure)
            axis.set_xlabel(reproduction.axis)
        else:
            _bars(axis, of_measure)
        axis.set_title(words(measure), fontsize=10)
        share = of_measure[0][0].low is not None
        axis.set_ylabel("%" if share else measure)
        if share:
            # A gain can be a loss.
            lowest = min(row.low or 0.0 for rows in of_measure for row in rows)
            axis.set_ylim(min(0.0, 110 * lowest), 102)
            axis.axhline(0, color="black", linewidth=0.8)
        axis.grid(alpha=0.3, axis="y")
    title = words(f"{reproduction.figure}: {reproduction.title}")
    wide = 50 * min(2, len(measures))
    figure.suptitle(textwrap.fill(title, wide), fontsize=11)
    return save(figure, path)


def _scale(row: Row) -> float:
    return 100.0 if row.low is not None else 1.0


def _lines(axis: Any, groups: list[list[Row]]) -> None:
    series = list(dict.fromkeys(rows[0].series for rows in groups))
    for place, name in enumerate(series):
        own = sorted((g for g in groups if g[0].series == name), key=lambda g: g[0].value)
        x = [rows[0].value for rows in own]
        ours = [_scale(rows[0]) * fmean([row.ours for row in rows]) for rows in own]
        axis.plot(x, ours, "o-", color=f"C{place}", label=name, markersize=4)
        worst = [
            (rows[0].value, 100 * fmean([row.worst for row in rows if row.worst is not None]))
            for rows in own
            if rows[0].worst is not None
        ]
        if worst:
            axis.plot(*zip(*worst, strict=True), "x--", color=f"C{place}", markersize=5)
    if any(row.worst is not None for rows in groups for row in rows):
        axis.plot([], [], "x--", color="0.4", label="worst case")
    axis.legend(fontsize=8, frameon=False)


def _bars(axis: Any, groups: list[list[Row]]) -> None:
    has_worst = any(row.worst is not None for rows in groups for row in rows)
    width = 0.38 if has_worst else 0.6
    for place, rows in enumerate(groups):
        first = rows[0]
        ours = [_scale(first) * row.ours for row in rows]
        worst = [100 * row.worst for row in rows if row.worst is not None]
        left = place - width / 2 if has_worst else place
        axis.bar(left, fmean(ours), width, color="C0", yerr=_spread(rows), capsize=3,
                 label="ours" if place == 0 else None)  # fmt: skip
        if worst:
            axis.bar(place + width / 2, fmean(worst), width, color="C3")
        if first.paper is not None:
            axis.plot(left, 100 * first.paper, "D", color="black", markersize=5)
    if any(rows[0].paper is not None for rows in groups):
        axis.plot([], [], "D", color="black", label="paper")
    if has_worst:
        axis.bar(0, 0, color="C3", label="worst case")
    axis.set_xticks(range(len(groups)), [words(rows[0].series) for rows in groups],
                    rotation=45, ha="right", fontsize=8)  # fmt: skip
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3,
                frameon=False)  # fmt: skip


def _spread(rows: list[Row]) -> list[list[float]] | None:
    """Below and above the mean: over the seeds, or the 95 % interval of one."""
    scale = _scale(rows[0])
    values = [row.ours for row in rows]
    if len(rows) > 1:
        mean = fmean(values)
        return [[scale * (mean - min(values))], [scale * (max(values) - mean)]]
    low, high = rows[0].low, rows[0].high
    if low is None or high is None or low == high:
        return None
    return [[scale * max(0.0, values[0] - low)], [scale * max(0.0, high - values[0])]]
