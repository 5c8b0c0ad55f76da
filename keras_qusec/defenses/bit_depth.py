"""Bit-depth reduction, the first of the squeezers of feature squeezing (Xu et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate, given_output
from keras_qusec.quantization import check_hardness, soft_quantize

Tensor = Any


def reduce_bit_depth(x: Tensor, bits: int, value_range: checks.Range = (0.0, 1.0)) -> Tensor:
    """Pixels rounded to ``2^bits`` equally spaced values: ``rint(x (2^b - 1)) / (2^b - 1)``.

    Args:
        x: float tensor in the value range.
        bits: bits of a pixel.
        value_range: darkest and brightest pixel value, which the result keeps.

    Source: Xu et al. 2018, Section III.A.

    Example:

    >>> import numpy as np
    >>> from keras_qusec.defenses import reduce_bit_depth
    >>> np.asarray(reduce_bit_depth(np.array([0.1, 0.4, 0.9], "float32"), 2)).round(3).tolist()
    [0.0, 0.3330000042915344, 1.0]
    """
    low, high = value_range
    steps = 2.0**bits - 1
    return ops.round((x - low) * (steps / (high - low))) * ((high - low) / steps) + low


@keras.saving.register_keras_serializable(package="keras_qusec")
class BitDepthReduction(keras.layers.Layer):
    """Round pixels to a few bits, as a layer in front of a classifier.

    ``y = rint(x (2^b - 1)) / (2^b - 1)`` for pixels in [0, 1]. The derivative is zero wherever
    there is one, so that attacks which follow it fail; adaptive attacks take that of sigmoids at
    the steps instead (BPDA).

    Args:
        bits: bits of a pixel, from 1 up; the authors take 1 for MNIST and 5 for CIFAR-10.
        value_range: darkest and brightest pixel value.
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: any; floats in `value_range`.

    Output shape: that of the input; values in `value_range`.

    Raises:
        ValueError: for unusable arguments, and for integer images.

    Source: Xu et al. 2018, Feature Squeezing, Section III.A. How it is broken: He et al. 2017.

    Example:

    >>> from keras_qusec.defenses import BitDepthReduction
    >>> layer = BitDepthReduction(1)
    >>> np.asarray(layer(np.array([[0.2, 0.7]], "float32"))).tolist()
    [[0.0, 1.0]]
    """

    def __init__(
        self, bits: int = 1, *, value_range: checks.Range = (0.0, 1.0), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.bits = checks.whole_number(bits, "bits", hint="8 bits change no usual image.")
        self.value_range = checks.value_range(value_range)

    def surrogates(self, hardnesses: Sequence[float]) -> list[float]:
        """What an adaptive attacker differentiates instead: sigmoids at the steps."""
        return [check_hardness(hardness) for hardness in hardnesses]

    def call(self, inputs: Tensor) -> Tensor:
        checks.float_images(inputs)
        given = given_output(self, inputs)
        if given is not None:
            return ops.cast(given, self.compute_dtype)
        y = reduce_bit_depth(inputs, self.bits, self.value_range)
        surrogate = current_surrogate(self)
        if surrogate is None:
            return y
        (low, high), steps = self.value_range, 2**self.bits - 1
        middles = (low + (np.arange(steps) + 0.5) * (high - low) / steps).astype("float32")
        share = soft_quantize(
            inputs, middles, hardness=surrogate, value_range=(low, high),
            differentiate_thresholds=False,
        )  # fmt: skip
        return straight_through(y, ops.cast(low + (high - low) * share, y.dtype))

    @property
    def output_grid(self) -> tuple[float, float]:
        """Smallest output and the step from one output to the next."""
        low, high = self.value_range
        return low, (high - low) / (2**self.bits - 1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits, "value_range": list(self.value_range)}
