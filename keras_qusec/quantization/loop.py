"""Any thresholds: one loop over them forward, and again backward."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_qusec.custom_gradients import upstream_gradient
from keras_qusec.quantization.sigmoids import sigmoid_slope

# Backward loops up to this long are unrolled, which saves the loop's overhead.
_UNROLL = 4
# Forward loops up to this long, too: of loops, LiteRT's converter to whole numbers makes no model.
_UNROLL_FORWARD = 35

Tensor = Any


def free_quantizer(hard: bool, differentiate_thresholds: bool, shrink: float = 1.0) -> Any:
    """The quantizer of any thresholds, as a function of x, thresholds and two hardnesses.

    Args:
        hard: steps in place of sigmoids.
        differentiate_thresholds: False leaves their gradient out.
        shrink: a power of two by which values and thresholds are multiplied before steps compare
            them, so that none is much above 1. It changes no comparison of float numbers.
    """

    @ops.custom_gradient
    def quantizer(x: Tensor, t: Tensor, z: Tensor, gradient_z: Tensor) -> Any:
        steps = t.shape[0]

        def grad(*args: Tensor, upstream: Tensor | None = None) -> Any:
            dy = upstream_gradient(args, upstream)
            dx, dt = _gradients(x, t, gradient_z, dy, differentiate_thresholds)
            scale = gradient_z / steps
            zero = ops.zeros_like(z)
            return dx * scale, dt * -scale, zero, zero

        total = _count(x, t, shrink) if hard else _sum(x, t, z)
        return (total if steps == 1 else total / steps), grad

    return quantizer


def _fold(steps: Any, body: Any, state: Any, unroll: int = _UNROLL) -> Any:
    """``for k in range(steps): state = body(k, state)``, as a graph loop when long."""
    if isinstance(steps, int) and steps <= unroll:
        for k in range(steps):
            state = body(k, state)
        return state
    return ops.fori_loop(0, steps, body, state)


def _sum(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Sum of the sigmoids of all thresholds.

    With products and not ``z * (x - t)``, which has no place for small differences between 8-bit
    numbers; and multiplied once, not once a threshold, which saves a pass over the images.
    """
    zx, zt = z * x, z * t
    if t.shape[0] == 1:
        return ops.sigmoid(zx - zt[0])
    return _fold(
        t.shape[0],
        lambda k, total: total + ops.sigmoid(zx - zt[k]),
        ops.zeros_like(x),
        _UNROLL_FORWARD,
    )


def _count(x: Tensor, t: Tensor, shrink: float = 1.0) -> Tensor:
    """Number of thresholds at or below each value; NaN stays NaN."""
    if shrink != 1:
        # LiteRT compares no 8-bit numbers whose step is 1 or more, as of pixels from 0 to 255.
        x, t = x * shrink, t * shrink
    return _fold(
        t.shape[0],
        lambda k, total: total + ops.cast(x >= t[k], x.dtype),
        # Zero everywhere but for NaN, which no comparison keeps. A range without width, as of
        # ``clip(x, 0, 0)``, would make all 8-bit numbers of an exported model zero.
        ops.relu6(x) * 0.0,
        _UNROLL_FORWARD,
    )


def _gradients(
    x: Tensor, t: Tensor, z: Tensor, dy: Tensor, differentiate_thresholds: bool
) -> tuple[Tensor, Tensor]:
    """Upstream gradient times the sum over thresholds of s_k (1 - s_k), and its parts."""
    steps = t.shape[0]
    zx, zt = z * x, z * t

    def slope(k: Any) -> Tensor:
        return sigmoid_slope(zx - zt[k])

    if not differentiate_thresholds:
        total = _fold(steps - 1, lambda k, sums: sums + slope(k + 1), slope(0))
        return dy * total, ops.zeros_like(t)
    if steps <= _UNROLL:
        products = [dy * slope(k) for k in range(steps)]
        return sum(products[1:], products[0]), ops.stack(
            [_sum_to_shape(product, t.shape[1:]) for product in products]
        )

    def body(k: Any, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        dx, dt = sums
        product = dy * slope(k)
        row = ops.expand_dims(_sum_to_shape(product, t.shape[1:]), 0)
        start = [k] + [0] * (len(t.shape) - 1)
        return dx + product, ops.slice_update(dt, start, row)

    return _fold(steps, body, (ops.zeros_like(x), ops.zeros_like(t)))


def _sum_to_shape(x: Tensor, shape: tuple) -> Tensor:
    """Sum `x` over every axis along which `shape` was broadcast to it."""
    lead = len(x.shape) - len(shape)
    ones = [lead + i for i, size in enumerate(shape) if size == 1]
    return ops.reshape(ops.sum(x, axis=list(range(lead)) + ones), shape)
