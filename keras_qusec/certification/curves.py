"""Activation functions as curves in float64: values, bounds, and lines above and below."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray

# Points at which a smooth curve is compared with its chord; between them its curvature counts.
_POINTS = 65


class Lines(NamedTuple):
    """Lines below and above a curve between two ends; each part ``(..., units)``."""

    low_slope: Array
    low_offset: Array
    high_slope: Array
    high_offset: Array


@dataclasses.dataclass(frozen=True)
class Curve:
    """A function of one number, such as an activation function.

    Attributes:
        function: of float64 arrays whose last axis runs over the units.
        knots: where its slope may jump; numbers in rising order.
        turns: where it may turn from rising to falling or back; numbers.
        linear: whether it is a straight line between knots.
        curvature: between knots the second derivative is at most this large.
        slope: no secant is steeper than this.
        roundings: how many float32 roundings computing it takes at most; 0 if it is exact. Of a
            curve that is not straight they are of what it receives, too, which may cancel.
    """

    function: Callable[[Array], Array]
    knots: tuple[float, ...] = ()
    turns: tuple[float, ...] = ()
    linear: bool = False
    curvature: float = 0.0
    slope: float = 1.0
    roundings: int = 16

    has_steps: bool = False

    def of(self, units: Array) -> Curve:
        """The curve of some of the units."""
        return self

    def ends(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The smallest and largest value between two ends."""
        values = [self.function(low), self.function(high)]
        for turn in self.turns:
            values.append(self.function(np.clip(np.full_like(low, turn), low, high)))
        return np.minimum.reduce(values), np.maximum.reduce(values)

    def is_linear(self, low: Array, high: Array) -> Array:
        """Where the curve is a straight line between two ends."""
        if not self.linear:
            return low == high
        straight = np.ones(low.shape, bool)
        for knot in self.knots:
            straight &= (high <= knot) | (low >= knot)
        return straight

    def lines(self, low: Array, high: Array) -> Lines:
        """A line below and one above the curve, both parallel to its chord."""
        width = high - low
        first, last = self.function(low), self.function(high)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(width > 0, (last - first) / width, 0.0)
        if self.linear:
            points = [low, high, *(np.clip(np.full_like(low, k), low, high) for k in self.knots)]
            slack = np.zeros_like(low)
        else:
            shares = np.linspace(0.0, 1.0, _POINTS)
            points = [low + share * width for share in shares]
            points += [np.clip(np.full_like(low, k), low, high) for k in self.knots]
            # Between two points a curve leaves its chord by at most this much.
            slack = self.curvature * (width / (_POINTS - 1)) ** 2 / 8
        gaps = [self.function(point) - slope * point for point in points]
        below = np.minimum.reduce(gaps) - slack
        above = np.maximum.reduce(gaps) + slack
        return Lines(slope, below, slope, above)


class _ReLU(Curve):
    """The ramp: above it its chord, below it zero or itself, whichever leaves less between."""

    def lines(self, low: Array, high: Array) -> Lines:
        # A unit that is always on, or always off, is a line itself.
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        width = high - low
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(width > 0, high / width, 0.0)
        flatter = (high > -low).astype("float64")
        return Lines(flatter, np.zeros_like(low), slope, -slope * low)


RELU = _ReLU(lambda z: np.maximum(z, 0.0), (0.0,), linear=True, roundings=0)


@dataclasses.dataclass(frozen=True)
class _Leaky(Curve):
    """The ramp with slopes of its own below zero, one for each unit."""

    slopes: Array | None = None

    def of(self, units: Array) -> Curve:
        assert self.slopes is not None  # made by `leaky`
        return leaky(self.slopes[units])


def leaky(slope: Any) -> Curve:
    """The ramp with another slope below zero, one for all units or one for each."""
    slopes = np.asarray(slope, "float64")
    turns = (0.0,) if (slopes < 0).any() else ()
    steepest = max(1.0, float(np.abs(slopes).max(initial=0.0)))

    def function(z: Array) -> Array:
        return np.where(z < 0, slopes * z, z)

    if not slopes.ndim:
        return Curve(function, (0.0,), turns, True, slope=steepest, roundings=2)
    return _Leaky(function, (0.0,), turns, True, slope=steepest, roundings=2, slopes=slopes)


def ramp(slope: float, low: float, high: float, offset: float = 0.0) -> Curve:
    """``clip(slope * z + offset, low, high)``."""
    knots = ((low - offset) / slope, (high - offset) / slope)
    return Curve(
        lambda z: np.clip(slope * z + offset, low, high), knots, (), True, slope=slope, roundings=4
    )


