"""The plots of a report: accuracy against epsilon, and broken images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec.norms import distances_text, symbol
from keras_qusec.plots import PAGE_WIDTH, pyplot, save, words
from keras_qusec.report.measurements import Measurement, Measurements
from keras_qusec.report.tables import sorted_by_worst_case
from keras_qusec.results import Example

# Older reports do not say how the curves of their threat models are drawn.
_LINE_STYLES = {"white-box": ":", "adaptive": "--", "black-box": "-."}


def _line_style(report: Measurements, threat_model: str) -> Any:
    """The line style of a threat model as its report has it."""
    known = report.provenance.get("threat models", {}).get(threat_model, {})
    style = known.get("line style", _LINE_STYLES.get(threat_model, "-"))
    # JSON has lists for tuples.
    return style if isinstance(style, str) else (style[0], tuple(style[1]))


def robustness_curves(report: Measurements, path: str | os.PathLike) -> Path:
    """Accuracy against epsilon: one panel a model and norm, one line an attack.

    The worst case is drawn over the others, with its 95 % interval; where images were proved, a
    band lies between what is proved and the worst case.

    Args:
        report: what `evaluate_robustness` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
    """
    return save(robustness_figure(report), path)


def robustness_figure(report: Measurements, models: Sequence[str] | None = None) -> Any:
    """The figure of `robustness_curves`, of some models, to be closed by the caller."""
    plt = pyplot()
    panels = [(model, norm) for model in models or report.attacked for norm in report.epsilons]
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1.2 + 3.6 * across, 1.1 + 3.2 * down), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    colours = {attack: f"C{index}" for index, attack in enumerate(report.attacks)}
    named: dict[str, Any] = {}
    rows = report.rows
    for axis, (model, norm) in zip(axes.flat, panels, strict=False):
        radii = [0.0, *report.epsilons[norm]]
        clean = report.clean_accuracy(model)
        lines: dict[str, list[Measurement]] = {}
        for row in rows:
            drawn = row.epsilon is not None and not row.is_worst_case
            if row.model == model and row.norm == norm and drawn:
                lines.setdefault(row.label, []).append(row)
        cases = [row for row in rows if _is_case(row, model, norm)]
        for label, line in lines.items():
            (named[label],) = axis.plot(
                radii,
                _percent([clean, *(row.robust_accuracy for row in line)]),
                linestyle=_line_style(report, line[0].threat_model),
                color=colours[line[0].attack],
                alpha=0.8,
            )
        values = _percent([clean, *(case.robust_accuracy for case in cases)])
        (named[cases[0].label],) = axis.plot(radii, values, "o-", color="black", linewidth=2)
        axis.fill_between(
            radii[1:], _percent([case.low for case in cases]),
            _percent([case.high for case in cases]),
            color="black", alpha=0.12, linewidth=0,
        )  # fmt: skip
        proved = [(case.epsilon, case.proved) for case in cases if case.proved is not None]
        if proved:
            places, shares = zip(*proved, strict=True)
            (named["proved"],) = axis.plot(places, _percent(shares), "s--", color="#009e73")
            # Between the two lines nothing is known.
            tried = [case.robust_accuracy for case in cases if case.proved is not None]
            axis.fill_between(
                places, _percent(shares), _percent(tried), color="#009e73", alpha=0.2, linewidth=0
            )
        axis.set_title(words(model), fontsize=10)
        axis.set_xlabel(f"epsilon, {symbol(norm)}")
        axis.set_xlim(0, radii[-1])
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("accuracy in %")
    figure.legend(
        named.values(), map(words, named), loc="outside lower center", ncols=min(across + 1, 3),
        frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def worst_case_figure(report: Measurements, norm: str) -> Any:
    """All models in one chart: the worst case in a norm with its intervals, to be closed."""
    models = [model for model in sorted_by_worst_case(report) if model in report.attacked]
    figure, axis = pyplot().subplots(figsize=(PAGE_WIDTH, 3.8), layout="constrained")
    radii = report.epsilons[norm]
    for place, model in enumerate(models):
        cases = [report.worst_case(model, norm, radius) for radius in radii]
        values = [report.clean_accuracy(model), *(case.robust_accuracy for case in cases)]
        # Lines of the same values are seen beside each other: the first ones are wider.
        width = 1.5 + 1.0 * (len(models) - 1 - place)
        axis.plot(
            [0.0, *radii], _percent(values), color=_colour(place),
            marker=_MARKERS[place % len(_MARKERS)], linewidth=width, alpha=0.85,
            label=words(model),
        )  # fmt: skip
        proved = [(case.epsilon, case.proved) for case in cases if case.proved is not None]
        if proved:
            places, shares = zip(*proved, strict=True)
            tried = [case.robust_accuracy for case in cases if case.proved is not None]
            axis.plot(places, _percent(shares), "--", color=_colour(place), linewidth=1)
            axis.fill_between(
                places, _percent(shares), _percent(tried), color=_colour(place), alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        below = [100 * (case.robust_accuracy - case.low) for case in cases]
        above = [100 * (case.high - case.robust_accuracy) for case in cases]
        axis.errorbar(
            radii, _percent(values[1:]), [below, above], fmt="none", ecolor=_colour(place),
            elinewidth=1, capsize=3,
        )  # fmt: skip
    axis.set_xlabel(f"epsilon, {symbol(norm)}")
    axis.set_xlim(-0.02 * radii[-1], 1.03 * radii[-1])
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)
    axis.set_ylabel("accuracy in %, worst case")
    longest = max(len(words(model)) for model in models)
    # Two columns of letters of 10 points fit if names are short.
    columns = 2 if longest <= 20 else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    return figure


def broken_figure(report: Measurements, model: str) -> Any | None:
    """What each attack on a model broke at the largest radius, to be closed; None without one."""
    norm = report.main_norm
    radius = report.epsilons[norm][-1]
    clean = report.clean_accuracy(model)
    rows = [
        row for row in report.rows
        if (row.model, row.norm, row.epsilon) == (model, norm, radius)
    ]  # fmt: skip
    if not rows:
        return None
    broken = {row.label: 100 * (clean - row.robust_accuracy) for row in rows}
    order = sorted(broken, key=lambda label: (broken[label], label == rows[-1].label))
    figure, axis = pyplot().subplots(
        figsize=(PAGE_WIDTH, 0.9 + 0.28 * len(order)), layout="constrained"
    )  # fmt: skip
    worst = next(row.label for row in rows if row.is_worst_case)
    colours = ["#d55e00" if label == worst else "#0072b2" for label in order]
    bars = axis.barh(
        [words(label) for label in order], [broken[label] for label in order], color=colours
    )
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=10)
    axis.set_xlim(0, 112 * clean or 1)
    axis.set_xlabel("images broken in %")
    return figure


# Okabe and Ito's colours, which colour-blind readers can tell apart, on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _is_case(row: Measurement, model: str, norm: str) -> bool:
    """Whether a row is a worst case of a model within an epsilon of a norm."""
    return row.is_worst_case and row.model == model and row.norm == norm


def adversarial_gallery(
    gallery: list[Example], path: str | os.PathLike, value_range: tuple[float, float] = (0.0, 1.0)
) -> Path:
    """Broken images: clean, adversarial, their difference, and both behind the defence.

    Small differences are magnified, all of them as many times, which is written above.

    Args:
        gallery: examples of a report.
        path: image file to write; its folder is created.
        value_range: smallest and largest pixel value.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
        ValueError: without an example, or if the data are not images.
    """
    figure = gallery_figure(gallery, value_range)
    if figure is None:
        raise ValueError(
            "Expected broken images to draw. Received: none. Either no attack succeeded, or "
            "the data are not images (height, width) or (height, width, channels)."
        )
    return save(figure, path)


def gallery_figure(gallery: list[Example], value_range: tuple[float, float]) -> Any | None:
    """The figure of `adversarial_gallery`, to be closed by the caller; None without images."""
    shown = [example for example in gallery if as_picture(example.images[0]) is not None]
    if not shown:
        return None
    plt = pyplot()
    defended = any(len(example.images) > 2 for example in shown)
    across = 5 if defended else 3
    figure, axes = plt.subplots(
        len(shown), across, figsize=(1.6 * across + 1.9, 1.75 * len(shown) + 0.4), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    low, high = value_range
    factor = magnification(shown, value_range)
    titles = (
        "clean",
        "adversarial",
        difference_title(factor),
        "clean,\nbehind defence",
        "adversarial,\nbehind defence",
    )
    for cells, example in zip(axes, shown, strict=True):
        pictures: list[Any] = [as_picture(image) for image in example.images]
        clean, adversarial, *behind_defense = pictures
        for axis, image in zip(cells, (clean, adversarial), strict=False):
            axis.imshow((image - low) / (high - low), cmap="gray", vmin=0, vmax=1)
        gap = np.clip(factor * (adversarial - clean) / (high - low), -1, 1)
        # Colour images show the change around grey; grey ones its sign in colour.
        if gap.ndim == 3:
            cells[2].imshow((1 + gap) / 2)
        else:
            cells[2].imshow(gap, cmap="RdBu_r", vmin=-1, vmax=1)
        for axis, image in zip(cells[3:], behind_defense, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        for axis in cells:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in cells[2 + len(example.images) - 1 :]:
            axis.set_visible(False)
        sizes = distances_text(example.distances)
        cells[0].set_ylabel(
            f"{words(example.model)}\n{words(example.attack)}\n({words(example.threat_model)})",
            fontsize=8, rotation=0, ha="right", va="center",
        )  # fmt: skip
        label, prediction = map(words, example.shown_classes)
        cells[1].set_xlabel(
            f"{label} taken for {prediction}\n{sizes}",
            fontsize=7,
        )
    for column, title in zip(axes.T, titles, strict=False):
        # Models without a defence leave the last columns empty.
        first = next(axis for axis in column if axis.get_visible())
        first.set_title(title, fontsize=9)
    return figure


def magnification(gallery: Sequence[Example], value_range: tuple[float, float]) -> int:
    """How many times the differences of a gallery are shown: 1, 2, 5, 10 ...

    The same for all, so that they can be compared, and as many as the largest one allows: an
    adversarial example can be so close that its difference would look empty.
    """
    low, high = value_range
    gaps = [np.abs(one.images[1] - one.images[0]).max() for one in gallery]
    largest = max(gaps, default=0.0) / (high - low)
    factors = [step * 10**power for power in range(3) for step in (1, 2, 5)]
    return max(factor for factor in factors if factor == 1 or factor * largest <= 1)


def difference_title(factor: int) -> str:
    """What is written above differences that are shown so many times as large."""
    return "difference" if factor == 1 else f"difference,\n{factor} times"


def as_picture(image: np.ndarray) -> np.ndarray | None:
    """An image as matplotlib shows it, or None for data that is no image."""
    if image.ndim == 3 and image.shape[-1] == 1:
        return image[..., 0]
    if image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3):
        return image
    return None
