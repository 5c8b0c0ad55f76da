"""The images that a model expects: their value range, and where their channels are."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.checks import Range, one_of
from keras_qusec.sublayers import inside

_FORMATS = ("channels_last", "channels_first")
# Layers that change no pixel, or not by a rule, before a range is met.
_PASSING = {
    "Cast", "Identity", "Reshape", "Flatten", "Dropout", "GaussianNoise", "ZeroPadding2D",
    "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomCrop", "Resizing",
    "CenterCrop", "Permute", "Transpose", "ExpandDims",
}  # fmt: skip


class _Path:
    """What happens to a pixel from the input of a model on: ``scale * x + offset`` so far."""

    def __init__(self) -> None:
        self.scale, self.offset = 1.0, 0.0
        self.words: list[str] = []
        # The range that a layer states of itself, in units of the model's input.
        self.stated: Range | None = None
        self.normalization: tuple[np.ndarray, np.ndarray] | None = None

    def map(self, scale: Any, offset: Any, words: str) -> bool:
        """Apply an affine function of all pixels; False if it is not one number for all."""
        if np.size(scale) != 1 or np.size(offset) != 1:
            return False
        a, b = float(np.ravel(scale)[0]), float(np.ravel(offset)[0])
        self.scale, self.offset = a * self.scale, a * self.offset + b
        self.words.append(words)
        return True

    def back(self, value: float) -> float:
        """The pixel value at the model's input that is mapped to a value here."""
        return (value - self.offset) / self.scale


def expected_range(model: keras.layers.Layer) -> Range | None:
    """The value range of the images that a model expects, where its first layers say it.

    A quantizer's `value_range`, before it a `Rescaling`; or (0, 255) for a `Rescaling` of about
    1/255 or 1/127.5. None if nothing says it.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> first = [keras.Input((2,)), keras.layers.Rescaling(1 / 255), QuSecQuantization(2)]
    >>> expected_range(keras.Sequential(first))
    (0.0, 255.0)
    """
    path = _path(model)
    if path.stated is not None:
        return path.stated
    return (0.0, 255.0) if 0.9 <= 255 * path.scale <= 2.2 else None


def check_expected_range(model: keras.layers.Layer, value_range: Range, name: str) -> None:
    """Raise a ValueError for a value range that contradicts what a model's first layers say.

    Args:
        model: the model.
        value_range: the range that its images are said to have.
        name: its name, for the error.
    """
    path, (low, high) = _path(model), value_range
    expected = expected_range(model)
    problem = ""
    if path.stated is not None:
        wanted = path.stated
        if max(abs(wanted[0] - low), abs(wanted[1] - high)) > 0.01 * (high - low):
            problem = f"whose first layers ({', '.join(path.words)}) expect {_words(wanted)}"
    elif abs(path.scale) * (high - low) < 0.05:
        larger = "larger pixel values" if expected is None else _words(expected)
        problem = f"whose first layers ({', '.join(path.words)}) expect {larger}"
    elif path.normalization is not None:
        mean, deviation = path.normalization
        ends = sorted((path.scale * low + path.offset, path.scale * high + path.offset))
        width = ends[1] - ends[0]
        spread = float(deviation.mean())
        if mean.min() < ends[0] or mean.max() > ends[1] or not 0.01 < spread / width < 0.51:
            problem = (
                f"whose Normalization was adapted to images of mean {float(mean.mean()):.3g} and "
                f"standard deviation {spread:.3g}"
            )
    if problem:
        raise ValueError(
            f"Expected images in the range that the model was made for. Received: "
            f"value_range={_words(value_range)} for {name!r}, {problem}. Give images in that "
            "range, and its value_range; epsilon is in units of the pixel values."
        )


def _words(value_range: Range) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"


def _path(model: keras.layers.Layer) -> _Path:
    """Follow a model's input as far as its pixels keep their meaning."""
    path = _Path()
    _follow(model, path)
    return path


