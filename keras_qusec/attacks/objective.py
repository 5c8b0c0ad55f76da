"""What an attack raises to fool a classifier, by the field's losses, and what is a success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_qusec.checks import one_of
from keras_qusec.logits import log_odds_against

Tensor = Any


class Loss(NamedTuple):
    """A loss in two forms, both raised by an attack; classes ``(n,)``, logits ``(n, classes)``.

    Attributes:
        away: function of the labels and the logits, ``(n,)``: leave the label.
        towards: function of the labels, the targets and the logits, ``(n,)``: reach the target.
    """

    away: Callable[[Tensor, Tensor], Tensor]
    towards: Callable[[Tensor, Tensor, Tensor], Tensor]


def of_class(classes: Tensor, logits: Tensor) -> Tensor:
    """The logit of one class of each image, ``(n,)``."""
    return ops.sum(logits * ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype), axis=-1)


def best_other(classes: Tensor, logits: Tensor) -> Tensor:
    """The largest logit of all classes but one, ``(n,)``."""
    own = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    return ops.max(logits - 1e9 * own, axis=-1)


def margin(classes: Tensor, logits: Tensor) -> Tensor:
    """The best other logit less the label's, ``(n,)``: above 0 where the image is adversarial."""
    return best_other(classes, logits) - of_class(classes, logits)


def _cross_entropy(classes: Tensor, logits: Tensor) -> Tensor:
    return ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)


def _dlr(classes: Tensor, logits: Tensor) -> Tensor:
    """The difference of logits ratio: the margin over the first less the third logit.

    Of two classes it would be constant; they have the margin itself.
    """
    if logits.shape[-1] < 3:
        return margin(classes, logits)
    ranked = ops.top_k(logits, 3)[0]
    return margin(classes, logits) / _positive(ranked[:, 0] - ranked[:, -1])


def _towards_dlr(labels: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    """The same towards a target: over the first less the mean of the third and fourth logit."""
    if logits.shape[-1] < 4:
        return _towards_margin(labels, targets, logits)
    ranked = ops.top_k(logits, 4)[0]
    rest = (ranked[:, 2] + ranked[:, 3]) / 2.0
    return _towards_margin(labels, targets, logits) / _positive(ranked[:, 0] - rest)


def _towards_margin(labels: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    return of_class(targets, logits) - of_class(labels, logits)


def _positive(difference: Tensor) -> Tensor:
    return ops.maximum(difference, 1e-12)


# By the name that users write. Source: Madry et al. 2018; Croce and Hein 2020, Section 4 (DLR).
LOSSES: dict[str, Loss] = {
    "ce": Loss(_cross_entropy, lambda _, targets, logits: -_cross_entropy(targets, logits)),
    "log-odds": Loss(
        log_odds_against, lambda _, targets, logits: -log_odds_against(targets, logits)
    ),
    "margin": Loss(margin, _towards_margin),
    "dlr": Loss(_dlr, _towards_dlr),
}


class Objective(NamedTuple):
    """What an attack raises, and what counts as success.

    Attributes:
        loss: name of the loss, one of `LOSSES`.
        aimed: raise it towards the target of each image instead of away from its label.
        targeted: success is to be classified as the target, instead of as anything but the label.
    """

    loss: str = "log-odds"
    aimed: bool = False
    targeted: bool = False

    def value(self, labels: Tensor, aims: Tensor, logits: Tensor) -> Tensor:
        """The loss of each image, ``(n,)``; `aims` are the targets."""
        loss = LOSSES[self.loss]
        return loss.towards(labels, aims, logits) if self.aimed else loss.away(labels, logits)

    def reached(self, labels: Tensor, aims: Tensor, logits: Tensor) -> Tensor:
        """Which images are a success, ``(n,)`` bool."""
        predicted = ops.cast(ops.argmax(logits, axis=-1), labels.dtype)
        return predicted == aims if self.targeted else predicted != labels


def check_loss(loss: str) -> str:
    """The name of a loss.

    Raises:
        ValueError: for an unknown one.
    """
    return str(one_of(loss, "loss", LOSSES))
