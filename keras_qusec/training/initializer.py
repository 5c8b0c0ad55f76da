"""The initial weights with which intervals neither grow nor shrink from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_qusec")
class IBPNormal(keras.initializers.Initializer):
    """Normal weights whose standard deviation keeps the width of intervals: √(2π) / fan-in.

    With Keras' own initial weights intervals widen in every layer by a factor that grows with the
    number of its inputs, so that deep networks do not begin to train on them. For kernels of dense
    layers and convolutions, the last axis of which counts the outputs.

    Args:
        seed: seed of the weights, or None.

    Source: Shi et al. 2021, Fast certified robust training with short warmup, Section 3.2.

    Example:

    >>> from keras_qusec.training import IBPNormal
    >>> weights = IBPNormal(seed=0)((1000, 100))
    >>> round(1000 * float(keras.ops.std(weights)), 1)
    2.5
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._normal = keras.initializers.RandomNormal(stddev=1.0, seed=seed)

    def __call__(self, shape: Sequence[int], dtype: Any = None, **_: Any) -> Tensor:
        fan_in = math.prod(shape[:-1])
        return self._normal(shape, dtype=dtype) * (math.sqrt(2 * math.pi) / max(1, fan_in))

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}
