"""The images that a model expects: their value range, and where their channels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.checks import Range, one_of, value_range
from keras_qusec.graphs import Call, calls_of, has_graph
from keras_qusec.integer_inputs import integer_input, whole_images
from keras_qusec.stored_images import StoredImages, parts_of
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
        # Mean and, if it is divided by one, standard deviation of the images it was adapted to.
        self.normalization: tuple[np.ndarray, np.ndarray | None] | None = None

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
    1/255 or 1/127.5, or an Input of bytes. None if nothing says it.

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


def range_of(given: Any, models: Mapping[str, Any], x: Any = None) -> Range:
    """The value range that was given, or the one that all models say they expect, or (0, 1).

    Args:
        given: smallest and largest pixel value, or None.
        models: by name; what is no model of Keras has a `value_range`.
        x: the images. Where they use next to nothing of the range, or nothing below zero of one
            that begins there, they have another one.

    Raises:
        ValueError: for a range that is none, or models that expect different ones.
    """
    if given is not None:
        return value_range(given)
    found = {
        name: expected_range(model) if isinstance(model, keras.Model) else model.value_range
        for name, model in models.items()
    }
    ranges = {one for one in found.values() if one is not None}
    if len(ranges) > 1:
        raise ValueError(
            "Expected models of one value range. Received: "
            f"{', '.join(f'{name}: {one}' for name, one in found.items())}. Evaluate them one by "
            "one."
        )
    low, high = ranges.pop() if ranges else (0.0, 1.0)
    # The ends of a range of pixels are whole numbers; others come from a scale of another kind.
    whole = max(abs(end - round(end)) for end in (low, high)) < 1e-3
    used = True
    if isinstance(x, StoredImages):
        x = np.array([(part.min(), part.max()) for part in parts_of(x)])
    if x is not None and np.size(x):
        least, most = float(np.min(x)), float(np.max(x))
        used = most - least > 0.01 * (high - low) and (low >= 0 or least < 0)
    return (float(round(low)), float(round(high))) if whole and used else (0.0, 1.0)


def check_expected_range(model: keras.layers.Layer, values: Range, name: str) -> None:
    """Raise a ValueError for a value range that contradicts what a model's first layers say.

    Args:
        model: the model.
        values: the range that its images are said to have.
        name: its name, for the error.
    """
    path, (low, high) = _path(model), values
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
        inside = ends[0] <= mean.min() and mean.max() <= ends[1]
        spread = 0.25 * width if deviation is None else float(deviation.mean())
        if not inside or not 0.01 < spread / width < 0.51:
            problem = (
                f"whose Normalization was adapted to images of mean {float(mean.mean()):.3g} and "
                f"standard deviation {spread:.3g}"
            )
    if problem:
        raise ValueError(
            f"Expected images in the range that the model was made for. Received: "
            f"value_range={_words(values)} for {name!r}, {problem}. Give images in that "
            "range, and its value_range; epsilon is in units of the pixel values."
        )


def check_shape(x: np.ndarray, model: Any, name: str) -> None:
    """Raise a ValueError for images that do not fit a model, where its input shape is known.

    Args:
        x: images ``(n, ...)``.
        model: a model of Keras, or another classifier.
        name: its name, for the error.
    """
    wanted = getattr(model, "input_shape", None)
    if not isinstance(model, keras.Model) and wanted is not None:
        wanted = (None, *wanted)
    if not isinstance(wanted, tuple) or len(wanted) == 0 or isinstance(wanted[0], tuple):
        return
    same = len(wanted) == x.ndim and all(
        w is None or w == h for w, h in zip(wanted[1:], x.shape[1:], strict=True)
    )
    if not same:
        raise ValueError(
            f"Expected images of shape {wanted} for the model {name!r}. Received: {x.shape}. "
            "Greyscale images need a channel axis: x[..., None]."
        )


def images_of(x: Any, values: Range, models: Sequence[tuple[str, Any]]) -> Any:
    """Finite float32 images inside the value range that fit the models.

    Those that stay on disk are looked through once, and changed as they are read.

    Args:
        x: what the user gave, as an array or a list, or `StoredImages`.
        values: smallest and largest pixel value.
        models: names and models; those that are not of Keras have a `value_range`.

    Raises:
        ValueError: for anything else.
    """
    stored = isinstance(x, StoredImages)
    x = x if stored else np.asarray(x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"Expected images (n, ...), at least one. Received: shape {x.shape}. A single image "
            "is image[None]."
        )
    of_keras = [model for _, model in models if isinstance(model, keras.Model)]

    def floats(part: np.ndarray) -> np.ndarray:
        part = whole_images(part, of_keras)
        return np.ascontiguousarray(checks.float_pixels(part, values), dtype="float32")

    def ends_of(part: np.ndarray) -> tuple[Any, ...]:
        """The darkest and the brightest value of checked images; nothing where there is none."""
        if not part.size:
            return ()
        ends = part.min(), part.max()
        if not np.isfinite(ends).all():
            raise ValueError(
                f"Expected finite images. Received: {int((~np.isfinite(part)).sum())} values that "
                "are NaN or infinite. Clean the data first."
            )
        checks.images_inside(part, values)
        return ends

    if stored:
        ends = np.array([ends_of(floats(part)) for part in parts_of(x)])
        x = x.changed(lambda part: np.clip(floats(part), *values))
    else:
        x = floats(x)
        ends = np.array(ends_of(x))
        # Without a copy where nothing lies outside, not even by rounding.
        if ends.size and not (ends[0] >= values[0] and ends[1] <= values[1]):
            x = np.clip(x, *values)
    checks.pixels_used(ends, values)
    for name, model in models:
        check_shape(x, model, name)
        if isinstance(model, keras.Model):
            check_expected_range(model, values, name)
        elif model.value_range != values:
            raise ValueError(
                f"Expected value_range=({values[0]:g}, {values[1]:g}) of the classifier "
                f"{name!r} too. Received: {model.value_range}. Give both the same."
            )
    return x


def _words(values: Range) -> str:
    return f"({values[0]:g}, {values[1]:g})"


def _path(model: keras.layers.Layer) -> _Path:
    """Follow a model's input as far as its pixels keep their meaning."""
    path = _Path()
    _follow(model, path)
    if path.stated is None and integer_input(model) == "uint8":
        path.stated = (0.0, 255.0)
        path.words.insert(0, "an Input of uint8")
    return path


