"""CertifiedTraining: training on bounds of the loss, so that robustness can be proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.attacks import PGD, AttackedModel, GradientAttack
from keras_qusec.attacks.gradient_attack import Perturbed
from keras_qusec.backends import backend
from keras_qusec.certification.graph import pieces_between
from keras_qusec.integer_inputs import integer_input
from keras_qusec.training.callback import AdversarialTraining
from keras_qusec.training.certified_objective import CertifiedLoss, certified
from keras_qusec.training.validation import AT_A_TIME, AdversarialValidation

Tensor = Any
METHODS = ("intervals", "crown-ibp", "mixed")


class CertifiedTraining(AdversarialTraining):
    """Train on bounds of the loss over the whole ball, so that robustness can be proved.

    ``model.fit(x, y, callbacks=[CertifiedTraining(epsilon=0.3)])``

    Intervals go through the network beside the images: what leaves a quantizer between its
    reachable levels, then the smallest and the largest value of every unit. The loss at the worst
    logits within them is an upper bound of the loss under any attack (IBP, Gowal et al. 2018).
    Epsilon, and the weight of the bounds against the model's own loss, rise over the first half
    of a fit, while a regularizer keeps the bounds tight (Shi et al. 2021).

    Beside the logs of `AdversarialTraining` there are ``certified_loss`` and
    ``certified_accuracy``, the share of the batch that intervals prove at the present epsilon in
    training mode, and ``val_certified_accuracy`` at the whole epsilon. They are figures of
    training in float32 without a margin for rounding; proofs are `certify_robustness`.

    Args:
        epsilon: radius in L-infinity, in units of the pixel values.
        method: ``"intervals"``; ``"crown-ibp"``, where the bounds of the logits are linear ones at
            first and become intervals while epsilon rises (Zhang et al. 2020): steadier, and a
            pass for each class slower until then; or ``"mixed"``, where the model's own loss is
            that of images attacked by PGD (MTL-IBP, De Palma et al. 2024): less is proved by
            intervals, more stays accurate.
        value_range: smallest and largest pixel value.
        clean_weight: weight of the model's own loss, clean or attacked, in [0, 1), when epsilon
            has reached its value; the rest is the weight of the bounds. Default 0, and 0.5 for
            ``"mixed"``.
        crown_weight: weight of the linear bounds of ``"crown-ibp"``, in [0, 1], when epsilon has
            reached its value. Default 0; 1 keeps them, which pays for small radii. They go
            through ReLUs and linear layers back to a quantizer or the image; other activations
            and max pooling end them with their interval.
        regularization: weight of the regularizer while epsilon rises, 0 or more.
        warmup_epochs: epochs of plain training first; default a twentieth of the fit.
        ramp_epochs: epochs over which epsilon then rises; default half of the fit.
        epsilon_schedule: as for `AdversarialTraining`.
        steps: gradient steps of the attack of ``"mixed"``.
        gradient_hardness: hardness of the surrogate gradients of that attack.
        validation_data: ``(x, y)`` or a data set of batches, on which ``val_certified_accuracy``
            is measured after each epoch.
        outputs: ``"logits"`` or ``"probabilities"``, where the model's graph does not say.
        seed: of the attack of ``"mixed"``.

    Raises:
        ValueError: for unusable arguments; in `fit` for a model without a graph, with a layer
            whose bounds are not known, or with an Input of whole numbers.

    Source: Gowal et al. 2018; Zhang et al. 2020; Shi et al. 2021; De Palma et al. 2024.

    Example:

    >>> from keras_qusec import CertifiedTraining, QuSecQuantization
    >>> model = keras.Sequential([keras.Input((4,)), QuSecQuantization(2, hard=True),
    ...                           keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.rand(8, 4).astype("float32"), np.arange(8) % 2
    >>> history = model.fit(x, y, verbose=0, callbacks=[CertifiedTraining(epsilon=0.1)]).history
    >>> "certified_accuracy" in history
    True
    """

    def __init__(
        self,
        epsilon: float,
        *,
        method: Literal["intervals", "crown-ibp", "mixed"] = "intervals",
        value_range: tuple[float, float] = (0.0, 1.0),
        clean_weight: float | None = None,
        crown_weight: float = 0.0,
        regularization: float = 0.5,
        warmup_epochs: float | None = None,
        ramp_epochs: float | None = None,
        epsilon_schedule: Callable[[Tensor], Tensor] | None = None,
        steps: int = 8,
        gradient_hardness: float | None = None,
        validation_data: Any = None,
        outputs: Literal["logits", "probabilities"] | None = None,
        seed: int = 0,
    ) -> None:
        checks.one_of(method, "method", METHODS)
        self.method = method
        epsilon = checks.number(epsilon, "epsilon", least=0)
        value_range = checks.value_range(value_range)
        checks.epsilon_inside(epsilon, value_range)
        attacked = method == "mixed"
        if clean_weight is None:
            clean_weight = 0.5 if attacked else 0.0
        weight = checks.number(clean_weight, "clean_weight", least=0)
        if weight >= 1:
            raise ValueError(
                f"Expected clean_weight below 1. Received: {weight:g}, with which no bounds are "
                "trained on. Use AdversarialTraining, or a weight such as 0.5."
            )
        linear = method == "crown-ibp"
        crown_weight = checks.number(crown_weight, "crown_weight", least=0, most=1)
        if crown_weight and not linear:
            raise ValueError(
                f"Expected crown_weight for method='crown-ibp' alone. Received: {crown_weight:g} "
                f"with method={method!r}, which has no linear bounds."
            )
        self._loss = CertifiedLoss(
            epsilon=epsilon,
            value_range=value_range,
            clean_weight=weight,
            regularization=checks.number(regularization, "regularization", least=0),
            attacked=attacked,
            crown_weight=crown_weight if linear else None,
        )
        attack: GradientAttack = (
            PGD(epsilon, steps=steps, value_range=value_range)
            if attacked
            else _NoAttack(epsilon, value_range)
        )
        self._given_epochs = (warmup_epochs, ramp_epochs)
        super().__init__(
            attack,
            objective=self._loss,
            warmup_epochs=warmup_epochs or 0,
            ramp_epochs=ramp_epochs or 0,
            epsilon_schedule=epsilon_schedule,
            gradient_hardness=gradient_hardness,
            outputs=outputs,
            # Bounds do not overfit to an attack.
            collapse="warn" if attacked else None,
            seed=seed,
        )
        if validation_data is not None:
            self._validation = CertifiedValidation(
                validation_data, attack, outputs, gradient_hardness, seed
            )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        if integer_input(model) is not None:
            raise ValueError(
                f"Expected a model with a float Input. Received: {model.name!r} with an Input of "
                "whole numbers, through which there are no bounds to train on. Scale the images "
                "outside the model."
            )
        pieces_between(model)
        epochs = float(self.params.get("epochs") or 1)
        warmup, ramp = self._given_epochs
        self.warmup_epochs = epochs / 20 if warmup is None else warmup
        self.ramp_epochs = epochs / 2 if ramp is None else ramp
        self.objective = self._loss
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        ramped = epoch >= self.warmup_epochs + self.ramp_epochs and self.epsilon_schedule is None
        objective = dataclasses.replace(self._loss, settled=ramped)
        if objective != self.objective:
            # What needs no ramp any more is compiled without it.
            self.objective = objective
            self._put_step_in()


class _NoAttack(GradientAttack):
    """Images as they are: bounds need no attack."""

    def __init__(self, epsilon: float, value_range: tuple[float, float]) -> None:
        super().__init__(epsilon, steps=1, random_start=False, value_range=value_range)

    def perturb(
        self,
        gradient: Any,
        x: Tensor,
        state: Tensor,
        *,
        epsilon: Tensor,
        step_size: Tensor,
        start: Tensor | None = None,
    ) -> Perturbed:
        return Perturbed(x, ops.ones((), "float32"), None)


class CertifiedValidation(AdversarialValidation):
    """Measures after each epoch the share of validation images that intervals prove."""

    name, callback = "val_certified_accuracy", "CertifiedTraining"

    def robust(self, model: AttackedModel) -> np.ndarray:
        pieces, attack = pieces_between(model.model), self.attack

        def run(mapping: Any, x: Tensor, y: Tensor) -> Tensor:
            with keras.StatelessScope(state_mapping=mapping):
                found = certified(pieces, x, y, attack.epsilon, attack.value_range, training=False)
            return ops.sum(ops.cast(found.gaps >= 0, "float32"), axis=1)

        compiled = model.kept(
            "intervals", lambda: backend().compiled(run, model.variables, batches=2)
        )
        labels = self.labels.astype("int32")
        parts = [
            model.on_rows(compiled, self.x[i : i + AT_A_TIME], labels[i : i + AT_A_TIME])
            for i in range(0, len(self.x), AT_A_TIME)
        ]
        return np.concatenate(parts) < 1.5
