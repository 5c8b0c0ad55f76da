"""A quantizer through which all of an image must pass, and the images that give an output of it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.defenses import ValueQuantizer, find_layers, outputs_given

Tensor = Any

# Halvings in the search for the pixel where an output is reached: to neighbouring float32.
_HALVINGS = 32


class InputQuantizer:
    """A quantizer in front of a model, known by trying: see `input_quantizer`.

    Attributes:
        layer: the quantizer.
        model: classifier of the quantizer's outputs.
        grid: smallest output and step between outputs, or None if it has no steps.
    """

    def __init__(
        self, whole: AttackedModel, layer: Any, darkest: np.ndarray, brightest: np.ndarray
    ) -> None:
        self.layer, self.model, self.grid = layer, whole.behind(layer), layer.output_grid
        self._whole = whole
        low, high = whole.value_range
        # What the layer receives: the image itself, or each value on a scale of its own.
        self._scale = (brightest - darkest) / (high - low)
        self._shift = darkest - low * self._scale
        self._plain = bool((darkest == low).all() and (brightest == high).all())

    @property
    def thresholds(self) -> np.ndarray | None:
        """Thresholds ``(steps, ...)`` of each pixel, in its units; None if not known."""
        values = getattr(self.layer, "thresholds", None)
        if values is None:
            return None
        values = np.asarray(values, "float64")
        shape = self._scale.shape
        if values.ndim == 1:
            values = values.reshape(-1, *[1] * len(shape))
        found = (np.broadcast_to(values, (len(values), *shape)) - self._shift) / self._scale
        return np.moveaxis(found, 1, -1) if self._whole.channels_first else found

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What the quantizer gives for images, ``(n, ...)`` with channels last."""
        run = self._whole.compiled(
            ("front", id(self.layer)), lambda mapping, x: self._quantized(mapping, x), batches=1
        )
        return self._whole.on_rows(run, x)

    def images(self, x: np.ndarray, ends: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The images nearest to `x`, on the way to `ends`, that give some outputs.

        Args:
            x: clean images.
            ends: images whose outputs are at least as far as `outputs` from those of `x`.
            outputs: of the quantizer.
        """

        def run(mapping: Any, x: Tensor, ends: Tensor, outputs: Tensor) -> Tensor:
            own = self._quantized(mapping, x)
            sign = ops.sign(outputs - own)

            def halve(_: Any, shares: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
                low, high = shares
                middle = (low + high) / 2.0
                given = self._quantized(mapping, (1.0 - middle) * x + middle * ends)
                there = ops.cast(sign * (given - outputs) >= -1e-6, x.dtype)
                return low + (1.0 - there) * (middle - low), high + there * (middle - high)

            none = ops.zeros_like(x)
            share = ops.fori_loop(0, _HALVINGS, halve, (none, none + 1.0))[1]
            share = share * ops.absolute(sign)
            return (1.0 - share) * x + share * ends

        compiled = self._whole.compiled(("front images", id(self.layer)), run, batches=3)
        return self._whole.on_rows(compiled, x, ends, outputs)

    def _quantized(self, mapping: Any, images: Tensor) -> Tensor:
        images = self._whole.as_pixels(images)
        if not self._plain:
            images = images * self._scale + self._shift
        with keras.StatelessScope(state_mapping=mapping):
            outputs = ops.cast(self.layer(images), "float32")
        return ops.moveaxis(outputs, 1, -1) if self._whole.channels_first else outputs


def input_quantizer(model: AttackedModel, x: np.ndarray) -> InputQuantizer | None:
    """The quantizer in front of a model, or None.

    It must receive the image, or each of its values scaled and shifted; return the same shape;
    and nothing of the image may reach the output beside it.

    Args:
        model: the classifier.
        x: images, of which the shape matters.
    """
    return model.kept(("front quantizer", x.shape[1:]), lambda: _find(model, x[:1]))


def _find(model: AttackedModel, x: np.ndarray) -> InputQuantizer | None:
    low, high = model.value_range
    random = np.random.default_rng(0).uniform(low, high, x.shape).astype("float32")
    if model.takes_whole_numbers:
        random = np.round(random)
    for layer in find_layers(model.model, ValueQuantizer):
        darkest, brightest, between = (
            _received(model, layer, image)
            for image in (np.full_like(x, low), np.full_like(x, high), random)
        )
        if darkest is None or brightest is None or between is None:
            continue
        share = model.as_given(ops.convert_to_tensor((random - low) / (high - low)))
        expected = darkest + (brightest - darkest) * ops.convert_to_numpy(share)
        size = max(np.abs(darkest).max(), np.abs(brightest).max())
        if not (brightest > darkest).all() or np.abs(between - expected).max() > 1e-5 * size:
            continue
        if _output_given(model, layer, x, x) == _output_given(model, layer, random, x):
            return InputQuantizer(model, layer, darkest[0], brightest[0])
    return None


def _received(model: AttackedModel, layer: Any, x: np.ndarray) -> np.ndarray | None:
    """What a layer receives of images, if it is called once and for as many values."""
    received: list[Tensor] = []

    def keep(inputs: Tensor) -> Tensor:
        received.append(inputs)
        return inputs

    with outputs_given({layer: keep}):
        model.outputs(x)
    shape = tuple(ops.shape(model.as_given(ops.convert_to_tensor(x))))
    if len(received) != 1 or tuple(ops.shape(received[0])) != shape:
        return None
    return np.array(ops.convert_to_numpy(ops.cast(ops.stop_gradient(received[0]), "float32")))


def _output_given(model: AttackedModel, layer: Any, x: np.ndarray, outputs: np.ndarray) -> bytes:
    """The model's output for images, to the last bit, where a layer's output is given."""
    given = model.as_given(ops.convert_to_tensor(outputs))
    with outputs_given({layer: lambda _: given}):
        return model.outputs(x).tobytes()
