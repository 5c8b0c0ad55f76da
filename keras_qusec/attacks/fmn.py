"""FMN: gradient steps in a ball whose radius follows the boundary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.minimum_norm import FAR, MinimumNormAttack, View, columns, keep_closer
from keras_qusec.checks import number, one_of, whole_number

Tensor = Any


class FMN(MinimumNormAttack):
    """Fast minimum-norm attack, in any of four norms.

    Each step follows the gradient of the margin, of falling length, and projects onto a ball
    around the clean image. The ball shrinks while the image is adversarial and grows while it is
    not; before the first adversarial image it reaches to the boundary of the model made linear.
    For L0 the ball is a number of pixels.

    Args:
        steps: gradient steps.
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
        step_size: length of the first step, as a share of the value range; the last is a
            hundredth of it.
        gamma: by which share the radius changes first; the last is a fiftieth of it.

    Raises:
        ValueError: for unusable arguments.

    Source: Pintor et al. 2021, Fast minimum-norm adversarial attacks through adaptive norm
    constraints.

    Example:

    >>> from keras_qusec.attacks import FMN, AttackedModel, Goal
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> x, goal = np.array([[0.6, 0.5]], "float32"), Goal(np.array([0]))
    >>> found = FMN(norm="linf").run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> round(float(np.abs(found - x).max()), 2)
    0.05
    """

    def __init__(
        self, *, steps: int = 200, norm: str = "l2", step_size: float = 1.0, gamma: float = 0.05
    ) -> None:
        self.steps = whole_number(steps, "steps", hint="100 to 1000 are usual.")
        self.norm = one_of(norm, "norm", ("linf", "l2", "l1", "l0"))
        self.step_size = number(step_size, "step_size", above=0)
        self.gamma = number(gamma, "gamma", above=0, most=1)
        self.cost = f"{steps} gradients"

    def begin(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        # The image, the radius, and whether an adversarial image was found.
        radius = np.full(len(x), 1.0 if self.norm == "l0" else FAR, "float32")
        return x, radius, np.zeros_like(radius)

    def step(
        self, view: View, x: Tensor, state: tuple[Tensor, ...], place: Tensor,
        values: tuple[float, float],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        best, distance, images, radius, reached = state
        norm = norms.get(self.norm)
        width = values[1] - values[0]
        falling = (1.0 + ops.cos(math.pi * place / self.steps)) / 2.0
        size = self.step_size * width * (0.01 + 0.99 * falling)
        gamma = self.gamma * (0.02 + 0.98 * falling)
        seen = view.look(images)
        gradient = _inward(seen.gradient, images, values)
        fooled = seen.unbroken == 0
        best, distance = keep_closer(self.norm, x, images, seen.unbroken, best, distance)
        reached = ops.maximum(reached, 1.0 - seen.unbroken)
        worst = norm.length(ops.maximum(x - values[0], values[1] - x))
        nearest = ops.minimum(distance, worst)
        if self.norm == "l0":
            fewer = ops.minimum(radius - 1.0, ops.floor(radius * (1.0 - gamma)))
            more = ops.maximum(radius + 1.0, ops.floor(radius * (1.0 + gamma)))
            radius = ops.maximum(ops.where(fooled, ops.minimum(fewer, nearest), more), 0.0)
        else:
            gap = ops.absolute(seen.value)
            # The distance to the boundary, or to the farthest image if that is nearer.
            slope = ops.maximum(ops.maximum(norm.dual(gradient), gap / worst), 1e-37)
            boundary = norm.length(images - x) + gap / slope
            # A little beyond the boundary, where a tie is not adversarial.
            outside = ops.where(reached > 0, radius, boundary) * (1.0 + gamma)
            radius = ops.where(fooled, ops.minimum(radius * (1.0 - gamma), nearest), outside)
        radius = ops.minimum(radius, worst)
        ahead = images + size * norms.get("l2").direction(gradient)
        if self.norm == "l0":
            ahead = x + _largest_pixels(ahead - x, radius)
        elif self.norm == "l1":
            ahead = norm.project(ahead, x, radius[:, None])
        else:
            ahead = norm.project(ahead, x, columns(radius, x))
        return best, distance, ops.clip(ahead, *values), radius, reached


def _inward(gradient: Tensor, images: Tensor, values: tuple[float, float]) -> Tensor:
    """The gradient without what points out of the value range, where a step cannot go.

    Beyond the published attack, whose steps towards black pixels' darker side otherwise take up
    most of the length of a step, and of the distance to the boundary.
    """
    blocked = ops.logical_or(
        ops.logical_and(images <= values[0], gradient < 0),
        ops.logical_and(images >= values[1], gradient > 0),
    )
    return gradient * (1.0 - ops.cast(blocked, gradient.dtype))


def _largest_pixels(change: Tensor, count: Tensor) -> Tensor:
    """The changes of as many pixels as `count` says ``(n,)``, those of the largest."""
    norm = norms.L0()
    sizes = norm.pixel_sizes(change)
    pixels = sizes.shape[1]
    falling = -ops.sort(-sizes, axis=1)
    last = ops.cast(ops.clip(count - 1.0, 0.0, pixels - 1.0), "int32")
    least = ops.take_along_axis(falling, last[:, None], axis=1)
    kept = ops.cast(ops.logical_and(sizes >= least, count[:, None] > 0), change.dtype)
    return change * norm.of_pixels(kept, change)