def _follow(model: Any, path: _Path) -> bool:
    """Follow a graph or a layer; True if what comes behind it still sees pixels."""
    if isinstance(model, keras.Sequential):
        return all(_follow_layer(layer, path) for layer in model.layers)
    inputs = getattr(model, "inputs", None) if isinstance(model, keras.Model) else None
    if not inputs:
        return not isinstance(model, keras.Model) and _follow_layer(model, path)
    tensor, operations = inputs[0], list(model.operations)
    while True:
        takers = [o for o in operations if any(tensor is t for t in _taken_by(o))]
        if len(takers) != 1:
            return not takers
        if not _follow_layer(takers[0], path):
            return False
        tensor = takers[0].output


def _taken_by(operation: Any) -> list[Any]:
    nodes = operation._inbound_nodes
    return list(nodes[0].input_tensors) if len(nodes) == 1 else []


def _follow_layer(layer: Any, path: _Path) -> bool:
    name = type(layer).__name__
    if isinstance(layer, keras.Model):
        return _follow(layer, path)
    if isinstance(layer, keras.layers.Rescaling):
        return path.map(layer.scale, layer.offset, "Rescaling")
    if isinstance(layer, keras.layers.Normalization):
        if getattr(layer, "mean", None) is not None:
            mean, variance = (
                np.ravel(ops.convert_to_numpy(one)) for one in (layer.mean, layer.variance)
            )
            if (mean != 0).any() or (variance != 1).any():  # else it was never adapted
                path.normalization = (mean, np.sqrt(variance))
                path.words.append("Normalization")
        return False
    stated = getattr(layer, "value_range", None)
    if stated is not None and isinstance(layer, keras.layers.Layer):
        ends = sorted(path.back(float(value)) for value in stated)
        path.stated = (ends[0], ends[1])
        path.words.append(name)
        return False
    if name in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide"):
        return _follow_arithmetic(layer, name, path)
    return name in _PASSING


def _follow_arithmetic(operation: Any, name: str, path: _Path) -> bool:
    """A pixel plus, minus, times or divided by a number."""
    arguments = operation._inbound_nodes[0].arguments.args
    if len(arguments) != 2 or not isinstance(arguments[1], (int, float)):
        return False
    value = float(arguments[1])
    scale, offset = {
        "Add": (1.0, value),
        "Subtract": (1.0, -value),
        "Multiply": (value, 0.0),
    }.get(name, (1.0 / value if value else math.inf, 0.0))
    return math.isfinite(scale) and scale != 0 and path.map(scale, offset, name)


def channels_first(model: keras.layers.Layer, shape: tuple[int, ...], said: str | None) -> bool:
    """Whether a model's images ``(n, ...)`` have their channels on axis 1 and not on the last.

    The model's convolutions and poolings say it, and sizes such as one or three channels at one
    end only. The configuration of Keras does not count, since it says nothing of this model.

    Args:
        model: the model.
        shape: of one image.
        said: ``"channels_first"``, ``"channels_last"`` or None.

    Raises:
        ValueError: if nothing says it or two things say otherwise, or if the user contradicts all.
    """
    if said is not None:
        one_of(said, "data_format", _FORMATS)
    if len(shape) != 3:
        return False
    layers = {layer.data_format for layer in inside(model, keras.layers.Layer) if _tells(layer)}
    few = [size in (1, 3) for size in (shape[-1], shape[0])]
    evidence = set() if len(layers) > 1 else layers
    evidence |= {name for name, own in zip(_FORMATS, few, strict=True) if own and sum(few) == 1}
    if said is not None:
        if evidence == set(_FORMATS) - {said}:
            raise ValueError(
                f"Expected data_format={next(iter(evidence))!r}, that of the model's layers or of "
                f"images {shape}. Received: data_format={said!r}. Leave it out."
            )
        return said == "channels_first"
    if len(evidence) != 1:
        raise ValueError(
            f"Expected to know where the channels of images of shape {shape} are, since L0 and "
            "pixel attacks count pixels. Received: a model whose layers do not say it, or "
            'otherwise than its images. Give data_format="channels_last" or "channels_first".'
        )
    return evidence == {"channels_first"}


def _tells(layer: Any) -> bool:
    """Whether a layer really uses its data format, which every Flatten has too."""
    if getattr(layer, "data_format", None) not in _FORMATS:
        return False
    return (
        type(layer).__name__ != "Flatten" and getattr(layer, "granularity", "channel") == "channel"
    )
