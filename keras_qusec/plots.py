"""Every figure of the package. The only module that imports matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from keras import ops

if TYPE_CHECKING:
    from keras_qusec.evaluation.gallery import Example
    from keras_qusec.evaluation.report import RobustnessReport, Row

THRESHOLD_COLOUR = "#c0392b"
CURVE_COLOUR = "#1f4e79"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib. Install it with: pip install "keras-qusec[evaluate]"'
        ) from error
    return plt


def _save(figure: Any, path: str | os.PathLike) -> Path:
    """Write a figure, make its folder, and free its memory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    close(figure)
    return path


def close(figure: Any) -> None:
    """Free a figure's memory."""
    _pyplot().close(figure)


class QuantizerRow(NamedTuple):
    """One quantizer of `quantizer_figure`, with the image pair shown beside its curve."""

    name: str
    quantizer: Any
    clean: np.ndarray
    adversarial: np.ndarray


def quantizer_figure(rows: list[QuantizerRow], path: str | Path) -> Path:
    """Clean and adversarial image before and behind each quantizer, and its curve.

    Args:
        rows: one for each quantizer.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
        ValueError: without a row.
    """
    if not rows:
        raise ValueError(
            "Expected at least one quantizer to draw. Received: none. "
            "Train a model with a QuSecQuantization layer first."
        )
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(rows), 5, figsize=(13, 2.9 * len(rows) + 0.3), squeeze=False,
        width_ratios=[1, 1, 1, 1, 1.6], layout="constrained",
    )  # fmt: skip
    titles = ("clean", "clean, quantized", "adversarial", "adversarial, quantized")
    for cells, row in zip(axes, rows, strict=True):
        pair = np.stack([row.clean, row.adversarial])
        behind = ops.convert_to_numpy(row.quantizer(ops.convert_to_tensor(pair)))
        images = (pair[0], behind[0], pair[1], behind[1])
        for axis, image, title in zip(cells[:4], images, titles, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(title, fontsize=10)
        cells[0].set_ylabel(row.name.replace(", ", ",\n"), fontsize=10)
        _curve(cells[4], row.quantizer)
    return _save(figure, path)


def _curve(axis: Any, quantizer: Any) -> None:
    """The quantizer's output over its range, with the spread of its thresholds."""
    low, high = quantizer.value_range
    thresholds = quantizer.thresholds.reshape(quantizer.levels - 1, -1)
    x = np.linspace(low, high, 401)
    z = quantizer.hardness / (high - low)
    curves = [_outputs(x, column, z, quantizer.hard) for column in _columns(thresholds)]
    if len(curves) > 1:
        band = np.stack(curves)
        axis.fill_between(x, band.min(0), band.max(0), color=CURVE_COLOUR, alpha=0.2,
                          label="all pixels", linewidth=0)  # fmt: skip
    middle = _outputs(x, np.median(thresholds, axis=1), z, quantizer.hard)
    axis.plot(x, middle, color=CURVE_COLOUR, label="median" if len(curves) > 1 else "output")
    for k, row in enumerate(thresholds):
        label = "threshold" if k == 0 else None
        axis.axvspan(row.min(), row.max(), color=THRESHOLD_COLOUR, alpha=0.12, linewidth=0)
        axis.axvline(np.median(row), color=THRESHOLD_COLOUR, linestyle="--", label=label)
    axis.set_xlabel("pixel value")
    axis.set_ylabel("output")
    axis.set_xlim(low, high)
    axis.set_title(f"quantizer, z = {quantizer.hardness:g}", fontsize=10)
    axis.legend(fontsize=8, loc="upper left", frameon=False)


def _columns(thresholds: np.ndarray) -> np.ndarray:
    """The distinct threshold sets, at most 500 of them."""
    columns = np.unique(thresholds.T, axis=0)
    return columns[:: max(1, len(columns) // 500)]


def _outputs(x: np.ndarray, thresholds: np.ndarray, z: float, hard: bool) -> np.ndarray:
    difference = x[:, None] - thresholds[None, :]
    if hard:
        return (difference >= 0).mean(axis=1)
    return (0.5 + 0.5 * np.tanh(z * difference / 2)).mean(axis=1)


def epoch_curves(curves: dict[str, list[float]], label: str, path: str | Path) -> Path:
    """One line per model of a figure in [0, 1] by epoch.

    Args:
        curves: values by epoch, by the name of the model.
        label: what the values are.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
        ValueError: without a curve.
    """
    if not curves:
        raise ValueError(
            "Expected at least one curve to draw. Received: none. "
            "Train a model with AdversarialTraining(..., validation_data=...) first."
        )
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.set_ylim(0, 1)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return _save(figure, path)


def robustness_curves(report: RobustnessReport, path: str | os.PathLike) -> Path:
    """Accuracy against epsilon: one panel a model and norm, one line an attack.

    The worst case is drawn over the others, with its 95 % interval.

    Args:
        report: what `evaluate_robustness` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
    """
    return _save(robustness_figure(report), path)


def robustness_figure(report: RobustnessReport, models: Sequence[str] | None = None) -> Any:
    """The figure of `robustness_curves`, of some models, to be closed by the caller."""
    from keras_qusec.evaluation.norms import SYMBOLS

    plt = _pyplot()
    panels = [(model, norm) for model in models or report.attacked for norm in report.epsilons]
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1.2 + 3.6 * across, 1.1 + 3.2 * down), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    styles = {"white-box": ":", "adaptive": "--", "black-box": "-."}
    colours = {attack: f"C{index}" for index, attack in enumerate(report.attacks)}
    named: dict[str, Any] = {}
    rows = report.rows
    for axis, (model, norm) in zip(axes.flat, panels, strict=False):
        radii = [0.0, *report.epsilons[norm]]
        clean = report.clean_accuracy(model)
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if row.model == model and row.norm == norm and row.epsilon is not None:
                lines.setdefault(row.label, []).append(row)
        cases = lines.pop("worst case")
        for label, line in lines.items():
            (named[label],) = axis.plot(
                radii,
                [clean, *(row.robust_accuracy for row in line)],
                styles[line[0].threat_model],
                color=colours[line[0].attack],
                alpha=0.8,
            )
        values = [clean, *(case.robust_accuracy for case in cases)]
        (named["worst case"],) = axis.plot(radii, values, "o-", color="black", linewidth=2)
        axis.fill_between(
            radii[1:], [case.low for case in cases], [case.high for case in cases],
            color="black", alpha=0.12, linewidth=0,
        )  # fmt: skip
        axis.set_title(model, fontsize=10)
        axis.set_xlabel(f"epsilon, {SYMBOLS[norm]}")
        axis.set_xlim(0, radii[-1])
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("accuracy")
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(across + 1, 3),
        frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def adversarial_gallery(
    gallery: list[Example], path: str | os.PathLike, value_range: tuple[float, float] = (0.0, 1.0)
) -> Path:
    """Broken images: clean, adversarial, their difference, and both behind the quantizer.

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
    return _save(figure, path)


def gallery_figure(gallery: list[Example], value_range: tuple[float, float]) -> Any | None:
    """The figure of `adversarial_gallery`, to be closed by the caller; None without images."""
    shown = [example for example in gallery if _as_picture(example.images[0]) is not None]
    if not shown:
        return None
    plt = _pyplot()
    quantized = any(len(example.images) > 2 for example in shown)
    across = 5 if quantized else 3
    figure, axes = plt.subplots(
        len(shown), across, figsize=(1.6 * across + 1.9, 1.75 * len(shown) + 0.4), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    low, high = value_range
    titles = ("clean", "adversarial", "difference", "clean,\nquantized", "adversarial,\nquantized")
    for cells, example in zip(axes, shown, strict=True):
        pictures: list[Any] = [_as_picture(image) for image in example.images]
        clean, adversarial, *behind = pictures
        for axis, image in zip(cells, (clean, adversarial), strict=False):
            axis.imshow((image - low) / (high - low), cmap="gray", vmin=0, vmax=1)
        gap = (adversarial - clean) / (high - low)
        # Colour images show the change around grey; grey ones its sign in colour.
        if gap.ndim == 3:
            cells[2].imshow(np.clip(0.5 + gap / 2, 0, 1))
        else:
            cells[2].imshow(gap, cmap="RdBu_r", vmin=-1, vmax=1)
        for axis, image in zip(cells[3:], behind, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        for axis in cells:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in cells[2 + len(example.images) - 1 :]:
            axis.set_visible(False)
        l0, l2, linf = example.distances
        cells[0].set_ylabel(
            f"{example.model}\n{example.attack}\n({example.threat_model})",
            fontsize=8, rotation=0, ha="right", va="center",
        )  # fmt: skip
        cells[1].set_xlabel(
            f"{example.label} taken for {example.prediction}\n"
            f"L0 {l0:.0f}, L2 {l2:.3g}, L-inf {linf:.2g}",
            fontsize=7,
        )
    for column, title in zip(axes.T, titles, strict=False):
        # Models without a quantizer leave the last columns empty.
        first = next(axis for axis in column if axis.get_visible())
        first.set_title(title, fontsize=9)
    return figure


def _as_picture(image: np.ndarray) -> np.ndarray | None:
    """An image as matplotlib shows it, or None for data that is no image."""
    if image.ndim == 3 and image.shape[-1] == 1:
        return image[..., 0]
    if image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3):
        return image
    return None
