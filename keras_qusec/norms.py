"""The norms of a perturbation: size, ball, steepest direction and name of each.

A norm of one's own is a subclass of `Norm`, made known with `register`; attacks, evaluation and
report then take its name like ``"linf"``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_qusec.registry import Registry

Tensor = Any
Array = np.ndarray


class Norm(ABC):
    """A norm on images ``(n, ...)``.

    Attributes:
        name: what users write, such as ``"linf"``.
        symbol: what the report shows, such as ``"L-inf"``.

    `distance` is enough for minimum-norm attacks and for the report. Attacks that follow
    gradients in a ball also call `direction` and `project`, in `keras.ops`, since they run in
    compiled code.
    """

    name: str
    symbol: str

    @abstractmethod
    def distance(self, x: Array, images: Array) -> Array:
        """Distances ``(n,)`` float64 between images of the same shape, in NumPy."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of length 1 in this norm that a linear function grows most along."""
        raise NotImplementedError

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        """The images moved into the ball of radius epsilon around `x`."""
        raise NotImplementedError

    def project_inside(
        self, images: Tensor, x: Tensor, epsilon: Tensor, values: tuple[float, float]
    ) -> Tensor:
        """The images moved into the ball and into a range of values.

        Clipping what `project` gives is inside both; where the nearest such image matters, a
        norm overrides this.
        """
        return ops.clip(self.project(images, x, epsilon), *values)

    def length(self, change: Tensor) -> Tensor:
        """The size of changes ``(n, ...)``, ``(n,)``, in `keras.ops`: what `distance` gives."""
        raise NotImplementedError(f"{type(self).__name__} needs a method length.")

    def dual(self, gradient: Tensor) -> Tensor:
        """The dual norm of a gradient, ``(n,)``: what a linear function grows by in length 1."""
        return ops.sum(_rows(gradient * self.direction(gradient)), axis=1)

    def to_hyperplane(
        self, x: Tensor, normal: Tensor, gap: Tensor, values: tuple[float, float]
    ) -> Tensor:
        """The image nearest to `x` where a linear function has grown by `gap`, in the range.

        Args:
            x: images ``(n, ...)``.
            normal: gradient of the linear function, of the same shape.
            gap: by how much it shall grow, ``(n,)``; below 0 to fall.
            values: smallest and largest pixel value. Where they forbid the hyperplane, the
                farthest image in its direction.
        """
        raise NotImplementedError(
            f"Expected a norm with a method to_hyperplane. Received: {self.name!r}. Use l1, l2 "
            "or linf, or an attack that does not project onto hyperplanes."
        )

    def check_gradient_steps(self) -> None:
        """Raise a ValueError for a norm without a direction or a projection."""
        kind = type(self)
        if kind.direction is Norm.direction or kind.project is Norm.project:
            raise ValueError(
                f"Expected norm to be one with a direction and a projection, for an attack that "
                f"follows gradients in a ball. Received: norm={self.name!r}. "
                'The usual norms on images are "linf" and "l2".'
            )

    def random_start(
        self, x: Tensor, epsilon: Tensor, uniform: Callable[..., Tensor], normal: Callable
    ) -> Tensor:
        """Random points around `x`, which the caller projects into the ball and the range.

        Args:
            x: images.
            epsilon: radius.
            uniform: function of a shape, a lower and an upper end that returns random numbers.
            normal: function of a shape that returns random numbers.
        """
        return x + epsilon * uniform(ops.shape(x), -1.0, 1.0)

    def into_ball(self, x: Array, images: Array, epsilon: float) -> Array:
        """Float32 images inside the ball to the last digit, in NumPy.

        Rounding may leave the ball at large pixel values, so perturbations are made shorter
        until none does.
        """
        for shrink in (1.0, 1 - 1e-5, 1 - 1e-4, 1 - 1e-3):
            length = column(self.distance(x, images), x)
            scale = np.minimum(1.0, shrink * epsilon / np.maximum(length, 1e-12))
            inside = (x + (images.astype("float64") - x) * scale).astype("float32")
            images = np.where(length > epsilon, inside, images)
        return images

    def largest(self, shape: tuple[int, ...], values: tuple[float, float]) -> float:
        """The largest distance between two images of a shape with values in a range."""
        low, high = (np.full((1, *shape), value) for value in values)
        return float(self.distance(low, high)[0])


