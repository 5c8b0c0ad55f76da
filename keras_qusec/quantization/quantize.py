"""The quantizer of the paper: soft and hard forward, analytic gradient.

Eq. 1 of the paper is a sum of ``levels - 1`` sigmoids. Written as it stands, it costs one
pass over the images per level and, under automatic differentiation, one stored tensor
per level. Here no tensor is ever larger than the images: any thresholds take one loop
(`loop`), many equally spaced ones a closed form (`closed_forms`).
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras
from keras import ops

from keras_qusec import checks
from keras_qusec.checks import Range
from keras_qusec.quantization.closed_forms import EqualSpacing, equal_quantizer
from keras_qusec.quantization.loop import free_quantizer
from keras_qusec.quantization.thresholds import check_hardness, check_levels, equal_thresholds

# From here on a window of 35 thresholds is smaller than all of them, so the closed forms pay.
_CLOSED_FORM_LEVELS = 36

Tensor = Any


def soft_quantize(
    x: Tensor,
    thresholds: Any,
    *,
    hardness: Any = 50.0,
    value_range: Range = (0.0, 1.0),
    gradient_hardness: Any = None,
    differentiate_thresholds: bool = True,
) -> Tensor:
    """The paper's quantizer: the mean of one sigmoid per threshold (Eq. 1).

    Forward, with z the hardness and (low, high) the value range::

        y = 1/(n-1) * sum_k s_k,    s_k = sigmoid(z * (x - t_k) / (high - low))

    Gradients, with z' the gradient hardness and s'_k the sigmoids it gives (Eq. 5)::

        dy/dx   =  z' / ((n-1) * (high - low)) * sum_k s'_k * (1 - s'_k)
        dy/dt_k = -z' / ((n-1) * (high - low)) * s'_k * (1 - s'_k)

    The hardness itself gets a gradient of zero: it is a setting, not a parameter.
    Values outside `value_range` are legal and saturate towards 0 and 1.

    Args:
        x: float tensor of any shape, usually ``(batch, height, width, channels)``.
            float16 and bfloat16 are computed in float32.
        thresholds: an integer n for n levels with equally spaced thresholds (the fast
            form); or a float tensor of shape ``(n-1,)``, or ``(n-1, *s)`` with s
            broadcasting against the trailing axes of `x`.
        hardness: z, a number or scalar tensor above 0.
        value_range: darkest and brightest pixel value.
        gradient_hardness: z' of the gradient; None means `hardness`. A smaller one is
            the surrogate gradient of an adaptive attacker (BPDA).
        differentiate_thresholds: False skips the threshold gradients.

    Returns:
        Tensor of the shape of `x` with values in [0, 1], float32 (float64 for float64).

    Raises:
        ValueError: for unusable arguments or integer images.

    Source: Section III, Eq. 1 and 5.

    Example:

    >>> from keras_qusec.quantization import soft_quantize
    >>> y = soft_quantize(np.array([0.0, 0.5, 1.0], "float32"), 2, hardness=50)
    >>> [round(float(v), 3) for v in y]
    [0.0, 0.5, 1.0]
    """
    return _quantize(
        x,
        thresholds,
        hardness,
        hardness if gradient_hardness is None else gradient_hardness,
        value_range,
        differentiate_thresholds,
        hard=False,
    )


def hard_quantize(
    x: Tensor,
    thresholds: Any,
    *,
    gradient_hardness: Any = 50.0,
    value_range: Range = (0.0, 1.0),
    differentiate_thresholds: bool = True,
) -> Tensor:
    """The staircase that the soft quantizer tends to as its hardness grows.

    Forward: ``y = count(t_k <= x) / (n - 1)``, exactly one of n values. The gradients
    are those of `soft_quantize` with `gradient_hardness`: the true ones are zero almost
    everywhere, which stops training and hides the model from attacks.

    Args:
        x: float tensor, as in `soft_quantize`.
        thresholds: as in `soft_quantize`.
        gradient_hardness: z' of the gradient, a number or scalar tensor above 0.
        value_range: darkest and brightest pixel value.
        differentiate_thresholds: False skips the threshold gradients.

    Returns:
        Tensor of the shape of `x`, values j / (n - 1), float32 (float64 for float64).

    Raises:
        ValueError: for unusable arguments or integer images.

    Source: the limit of Eq. 1 for z to infinity.

    Example:

    >>> from keras_qusec.quantization import hard_quantize
    >>> np.asarray(hard_quantize(np.array([0.2, 0.4, 0.9], "float32"), 3)).tolist()
    [0.0, 0.5, 1.0]
    """
    return _quantize(
        x,
        thresholds,
        gradient_hardness,
        gradient_hardness,
        value_range,
        differentiate_thresholds,
        hard=True,
    )


def _quantize(
    x: Tensor,
    thresholds: Any,
    hardness: Any,
    gradient_hardness: Any,
    value_range: Range,
    differentiate_thresholds: bool,
    hard: bool,
) -> Tensor:
    x = ops.convert_to_tensor(x)
    checks.float_images(x)
    dtype = _working_dtype(x)
    x = ops.cast(x, dtype)
    low, high = checks.value_range(value_range)
    steepness = _steepness(hardness, "hardness", high - low, dtype)
    gradient_steepness = (
        steepness
        if gradient_hardness is hardness
        else _steepness(gradient_hardness, "gradient_hardness", high - low, dtype)
    )
    if isinstance(thresholds, numbers.Integral):
        levels = check_levels(thresholds)
        if levels >= _CLOSED_FORM_LEVELS:
            spacing = EqualSpacing(levels, low, high)
            return equal_quantizer(spacing, hard)(x, steepness, gradient_steepness)
        thresholds, differentiate_thresholds = equal_thresholds(levels, (low, high)), False
    # The cast (not the variable itself) is what a custom gradient can take.
    thresholds = ops.cast(ops.convert_to_tensor(thresholds), dtype)
    largest = max(abs(low), abs(high))
    shrink = 2.0 ** -max(0, math.ceil(math.log2(largest)))
    quantizer = free_quantizer(hard, differentiate_thresholds, shrink)
    return quantizer(x, thresholds, steepness, gradient_steepness)


def _working_dtype(x: Tensor) -> str:
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"


def _steepness(hardness: Any, name: str, width: float, dtype: str) -> Tensor:
    """The hardness per unit of x, as a scalar tensor."""
    if isinstance(hardness, numbers.Real):
        hardness = check_hardness(hardness, name)
    return ops.cast(ops.convert_to_tensor(hardness), dtype) / width
