"""Figures of quantizers and of training; and how any figure is opened, written and closed.

The only module that imports matplotlib.
"""

from __future__ import annotations

import html
import io
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from keras import ops

THRESHOLD_COLOUR = "#c0392b"
# Stands for the colour of the page's text in SVG; no figure uses it otherwise.
_TEXT_COLOUR = "#010203"
CURVE_COLOUR = "#0072b2"
# Inches: on a phone of 390 pixels letters of 10 points are then 10 pixels high.
PAGE_WIDTH = 4.6
# Thresholds that are drawn as images.
_MOST_MAPS = 4


def pyplot() -> Any:
    """Matplotlib's pyplot, or an ImportError that names the extra to install."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib. Install it with: pip install "keras-qusec[evaluate]"'
        ) from error
    return plt


def save(figure: Any, path: str | os.PathLike) -> Path:
    """Write a figure, make its folder, and free its memory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    close(figure)
    return path


def close(figure: Any) -> None:
    """Free a figure's memory."""
    pyplot().close(figure)


def words(text: str) -> str:
    """Text as it stands, in one line: matplotlib takes what is between dollars for a formula."""
    return " ".join(text.splitlines()).replace("$", r"\$")


class QuantizerRow(NamedTuple):
    """One quantizer of `quantizer_figure`, with the image pair shown beside its curve."""

    name: str
    quantizer: Any
    clean: np.ndarray
    adversarial: np.ndarray


def quantizer_figure(rows: list[QuantizerRow]) -> Any:
    """Clean and adversarial image before and behind each quantizer, and its curve.

    Args:
        rows: one for each quantizer.

    Returns:
        A figure, to be saved or closed.

    Raises:
        ImportError: without matplotlib.
        ValueError: without a row.
    """
    if not rows:
        raise ValueError(
            "Expected at least one quantizer to draw. Received: none. "
            "Train a model with a QuSecQuantization layer first."
        )
    plt = pyplot()
    figure, axes = plt.subplots(
        len(rows), 5, figsize=(10, 2.2 * len(rows) + 0.3), squeeze=False,
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
        cells[0].set_ylabel(words(row.name).replace(", ", ",\n"), fontsize=10)
        _curve(cells[4], row.quantizer)
    return figure


def plot_thresholds(layer: Any, path: str | os.PathLike, *, x: Any = None) -> Path:
    """Draw a quantizer: its curve, its thresholds, and the data's histogram beside them.

    Args:
        layer: `QuSecQuantization`, or a built `TrainableQuSecQuantization`; thresholds for each
            pixel are drawn as an image a threshold.
        path: image file to write; its folder is created.
        x: images ``(n, ...)`` whose histogram is drawn, or None.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a trainable quantizer that is not built.

    Example:

    >>> import tempfile
    >>> from keras_qusec import QuSecQuantization, plot_thresholds
    >>> path = tempfile.mkdtemp() + "/thresholds.png"
    >>> plot_thresholds(QuSecQuantization(3), path).name
    'thresholds.png'
    """
    return save(thresholds_figure(layer, x), path)


def thresholds_figure(layer: Any, x: Any = None) -> Any:
    """The figure of `plot_thresholds`, to be closed by the caller."""
    thresholds, (low, high) = layer.thresholds, layer.value_range
    maps = [one for one in thresholds if one.ndim == 3 and one.shape[-1] in (1, 3)][:_MOST_MAPS]
    figure, axes = pyplot().subplots(
        1, 1 + len(maps), squeeze=False, layout="constrained",
        figsize=(5 + 2.6 * len(maps), 3.2), width_ratios=[2, *[1] * len(maps)],
    )  # fmt: skip
    curve, *others = axes[0]
    _curve(curve, layer)
    if x is not None:
        behind = curve.twinx()
        behind.hist(np.ravel(x), np.linspace(low, high, 65), color="0.5", alpha=0.35, log=True)
        behind.set_ylabel("pixels of the data")
    for place, (axis, one) in enumerate(zip(others, maps, strict=True), start=1):
        # The mean over channels: a threshold in colour cannot be read.
        shown = axis.imshow(one.mean(axis=-1), cmap="viridis", vmin=low, vmax=high)
        axis.set_title(f"threshold {place}" + (", mean" if one.shape[-1] > 1 else ""), fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    if maps:
        figure.colorbar(shown, ax=others, shrink=0.8, label="pixel value")
    return figure


def svg(figure: Any) -> str:
    """A figure as SVG inside a page, in the page's colours; it is closed.

    Text stays text, so that it can be searched and is small. Names inside are made unique, for a
    page has several figures.
    """
    for text in figure.findobj(_text_class()):
        text.set_color(_TEXT_COLOUR)
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(color=_TEXT_COLOUR, labelcolor=_TEXT_COLOUR)
        for spine in axis.spines.values():
            spine.set_edgecolor(_TEXT_COLOUR)
    buffer = io.StringIO()
    with pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": "keras-qusec"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    close(figure)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")
    prefix = f"f{zlib.crc32(drawing.encode()):x}-"
    drawing = re.sub(r'\bid="', f'id="{prefix}', drawing)
    drawing = re.sub(r"url\(#", f"url(#{prefix}", drawing)
    drawing = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}', drawing)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return drawing.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _text_class() -> type:
    from matplotlib.text import Text

    return Text


def embedded(figure: Any, caption: str, *, wide: bool = False) -> str:
    """A figure inside a page or a notebook as SVG, in the colours of its text; it is closed.

    Args:
        figure: of matplotlib. At most 4.6 inches wide with letters of 9.5 points or more, it can
            be read on a phone.
        caption: stands below it.
        wide: it keeps its size, and is scrolled sideways where it has no room.
    """
    text = html.escape(caption, quote=True)
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure{kind}><div role="img" aria-label="{text}">{svg(figure)}</div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


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


def epoch_curves(curves: dict[str, list[float]], label: str) -> Any:
    """One line per model of a share by epoch, in %.

    Args:
        curves: values by epoch in [0, 1], by the name of the model.
        label: what the values are.

    Returns:
        A figure, to be saved or closed.

    Raises:
        ImportError: without matplotlib.
        ValueError: without a curve.
    """
    if not curves:
        raise ValueError(
            "Expected at least one curve to draw. Received: none. "
            "Train a model with AdversarialTraining(..., validation_data=...) first."
        )
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.6), layout="constrained")
    for name, values in curves.items():
        shares = [100 * value for value in values]
        axis.plot(range(1, len(values) + 1), shares, marker="o", label=words(name))
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.set_ylim(0, 102)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure
