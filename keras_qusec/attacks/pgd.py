"""Projected gradient descent (Madry et al. 2018)."""

from __future__ import annotations

from typing import Any

from keras_qusec.attacks.gradient_attack import GradientAttack


class PGD(GradientAttack):
    """Projected gradient descent: steps from a random start.

    Args:
        epsilon: radius of the ball, in units of the pixel values; not for an evaluation.
        steps: number of steps.
        step_size: length of one step; default 2.5 * epsilon / steps.
        relative_step_size: the same as a share of epsilon.
        random_start: start at a random point of the ball.
        **settings: `norm`, `targeted`, `value_range`, `restarts` of `GradientAttack`.

    Source: Madry et al. 2018.

    Example:

    >>> from keras_qusec.attacks import PGD
    >>> PGD(epsilon=0.2, steps=10).step_size
    0.05
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        steps: int = 40,
        step_size: float | None = None,
        relative_step_size: float | None = None,
        random_start: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(
            epsilon,
            steps=steps,
            step_size=step_size,
            relative_step_size=relative_step_size,
            random_start=random_start,
            **settings,
        )
