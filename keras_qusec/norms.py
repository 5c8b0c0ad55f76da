"""The norms of a perturbation: size, ball, steepest direction and name of each.

A norm of one's own is a subclass of `Norm`, made known with `register`; attacks, evaluation and
report then take its name like ``"linf"``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_qusec.checks import closest

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
        """Random points of the ball around `x`.

        Args:
            x: images.
            epsilon: radius.
            uniform: function of a shape, a lower and an upper end that returns random numbers.
            normal: function of a shape that returns random numbers.
        """
        return self.project(x + epsilon * uniform(ops.shape(x), -1.0, 1.0), x, epsilon)

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

    def direction(self, gradient: Tensor) -> Tensor:
        return ops.sign(gradient)

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(images, x - epsilon), x + epsilon)

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

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient / ops.maximum(_lengths(gradient), 1e-12)

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        difference = images - x
        length = ops.maximum(_lengths(difference), 1e-12)
        return x + difference * ops.minimum(1.0, epsilon / length)

    def random_start(
        self, x: Tensor, epsilon: Tensor, uniform: Callable[..., Tensor], normal: Callable
    ) -> Tensor:
        """Uniform in the ball: a normal direction, and a radius with the ball's density."""
        direction = self.direction(normal(ops.shape(x)))
        radius = uniform(ops.shape(_lengths(x)), 0.0, 1.0) ** (1.0 / math.prod(x.shape[1:]))
        return self.project(x + epsilon * radius * direction, x, epsilon)


class L1(Norm):
    """The sum of all changes.

    The step that gains most changes a single value, which soon meets an end of the value range; so
    steps are spread over the hundredth of the values whose gradients are largest, at least one
    (Tramèr and Boneh 2019). The projection is exact (Duchi et al. 2008).
    """

    name, symbol = "l1", "L1"

    def distance(self, x: Array, images: Array) -> Array:
        return _gap(x, images).sum(axis=1)

    def direction(self, gradient: Tensor) -> Tensor:
        rows = _rows(gradient)
        size = ops.absolute(rows)
        count = max(1, rows.shape[1] // 100)
        least = ops.top_k(size, count)[0][:, -1:]
        signs = ops.sign(rows) * ops.cast(size >= least, rows.dtype)
        length = ops.sum(ops.absolute(signs), axis=1, keepdims=True)
        return ops.reshape(signs / ops.maximum(length, 1.0), ops.shape(gradient))

    def project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        gap = _rows(images - x)
        size = ops.absolute(gap)
        falling = -ops.sort(-size, axis=1)
        total = ops.cumsum(falling, axis=1)
        place = ops.arange(1, gap.shape[1] + 1, dtype=gap.dtype)
        # By how much all values shrink if the first 1, 2, ... remain; the largest is the right one.
        excess = ops.max((total - epsilon) / place, axis=1, keepdims=True)
        shrunk = ops.sign(gap) * ops.maximum(size - ops.maximum(excess, 0.0), 0.0)
        return x + ops.reshape(shrunk, ops.shape(x))


class L0(Norm):
    """The number of pixels changed, in any of their channels; see `pixels`.

    The changed pixels cannot be projected: an image with too many of them is no adversarial
    example.
    """

    name, symbol = "l0", "L0"

    def distance(self, x: Array, images: Array) -> Array:
        return pixels(x != images).any(axis=2).sum(axis=1).astype("float64")

    def into_ball(self, x: Array, images: Array, epsilon: float) -> Array:
        return images


_NORMS: dict[str, Norm] = {}


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
    _NORMS[norm.name] = norm
    return norm


def unregister(name: str) -> None:
    """Forget a norm."""
    _NORMS.pop(name, None)


def get(name: str) -> Norm:
    """A norm by its name.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> from keras_qusec import norms
    >>> norms.get("l2").distance(np.zeros((1, 2)), np.array([[3.0, 4.0]])).tolist()
    [5.0]
    """
    if name not in _NORMS:
        known = ", ".join(map(repr, _NORMS))
        raise ValueError(
            f"Expected norm to be one of {known}. Received: norm={name!r}."
            f"{closest(name, _NORMS)} Others are made known with keras_qusec.norms.register."
        )
    return _NORMS[name]


def names() -> tuple[str, ...]:
    """The names of all norms, in the order in which sizes are reported."""
    return tuple(_NORMS)


def registered() -> tuple[Norm, ...]:
    """All norms, to be registered again in another process."""
    return tuple(_NORMS.values())


def symbol(name: str) -> str:
    """The symbol of a norm, also of one that only a report from elsewhere knows."""
    return _NORMS[name].symbol if name in _NORMS else name


def distances(x: Array, images: Array) -> dict[str, Array]:
    """The distance ``(n,)`` between images in each norm, also for no images at all."""
    if not len(x):
        return {name: np.zeros(0) for name in _NORMS}
    return {name: norm.distance(x, images) for name, norm in _NORMS.items()}


def within(distance: Array, epsilon: float) -> Array:
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


def _lengths(x: Tensor) -> Tensor:
    """The L2 length of each image, with unit axes kept for broadcasting."""
    axes = list(range(1, len(x.shape)))
    # In float32, since squares of small float16 numbers underflow.
    square = ops.sum(ops.square(ops.cast(x, "float32")), axis=axes, keepdims=True)
    return ops.cast(ops.sqrt(square), x.dtype)


def _rows(x: Tensor) -> Tensor:
    """Images as rows ``(n, values)``."""
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


for _norm in (L0(), L1(), L2(), LInfinity()):
    register(_norm)
