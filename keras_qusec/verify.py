"""What attacks return, judged: only images that hold under this check count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import Classifier, Goal
from keras_qusec.norms import column


def verified(
    model: Classifier,
    x: np.ndarray,
    candidates: np.ndarray,
    goal: Goal,
    norm: str,
    epsilon: float | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What an attack returned, put back inside the bounds and the ball, and judged.

    Args:
        model: the model to fool.
        x: clean images, ``(n, ...)``.
        candidates: what the attack returned, of the same shape.
        goal: what the images must reach.
        norm: name of the attack's norm.
        epsilon: radius of the ball, or None for any distance.

    Returns:
        The images, and by norm their distances ``(n,)``, infinite where they are not
        adversarial or not finite. Nor does an image of zeros count that a minimizing attack
        returned, which is how Foolbox's say that they failed.
    """
    axes = tuple(range(1, x.ndim))
    finite = np.isfinite(candidates).all(axis=axes)
    images = np.where(column(finite, x), candidates, x).astype("float32")
    images = np.clip(images, *model.value_range)
    failed = ~finite
    if epsilon is None:
        failed |= (candidates == 0).all(axis=axes) & (x != 0).any(axis=axes)
    else:
        images = norms.get(norm).into_ball(x, images, epsilon)
    images, *others = model.deliverable(x, images, norm, epsilon)
    distances = {name: np.full(len(x), np.inf) for name in norms.names()}
    left = np.flatnonzero(~failed)
    for candidate in [images, *others]:
        tried = left[(candidate[left] != x[left]).any(axis=axes)]
        if not len(tried):
            continue
        fooled = tried[model.is_adversarial(candidate[tried], goal.take(tried))]
        images[fooled] = candidate[fooled]
        for name, values in norms.distances(x[fooled], images[fooled]).items():
            distances[name][fooled] = values
        left = np.setdiff1d(left, fooled)
    if epsilon is not None:
        outside = ~norms.within(distances[norm], epsilon)
        for values in distances.values():
            values[outside] = np.inf
    return images, distances


class ClosestExamples:
    """The closest adversarial example of each image of a batch, as an attack goes on.

    Args:
        model: the model to fool.
        x: clean images.
        goal: what the images must reach.
        correct: which clean images the model classifies correctly.
        norm: name of the attack's norm.
        kept_norms: further norms in which the closest examples are kept.
        proved: by epsilon in the attack's norm, which images are proved and need no attack.
    """

    def __init__(
        self,
        model: Classifier,
        x: np.ndarray,
        goal: Goal,
        correct: np.ndarray,
        norm: str,
        kept_norms: Sequence[str] = (),
        proved: Mapping[float, np.ndarray] | None = None,
    ) -> None:
        self.proved = proved or {}
        self.model, self.x, self.goal, self.norm = model, x, goal, norm
        self.correct = correct
        # In each norm the closest: an example that is farther in the attack's own norm may be
        # the one that lies within an epsilon of another.
        self.closest = {name: x.copy() for name in dict.fromkeys([norm, *kept_norms])}
        self.distances = {name: np.full(len(x), np.inf) for name in norms.names()}
        # How often an image came back with NaN or infinity, which is a failure.
        self.unusable = 0

    @property
    def images(self) -> np.ndarray:
        """The closest example of each image in the attack's norm; clean without one."""
        return self.closest[self.norm]

    def left(self, epsilon: float | None) -> np.ndarray:
        """Rows worth attacking: right when clean and, in a ball, neither broken nor proved."""
        if epsilon is None:
            return np.flatnonzero(self.correct)
        left = self.correct & ~norms.within(self.distances[self.norm], epsilon)
        if epsilon in self.proved:
            left &= ~self.proved[epsilon]
        return np.flatnonzero(left)

    def offer(self, rows: np.ndarray, candidates: np.ndarray, epsilon: float | None) -> None:
        """Check an attack's images and keep those that are closer than what there was."""
        finite = np.isfinite(candidates).reshape(len(candidates), -1).all(axis=1)
        self.unusable += int((~finite).sum())
        images, distances = verified(
            self.model, self.x[rows], candidates, self.goal.take(rows), self.norm, epsilon
        )
        for name, kept in self.closest.items():
            closer = distances[name] < self.distances[name][rows]
            kept[rows[closer]] = images[closer]
        for name, values in distances.items():
            self.distances[name][rows] = np.minimum(self.distances[name][rows], values)
