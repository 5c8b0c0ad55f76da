"""Dynamic quantized activation, DQA (Rakin et al. 2018): activations of a few levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate
from keras_qusec.defenses.quantizers import GivenThresholds, OrderedThresholds
from keras_qusec.quantization import check_levels, equal_thresholds, hard_quantize

Tensor = Any

# How steep the sigmoids are through which trained thresholds get their gradient.
_THRESHOLD_HARDNESS = 8.0


@keras.saving.register_keras_serializable(package="keras_qusec")
class QuantizedActivation(keras.layers.Layer):
    """An activation function with a few levels and fixed or trained thresholds.

    ``y = 2 q(tanh(x)) - 1`` with q the staircase of n levels on [-1, 1]; for two levels the sign.
    While it trains, the gradient passes straight through the steps, as that of tanh. In inference
    its derivative is what it is, zero: "the signum function masks the gradient and the adversary is
    unable to generate adversarial examples" (the QuSecNets paper on Fig. 6). Adaptive attacks let
    the gradient pass again.

    Args:
        levels: number of levels n, from 2 up.
        trainable_thresholds: train the thresholds (the authors' dynamic form); False keeps them
            equally spaced (fixed).
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: any.

    Output shape: that of the input; one of n values in [-1, 1].

    Raises:
        ValueError: for unusable arguments.

    Source: Rakin et al. 2018, Defend Deep Neural Networks Against Adversarial Examples via Fixed
    and Dynamic Quantized Activation Functions.

    Example:

    >>> from keras_qusec.defenses import QuantizedActivation
    >>> y = QuantizedActivation(3)(np.array([[-2.0, 0.1, 3.0]], "float32"))
    >>> keras.ops.convert_to_numpy(y).tolist()
    [[-1.0, 0.0, 1.0]]
    """

    def __init__(
        self, levels: int = 2, *, trainable_thresholds: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.levels = check_levels(levels)
        self.trainable_thresholds = bool(trainable_thresholds)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        values = equal_thresholds(self.levels, (-1.0, 1.0))
        self._thresholds = self.add_weight(
            name="thresholds",
            shape=(self.levels - 1,),
            initializer=GivenThresholds(values.tolist()),
            constraint=OrderedThresholds((-1.0, 1.0)),
            trainable=self.trainable_thresholds,
            dtype="float32",
            autocast=False,
        )
        super().build(input_shape)

    @property
    def thresholds(self) -> np.ndarray:
        """The thresholds on tanh(x), ``(levels - 1,)`` float32."""
        return np.array(ops.convert_to_numpy(self._thresholds))

    def surrogates(self, hardnesses: Sequence[float]) -> list[str]:
        """What an adaptive attacker differentiates instead: tanh, straight through the steps."""
        return ["straight-through"]

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        bounded = ops.tanh(ops.cast(inputs, "float32"))
        share = hard_quantize(
            ops.stop_gradient(bounded),
            self._thresholds + 0.0,
            gradient_hardness=_THRESHOLD_HARDNESS,
            value_range=(-1.0, 1.0),
        )
        y = 2.0 * share - 1.0
        if training:
            # The difference is exactly zero, so that the steps stay to the last bit.
            y = y + (bounded - ops.stop_gradient(bounded))
        elif current_surrogate(self) is not None:
            y = straight_through(y, bounded)
        return ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"levels": self.levels, "trainable_thresholds": self.trainable_thresholds}
        return {**super().get_config(), **own}
