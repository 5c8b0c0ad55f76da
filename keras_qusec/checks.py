"""Arguments of users, checked: one wording each, with what was expected, received, and a remedy."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

Range = tuple[float, float]


def whole_number(value: Any, name: str, *, least: int = 1, hint: str = "") -> int:
    """`value` as an int from `least` up; NumPy integers are whole numbers, booleans are not."""
    if not is_whole(value) or value < least:
        raise ValueError(
            f"Expected {name} to be a whole number from {least} up. "
            f"Received: {name}={value!r}.{_after(hint)}"
        )
    return int(value)


def is_whole(value: Any) -> bool:
    """True for Python and NumPy integers, but not for booleans."""
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def is_number(value: Any) -> bool:
    """True for real numbers of Python and NumPy, but not for booleans."""
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def number(
    value: Any,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float = math.inf,
    hint: str = "",
) -> float:
    """`value` as a float, at least `least` or above `above`, finite and at most `most`."""
    low = -math.inf if least is None else least
    inside = is_number(value) and math.isfinite(value) and low <= value <= most
    if not inside or (above is not None and not value > above):
        limits = [f"above {above:g}"] if above is not None else [f"{low:g} or more"]
        if math.isfinite(most):
            limits.append(f"at most {most:g}")
        raise ValueError(
            f"Expected {name} to be a number {' and '.join(limits)}. "
            f"Received: {name}={value!r}.{_after(hint)}"
        )
    return float(value)


def one_of(value: Any, name: str, options: Iterable[Any], *, hint: str = "") -> Any:
    """`value`, which must be one of some options."""
    listed = list(options)
    if not any(type(value) is type(option) and value == option for option in listed):
        raise ValueError(
            f"Expected {name} to be one of {', '.join(map(repr, listed))}. "
            f"Received: {name}={value!r}.{closest(value, listed)}{_after(hint)}"
        )
    return value


def closest(value: Any, options: Iterable[Any]) -> str:
    """A sentence that names the options that look like a mistyped `value`, or nothing."""
    names = [str(option) for option in options]
    near = difflib.get_close_matches(str(value).lower(), names, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def value_range(values: Any) -> Range:
    """`values` as the smallest and the largest pixel value, two finite floats in rising order."""
    try:
        low, high = (float(v) for v in values)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "Expected value_range to be two finite numbers (low, high) with low < high, "
            f"the darkest and the brightest pixel value. Received: value_range={values!r}. "
            "Images scaled by 1/255 have the range (0.0, 1.0)."
        )
    return low, high


def float_images(x: Any) -> None:
    """Raise a ValueError for images of an integer or boolean dtype."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"Expected images as floats in value_range. Received: dtype={dtype}. For a model of "
            "images in [0, 1] scale them, x.astype('float32') / 255; for one of images from 0 to "
            "255, such as one that begins with keras.layers.Rescaling(1 / 255), only "
            "x.astype('float32')."
        )


def float_pixels(x: np.ndarray, values: Range) -> np.ndarray:
    """Images as floats: bytes become floats where their range is said; others must be floats."""
    if x.dtype == np.uint8 and values == (0.0, 255.0):
        return x.astype("float32")
    float_images(x)
    return x


def images_inside(x: np.ndarray, values: Range) -> None:
    """Raise a ValueError for images with a value outside the range, or NaN."""
    low, high = values
    rounding = 1e-6 * (high - low)  # the ends of a range are rarely float32 numbers
    if x.size and not (x.min() >= low - rounding and x.max() <= high + rounding):
        raise ValueError(
            f"Expected images inside value_range={values}. Received: values from "
            f"{x.min():g} to {x.max():g}. Scale the images, or give their value_range."
        )


def pixels_used(x: np.ndarray, values: Range) -> None:
    """Raise a ValueError for images that use less than a hundredth of their value range."""
    used = float(x.max()) - float(x.min()) if x.size else 0.0
    if 0 < used <= 0.01 * (values[1] - values[0]):
        raise ValueError(
            f"Expected images that use value_range=({values[0]:g}, {values[1]:g}). Received: "
            f"values from {x.min():g} to {x.max():g}, less than a hundredth of it. Scale "
            "the images, or give the range that they have, such as (0.0, 1.0)."
        )


