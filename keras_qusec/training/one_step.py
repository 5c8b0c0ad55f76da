"""Attacks of one step for training alone: cheap, and such that training does not collapse."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_qusec import checks
from keras_qusec.attacks import GradientAttack
from keras_qusec.attacks.ball import ball_around, noise
from keras_qusec.attacks.gradient_attack import Perturbed

Tensor = Any


class Priors(NamedTuple):
    """What FGSM-MEP remembers of images from one epoch to the next.

    Attributes:
        shares: the prior perturbation of each pixel value, in shares of epsilon, -1 to 1.
        momenta: mean of the gradients so far, each in sizes of its mean.
    """

    shares: Tensor
    momenta: Tensor


class ForTrainingAlone(GradientAttack):
    """One step in L-infinity, whose images are no adversarial examples of an evaluation."""

    def __init__(
        self, epsilon: float | None, step_size: float | None, value_range: tuple[float, float]
    ) -> None:
        super().__init__(epsilon, steps=1, step_size=step_size, value_range=value_range)

    def settings(self) -> dict[str, Any]:
        kept = ("epsilon", "step_size", "value_range")
        return {name: value for name, value in super().settings().items() if name in kept}

    def check_for_evaluation(self) -> None:
        raise ValueError(
            f"Expected an attack for an evaluation. Received: {self!r}, which is for training "
            'alone. Use "standard", or "pgd".'
        )


class NFGSM(ForTrainingAlone):
    """One step from a noisy image, out of the ball: cheap adversarial training without collapse.

    ``x + noise + epsilon * sign(gradient)``, with noise uniform in ``[-k epsilon, k epsilon]``,
    inside the value range but not inside the ball. It augments training and says nothing about
    robustness, so an evaluation has no such attack.

    Args:
        epsilon: radius in L-infinity, in units of the pixel values.
        noise: k, the size of the noise in radii, above 0.
        step_size: length of the step; default epsilon.
        value_range: smallest and largest pixel value.

    Raises:
        ValueError: for unusable arguments.

    Source: de Jorge et al. 2022, Make some noise: reliable and efficient single-step adversarial
    training.

    Example:

    >>> from keras_qusec import AdversarialTraining
    >>> AdversarialTraining("n-fgsm", epsilon=8 / 255).attack.noise
    2.0
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        noise: float = 2.0,
        step_size: float | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, step_size, value_range)
        self.noise = checks.number(noise, "noise", above=0, hint="de Jorge et al. use 2.")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "noise": self.noise}

    def perturb(
        self,
        gradient: Any,
        x: Tensor,
        state: Tensor,
        *,
        epsilon: Tensor,
        step_size: Tensor,
        start: Any = None,
    ) -> Perturbed:
        radius, length = ops.cast(epsilon, x.dtype), ops.cast(step_size, x.dtype)
        noisy = ops.clip(x + self.noise * radius * noise(x, state), *self.value_range)
        ascent, output = gradient(noisy)
        images = ops.clip(noisy + length * ops.sign(ascent), *self.value_range)
        return Perturbed(images, ops.max(ops.absolute(ascent)), output)


class FGSMMEP(ForTrainingAlone):
    """One step from where the last epoch's gradients led, image by image, with momentum.

    Each image keeps a prior perturbation and the momentum of its gradients. An epoch starts at
    the prior, takes one step of length epsilon along the sign of the gradient for training, and
    one along the momentum for the next prior.

    Args:
        epsilon: radius in L-infinity, in units of the pixel values.
        momentum: what a gradient is worth one epoch later, from 0 on and below 1.
        step_size: length of both steps; default epsilon.
        value_range: smallest and largest pixel value.

    Raises:
        ValueError: for unusable arguments.

    Source: Jia et al. 2022, Prior-guided adversarial initialization for fast adversarial
    training.

    Example:

    >>> from keras_qusec import AdversarialTraining
    >>> AdversarialTraining("fgsm-mep", epsilon=8 / 255).attack.momentum
    0.3
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        momentum: float = 0.3,
        step_size: float | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, step_size, value_range)
        self.momentum = checks.number(momentum, "momentum", least=0, most=0.999)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "momentum": self.momentum}

    def perturb(
        self,
        gradient: Any,
        x: Tensor,
        state: Tensor,
        *,
        epsilon: Tensor,
        step_size: Tensor,
        start: Any = None,
    ) -> Perturbed:
        """The step, from `Priors` as `start`; what to keep comes back beside the images."""
        radius, length = ops.cast(epsilon, x.dtype), ops.cast(step_size, x.dtype)
        shares, momenta = (ops.cast(part, x.dtype) for part in start)
        ball = ball_around(x, radius, "linf", self.value_range)
        first = ball.project(x + radius * shares)
        ascent, output = gradient(first)
        images = ball.project(first + length * ops.sign(ascent))
        axes = tuple(range(1, len(x.shape)))
        mean = ops.mean(ops.absolute(ascent), axis=axes, keepdims=True)
        momenta = self.momentum * momenta + ascent / ops.maximum(mean, 1e-30)
        # A pixel without any gradient so far stays.
        moved = ball.project(first + length * ops.sign(momenta))
        shares = (moved - x) / ops.maximum(radius, 1e-12)
        # What float16 cannot hold is large enough.
        kept = Priors(ops.clip(shares, -1.0, 1.0), ops.clip(momenta, -6e4, 6e4))
        return Perturbed(images, ops.max(ops.absolute(ascent)), output, first, kept)


# Names that `AdversarialTraining` takes beside those of attacks.
ONE_STEP_ATTACKS: dict[str, type[GradientAttack]] = {"n-fgsm": NFGSM, "fgsm-mep": FGSMMEP}
