"""Sigma-zero: the fewest pixels, by gradients of a smooth L0 norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.minimum_norm import MinimumNormAttack, View, columns, keep_closer
from keras_qusec.checks import number, whole_number

Tensor = Any

# These are Adam's usual rates.
_BETA_1, _BETA_2 = 0.9, 0.999


class SigmaZero(MinimumNormAttack):
    """Minimise a smooth number of changed pixels, and drop those that changed least.

    Adam steps on the margin, as long as the image is not adversarial, plus ``d^2 / (d^2 +
    sigma)`` summed over the changes d of all values. Pixels that changed by less than a threshold
    go back; the threshold rises while the image is adversarial and falls while it is not. The
    result has few changed pixels, of any size.

    Args:
        steps: gradient steps.
        step_size: the first step size; the last is a tenth of it. Shares of the value range, as
            are the following.
        sigma: smaller values approximate the number better and have smaller gradients.
        threshold: the first threshold.

    Raises:
        ValueError: for unusable arguments.

    Source: Cinà et al. 2025, Sigma-zero: gradient-based optimization of l0-norm adversarial
    examples.

    Example:

    >>> from keras_qusec.attacks import AttackedModel, Goal, SigmaZero
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1], [0, 0]], "float32")])
    >>> x, goal = np.array([[0.6, 0.5, 0.5]], "float32"), Goal(np.array([0]))
    >>> found = SigmaZero().run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> int((found != x).sum())
    1
    """

    norm = "l0"

    def __init__(
        self,
        *,
        steps: int = 1000,
        step_size: float = 1.0,
        sigma: float = 0.001,
        threshold: float = 0.3,
    ) -> None:
        self.steps = whole_number(steps, "steps", hint="The published number is 1000.")
        self.step_size = number(step_size, "step_size", above=0)
        self.sigma = number(sigma, "sigma", above=0)
        self.threshold = number(threshold, "threshold", least=0, most=1)
        self.cost = f"{steps} gradients"

    def begin(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        # The image, Adam's two moments, and the threshold.
        none = np.zeros_like(x)
        return x, none, none, np.full(len(x), self.threshold, "float32")

    def step(
        self, view: View, x: Tensor, state: tuple[Tensor, ...], place: Tensor,
        values: tuple[float, float],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        best, distance, images, first, second, threshold = state
        norm, width = norms.L0(), values[1] - values[0]
        seen = view.look(images)
        best, distance = keep_closer(self.norm, x, images, seen.unbroken, best, distance)
        # All in shares of the value range.
        change = (images - x) / width
        # In shares of its largest part: behind a steep quantizer the gradient is much smaller than
        # that of the sparsity, which alone would move nothing towards another class.
        uphill, _ = norms.in_shares(-seen.gradient * columns(ops.cast(seen.value < 0, x.dtype), x))
        square = change * change
        count = math.prod(x.shape[1:])
        uphill = uphill + 2.0 * self.sigma * change / (square + self.sigma) ** 2 / count
        uphill = uphill / columns(ops.maximum(norms.get("linf").length(uphill), 1e-12), x)
        first = _BETA_1 * first + (1.0 - _BETA_1) * uphill
        second = _BETA_2 * second + (1.0 - _BETA_2) * uphill * uphill
        rate = self.step_size * _annealed(place - 1.0, self.steps)
        mean = first / (1.0 - _BETA_1 ** (place + 1.0))
        spread = ops.sqrt(second / (1.0 - _BETA_2 ** (place + 1.0))) + 1e-8
        moved = ops.clip(x + width * (change - rate * mean / spread), *values)
        rate = self.step_size * _annealed(place, self.steps)
        threshold = ops.clip(threshold + 0.01 * rate * (1.0 - 2.0 * seen.unbroken), 0.0, 1.0)
        kept = norm.pixel_sizes(moved - x) >= width * threshold[:, None]
        mask = norm.of_pixels(ops.cast(kept, x.dtype), x)
        return best, distance, x + mask * (moved - x), first, second, threshold


def _annealed(place: Tensor, steps: int) -> Tensor:
    """From 1 to 0.1 along a cosine; 1 before the first step."""
    share = ops.cos(math.pi * ops.maximum(place, 0.0) / steps)
    return 0.1 + 0.9 * (1.0 + share) / 2.0
