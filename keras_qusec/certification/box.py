"""What a classifier can receive within L-infinity epsilon of an image: the reachable box.

The rule is that of the verification of adversarial examples: what it accepts is what a proof is
about, to the last float.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel
from keras_qusec.attacks.input_quantizer import InputQuantizer, input_quantizer
from keras_qusec.certification.graph import SidePathError, pieces_before, pieces_between
from keras_qusec.certification.network import Network

Array = np.ndarray

# A soft quantizer's float32 sigmoids are not monotone to the last bits, and batches of other sizes
# may differ in them. Measured: at most 2.4e-7 on three backends.
_SIGMOID_MARGIN = 2e-6


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
    ends, grid = (darkest, brightest), None
    low, high = ends
    if model.channels_first:
        low, high = np.moveaxis(low, -1, 1), np.moveaxis(high, -1, 1)
    quantizer = front_quantizer(model, x)
    if quantizer is not None:
        grid = quantizer.grid
        low, high = _outputs(model, quantizer, low, high)
        if grid is None:
            margin = soft_margin(quantizer.layer)
            low, high = low - margin, high + margin
    return Box(low, high, grid, quantizer, ends)


def soft_margin(layer: Any) -> float:
    """By how much a soft quantizer's output may differ between two ways to compute it.

    What its sigmoids receive is a difference of two numbers of the size of the hardness, each of
    which is rounded, or not if a compiler fuses them; a sigmoid changes by a quarter of that.
    """
    low, high = layer.value_range
    largest = layer.hardness * max(abs(low), abs(high)) / (high - low)
    return _SIGMOID_MARGIN + 0.25 * 2.0**-21 * largest


def front_quantizer(model: AttackedModel, x: Array) -> InputQuantizer | None:
    """The quantizer that all of an image passes, by trial and by the model's graph; or None.

    Args:
        model: the classifier.
        x: images, of which the shape matters.
    """

    def find() -> InputQuantizer | None:
        found = input_quantizer(model, x)
        if found is None:
            return None
        try:
            pieces_between(model.model, found.layer)
        except SidePathError:
            return None
        return found

    return model.kept(("front of proofs", x.shape[1:]), find)


def behind_hard_quantizer(model: AttackedModel, x: Array) -> bool:
    """Whether all of an image passes a hard quantizer first, behind which proofs are quick."""
    quantizer = front_quantizer(model, x)
    return quantizer is not None and quantizer.grid is not None


def _outputs(
    model: AttackedModel, quantizer: InputQuantizer, low: Array, high: Array
) -> tuple[Array, Array]:
    """What a quantizer gives at the ends of what it receives, images as the model has them.

    Layers before it round, on each backend in another way; so what it receives is widened by all
    that they may round.
    """
    layer = quantizer.layer
    pieces = pieces_before(model.model, layer)
    # Made anew, since weights may have changed.
    front = Network.of_front(pieces)
    received = front.bounds(low.reshape(len(low), -1), high.reshape(len(high), -1))[-1]
    ends = []
    for side, values in ((-1, received.low), (1, received.high)):
        wide = values + side * received.error
        # To the next float32 outside, where float64 lies between two of them.
        near = wide.astype("float32")
        inside = side * (near.astype("float64") - wide) < 0
        near = np.where(inside, np.nextafter(near, np.float32(side * np.inf)), near)
        images = near.reshape(len(low), *pieces.shapes[pieces.output])
        outputs = ops.stop_gradient(layer(ops.convert_to_tensor(images)))
        ends.append(np.array(ops.convert_to_numpy(ops.cast(outputs, "float32"))))
    return ends[0], ends[1]
