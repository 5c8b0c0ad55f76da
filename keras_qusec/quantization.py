"""The quantizer as pure functions: thresholds, soft and hard forward, analytic gradient.

Eq. 1 of the paper is a sum of ``levels - 1`` sigmoids. Written as it stands, it costs one
pass over the images per level and, under automatic differentiation, one stored tensor
per level. Here no tensor is ever larger than the images:

* any thresholds: one loop over them, forward and again backward (`_any_*`);
* many equally spaced thresholds: closed forms whose cost does not depend on the number
  of levels (`_equal_*`), by the Euler-Maclaurin formula where neighbouring sigmoids
  overlap, and by the few sigmoids around each pixel's value where they do not.

Everything is written in ``keras.ops`` and runs on TensorFlow, JAX and PyTorch.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

# A sigmoid this many units from its threshold is 0 or 1 to float32 accuracy.
_SATURATION = 17.0
# From here on a window of 2 * _SATURATION + 1 thresholds is smaller than all of them,
# so that the closed forms pay.
_CLOSED_FORM_LEVELS = 36
# Loops up to this long are unrolled: no loop overhead, and simpler exported graphs.
_UNROLL = 4
_MAX_LEVELS = 65536
_MAX_HARDNESS = 1e30

Tensor = Any
Range = tuple[float, float]


# --- Arguments ------------------------------------------------------------------------


def check_levels(levels: Any) -> int:
    """Return `levels` as an int, or raise a ValueError that says what is wrong with it."""
    whole = isinstance(levels, numbers.Integral) and not isinstance(levels, bool)
    if not whole or not 2 <= levels <= _MAX_LEVELS:
        raise ValueError(
            f"Expected levels to be an integer from 2 to {_MAX_LEVELS}. "
            f"Received: levels={levels!r}. Use levels=2 for black and white."
        )
    return int(levels)


def check_hardness(hardness: Any, name: str = "hardness") -> float:
    """Return `hardness` as a float, or raise a ValueError that says what is wrong with it."""
    number = isinstance(hardness, numbers.Real) and not isinstance(hardness, bool)
    if not number or not 0 < hardness <= _MAX_HARDNESS:
        raise ValueError(
            f"Expected {name} to be a number above 0 and at most {_MAX_HARDNESS:g}. "
            f"Received: {name}={hardness!r}. Usual values are 5 to 50; "
            "for an exact staircase use hard=True instead of a very large hardness."
        )
    return float(hardness)


def check_value_range(value_range: Any) -> Range:
    """Return `value_range` as two floats, or raise a ValueError that says what is wrong."""
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "Expected value_range to be two finite numbers (low, high) with low < high, "
            f"the darkest and the brightest pixel value. Received: value_range={value_range!r}. "
            "Images scaled by 1/255 have the range (0.0, 1.0)."
        )
    return low, high


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


def check_images_dtype(x: Tensor) -> None:
    """Raise a ValueError for integer or boolean images."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"Expected images as floats in value_range. Received: dtype={dtype}. "
            "Scale them first, x.astype('float32') / 255, or put "
            "keras.layers.Rescaling(1 / 255) in front of the quantizer."
        )


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
    low, high = check_value_range(value_range)
    return (low + (high - low) * np.arange(1, levels) / levels).astype("float32")


# --- The two quantizers ---------------------------------------------------------------


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
    check_images_dtype(x)
    dtype = _working_dtype(x)
    x = ops.cast(x, dtype)
    low, high = check_value_range(value_range)
    steepness = _steepness(hardness, "hardness", high - low, dtype)
    gradient_steepness = (
        steepness
        if gradient_hardness is hardness
        else _steepness(gradient_hardness, "gradient_hardness", high - low, dtype)
    )
    if isinstance(thresholds, numbers.Integral):
        levels = check_levels(thresholds)
        if levels >= _CLOSED_FORM_LEVELS:
            comb = _Comb(levels, low, high)
            return _equal_quantizer(comb, hard)(x, steepness, gradient_steepness)
        thresholds, differentiate_thresholds = equal_thresholds(levels, (low, high)), False
    # The cast (not the variable itself) is what a custom gradient can take.
    thresholds = ops.cast(ops.convert_to_tensor(thresholds), dtype)
    quantizer = _any_quantizer(hard, differentiate_thresholds)
    return quantizer(x, thresholds, steepness, gradient_steepness)


