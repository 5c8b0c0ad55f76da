"""Thermometer encoding (Buckman et al. 2018), BPDA's best-known victim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate
from keras_qusec.quantization import check_hardness

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_qusec")
class ThermometerEncoding(keras.layers.Layer):
    """Replace each value by the column of a thermometer: which of n marks it reaches.

    ``y_k = 1 if x >= k / n else 0`` for k = 0 ... n - 1 and values in [0, 1]: 0.25 at 4 levels is
    (1, 1, 0, 0). The derivative is zero, so that attacks which follow it fail; adaptive attacks
    take that of sigmoids at the marks instead (BPDA).

    Args:
        levels: n, from 2 up; the authors take 16.
        value_range: darkest and brightest pixel value.
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: ``(batch, ..., channels)``, floats in `value_range`.

    Output shape: ``(batch, ..., channels * levels)``; values 0 and 1.

    Raises:
        ValueError: for unusable arguments, and for integer images.

    Source: Buckman et al. 2018, Thermometer Encoding. How it is broken: Athalye et al. 2018.

    Example:

    >>> from keras_qusec.defenses import ThermometerEncoding
    >>> np.asarray(ThermometerEncoding(4)(np.array([[0.25, 0.9]], "float32"))).tolist()
    [[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self, levels: int = 16, *, value_range: checks.Range = (0.0, 1.0), **kwargs: Any
    ) -> None:
        kwargs.setdefault("autocast", False)  # float16 would move pixels across marks
        super().__init__(**kwargs)
        self.levels = checks.whole_number(levels, "levels", least=2)
        self.value_range = checks.value_range(value_range)

    @property
    def marks(self) -> np.ndarray:
        """The values from which on an output is 1, ``(levels,)`` float32."""
        low, high = self.value_range
        return (low + np.arange(self.levels) * (high - low) / self.levels).astype("float32")

    def surrogates(self, hardnesses: Sequence[float]) -> list[float]:
        """What an adaptive attacker differentiates instead: sigmoids, of each hardness."""
        return [check_hardness(hardness) for hardness in hardnesses]

    def call(self, inputs: Tensor) -> Tensor:
        checks.float_images(inputs)
        values = ops.expand_dims(inputs, -1)
        marks = ops.cast(self.marks, inputs.dtype)
        y = ops.cast(values >= marks, inputs.dtype)
        surrogate = current_surrogate(self)
        if surrogate is not None:
            width = self.value_range[1] - self.value_range[0]
            y = straight_through(y, ops.sigmoid((surrogate / width) * (values - marks)))
        shape = ops.shape(inputs)
        flat = ops.reshape(y, (*shape[:-1], inputs.shape[-1] * self.levels))
        return ops.cast(flat, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], input_shape[-1] * self.levels)

    def get_config(self) -> dict[str, Any]:
        own = {"levels": self.levels, "value_range": list(self.value_range)}
        return {**super().get_config(), **own}
