"""The fast gradient sign method (Goodfellow et al. 2015)."""

from __future__ import annotations

from typing import Any

from keras_qusec.attacks.gradient_attack import GradientAttack


class FGSM(GradientAttack):
    """Fast gradient sign method: one step of length epsilon.

    Args:
        epsilon: radius of the ball, in units of the pixel values; not for an evaluation.
        random_start: start at a random point of the ball, with a step of 1.25 * epsilon
            (Wong et al. 2020).
        step_size: length of the step; default epsilon, or 1.25 * epsilon from a random start.
        relative_step_size: the same as a share of epsilon.
        **settings: `norm`, `targeted`, `value_range`, `restarts` of `GradientAttack`.

    Source: Goodfellow et al. 2015.

    Example:

    >>> from keras_qusec.attacks import FGSM
    >>> FGSM(epsilon=0.3).steps
    1
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        random_start: bool = False,
        step_size: float | None = None,
        relative_step_size: float | None = None,
        **settings: Any,
    ) -> None:
        if relative_step_size is None and step_size is None and random_start:
            relative_step_size = 1.25
        super().__init__(
            epsilon,
            steps=1,
            step_size=step_size,
            relative_step_size=relative_step_size,
            random_start=random_start,
            **settings,
        )
