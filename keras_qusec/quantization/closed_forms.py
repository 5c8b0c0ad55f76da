"""Many equally spaced thresholds: closed forms whose cost does not depend on their number.

Where neighbouring sigmoids overlap, the Euler-Maclaurin formula gives their sum. Where they do
not, the few sigmoids around each pixel's value do.

The smooth sum: with a = z * spacing <= 1, the midpoint form of the Euler-Maclaurin formula turns
the sum over the thresholds from the nearer end of the range into

    sum = 1/a * (1 - (a D)^2 / 24 + 7 (a D)^4 / 5760 - 31 (a D)^6 / 967680) softplus(A),

D being d/dA and A = z * (distance from half a spacing before the first threshold). The
derivatives of softplus are polynomials in s = sigmoid(A) and d = s (1 - s). The next
term is below 1e-6 thresholds, 3e-8 of the output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_qusec.custom_gradients import upstream_gradient
from keras_qusec.quantization.sigmoids import sigmoid_slope
from keras_qusec.quantization.thresholds import equal_thresholds

# A sigmoid this many units from its threshold is 0 or 1 to float32 accuracy.
_SATURATION = 17.0

Tensor = Any


class EqualSpacing(NamedTuple):
    """Thresholds at ``low + k * spacing`` for k = 1 ... levels - 1."""

    levels: int
    low: float
    high: float

    @property
    def steps(self) -> int:
        return self.levels - 1

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.levels


def equal_quantizer(spacing: EqualSpacing, hard: bool) -> Any:
    """The quantizer of equal thresholds, as a function of x and two hardnesses."""

    @ops.custom_gradient
    def quantizer(x: Tensor, z: Tensor, gradient_z: Tensor) -> Any:
        def grad(*args: Tensor, upstream: Tensor | None = None) -> Any:
            slope = _slope(x, spacing, gradient_z)
            zero = ops.zeros_like(z)
            return upstream_gradient(args, upstream) * slope, zero, zero

        return (_count(x, spacing) if hard else _mean(x, spacing, z)), grad

    return quantizer


def _overlap(spacing: EqualSpacing, z: Tensor) -> Tensor:
    """True where neighbouring sigmoids overlap so much that their sum is smooth.

    For steepness times spacing a <= 1 the Euler-Maclaurin formula below is exact to
    float32. Below a hardness of 32 the two ends of the range feel each other, which
    `_near_edge` neglects; there the window holds every threshold.
    """
    return ops.logical_and(z * spacing.width < 1.0, z * (spacing.high - spacing.low) >= 32.0)


def _mean(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    """Mean of the sigmoids of all thresholds."""
    return ops.cond(
        _overlap(spacing, z),
        lambda: _smooth_mean(x, spacing, z),
        lambda: _window_sum(x, spacing, z) / spacing.steps,
    )


def _slope(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    """Derivative of `_mean` with respect to x."""
    return ops.cond(
        _overlap(spacing, z),
        lambda: _smooth_slope(x, spacing, z),
        lambda: _window_slopes(x, spacing, z) * (z / spacing.steps),
    )


def _count(x: Tensor, spacing: EqualSpacing) -> Tensor:
    """Share of thresholds at or below each value, by comparing with the nearest one.

    The nearest threshold comes from the table, not from arithmetic on its index, so that
    pixels exactly on a threshold fall on the side that `equal_thresholds` says.
    """
    nearest = _nearest_index(x, spacing)
    table = ops.cast(equal_thresholds(spacing.levels, (spacing.low, spacing.high)), x.dtype)
    # The clip is for NaN, whose index is anything; the result is NaN all the same.
    row = ops.clip(ops.cast(nearest, "int32") - 1, 0, spacing.steps - 1)
    # As a column: PyTorch's ONNX export squeezes the look-up in a flat table wrongly.
    value = ops.take(ops.expand_dims(table, 1), row, axis=0)[..., 0]
    return (nearest - 1.0 + ops.cast(x >= value, x.dtype)) / spacing.steps


def _nearest_index(x: Tensor, spacing: EqualSpacing) -> Tensor:
    """Index of the nearest threshold, from 1 to levels - 1, as a float."""
    return ops.clip(ops.round((x - spacing.low) * (1.0 / spacing.width)), 1.0, spacing.steps)


def _window(x: Tensor, spacing: EqualSpacing, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The thresholds close enough to matter, at most 35 where the smooth sum does not apply.

    Returns the index of the first one at each value, their number, z (x - t) and its step.
    """
    step = z * spacing.width
    # The minimum comes before the cast: a tiny hardness would overflow the integer.
    reach = ops.minimum(ops.ceil(_SATURATION / step), float(spacing.steps))
    size = ops.minimum(2.0 * reach + 1.0, float(spacing.steps))
    first = _nearest_index(x, spacing) - ops.floor(size / 2.0)
    first = ops.clip(first, 1.0, spacing.levels - size)
    argument = z * (x - (spacing.low + first * spacing.width))
    return first, ops.cast(size, "int32"), argument, step


def _window_sum(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    first, size, argument, step = _window(x, spacing, z)
    # All thresholds before the window are far below x and count 1 each.
    return ops.fori_loop(
        0,
        size,
        lambda i, total: total + ops.sigmoid(argument - step * ops.cast(i, x.dtype)),
        first - 1.0,
    )


def _window_slopes(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    _, size, argument, step = _window(x, spacing, z)

    return ops.fori_loop(
        0,
        size,
        lambda i, total: total + sigmoid_slope(argument - step * ops.cast(i, x.dtype)),
        ops.zeros_like(x),
    )


def _near_edge(x: Tensor, spacing: EqualSpacing, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the middle of the range, A and sigmoid(A) for the nearer end."""
    centred = x - (spacing.low + spacing.high) / 2.0
    half = (spacing.high - spacing.low - spacing.width) / 2.0
    # The floor keeps log(sigmoid(A)) finite far outside the range.
    argument = ops.maximum(z * (half - ops.absolute(centred)), -80.0)
    return centred, argument, ops.sigmoid(argument)


def _smooth_mean(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    centred, argument, s = _near_edge(x, spacing, z)
    a = z * spacing.width
    a2 = a * a
    c3 = a2 * a2 * (7.0 / 5760.0)
    c5 = a2 * a2 * a2 * (-31.0 / 967680.0)
    d = s - ops.square(s)
    correction = d * ((c3 + c5 - a2 / 24.0) + d * ((-6.0 * c3 - 30.0 * c5) + d * (120.0 * c5)))
    # softplus(A) = A - log(sigmoid(A)): the error of the difference is that of A.
    count = argument - ops.log(s) + correction
    share = ops.relu(count * (1.0 / (a * spacing.steps)))
    # The sum is symmetric about the middle. sign() and not where(), which takes ten
    # times as long as any other pass on TensorFlow.
    return 0.5 + ops.sign(centred) * (0.5 - share)


def _smooth_slope(x: Tensor, spacing: EqualSpacing, z: Tensor) -> Tensor:
    _, _, s = _near_edge(x, spacing, z)
    a2 = ops.square(z * spacing.width)
    c4 = a2 * a2 * (7.0 / 5760.0)
    c6 = a2 * a2 * a2 * (-31.0 / 967680.0)
    d = s - ops.square(s)
    correction = (c4 + c6 - a2 / 24.0) + d * ((-12.0 * c4 - 60.0 * c6) + d * (360.0 * c6))
    count = s + d * (1.0 - 2.0 * s) * correction
    return count * (1.0 / (spacing.width * spacing.steps))
