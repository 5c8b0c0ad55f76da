"""The Jacobian saliency map attack (Papernot et al. 2016), which Foolbox 3 lacks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_qusec.attacks.numpy_attack import NumpyAttack, Oracle, thinned


class _Paths(NamedTuple):
    """Where walks towards target classes ended, and which of them arrived."""

    images: np.ndarray
    arrived: np.ndarray


class JSMA(NumpyAttack):
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
    targets=1)``. Run with Foolbox; images of any shape, channels count as features.

    Raises:
        ValueError: for settings out of their range.

    Source: Papernot et al. 2016, The Limitations of Deep Learning in Adversarial Settings.

    Example:

    >>> from keras_qusec.evaluation.bridge import foolbox_model, to_tensor
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[0, 1], [0, 3], [0, 2], [1.5, 0]], "float32")])
    >>> x, y = to_tensor(np.array([[0, 0, 0, 1]], "float32")), to_tensor(np.array([0]))
    >>> found = JSMA(decrease=False).run(foolbox_model(model), x, y)
    >>> keras.ops.convert_to_numpy(found).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        theta: float = 1.0,
        gamma: float = 1.0,
        decrease: bool = True,
        targets: int | None = None,
    ) -> None:
        for name, value in {"theta": theta, "gamma": gamma}.items():
            if not 0 < value <= 1:
                raise ValueError(
                    f"Expected {name} above 0 and at most 1, a share. Received: {name}={value!r}. "
                    "The paper's settings are theta=1.0, gamma=0.1."
                )
        if targets is not None and targets < 1:
            raise ValueError(
                f"Expected targets to be 1 or more, or None for all. Received: {targets!r}."
            )
        self.theta = theta
        self.gamma = gamma
        self.decrease = decrease
        self.targets = targets

    def search(self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        if oracle.targeted:
            paths = self._walk(oracle, x, oracle.classes, bounds)
            return np.where(_like(paths.arrived, x), paths.images, x)
        logits = oracle.logits(x)
        order = np.argsort(-logits, axis=1)
        best, fewest = x.copy(), np.full(len(x), np.inf)
        best_known = logits.argmax(axis=1) != oracle.classes
        fewest[best_known] = 0
        # The likeliest classes but for the label, in order.
        others = np.array(
            [row[row != label] for row, label in zip(order, oracle.classes, strict=True)]
        )
        for choice in range(min(self.targets or others.shape[1], others.shape[1])):
            # Most features that may still be changed for an improvement.
            limit = np.minimum(fewest - 1, self.gamma * x[0].size)
            rows = np.flatnonzero(limit > 0)
            if not len(rows):
                break
            paths = self._walk(
                oracle, x[rows], others[rows, choice], bounds, limit[rows], oracle.classes[rows]
            )
            changed = (paths.images != x[rows]).reshape(len(rows), -1).sum(axis=1)
            better = paths.arrived & (changed < fewest[rows])
            best[rows[better]] = paths.images[better]
            fewest[rows[better]] = changed[better]
        return best

    def _walk(
        self,
        oracle: Oracle,
        x: np.ndarray,
        targets: np.ndarray,
        bounds: tuple[float, float],
        limit: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> _Paths:
        """Walk towards target classes; with labels, arriving is leaving the label."""
        low, high = bounds
        features = x[0].size
        flat = x.reshape(len(x), features).copy()
        step = np.float32(self.theta * (high - low))
        # Which features may still go up, and down.
        up, down = flat < high, flat > low
        if not self.decrease:
            down[:] = False
        touched = np.zeros(flat.shape, bool)
        arrived = np.zeros(len(x), bool)
        stuck = np.zeros(len(x), bool)
        most = np.full(len(x), self.gamma * features) if limit is None else limit
        working = np.arange(len(x))
        while len(working):
            slope, logits = oracle.log_probability_gradient(
                flat[working].reshape(-1, *x.shape[1:]), targets[working]
            )
            predicted = logits.argmax(axis=1)
            if labels is None:
                arrived[working] |= predicted == targets[working]
            else:
                arrived[working] |= predicted != labels[working]
            stuck[working] |= touched[working].sum(axis=1) > most[working]
            stuck[working] |= ~(up[working] | down[working]).any(axis=1)
            going = ~(arrived[working] | stuck[working])
            rows = working[going]
            if len(rows):
                slope = slope.reshape(len(working), features)[going]
                self._step(flat, rows, slope, up, down, touched, step, bounds)
            working = thinned(working, going) if going.any() else working[:0]
        return _Paths(flat.reshape(x.shape), arrived)

    def _step(
        self,
        flat: np.ndarray,
        rows: np.ndarray,
        slope: np.ndarray,
        up: np.ndarray,
        down: np.ndarray,
        touched: np.ndarray,
        step: np.float32,
        bounds: tuple[float, float],
    ) -> None:
        """Change the two most salient features of each row, in place."""
        rising = np.where(up[rows], slope, -np.inf)
        falling = np.where(down[rows], -slope, -np.inf)
        saliency = np.maximum(rising, falling)
        pair = np.argpartition(saliency, -2, axis=1)[:, -2:]
        for feature in pair.T:
            place = (np.arange(len(rows)), feature)
            useful = np.isfinite(saliency[place])  # else no feature is left
            sign = np.where(rising[place] >= falling[place], 1, -1)
            here, feature, sign = rows[useful], feature[useful], sign[useful]
            flat[here, feature] = np.clip(flat[here, feature] + sign * step, *bounds)
            touched[here, feature] = True
            up[here, feature] &= (sign > 0) & (flat[here, feature] < bounds[1])
            down[here, feature] &= (sign < 0) & (flat[here, feature] > bounds[0])


def _like(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, *([1] * (x.ndim - 1)))
