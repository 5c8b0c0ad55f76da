"""Objectives of adversarial training: what is attacked, what is trained on, what is logged."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_qusec import checks
from keras_qusec.attacks.ball import noise

Tensor = Any
# Inputs, labels and outputs of a part of a batch.
Part = tuple[Any, Any, Any]


class Batch(NamedTuple):
    """A batch of training data, with images of it attacked.

    Attributes:
        x: inputs, a structure of tensors.
        y: labels, a structure of tensors, or None.
        weights: of the samples, or None.
        images: those of the inputs that are attacked.
        adversarial: the first images attacked, ``(count, ...)``.
        count: how many were attacked.
        put_back: function of inputs and images that returns the inputs with these images.
        start: where the attack started, for one that says it.
    """

    x: Any
    y: Any
    weights: Any
    images: Tensor
    adversarial: Tensor
    count: Any
    put_back: Callable[[Any, Tensor], Any]
    start: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class TrainingObjective(ABC):
    """What adversarial training minimizes, and what its attack raises.

    An objective is a frozen data class of numbers: what it returns is compiled, and two that are
    equal share a compiled step. `step` is always the `AdversarialStep`, of which it may use
    `compute_loss`, `log_probabilities` and `forward`.

    Attributes:
        compares_probabilities: needs a model that says whether it gives probabilities or logits.
    """

    compares_probabilities: ClassVar[bool] = False

    def check(self, ratio: float) -> None:  # noqa: B027
        """Raise a ValueError if it cannot be used with this share of attacked images."""

    @abstractmethod
    def raised(self, step: Any, x: Any, y: Any, mapping: Any) -> Callable[[Any, Any], Tensor]:
        """What the attack raises, for a batch: a function of inputs and outputs, one number.

        Args:
            step: the training step.
            x: clean inputs.
            y: labels.
            mapping: pairs of variables and values.
        """

    def start(self, images: Tensor, state: Tensor) -> Tensor | None:
        """Where an attack without a random start begins; None for the clean images."""
        return None

    @abstractmethod
    def trained_on(self, batch: Batch) -> tuple[Any, Any, Any, Any]:
        """Inputs, labels and weights that are trained on, and how many rows the first part has."""

    @abstractmethod
    def loss(
        self, step: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool, size: Any
    ) -> Tensor:
        """What is minimized; `size` is the number of images before any were added."""

    def logs(self, step: Any, x: Any, y: Any, mapping: Any) -> dict[str, Tensor]:
        """What else is logged of a batch, from the values of the variables before the step."""
        return {}

    @abstractmethod
    def parts(self, trained: Part, count: Any, size: Any, ratio: float) -> dict[str, Part]:
        """The ``"clean"`` and ``"adversarial"`` part of what was trained on, for the logs."""


@dataclasses.dataclass(frozen=True)
class ModelLoss(TrainingObjective):
    """The loss that the model was compiled with, on images some or all of which are attacked.

    Source: Goodfellow et al. 2015 with half of each batch; Madry et al. 2018 with all of it.
    """

    def raised(self, step: Any, x: Any, y: Any, mapping: Any) -> Callable[[Any, Any], Tensor]:
        def total(inputs: Any, outputs: Any) -> Tensor:
            size = ops.cast(ops.shape(keras.tree.flatten(inputs)[0])[0], "float32")
            loss = step.compute_loss(
                x=inputs, y=y, y_pred=outputs, sample_weight=None, training=False
            )
            # The sum over the batch: gradients of the mean underflow in float16. A loss without
            # reduction is one number an image.
            return ops.mean(ops.cast(loss, "float32")) * size

        return total

    def trained_on(self, batch: Batch) -> tuple[Any, Any, Any, Any]:
        images = batch.adversarial
        if batch.count is not None:
            images = ops.concatenate([images, batch.images[batch.count :]])
        return batch.put_back(batch.x, images), batch.y, batch.weights, batch.count

    def loss(
        self, step: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool, size: Any
    ) -> Tensor:
        return step.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )

    def parts(self, trained: Part, count: Any, size: Any, ratio: float) -> dict[str, Part]:
        head, tail = halves(trained, count)
        # A last batch of a single image has no clean part.
        alone = ratio == 1 or (isinstance(size, int) and count == size)
        return {"adversarial": head} if alone else {"adversarial": head, "clean": tail}


@dataclasses.dataclass(frozen=True)
class PriorGuidedLoss(ModelLoss):
    """The model's loss, and how far its outputs differ from those at the prior perturbation.

    Both are in the batch that is trained on, in training mode, so that it is twice as large.

    Args:
        weight: of the mean square of that difference, 0 or more.

    Source: Jia et al. 2022, Prior-guided adversarial initialization for fast adversarial training.
    """

    weight: float = 10.0

    def check(self, ratio: float) -> None:
        if ratio != 1:
            raise ValueError(
                "Expected ratio=1 with PriorGuidedLoss, which uses every image at its prior and "
                f"attacked. Received: ratio={ratio!r}. Use objective=ModelLoss()."
            )

    def trained_on(self, batch: Batch) -> tuple[Any, Any, Any, Any]:
        if batch.start is None:
            raise ValueError(
                'Expected PriorGuidedLoss with "fgsm-mep", whose priors it compares. Received: '
                'another attack. Use objective="loss".'
            )
        if not self.weight:
            return super().trained_on(batch)
        return _doubled(batch, batch.start)

    def loss(
        self, step: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool, size: Any
    ) -> Tensor:
        if not self.weight:
            return super().loss(step, x, y, y_pred, sample_weight, training, size)
        if keras.tree.is_nested(y_pred):
            raise ValueError(
                "Expected a model with one output for PriorGuidedLoss, which compares outputs. "
                f'Received: {step.model.name!r} with several. Use "n-fgsm".'
            )
        attacked = rows(size, None)
        own = step.compute_loss(
            x=map_tensors(attacked, x),
            y=map_tensors(attacked, y),
            y_pred=attacked(y_pred),
            sample_weight=map_tensors(attacked, sample_weight),
            training=training,
        )
        gap = ops.mean(ops.square(attacked(y_pred) - rows(None, size)(y_pred)))
        return ops.mean(own) + self.weight * ops.cast(gap, own.dtype)

    def parts(self, trained: Part, count: Any, size: Any, ratio: float) -> dict[str, Part]:
        if not self.weight:
            return super().parts(trained, count, size, ratio)
        return {"adversarial": halves(trained, count)[1]}


@dataclasses.dataclass(frozen=True)
class Trades(TrainingObjective):
    """The loss of clean images, and the divergence of the adversarial predictions from theirs.

    Args:
        beta: weight of the divergence, above 0.

    Source: Zhang et al. 2019, Theoretically principled trade-off between robustness and accuracy.
    """

    beta: float = 6.0
    compares_probabilities: ClassVar[bool] = True

    def check(self, ratio: float) -> None:
        if ratio != 1:
            raise ValueError(
                'Expected ratio=1 with objective="trades", which uses every image clean and '
                f"adversarial. Received: ratio={ratio!r}. Weigh the two with beta."
            )

    def raised(self, step: Any, x: Any, y: Any, mapping: Any) -> Callable[[Any, Any], Tensor]:
        reference = ops.stop_gradient(step.log_probabilities(step.forward(x, mapping)))
        return lambda _, outputs: ops.sum(divergence(reference, step.log_probabilities(outputs)))

    def start(self, images: Tensor, state: Tensor) -> Tensor:
        # Beside the clean image: on it the divergence has no gradient.
        return images + 1e-3 * noise(images, state)

    def trained_on(self, batch: Batch) -> tuple[Any, Any, Any, Any]:
        return _doubled(batch, batch.images)

    def loss(
        self, step: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool, size: Any
    ) -> Tensor:
        clean, attacked = rows(None, size), rows(size, None)
        loss = step.compute_loss(
            x=map_tensors(clean, x),
            y=map_tensors(clean, y),
            y_pred=map_tensors(clean, y_pred),
            sample_weight=map_tensors(clean, sample_weight),
            training=training,
        )
        gap = divergence(
            step.log_probabilities(clean(y_pred)), step.log_probabilities(attacked(y_pred))
        )
        if sample_weight is not None:
            weight = ops.cast(clean(sample_weight), gap.dtype)
            # As Keras' losses do: a column is one weight an image.
            gap = gap * ops.reshape(weight, ops.shape(gap))
        return ops.mean(loss) + self.beta * ops.cast(ops.mean(gap), loss.dtype)

    def parts(self, trained: Part, count: Any, size: Any, ratio: float) -> dict[str, Part]:
        head, tail = halves(trained, count)
        return {"clean": head, "adversarial": tail}


def objective_of(given: Any, beta: float) -> TrainingObjective:
    """An objective by its name, or the object given.

    Args:
        given: ``"loss"``, ``"trades"`` or a `TrainingObjective`.
        beta: weight of the divergence in TRADES.

    Raises:
        ValueError: for anything else.
    """
    beta = checks.number(beta, "beta", above=0, hint="Zhang et al. use 1 to 6.")
    if isinstance(given, TrainingObjective):
        return given
    checks.one_of(given, "objective", ("loss", "trades"))
    return Trades(beta) if given == "trades" else ModelLoss()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p, one number a sample."""
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def halves(part: Part, count: Any) -> tuple[Part, Part]:
    """The first rows of a part, and the others."""
    head, tail = (
        tuple(map_tensors(rows(*ends), each) for each in part)
        for ends in ((None, count), (count, None))
    )
    return head, tail


def map_tensors(function: Callable[[Tensor], Tensor], structure: Any) -> Any:
    """A structure with a function of each of its tensors; None stays None."""
    if structure is None:
        return None
    return keras.tree.map_structure(lambda t: None if t is None else function(t), structure)


def rows(start: Any, stop: Any) -> Callable[[Tensor], Tensor]:
    """A function that takes some rows of a tensor."""
    return lambda tensor: tensor[start:stop]


def _doubled(batch: Batch, first: Tensor) -> tuple[Any, Any, Any, Any]:
    """What is trained on: some images, and then the attacked ones, with the same labels."""
    x = batch.put_back(map_tensors(_twice, batch.x), ops.concatenate([first, batch.adversarial]))
    count = ops.shape(batch.images)[0]
    return x, map_tensors(_twice, batch.y), map_tensors(_twice, batch.weights), count


def _twice(tensor: Tensor) -> Tensor:
    return ops.concatenate([tensor, tensor])