def _working_dtype(x: Tensor) -> str:
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"


def _steepness(hardness: Any, name: str, width: float, dtype: str) -> Tensor:
    """The hardness per unit of x, as a scalar tensor."""
    if isinstance(hardness, numbers.Real):
        hardness = check_hardness(hardness, name)
    return ops.cast(ops.convert_to_tensor(hardness), dtype) / width


def _upstream(args: tuple, upstream: Tensor | None) -> Tensor:
    """The incoming gradient: TensorFlow and JAX pass it by position, PyTorch by name."""
    return args[0] if upstream is None else upstream


def _bump(argument: Tensor) -> Tensor:
    """S (1 - s) for s = sigmoid(argument), to full relative accuracy on both sides.

    Computed from s alone, it would be exactly zero from an argument of 17 on: bright pixels
    would lose a gradient that equally saturated dark pixels keep.
    """
    return ops.sigmoid(argument) * ops.sigmoid(-argument)


# --- Any thresholds: one loop over them -------------------------------------------------


def _any_quantizer(hard: bool, differentiate_thresholds: bool) -> Any:
    @ops.custom_gradient
    def quantizer(x: Tensor, t: Tensor, z: Tensor, gradient_z: Tensor) -> Any:
        steps = t.shape[0]

        def grad(*args: Tensor, upstream: Tensor | None = None) -> Any:
            dy = _upstream(args, upstream)
            dx, dt = _any_gradients(x, t, gradient_z, dy, differentiate_thresholds)
            scale = gradient_z / steps
            zero = ops.zeros_like(z)
            return dx * scale, dt * -scale, zero, zero

        total = _any_count(x, t) if hard else _any_sum(x, t, z)
        return (total if steps == 1 else total / steps), grad

    return quantizer


def _fold(steps: Any, body: Any, state: Any) -> Any:
    """``for k in range(steps): state = body(k, state)``, as a graph loop when long."""
    if isinstance(steps, int) and steps <= _UNROLL:
        for k in range(steps):
            state = body(k, state)
        return state
    return ops.fori_loop(0, steps, body, state)