class LInfinity(Norm):
    """The largest change of any value."""

    name, symbol = "linf", "L-inf"

    def distance(self, x: Array, images: Array) -> Array:
        return _gap(x, images).max(axis=1)

    def length(self, change: Tensor) -> Tensor:
        return ops.max(ops.absolute(_rows(change)), axis=1)

    def dual(self, gradient: Tensor) -> Tensor:
        return ops.sum(ops.absolute(_rows(gradient)), axis=1)

    def direction(self, gradient: Tensor) -> Tensor:
        return ops.sign(gradient)

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(images, x - epsilon), x + epsilon)

    def to_hyperplane(
        self, x: Tensor, normal: Tensor, gap: Tensor, values: tuple[float, float]
    ) -> Tensor:
        sign, room = _room(x, normal, gap, values)
        slope, gap = _slopes_and_gap(normal, gap, values)
        radius = _smallest(
            lambda radius: ops.minimum(radius, room), slope, gap, values[1] - values[0]
        )
        return x + ops.reshape(sign * ops.minimum(radius, room), ops.shape(x))

    def ends(self, x: Array, epsilon: float, values: tuple[float, float]) -> tuple[Array, Array]:
        """The darkest and the brightest image of each ball inside the value range.

        Each value of an image that counts as within epsilon lies between theirs, to the last bit.

        Args:
            x: clean images, float32.
            epsilon: radius.
            values: smallest and largest pixel value.
        """
        radius = np.float32(epsilon)
        low, high = (np.clip(x + side * radius, *values) for side in (-1, 1))
        return self.into_ball(x, low, epsilon), self.into_ball(x, high, epsilon)

    def into_ball(self, x: Array, images: Array, epsilon: float) -> Array:
        radius = np.float32(epsilon)
        images = np.clip(images, x - radius, x + radius)
        # Where rounding left the ball, the next float32 towards the clean value is inside.
        for _ in range(2):
            outside = np.abs(images.astype("float64") - x) > epsilon
            images = np.where(outside, np.nextafter(images, x), images)
        return images


class L2(Norm):
    """The Euclidean length of the change."""

    name, symbol = "l2", "L2"

    def distance(self, x: Array, images: Array) -> Array:
        return np.sqrt(np.square(_gap(x, images)).sum(axis=1))

    def length(self, change: Tensor) -> Tensor:
        return ops.reshape(_lengths(change), (-1,))

    def dual(self, gradient: Tensor) -> Tensor:
        unit, largest = in_shares(gradient)
        return self.length(unit) * ops.reshape(largest, (-1,))

    def direction(self, gradient: Tensor) -> Tensor:
        unit, _ = in_shares(gradient)
        # The largest part is 1, so that only the gradient of an image without any is shorter.
        return unit / ops.maximum(_lengths(unit), 1.0)

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        difference = images - x
        length = ops.maximum(_lengths(difference), 1e-12)
        return x + difference * ops.minimum(1.0, epsilon / length)

    def to_hyperplane(
        self, x: Tensor, normal: Tensor, gap: Tensor, values: tuple[float, float]
    ) -> Tensor:
        sign, room = _room(x, normal, gap, values)
        slope, gap = _slopes_and_gap(normal, gap, values)
        # The change of each value is its slope times a factor, until its room ends.
        unit, _ = in_shares(slope)
        least = ops.maximum(ops.min(unit + 1e9 * ops.cast(unit <= 0, unit.dtype), axis=1), 1e-6)
        factor = _smallest(
            lambda factor: ops.minimum(factor * unit, room), slope, gap,
            (values[1] - values[0]) / least[:, None], halvings=50,
        )  # fmt: skip
        return x + ops.reshape(sign * ops.minimum(factor * unit, room), ops.shape(x))

    def random_start(
        self, x: Tensor, epsilon: Tensor, uniform: Callable[..., Tensor], normal: Callable
    ) -> Tensor:
        """Uniform in the ball: a normal direction, and a radius with the ball's density."""
        direction = self.direction(normal(ops.shape(x)))
        radius = uniform(ops.shape(_lengths(x)), 0.0, 1.0) ** (1.0 / math.prod(x.shape[1:]))
        return x + epsilon * radius * direction


