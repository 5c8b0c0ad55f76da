"""The objective of certified training: a loss that no image of the ball exceeds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras
from keras import ops

from keras_qusec.backends import backend
from keras_qusec.certification.graph import Pieces, pieces_between
from keras_qusec.certification.pieces import Activation, Affine, Interval
from keras_qusec.training.objectives import ModelLoss, Part

Tensor = Any

# Shi et al.: widths and units on and off may differ by a factor of two.
_TOLERANCE = 0.5


@dataclasses.dataclass(frozen=True)
class CertifiedLoss(ModelLoss):
    """A mixture of the model's loss and of cross-entropy at the bounds of the logits.

    Args:
        epsilon: radius in L-infinity.
        value_range: smallest and largest pixel value.
        clean_weight: weight of the model's own loss when epsilon has reached its value.
        regularization: weight of what keeps bounds tight while epsilon rises.
        attacked: the model's loss is that of attacked images.
        settled: epsilon has its value for the rest of the training.
        crown_weight: weight of linear bounds against intervals when epsilon has reached its value,
            before which it falls from 1; None for intervals alone.
    """

    epsilon: float = 0.0
    value_range: tuple[float, float] = (0.0, 1.0)
    clean_weight: float = 0.0
    regularization: float = 0.0
    attacked: bool = False
    settled: bool = False
    crown_weight: float | None = None
    compares_probabilities: ClassVar[bool] = False

    def loss(
        self, step: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool, size: Any
    ) -> Tensor:
        found = certified(pieces_between(step.model), step.local.images, y,
                          self.epsilon * step.local.factor, self.value_range,
                          training=training)  # fmt: skip
        if not backend().passes_state:
            step.local.certified = found.logs()
        certified_loss = found.loss_with(self._share_of_linear_bounds(step), training=training)
        if sample_weight is not None:
            weight = ops.cast(sample_weight, certified_loss.dtype)
            certified_loss = certified_loss * ops.reshape(weight, ops.shape(certified_loss))
        certified_loss = ops.mean(certified_loss)
        for added in step.model.losses:
            certified_loss = certified_loss + ops.sum(ops.cast(added, certified_loss.dtype))
        if self.settled and not self.clean_weight:
            # Without a weight the clean pass is for the logs alone; leaving its gradient out saves
            # more than a plain step.
            return certified_loss
        own = ops.mean(
            step.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        )
        factor = 1.0 if self.settled else step.local.factor
        share = factor * (1.0 - self.clean_weight)
        total = (1.0 - share) * own + share * ops.cast(certified_loss, own.dtype)
        if self.regularization and not self.settled:
            weight = self.regularization * (1.0 - factor)
            total = total + weight * ops.cast(found.looseness(), own.dtype)
        return total

    def _share_of_linear_bounds(self, step: Any) -> Any:
        """The weight of linear bounds at this step; 0 where none are needed."""
        if self.crown_weight is None:
            return 0.0
        if self.settled:
            return self.crown_weight
        return 1.0 - (1.0 - self.crown_weight) * step.local.factor

    def logs(self, step: Any, x: Any, y: Any, mapping: Any) -> dict[str, Tensor]:
        if not backend().passes_state:
            logs: dict[str, Tensor] = step.local.certified
            return logs
        # What is computed while differentiating must not leave it; the compiler sees that this is
        # the same once more.
        with keras.StatelessScope(state_mapping=mapping):
            radius = self.epsilon * step.local.factor
            return certified(
                pieces_between(step.model), step.local.images, y, radius, self.value_range,
                training=True,
            ).logs()  # fmt: skip

    def parts(self, trained: Part, count: Any, size: Any, ratio: float) -> dict[str, Part]:
        if self.attacked:
            return super().parts(trained, count, size, ratio)
        return {"clean": trained}


class Certified:
    """What the bounds of a batch say.

    Args:
        pieces: the network.
        values: bounds of all its values.
        labels: ``(n, classes)``, 1 at the label and 0 elsewhere.

    Attributes:
        gaps: the largest differences of each logit from that of the label, ``(n, classes)``.
        loss: cross-entropy of the worst logits, ``(n,)``.
    """

    def __init__(self, pieces: Pieces, values: dict[int, Interval], labels: Tensor) -> None:
        self.pieces, self.values, self.labels = pieces, values, labels
        self.gaps = pieces.gaps(values, labels)
        # That of the label is 0, so this is a cross-entropy.
        self.loss = ops.logsumexp(self.gaps, axis=1)

    def loss_with(self, share: Any, *, training: bool) -> Tensor:
        """The loss at a mixture of linear bounds and intervals.

        Args:
            share: weight of the linear bounds, a number or a tensor; they are not computed for the
                number 0.
            training: as batch normalization and the like compute in training.
        """
        if isinstance(share, float) and not share:
            return self.loss
        linear = self.pieces.linear_gaps(self.values, self.labels, training=training)
        return ops.logsumexp(share * linear + (1.0 - share) * self.gaps, axis=1)

    def logs(self) -> dict[str, Tensor]:
        """Loss and certified accuracy of the batch."""
        # The gap of the label itself is 0; any other must be below.
        reached = ops.sum(ops.cast(self.gaps >= 0, "float32"), axis=1)
        return {
            "certified_loss": ops.mean(ops.cast(ops.stop_gradient(self.loss), "float32")),
            "certified_accuracy": ops.mean(ops.cast(reached < 1.5, "float32")),
        }

    def looseness(self) -> Tensor:
        """How much wider bounds become from layer to layer, and how uneven units are on and off.

        Source: Shi et al. 2021, Fast certified robust training with short warmup.
        """
        first: Tensor | None = None
        parts: list[Tensor] = []
        for step in self.pieces.steps:
            if first is None and isinstance(step.piece, Affine):
                low, high = self.values[step.inputs[0]]
                first = ops.mean(high - low)
            if first is None or not isinstance(step.piece, Activation):
                continue
            low, high = self.values[step.inputs[0]]
            parts.append(_over(first, ops.mean(high - low)))
            parts += _balance(low, high)
        if not parts:
            return ops.zeros(())
        return sum(parts[1:], parts[0]) / (_TOLERANCE * max(1, len(parts) // 3))


def certified(
    pieces: Pieces,
    x: Tensor,
    y: Any,
    epsilon: Any,
    value_range: tuple[float, float],
    *,
    training: bool,
) -> Certified:
    """Bounds of a network on a batch, by intervals.

    Args:
        pieces: the network, from its images on.
        x: images.
        y: labels ``(n,)`` or ``(n, 1)``, or one-hot.
        epsilon: radius, a number or a tensor.
        value_range: smallest and largest pixel value.
        training: as batch normalization and the like compute in training.
    """
    low, high = (ops.clip(x + side * epsilon, *value_range) for side in (-1.0, 1.0))
    values = pieces.intervals(Interval(low, high), training=training)
    classes = max(2, math.prod(pieces.shapes[pieces.output]))
    labels = one_hot(y, classes, values[pieces.output].low.dtype)
    return Certified(pieces, values, labels)


def one_hot(y: Any, classes: int, dtype: Any) -> Tensor:
    """Labels as rows ``(n, classes)`` with a 1 at the class."""
    if len(y.shape) == 2 and y.shape[-1] > 1:
        y = ops.argmax(y, axis=-1)
    numbers = ops.cast(ops.reshape(y, (-1,)), "int32")
    return ops.one_hot(numbers, classes, dtype=dtype)


def _over(first: Tensor, width: Tensor) -> Tensor:
    return ops.relu(_TOLERANCE - first / ops.maximum(width, 1e-12))


def _balance(low: Tensor, high: Tensor) -> list[Tensor]:
    """How far the units that are on and those that are off differ, in mean and in spread."""
    middle = (low + high) / 2.0
    sums = []
    for side in (ops.cast(low > 0, low.dtype), ops.cast(high < 0, low.dtype)):
        count = ops.maximum(ops.sum(side), 1.0)
        mean = ops.sum(side * middle) / count
        spread = ops.sum(side * ops.square(middle - mean))
        sums.append((ops.sum(side * ops.absolute(middle)), spread))
    parts = []
    for on, off in zip(*sums, strict=True):
        least, most = ops.minimum(on, off), ops.maximum(on, off)
        parts.append(ops.relu(_TOLERANCE - (least + 1e-12) / (most + 1e-12)))
    return parts