def bounded_ramp(bound: float) -> Curve:
    """``min(max(0, z), bound)``."""
    return Curve(lambda z: np.clip(z, 0.0, bound), (0.0, bound), (), True, roundings=0)


def relu_family(negative_slope: float, max_value: float | None) -> Curve:
    """Keras' ReLU layer with a threshold of 0."""
    if max_value is None:
        return leaky(negative_slope) if negative_slope else RELU
    if negative_slope:
        turns = (0.0,) if negative_slope < 0 else ()
        return Curve(
            lambda z: np.minimum(np.where(z < 0, negative_slope * z, z), max_value),
            (0.0, max_value), turns, True, slope=max(1.0, abs(negative_slope)), roundings=2,
        )  # fmt: skip
    return bounded_ramp(max_value)


def elu(alpha: float = 1.0, scale: float = 1.0) -> Curve:
    """The exponential ramp."""
    return Curve(
        lambda z: scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0))),
        (0.0,),
        (0.0,) if alpha < 0 else (),
        curvature=abs(scale * alpha),
        slope=abs(scale) * max(1.0, abs(alpha)),
    )


def _sigmoid(z: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def _softplus(z: Array) -> Array:
    return np.logaddexp(0.0, z)


def _gelu(z: Array) -> Array:
    from scipy.special import ndtr

    return z * ndtr(z)


def _tanh_gelu(z: Array) -> Array:
    return 0.5 * z * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


# Where these have their one minimum, to twelve digits: beside it they differ by less than rounding.
_GELU_TURN, _TANH_GELU_TURN = -0.751791524694, -0.752461422279
_SILU_TURN, _MISH_TURN = -1.278464542761, -1.192488286574

# By the names of Keras' activation functions, with their defaults.
CURVES: dict[str, Curve] = {
    "relu": RELU,
    "relu6": bounded_ramp(6.0),
    "leaky_relu": leaky(0.2),
    "elu": elu(),
    "selu": elu(1.6732632423543772, 1.0507009873554805),
    "celu": elu(),
    "sigmoid": Curve(_sigmoid, curvature=0.0963, slope=0.25),
    "log_sigmoid": Curve(lambda z: -_softplus(-z), curvature=0.25),
    "tanh": Curve(np.tanh, curvature=0.7699),
    "softplus": Curve(_softplus, curvature=0.25),
    "softsign": Curve(lambda z: z / (1.0 + np.abs(z)), (0.0,), curvature=2.0),
    "hard_sigmoid": ramp(1 / 6, 0.0, 1.0, 0.5),
    "hard_tanh": ramp(1.0, -1.0, 1.0),
    "gelu": Curve(_gelu, turns=(_GELU_TURN,), curvature=0.7979, slope=1.13),
    "tanh_gelu": Curve(_tanh_gelu, turns=(_TANH_GELU_TURN,), curvature=0.81, slope=1.14),
    "silu": Curve(lambda z: z * _sigmoid(z), turns=(_SILU_TURN,), curvature=0.5001, slope=1.1),
    "mish": Curve(
        lambda z: z * np.tanh(_softplus(z)), turns=(_MISH_TURN,), curvature=0.65, slope=1.1
    ),
    "hard_silu": Curve(
        lambda z: z * np.clip(z / 6 + 0.5, 0.0, 1.0),
        (-3.0, 3.0),
        (-1.5,),
        curvature=1 / 3,
        slope=1.5,
    ),
    "squareplus": Curve(lambda z: 0.5 * (z + np.sqrt(z * z + 4.0)), curvature=0.25),
    "tanh_shrink": Curve(lambda z: z - np.tanh(z), curvature=0.7699),
}


@dataclasses.dataclass(frozen=True)
class Steps(Curve):
    """A staircase, such as a quantizer inside a network.

    The least change of what it receives may move its output by a step, so that float32 and exact
    arithmetic need not agree: its output is known only to lie between two levels, and from there
    on counts as any number between them.

    Attributes:
        size: number of its units.
    """

    has_steps: bool = True
    size: int = 0

    def of(self, units: Array) -> Curve:
        # The layer wants all of its values; those of other units do not matter.
        whole, chosen = self, units
        size = self.size

        def function(values: Array) -> Array:
            rows = np.zeros((*values.shape[:-1], size))
            rows[..., chosen] = values
            return np.asarray(whole.function(rows)[..., chosen])

        return dataclasses.replace(self, function=function, size=len(units))

    def is_linear(self, low: Array, high: Array) -> Array:
        return self.function(low) == self.function(high)

    def lines(self, low: Array, high: Array) -> Lines:
        none = np.zeros_like(low)
        return Lines(none, self.function(low), none, self.function(high))
