"""Adversarial examples away from a quantizer's steps, which survive rounding to few bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qusec.norms import LInfinity

Array = np.ndarray

# Nearer to a step than this, in widths of the value range, a pixel may be rounded across it: two
# byte values, which is more than 8-bit numbers, float16 and bfloat16 are off.
_NEAR = 2 / 255


def away_from_steps(
    examples: Array, x: Array, epsilon: float, thresholds: Any, value_range: tuple[float, float]
) -> Array:
    """Images of the same levels, with no pixel nearer to a step than rounding moves it.

    Where the ball leaves no such place within the level, a pixel is put as far away as it can be.

    Args:
        examples: images within the ball ``(n, ...)``.
        x: clean images.
        epsilon: radius in L-infinity, in units of the pixel values.
        thresholds: of the quantizer that receives the images, increasing along the first axis.
        value_range: smallest and largest pixel value.
    """
    steps = np.sort(np.asarray(thresholds, "float64"), axis=0)
    darkest, brightest = LInfinity().ends(x, epsilon, value_range)
    image = examples.astype("float64")
    below, above = np.full(image.shape, -np.inf), np.full(image.shape, np.inf)
    for step in steps:
        passed = image >= step
        below = np.where(passed, np.broadcast_to(step, image.shape), below)
        above = np.where(passed, above, np.minimum(above, np.broadcast_to(step, image.shape)))
    reach = _NEAR * (value_range[1] - value_range[0])
    # Between two steps that are near to each other, the middle.
    # Beyond the outermost steps it is infinite, and the reach alone counts.
    middle = (below + above) / 2
    lowest, highest = np.minimum(below + reach, middle), np.maximum(above - reach, middle)
    moved = np.clip(image, lowest, highest)
    # Back into the ball, which never leads across a step: the example itself is inside.
    moved = np.clip(moved, darkest, brightest).astype("float32")
    inside = (moved >= below) & (moved < above)
    return np.where(inside, moved, examples).astype("float32")
