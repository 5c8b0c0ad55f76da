"""The Jacobian saliency map attack (Papernot et al. 2016), which Foolbox 3 lacks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.goal import Goal
from keras_qusec.checks import number, whole_number
from keras_qusec.norms import column


class _Paths(NamedTuple):
    """Where walks towards target classes ended, and which of them arrived."""

    images: np.ndarray
    arrived: np.ndarray


class JSMA(Attack):
    """Change the two features that raise the target's probability most, again and again.

    On softmax probabilities the saliency map of a pair of features is largest for the two
    largest derivatives of the target's probability, because the other classes' probabilities
    sum to one minus it. That is what is computed here (as in ART), in linear time, from the
    logarithm of the probability, whose derivatives have the same order and do not underflow.

    Args:
        theta: change of a feature in one step, as a share of the value range; 0 < theta <= 1.
        gamma: largest share of the features that may be changed; 0 < gamma <= 1.
        decrease: also make features darker, whichever raises the target more, but no feature
            both ways (after Wiyatno and Xu 2018). The original only makes them brighter.
        targets: untargeted, how many of the likeliest wrong classes are tried, keeping the
            fewest changed features; None for all.

    The paper's settings, CleverHans v2's: ``JSMA(theta=1.0, gamma=0.1, decrease=False,
    targets=1)``. Images of any shape; channels count as features.

    Raises:
        ValueError: for settings out of their range.

    Source: Papernot et al. 2016, The Limitations of Deep Learning in Adversarial Settings.

    Example:

    >>> from keras_qusec.attacks import JSMA, AttackedModel, Goal
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[0, 1], [0, 3], [0, 2], [1.5, 0]], "float32")])
    >>> x, goal = np.array([[0, 0, 0, 1]], "float32"), Goal(np.array([0]))
    >>> JSMA(decrease=False).run(AttackedModel(model), x, goal, epsilon=None, seed=0).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    """

    norm, minimizes = "l0", True
    cost = "a gradient for each two features changed, for each target"

    def __init__(
        self,
        theta: float = 1.0,
        gamma: float = 1.0,
        decrease: bool = True,
        targets: int | None = None,
    ) -> None:
        hint = "It is a share; the paper's settings are theta=1.0, gamma=0.1."
        theta = number(theta, "theta", above=0, most=1, hint=hint)
        gamma = number(gamma, "gamma", above=0, most=1, hint=hint)
        if targets is not None:
            targets = whole_number(targets, "targets", hint="None tries all wrong classes.")
        self.theta = theta
        self.gamma = gamma
        self.decrease = decrease
        self.targets = targets

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        if goal.targeted:
            paths = self._walk(model, x, goal.classes)
            return np.where(column(paths.arrived, x), paths.images, x)
        logits = model.logits(x)
        order = np.argsort(-logits, axis=1)
        best, fewest = x.copy(), np.full(len(x), np.inf)
        fewest[logits.argmax(axis=1) != goal.labels] = 0
        # The likeliest classes but for the label, in order.
        others = np.array(
            [row[row != label] for row, label in zip(order, goal.labels, strict=True)]
        )
        for choice in range(min(self.targets or others.shape[1], others.shape[1])):
            # Most features that may still be changed for an improvement.
            limit = np.minimum(fewest - 1, self.gamma * x[0].size)
            rows = np.flatnonzero(limit > 0)
            if not len(rows):
                break
            paths = self._walk(model, x[rows], others[rows, choice], limit[rows], goal.labels[rows])
            changed = (paths.images != x[rows]).reshape(len(rows), -1).sum(axis=1)
            better = paths.arrived & (changed < fewest[rows])
            best[rows[better]] = paths.images[better]
            fewest[rows[better]] = changed[better]
        return best

    def _walk(
        self,
        model: AttackedModel,
        x: np.ndarray,
        targets: np.ndarray,
        limit: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> _Paths:
        """Walk towards target classes; with labels, arriving is leaving the label."""
        low, high = model.value_range
        features = x[0].size
        flat = x.reshape(len(x), features).copy()
        step = np.float32(self.theta * (high - low))
        # Which features may still go up, and down.
        up, down = flat < high, flat > low
        if not self.decrease:
            down[:] = False
        touched = np.zeros(flat.shape, bool)
        arrived = np.zeros(len(x), bool)
        most = np.full(len(x), self.gamma * features) if limit is None else limit
        rows = np.arange(len(x))
        while len(rows):
            ascent, logits = model.gradient(
                flat[rows].reshape(-1, *x.shape[1:]), targets[rows], log_probability
            )
            predicted = logits.argmax(axis=1)
            arrived[rows] = (
                predicted == targets[rows] if labels is None else predicted != labels[rows]
            )
            stuck = touched[rows].sum(axis=1) > most[rows]
            stuck |= ~(up[rows] | down[rows]).any(axis=1)
            going = ~(arrived[rows] | stuck)
            rows = rows[going]
            if len(rows):
                ascent = ascent.reshape(len(going), features)[going]
                self._step(flat, rows, ascent, up, down, touched, step, model.value_range)
        return _Paths(flat.reshape(x.shape), arrived)

    def _step(
        self,
        flat: np.ndarray,
        rows: np.ndarray,
        ascent: np.ndarray,
        up: np.ndarray,
        down: np.ndarray,
        touched: np.ndarray,
        step: np.float32,
        value_range: tuple[float, float],
    ) -> None:
        """Change the two most salient features of each row, in place."""
        rising = np.where(up[rows], ascent, -np.inf)
        falling = np.where(down[rows], -ascent, -np.inf)
        saliency = np.maximum(rising, falling)
        pair = np.argpartition(saliency, -2, axis=1)[:, -2:]
        for feature in pair.T:
            place = (np.arange(len(rows)), feature)
            useful = np.isfinite(saliency[place])  # else no feature is left
            sign = np.where(rising[place] >= falling[place], 1, -1)
            at, sign = (rows[useful], feature[useful]), sign[useful]
            flat[at] = np.clip(flat[at] + sign * step, *value_range)
            touched[at] = True
            up[at] &= (sign > 0) & (flat[at] < value_range[1])
            down[at] &= (sign < 0) & (flat[at] > value_range[0])


def log_probability(classes: Any, logits: Any) -> Any:
    """The log-probability of a class for each image, ``(n,)``."""
    return -ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)
