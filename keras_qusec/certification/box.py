"""What a classifier can receive within L-infinity epsilon of an image: the reachable box.

The rule is that of the verification of adversarial examples: what it accepts is what a proof is
about, to the last float.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel
from keras_qusec.attacks.input_quantizer import InputQuantizer, input_quantizer

Array = np.ndarray

# A soft quantizer's float32 sigmoids are not monotone to the last bits, and batches of other sizes
# may differ in them. Measured: at most 2.4e-7 on three backends.
SOFT_MARGIN = 2e-6


class Box(NamedTuple):
    """What reaches a network, or the part of it behind its quantizer, from the images of a ball.

    Attributes:
        low: smallest values, ``(n, ...)`` with axes as the model has them, float32.
        high: largest values.
        grid: smallest output and step of the quantizer in front; None for all values between.
        quantizer: it, or None.
        ends: the darkest and the brightest image of each ball, channels last.
    """

    low: Array
    high: Array
    grid: tuple[float, float] | None
    quantizer: InputQuantizer | None
    ends: tuple[Array, Array]

    def levels(self, row: int) -> list[Array | None]:
        """For each value of an image that can move, those that it can have, or None for all.

        A quantizer's levels are those of its grid; the ends are its outputs to the last bit.
        """
        low, high = self.low[row].ravel(), self.high[row].ravel()
        moving = np.flatnonzero(high > low)
        if self.grid is None:
            return [None] * len(moving)
        first, step = self.grid
        found: list[Array | None] = []
        for least, most in zip(low[moving], high[moving], strict=True):
            places = np.round((np.array([least, most], "float64") - first) / step)
            values = first + np.arange(places[0], places[1] + 1) * step
            values[0], values[-1] = least, most
            found.append(values)
        return found


def reachable_box(model: AttackedModel, x: Array, epsilon: float) -> Box:
    """The reachable box of each image.

    Args:
        model: the classifier.
        x: clean images ``(n, ...)`` with channels last, float32.
        epsilon: radius in L-infinity, in units of the pixel values.
    """
    darkest, brightest = norms.LInfinity().ends(x, epsilon, model.value_range)
    quantizer = input_quantizer(model, x)
    low, high, grid = darkest, brightest, None
    if quantizer is not None:
        low, high, grid = quantizer.outputs(darkest), quantizer.outputs(brightest), quantizer.grid
        if grid is None:
            low, high = low - SOFT_MARGIN, high + SOFT_MARGIN
    if model.channels_first:
        low, high = np.moveaxis(low, -1, 1), np.moveaxis(high, -1, 1)
    return Box(low, high, grid, quantizer, (darkest, brightest))