def _follow(model: Any, path: _Path) -> bool:
    """Follow a graph or a layer; True if what comes behind it still sees pixels."""
    if isinstance(model, keras.Sequential):
        return all(_follow_layer(layer, path) for layer in model.layers)
    if isinstance(model, keras.Model):
        return has_graph(model) and _follow_graph(model, path)
    return _follow_layer(model, path)


def _follow_graph(model: keras.Model, path: _Path) -> bool:
    calls, tensor = calls_of(model), model.inputs[0]
    while tensor is not model.outputs[0]:
        takers = [call for call in calls if any(tensor is parent for parent in call.parents)]
        if len(takers) != 1:
            return False
        (call,) = takers
        known = _follow_number(call, path)
        if known is None:
            known = _follow_layer(call.operation, path)
        if not known:
            return False
        tensor = call.output
    return True


def _follow_layer(layer: Any, path: _Path) -> bool:
    name, module = type(layer).__name__, type(layer).__module__
    if isinstance(layer, keras.Model):
        return _follow(layer, path)
    if isinstance(layer, keras.layers.Rescaling):
        return path.map(layer.scale, layer.offset, "Rescaling")
    if isinstance(layer, keras.layers.Normalization):
        return _follow_normalization(layer, path)
    if isinstance(layer, keras.layers.Pipeline):
        return all(_follow_layer(inner, path) for inner in layer.layers)
    if not module.startswith("keras."):
        stated = getattr(layer, "value_range", None)
        if stated is None:
            return False
        ends = sorted(path.back(float(value)) for value in stated)
        path.stated = (ends[0], ends[1])
        path.words.append(name)
        return False
    # Augmentation rests in inference; the value_range of some is Keras' default and says nothing.
    return name in _PASSING or ".layers.preprocessing." in module


def _follow_normalization(layer: keras.layers.Normalization, path: _Path) -> bool:
    if getattr(layer, "mean", None) is None:
        return False
    mean, variance = (np.ravel(ops.convert_to_numpy(one)) for one in (layer.mean, layer.variance))
    if (mean == 0).all() and (variance == variance[0]).all():
        return path.map(1 / max(float(variance[0]) ** 0.5, 1e-7), 0.0, "Normalization")
    # Without a standard deviation it only takes a mean off.
    deviation = None if (variance == 1).all() else np.sqrt(variance)
    path.normalization = (mean, deviation)
    path.words.append("Normalization")
    return False


def _follow_number(call: Call, path: _Path) -> bool | None:
    """A pixel plus, minus, times or divided by a number; None for any other operation."""
    name = type(call.operation).__name__
    arithmetic = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")
    if name not in arithmetic or len(call.arguments) != 2 or len(call.parents) != 1:
        return None
    place = 1 if call.arguments[0] is call.parents[0] else 0
    value = call.arguments[place]
    if not isinstance(value, (int, float, np.number, np.ndarray)) or np.size(value) != 1:
        return False
    number = float(np.ravel(value)[0])
    if name == "Add":
        return path.map(1.0, number, name)
    if name == "Subtract":
        return path.map(*((1.0, -number) if place == 1 else (-1.0, number)), name)
    if name == "Multiply":
        return number != 0 and path.map(number, 0.0, name)
    return place == 1 and number != 0 and path.map(1 / number, 0.0, name)


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