def epsilon_inside(epsilon: float, values: Range) -> None:
    """Raise a ValueError for an L-infinity radius that must be in another unit than the pixels.

    Above the width of the value range it turns any image into any other; and one for images in
    [0, 1] is next to nothing for images from 0 to 255.
    """
    width = values[1] - values[0]
    if epsilon > 0:
        epsilon_not_tiny(epsilon, "linf", "L-inf", width, values)
    if epsilon > width:
        raise ValueError(
            f"Expected epsilon in units of the pixel values, at most {width:g} in L-inf, which "
            f"turns any image into any other. Received: {epsilon:g}. For images in [0, 1] write "
            f"{epsilon:g} / 255; for others give their value_range."
        )


# The smallest radii that make sense, as shares of the largest distance between two images: about
# a twentieth of 8 / 255, and of 0.5 in L2 and 12 in L1 on images of 32 x 32 x 3 in [0, 1].
_LEAST_SHARES = {"linf": 1 / 600, "l2": 1 / 2500, "l1": 1 / 5000}
# In wider value ranges a radius for images in [0, 1] is smaller than that.
_WIDE = 10.0


def epsilon_not_tiny(epsilon: float, norm: str, symbol: str, largest: float, values: Range) -> None:
    """Raise a ValueError for a radius for images in [0, 1], beside images of a wide value range.

    Args:
        epsilon: the radius, above 0.
        norm: its norm, by name.
        symbol: the norm, for people.
        largest: distance between two images in it.
        values: smallest and largest pixel value.
    """
    width = values[1] - values[0]
    if width > _WIDE and epsilon < _LEAST_SHARES.get(norm, 0.0) * largest:
        raise ValueError(
            f"Expected epsilon in units of the pixel values, which are {values[0]:g} to "
            f"{values[1]:g}. Received: {epsilon:g} in {symbol}, next to nothing in these, so that "
            f"nearly every model would be called robust. For images in [0, 1] it would be usual; "
            f"in these units it is {epsilon * width:.6g}."
        )


def class_labels(
    y: Any, count: int, *, classes: int | None = None, name: str = "labels"
) -> np.ndarray:
    """Class labels as ``(count,)`` int64, from integers ``(n,)`` or ``(n, 1)`` or one-hot rows.

    With `classes`, the number of classes, labels must lie in 0 to ``classes - 1``.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and ((y == 0) | (y == 1)).all() and classes in (None, y.shape[1]):
        if (y.sum(axis=1) != 1).any():
            raise ValueError(
                f"Expected one-hot {name} with a single one in each row. Received: rows with "
                "none or several. Several labels an image (multi-label) are not supported."
            )
        y = y.argmax(axis=1)
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer):
        width = "n_classes" if classes is None else classes
        raise ValueError(
            f"Expected {count} {name} as integers (n,) or one-hot (n, {width}). Received: shape "
            f"{y.shape}, dtype {y.dtype}. Probabilities become labels with y.argmax(axis=1), "
            "class numbers that are floats with y.astype('int64'); targets of a regression are "
            "not supported."
        )
    if count and classes is not None and (y.min() < 0 or y.max() >= classes):
        remedy = "Number the classes in the order of the model's outputs, from 0 up."
        if y.min() == 1 and y.max() == classes:
            remedy = "Classes that are numbered from 1 become right with y - 1."
        raise ValueError(
            f"Expected {name} from 0 to {classes - 1}, since the model has {classes} outputs. "
            f"Received: {y.min()} to {y.max()}. {remedy}"
        )
    return y.astype("int64")


def names_of(names: Iterable[Any], count: int, name: str) -> list[str]:
    """Names as text, which must be as many as there are things to name."""
    listed = [str(one) for one in names]
    if len(listed) != count:
        raise ValueError(f"Expected {name} for each of {count}. Received: {len(listed)}.")
    return listed


def _after(hint: str) -> str:
    return f" {hint}" if hint else ""