def _any_sum(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Sum of the sigmoids of all thresholds."""
    if t.shape[0] == 1:
        return ops.sigmoid(z * (x - t[0]))
    # Multiplied once, not once a threshold: a pass over the images saved in each round.
    zx, zt = z * x, z * t
    return _fold(t.shape[0], lambda k, total: total + ops.sigmoid(zx - zt[k]), ops.zeros_like(x))


def _any_count(x: Tensor, t: Tensor) -> Tensor:
    """Number of thresholds at or below each value."""
    return _fold(
        t.shape[0],
        lambda k, total: total + ops.cast(x >= t[k], x.dtype),
        ops.zeros_like(x),
    )


def _any_gradients(
    x: Tensor, t: Tensor, z: Tensor, dy: Tensor, differentiate_thresholds: bool
) -> tuple[Tensor, Tensor]:
    """Upstream gradient times the sum over thresholds of s_k (1 - s_k), and its parts."""
    steps = t.shape[0]
    zx, zt = z * x, z * t

    def bump(k: Any) -> Tensor:
        return _bump(zx - zt[k])

    if not differentiate_thresholds:
        total = _fold(steps - 1, lambda k, sums: sums + bump(k + 1), bump(0))
        return dy * total, ops.zeros_like(t)
    if steps <= _UNROLL:
        products = [dy * bump(k) for k in range(steps)]
        return sum(products[1:], products[0]), ops.stack(
            [_sum_to_shape(product, t.shape[1:]) for product in products]
        )

    def body(k: Any, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        dx, dt = sums
        product = dy * bump(k)
        row = ops.expand_dims(_sum_to_shape(product, t.shape[1:]), 0)
        start = [k] + [0] * (len(t.shape) - 1)
        return dx + product, ops.slice_update(dt, start, row)

    return _fold(steps, body, (ops.zeros_like(x), ops.zeros_like(t)))


def _sum_to_shape(x: Tensor, shape: tuple) -> Tensor:
    """Sum `x` over every axis along which `shape` was broadcast to it."""
    lead = len(x.shape) - len(shape)
    ones = [lead + i for i, size in enumerate(shape) if size == 1]
    return ops.reshape(ops.sum(x, axis=list(range(lead)) + ones), shape)


# --- Many equally spaced thresholds: closed forms ---------------------------------------


class _Comb(NamedTuple):
    """Thresholds at ``low + k * spacing`` for k = 1 ... levels - 1."""

    levels: int
    low: float
    high: float

    @property
    def steps(self) -> int:
        return self.levels - 1

    @property
    def spacing(self) -> float:
        return (self.high - self.low) / self.levels


def _equal_quantizer(comb: _Comb, hard: bool) -> Any:
    @ops.custom_gradient
    def quantizer(x: Tensor, z: Tensor, gradient_z: Tensor) -> Any:
        def grad(*args: Tensor, upstream: Tensor | None = None) -> Any:
            slope = _equal_slope(x, comb, gradient_z)
            zero = ops.zeros_like(z)
            return _upstream(args, upstream) * slope, zero, zero

        return (_equal_count(x, comb) if hard else _equal_mean(x, comb, z)), grad

    return quantizer


def _overlap(comb: _Comb, z: Tensor) -> Tensor:
    """True where neighbouring sigmoids overlap so much that their sum is smooth.

    For steepness times spacing a <= 1 the Euler-Maclaurin formula below is exact to
    float32. Below a hardness of 32 the two ends of the comb feel each other, which
    `_near_edge` neglects; there the window holds every threshold.
    """
    return ops.logical_and(z * comb.spacing < 1.0, z * (comb.high - comb.low) >= 32.0)


def _equal_mean(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    """Mean of the sigmoids of all thresholds."""
    return ops.cond(
        _overlap(comb, z),
        lambda: _smooth_mean(x, comb, z),
        lambda: _window_sum(x, comb, z) / comb.steps,
    )


def _equal_slope(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    """Derivative of `_equal_mean` with respect to x."""
    return ops.cond(
        _overlap(comb, z),
        lambda: _smooth_slope(x, comb, z),
        lambda: _window_bumps(x, comb, z) * (z / comb.steps),
    )


def _equal_count(x: Tensor, comb: _Comb) -> Tensor:
    """Share of thresholds at or below each value, by comparing with the nearest one.

    The nearest threshold comes from the table, not from arithmetic on its index, so that
    pixels exactly on a threshold fall on the side that `equal_thresholds` says.
    """
    nearest = _nearest_index(x, comb)
    table = ops.cast(equal_thresholds(comb.levels, (comb.low, comb.high)), x.dtype)
    # The clip is for NaN, whose index is anything; the result is NaN all the same.
    row = ops.clip(ops.cast(nearest, "int32") - 1, 0, comb.steps - 1)
    # As a column: PyTorch's ONNX export squeezes the look-up in a flat table wrongly.
    value = ops.take(ops.expand_dims(table, 1), row, axis=0)[..., 0]
    return (nearest - 1.0 + ops.cast(x >= value, x.dtype)) / comb.steps


def _nearest_index(x: Tensor, comb: _Comb) -> Tensor:
    """Index of the nearest threshold, from 1 to levels - 1, as a float."""
    return ops.clip(ops.round((x - comb.low) * (1.0 / comb.spacing)), 1.0, comb.steps)


# The window: the thresholds close enough to matter, at most 2 * _SATURATION + 1 of them
# where the closed form below does not apply.


def _window(x: Tensor, comb: _Comb, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index of the first threshold in each value's window, their number, z(x - t), step."""
    step = z * comb.spacing
    # The minimum comes before the cast: a tiny hardness would overflow the integer.
    reach = ops.minimum(ops.ceil(_SATURATION / step), float(comb.steps))
    size = ops.minimum(2.0 * reach + 1.0, float(comb.steps))
    first = _nearest_index(x, comb) - ops.floor(size / 2.0)
    first = ops.clip(first, 1.0, comb.levels - size)
    argument = z * (x - (comb.low + first * comb.spacing))
    return first, ops.cast(size, "int32"), argument, step


def _window_sum(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    first, size, argument, step = _window(x, comb, z)
    # All thresholds before the window are far below x and count 1 each.
    return ops.fori_loop(
        0,
        size,
        lambda i, total: total + ops.sigmoid(argument - step * ops.cast(i, x.dtype)),
        first - 1.0,
    )


def _window_bumps(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    _, size, argument, step = _window(x, comb, z)

    return ops.fori_loop(
        0,
        size,
        lambda i, total: total + _bump(argument - step * ops.cast(i, x.dtype)),
        ops.zeros_like(x),
    )


# The smooth sum. With a = z * spacing <= 1, the midpoint form of the Euler-Maclaurin
# formula turns the sum over the thresholds from the nearer end of the comb into
#
#   sum = 1/a * (1 - (a D)^2 / 24 + 7 (a D)^4 / 5760 - 31 (a D)^6 / 967680) softplus(A),
#
# D being d/dA and A = z * (distance from half a spacing before the first threshold). The
# derivatives of softplus are polynomials in s = sigmoid(A) and d = s (1 - s). The next
# term is below 1e-6 thresholds, 3e-8 of the output.


def _near_edge(x: Tensor, comb: _Comb, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the middle of the range, A and sigmoid(A) for the nearer end."""
    centred = x - (comb.low + comb.high) / 2.0
    half = (comb.high - comb.low - comb.spacing) / 2.0
    # The floor keeps log(sigmoid(A)) finite far outside the range.
    argument = ops.maximum(z * (half - ops.absolute(centred)), -80.0)
    return centred, argument, ops.sigmoid(argument)


def _smooth_mean(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    centred, argument, s = _near_edge(x, comb, z)
    a = z * comb.spacing
    a2 = a * a
    c3 = a2 * a2 * (7.0 / 5760.0)
    c5 = a2 * a2 * a2 * (-31.0 / 967680.0)
    d = s - ops.square(s)
    correction = d * ((c3 + c5 - a2 / 24.0) + d * ((-6.0 * c3 - 30.0 * c5) + d * (120.0 * c5)))
    # softplus(A) = A - log(sigmoid(A)): the error of the difference is that of A.
    count = argument - ops.log(s) + correction
    share = ops.relu(count * (1.0 / (a * comb.steps)))
    # The sum is symmetric about the middle. sign() and not where(), which takes ten
    # times as long as any other pass on TensorFlow.
    return 0.5 + ops.sign(centred) * (0.5 - share)


def _smooth_slope(x: Tensor, comb: _Comb, z: Tensor) -> Tensor:
    _, _, s = _near_edge(x, comb, z)
    a2 = ops.square(z * comb.spacing)
    c4 = a2 * a2 * (7.0 / 5760.0)
    c6 = a2 * a2 * a2 * (-31.0 / 967680.0)
    d = s - ops.square(s)
    correction = (c4 + c6 - a2 / 24.0) + d * ((-12.0 * c4 - 60.0 * c6) + d * (360.0 * c6))
    count = s + d * (1.0 - 2.0 * s) * correction
    return count * (1.0 / (comb.spacing * comb.steps))
