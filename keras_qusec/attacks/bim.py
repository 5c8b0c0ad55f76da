"""The basic iterative method (Kurakin et al. 2016)."""

from __future__ import annotations

from typing import Any

from keras_qusec.attacks.gradient_attack import GradientAttack
from keras_qusec.checks import whole_number


class BIM(GradientAttack):
    """Basic iterative method: steps from the clean image.

    Args:
        epsilon: radius of the ball, in units of the pixel values; not for an evaluation.
        steps: number of steps.
        step_size: length of one step; default epsilon / steps.
        relative_step_size: the same as a share of epsilon.
        **settings: `norm`, `targeted`, `value_range`, `restarts` of `GradientAttack`.

    Source: Kurakin et al. 2016.

    Example:

    >>> from keras_qusec.attacks import BIM
    >>> BIM(epsilon=0.25, steps=5).step_size
    0.05
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        steps: int = 10,
        step_size: float | None = None,
        relative_step_size: float | None = None,
        **settings: Any,
    ) -> None:
        if relative_step_size is None and step_size is None:
            relative_step_size = 1 / whole_number(steps, "steps")
        super().__init__(
            epsilon,
            steps=steps,
            step_size=step_size,
            relative_step_size=relative_step_size,
            random_start=False,
            **settings,
        )
