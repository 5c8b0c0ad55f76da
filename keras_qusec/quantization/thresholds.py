"""Levels, hardness and thresholds of a quantizer: checked, and the default ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qusec import checks
from keras_qusec.checks import Range

_MAX_LEVELS = 65536
_MAX_HARDNESS = 1e30


def check_levels(levels: Any) -> int:
    """`levels` as an int from 2 up; a ValueError says what is wrong with it."""
    if not checks.is_whole(levels) or not 2 <= levels <= _MAX_LEVELS:
        raise ValueError(
            f"Expected levels to be an integer from 2 to {_MAX_LEVELS}. "
            f"Received: levels={levels!r}. Use levels=2 for black and white."
        )
    return int(levels)


def check_hardness(hardness: Any, name: str = "hardness") -> float:
    """`hardness` as a float above 0; a ValueError says what is wrong with it."""
    hint = (
        "Usual values are 5 to 50; for an exact staircase use hard=True instead of a very "
        "large hardness."
    )
    return checks.number(hardness, name, above=0, most=_MAX_HARDNESS, hint=hint)


def check_thresholds(thresholds: Any, levels: int, value_range: Range) -> np.ndarray:
    """Return given thresholds as a float32 array, or raise a ValueError.

    They are numbers strictly inside `value_range`, strictly increasing along the first
    axis, `levels - 1` of them.
    """
    try:
        values = np.asarray(thresholds, dtype="float32")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected thresholds to be {levels - 1} increasing numbers. "
            f"Received: thresholds={thresholds!r}."
        ) from error
    if values.ndim == 0 or values.shape[0] != levels - 1:
        raise ValueError(
            f"Expected {levels - 1} thresholds, because levels={levels} and n levels need "
            f"n - 1 thresholds. Received: an array of shape {values.shape}. "
            "Change levels, or give one threshold fewer than levels."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"Expected finite thresholds. Received: thresholds={thresholds!r}. "
            "Remove the NaN or infinite entries."
        )
    low, high = value_range
    if np.any(values <= low) or np.any(values >= high):
        raise ValueError(
            f"Expected thresholds strictly inside value_range={value_range}. "
            f"Received: thresholds from {values.min():g} to {values.max():g}. "
            "Set value_range to the range of your images, or move the thresholds into it."
        )
    if np.any(np.diff(values, axis=0) <= 0):
        raise ValueError(
            "Expected strictly increasing thresholds (as float32 numbers). "
            f"Received: thresholds={thresholds!r}. Sort them and remove duplicates."
        )
    return values


# How far below a byte value thresholds are put, in steps from byte to byte: more than images
# scaled by another division are off, less than 8-bit numbers can tell.
_BELOW = 1e-3


def byte_thresholds(thresholds: Any, value_range: Range = (0.0, 1.0)) -> np.ndarray:
    """Thresholds moved up to the next of 256 byte values, less a thousandth of a step.

    Images of bytes are quantized as before, since between two bytes there is none. But models
    that compute with 8-bit or 16-bit numbers round a threshold between two bytes to one of them,
    and may then take the darker byte for the brighter one; these they keep.

    Args:
        thresholds: numbers inside the value range, any shape.
        value_range: pixel values of byte 0 and byte 255.

    Returns:
        float32 array of the same shape.

    Raises:
        ValueError: for two thresholds, along the first axis, that lie between the same two bytes.

    Example:

    >>> from keras_qusec.quantization import byte_thresholds
    >>> [round(255 * float(t), 3) for t in byte_thresholds([0.25, 0.5])]
    [63.999, 127.999]
    """
    low, high = checks.value_range(value_range)
    values = np.asarray(thresholds, "float64")
    step = (high - low) / 255
    # float32 thresholds that are a byte value stay there.
    numbers = np.ceil((values - low) / step - 1e-4)
    if values.ndim and np.any(np.diff(numbers, axis=0) <= 0):
        raise ValueError(
            "Expected increasing thresholds with a byte value between each two of them. Received: "
            f"{values.tolist()!r}. Use fewer levels."
        )
    return (low + step * (numbers - _BELOW)).astype("float32")


def equal_thresholds(levels: int, value_range: Range = (0.0, 1.0)) -> np.ndarray:
    """Equally spaced thresholds, ``t_k = k / levels`` of the value range.

    Args:
        levels: number of output levels n, an integer from 2 up.
        value_range: darkest and brightest pixel value.

    Returns:
        float32 array of shape ``(levels - 1,)``, increasing.

    Raises:
        ValueError: for unusable `levels` or `value_range`.

    Source: Section III of the paper ("if the number of quantization levels is 2, all
    the values below 0.5 are set to 0, those above or equal to 0.5 are set to 1").

    Example:

    >>> from keras_qusec.quantization import equal_thresholds
    >>> equal_thresholds(4).tolist()
    [0.25, 0.5, 0.75]
    """
    levels = check_levels(levels)
    low, high = checks.value_range(value_range)
    return (low + (high - low) * np.arange(1, levels) / levels).astype("float32")