class L1(Norm):
    """The sum of all changes.

    The step that gains most changes a single value, which soon meets an end of the value range; so
    steps are spread over the hundredth of the values whose gradients are largest, at least one
    (Tramèr and Boneh 2019). The projection is exact (Duchi et al. 2008).
    """

    name, symbol = "l1", "L1"

    def distance(self, x: Array, images: Array) -> Array:
        return _gap(x, images).sum(axis=1)

    def length(self, change: Tensor) -> Tensor:
        return ops.sum(ops.absolute(_rows(change)), axis=1)

    def dual(self, gradient: Tensor) -> Tensor:
        return ops.max(ops.absolute(_rows(gradient)), axis=1)

    def direction(self, gradient: Tensor) -> Tensor:
        rows = _rows(gradient)
        size = ops.absolute(rows)
        count = max(1, rows.shape[1] // 100)
        least = ops.top_k(size, count)[0][:, -1:]
        signs = ops.sign(rows) * ops.cast(size >= least, rows.dtype)
        length = ops.sum(ops.absolute(signs), axis=1, keepdims=True)
        return ops.reshape(signs / ops.maximum(length, 1.0), ops.shape(gradient))

    def random_start(
        self, x: Tensor, epsilon: Tensor, uniform: Callable[..., Tensor], normal: Callable
    ) -> Tensor:
        """Normal noise, of which the projection leaves some hundredths of the values."""
        return x + 50.0 / math.prod(x.shape[1:]) * epsilon * normal(ops.shape(x))

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        gap = _rows(images - x)
        return x + ops.reshape(_shrunk(gap, epsilon, gap, gap), ops.shape(x))

    def project_inside(
        self, images: Tensor, x: Tensor, epsilon: Tensor, values: tuple[float, float]
    ) -> Tensor:
        """The nearest image in both, which is not the clipped one (Croce and Hein 2021)."""
        clean = _rows(x)
        moved = _shrunk(_rows(images) - clean, epsilon, values[0] - clean, values[1] - clean)
        # Adding the clean value back may round over the end of the range.
        return ops.clip(ops.reshape(clean + moved, ops.shape(x)), *values)

    def to_hyperplane(
        self, x: Tensor, normal: Tensor, gap: Tensor, values: tuple[float, float]
    ) -> Tensor:
        """The values of the steepest slopes change as far as they can, one of them in part."""
        sign, room = _room(x, normal, gap, values)
        slope, gap = _slopes_and_gap(normal, gap, values)
        order = ops.argsort(-slope, axis=1)
        gain = ops.take_along_axis(slope * room, order, axis=1)
        before = ops.cumsum(gain, axis=1) - gain
        left = ops.maximum(gap[:, None] - before, 0.0)
        share = ops.minimum(left / ops.maximum(gain, 1e-30), 1.0)
        share = ops.take_along_axis(share, ops.argsort(order, axis=1), axis=1)
        return x + ops.reshape(sign * room * share, ops.shape(x))


class L0(Norm):
    """The number of pixels changed, in any of their channels; see `pixels`.

    The changed pixels cannot be projected: an image with too many of them is no adversarial
    example.
    """

    name, symbol = "l0", "L0"

    def distance(self, x: Array, images: Array) -> Array:
        return pixels(x != images).any(axis=2).sum(axis=1).astype("float64")

    def length(self, change: Tensor) -> Tensor:
        return ops.sum(ops.cast(self.pixel_sizes(change) > 0, change.dtype), axis=1)

    def dual(self, gradient: Tensor) -> Tensor:
        return ops.max(self.pixel_sizes(gradient), axis=1)

    @staticmethod
    def pixel_sizes(change: Tensor) -> Tensor:
        """The largest change in each pixel, ``(n, pixels)``, in `keras.ops`."""
        channels = change.shape[-1] if len(change.shape) == 4 else 1
        rows = ops.absolute(_rows(change))
        return ops.max(ops.reshape(rows, (-1, rows.shape[1] // channels, channels)), axis=2)

    @staticmethod
    def of_pixels(values: Tensor, like: Tensor) -> Tensor:
        """Numbers of pixels ``(n, pixels)`` repeated over the channels of images."""
        channels = like.shape[-1] if len(like.shape) == 4 else 1
        return ops.reshape(ops.repeat(values, channels, axis=1), ops.shape(like))

    def into_ball(self, x: Array, images: Array, epsilon: float) -> Array:
        return images


_NORMS: Registry[Norm] = Registry(
    "norm to be one of", remedy="Others are made known with keras_qusec.norms.register."
)


def register(norm: Norm) -> Norm:
    """Make a norm known by its name; one of the same name is replaced.

    Args:
        norm: an object of a subclass of `Norm`.

    Returns:
        The norm.

    Raises:
        ValueError: for anything else.

    Example:

    >>> from keras_qusec import norms
    >>> norms.register(norms.LInfinity()).symbol
    'L-inf'
    """
    if not isinstance(norm, Norm) or not getattr(norm, "name", "") or not norm.symbol:
        raise ValueError(
            "Expected an object of a subclass of keras_qusec.norms.Norm with a name and a "
            f"symbol. Received: {norm!r}."
        )
    _NORMS.add(norm.name, norm)
    return norm


def unregister(name: str) -> None:
    """Forget a norm."""
    _NORMS.remove(name)


def get(name: str) -> Norm:
    """A norm by its name.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> from keras_qusec import norms
    >>> norms.get("l2").distance(np.zeros((1, 2)), np.array([[3.0, 4.0]])).tolist()
    [5.0]
    """
    return _NORMS.get(name)


def names() -> tuple[str, ...]:
    """The names of all norms, in the order in which sizes are reported."""
    return _NORMS.names()


def registered() -> tuple[Norm, ...]:
    """All norms, to be registered again in another process."""
    return tuple(_NORMS)


def symbol(name: str) -> str:
    """The symbol of a norm, also of one that only a report from elsewhere knows."""
    return _NORMS.get(name).symbol if name in _NORMS else name


def distances(x: Array, images: Array) -> dict[str, Array]:
    """The distance ``(n,)`` between images in each norm, also for no images at all."""
    if not len(x):
        return {name: np.zeros(0) for name in names()}
    return {norm.name: norm.distance(x, images) for norm in _NORMS}


def radius_text(epsilon: float) -> str:
    """A radius as people write it: a short decimal number, or else a few of 255.

    Example:

    >>> from keras_qusec import norms
    >>> [norms.radius_text(epsilon) for epsilon in (0.3, 8 / 255, 8, np.float32(2 / 255))]
    ['0.3', '8/255', '8', '2/255']
    """
    text = f"{epsilon:g}"
    if math.isclose(float(text), epsilon, rel_tol=1e-9):
        return text
    for steps in range(1, 65):
        if math.isclose(255 * epsilon, steps, rel_tol=1e-6):
            return f"{steps}/255"
    return text


def distance_text(norm: str, distance: float) -> str:
    """A distance as people write it: pixels are whole numbers, and bytes a few of 255.

    Args:
        norm: by name.
        distance: in it.

    Example:

    >>> from keras_qusec import norms
    >>> [norms.distance_text("linf", 8 / 255), norms.distance_text("l0", 1024.0)]
    ['8/255', '1024']
    """
    if norm == "linf":
        text = radius_text(distance)
        if "/" in text:
            return text
    return f"{distance:.0f}" if norm == "l0" or distance >= 1000 else f"{distance:.3g}"


def distances_text(distances: Mapping[str, float]) -> str:
    """Distances by norm in one line."""
    parts = [f"{symbol(norm)} {distance_text(norm, far)}" for norm, far in distances.items()]
    return ", ".join(parts)


def within(distance: Array | float, epsilon: float) -> Array:
    """Which distances are at most epsilon, but for the rounding of float32 distances."""
    return np.asarray(distance <= epsilon * (1 + 1e-6))


def column(rows: Array, x: Array) -> Array:
    """Numbers ``(n,)`` with unit axes, so that they broadcast against images ``(n, ...)``."""
    return rows.reshape(-1, *([1] * (x.ndim - 1)))


def pixels(x: Array) -> Array:
    """Images ``(n, ...)`` as a view ``(n, pixels, channels)``.

    Images ``(n, height, width, channels)`` have pixels of several values; in data of any other
    shape each value is a pixel.
    """
    return x.reshape(len(x), -1, x.shape[-1] if x.ndim == 4 else 1)


def _gap(x: Array, images: Array) -> Array:
    """Absolute differences ``(n, values)`` in float64."""
    return np.abs(images.astype("float64") - x).reshape(len(x), -1)


def in_shares(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in shares of the largest part of each image, and that part ``(n, 1, ...)``.

    Behind a steep quantizer gradients can be so small that their squares are zero in float32, and
    yet say where to go.

    Args:
        gradient: ``(n, ...)``.

    Returns:
        The shares, 0 where an image's gradient is zero, and the largest absolute values.
    """
    axes = list(range(1, len(gradient.shape)))
    wide = ops.cast(gradient, "float32")
    largest = ops.max(ops.absolute(wide), axis=axes, keepdims=True)
    divisor = largest + ops.cast(largest == 0, largest.dtype)
    return ops.cast(wide / divisor, gradient.dtype), largest


def _lengths(x: Tensor) -> Tensor:
    """The L2 length of each image, with unit axes kept for broadcasting."""
    axes = list(range(1, len(x.shape)))
    # In float32, since squares of small float16 numbers underflow.
    square = ops.sum(ops.square(ops.cast(x, "float32")), axis=axes, keepdims=True)
    return ops.cast(ops.sqrt(square), x.dtype)


def _rows(x: Tensor) -> Tensor:
    """Images as rows ``(n, values)``."""
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


def _room(
    x: Tensor, normal: Tensor, gap: Tensor, values: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """For each value the direction that closes a gap, and how far it can go; ``(n, values)``."""
    sign = ops.sign(_rows(normal)) * ops.sign(gap)[:, None]
    rows = _rows(x)
    up = ops.cast(sign > 0, rows.dtype)
    return sign, up * (values[1] - rows) + (1.0 - up) * (rows - values[0])


def _slopes_and_gap(
    normal: Tensor, gap: Tensor, values: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Slopes ``(n, values)`` in shares of an image's largest, and its gap ``(n,)`` as positive.

    A gap that cannot be closed inside the value range is cut to one that just cannot.
    """
    shares, largest = in_shares(_rows(normal))
    slope, steepest = ops.absolute(shares), largest[:, 0]
    most = 2.0 * (values[1] - values[0]) * slope.shape[1]
    gap = ops.absolute(gap)
    # As gap / steepest, but without numbers that no float32 holds.
    return slope, gap / ops.maximum(ops.maximum(steepest, gap / most), _SMALLEST)


# Below it float32 numbers lose digits, or are zero on some processors.
_SMALLEST = 1e-37

# Halvings of an interval: to the rounding of float32.
_HALVINGS = 30


def _smallest(
    change: Callable[[Tensor], Tensor],
    slope: Tensor,
    gap: Tensor,
    largest: Any,
    halvings: int = _HALVINGS,
) -> Tensor:
    """The smallest number, up to a largest, at which changes times slopes sum to a gap."""

    def halve(_: Any, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        low, high = ends
        middle = (low + high) / 2.0
        total = ops.sum(slope * change(middle), axis=1, keepdims=True)
        enough = ops.cast(total >= gap[:, None], slope.dtype)
        return low + (1.0 - enough) * (middle - low), high + enough * (middle - high)

    none = ops.zeros_like(gap)[:, None]
    return ops.fori_loop(0, halvings, halve, (none, none + largest))[1]


def _shrunk(gap: Tensor, epsilon: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The changes nearest to `gap` that sum to at most epsilon and lie between two others.

    Every change shrinks by the same amount until it is zero (Duchi et al. 2008); with limits that
    enclose zero the same amount is right, then the limits hold.
    """
    size, sign = ops.absolute(gap), ops.sign(gap)
    least, most = ops.minimum(low, high), ops.maximum(low, high)
    room = ops.absolute(ops.where(gap > 0, ops.maximum(most, 0.0), ops.minimum(least, 0.0)))

    def shrink(amount: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(size - amount, 0.0), room)

    def halve(_: Any, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        low, high = ends
        middle = (low + high) / 2.0
        total = ops.sum(shrink(middle), axis=1, keepdims=True)
        enough = ops.cast(total <= epsilon, gap.dtype)
        return low + (1.0 - enough) * (middle - low), high + enough * (middle - high)

    none = ops.zeros_like(gap[:, :1])
    largest = ops.max(size, axis=1, keepdims=True)
    fits = ops.cast(ops.sum(shrink(none), axis=1, keepdims=True) <= epsilon, gap.dtype)
    amount = ops.fori_loop(0, _HALVINGS, halve, (none, largest))[1] * (1.0 - fits)
    return sign * shrink(amount)


for _norm in (L0(), L1(), L2(), LInfinity()):
    register(_norm)
