"""The local search attack, which Foolbox 3 lacks."""

from __future__ import annotations

import itertools

import numpy as np

from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.goal import Goal
from keras_qusec.checks import number, whole_number
from keras_qusec.norms import pixels


class LocalSearch(Attack):
    """Greedy search over pixels: those whose extreme change hurts most, then their neighbours.

    In each round some pixels of each image are tried one at a time; the `changed` pixels that
    lower the true class most (or raise the target most) are moved by the factor `scale`,
    cyclically within the bounds, which turns black into white; the next round tries their
    neighbours. All pixels tried of all images go through the model together.

    Args:
        scale: factor of the change that is kept (the paper's r).
        magnitude: pixels are tried at ``magnitude * sign`` of their value, mostly far outside
            the bounds (p; 10 in the original, which a quantizer or a clip at the input makes
            blind); None tries the change that would be kept.
        radius: half the side of the square of neighbours (d).
        changed: pixels changed in a round (t).
        rounds: number of rounds (R).
        candidates: pixels tried in a round, at most.

    Raises:
        ValueError: for counts below 1, a scale of 1 or less.

    Source: Narodytska and Kasiviswanathan 2016, Simple Black-Box Adversarial Perturbations;
    Foolbox 1's LocalSearchAttack, whose defaults these are but for magnitude=10.

    Example:

    >>> from keras_qusec.attacks import AttackedModel, Goal, LocalSearch
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(),
    ...     keras.layers.Dense(2)])
    >>> x = np.full((1, 4, 4, 1), 0.4, "float32")
    >>> attacked = AttackedModel(model)
    >>> goal = Goal(attacked.predictions(x))
    >>> LocalSearch(rounds=3).run(attacked, x, goal, epsilon=None, seed=0).shape
    (1, 4, 4, 1)
    """

    norm, minimizes, uses_gradients, is_random = "l0", True, False, True

    def __init__(
        self,
        scale: float = 1.5,
        magnitude: float | None = None,
        radius: int = 5,
        changed: int = 5,
        rounds: int = 150,
        candidates: int = 128,
    ) -> None:
        self.scale = number(scale, "scale", above=1, hint="1 would change nothing.")
        self.magnitude = None if magnitude is None else number(magnitude, "magnitude", above=0)
        self.radius = whole_number(radius, "radius")
        self.changed = whole_number(changed, "changed")
        self.rounds = whole_number(rounds, "rounds")
        self.candidates = whole_number(candidates, "candidates")
        self.cost = f"up to {self.rounds * self.candidates} queries"

    def run(
        self, model: Classifier, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        low, high = model.value_range
        draws = ImageDraws(x, seed)
        height, width = x.shape[1:3] if x.ndim == 4 else (1, x[0].size)
        # The attack's arithmetic is on values from -1/2 to 1/2.
        images = (pixels(x) - (low + high) / 2) / (high - low)
        count = min(self.candidates, max(height * width // 10, 1))
        tried = list(draws.permutations(range(len(x)), height * width)[:, :count])
        adversarial = x.copy()
        rows = np.flatnonzero(~model.is_adversarial(x, goal))
        for _ in range(self.rounds):
            if not len(rows):
                break
            worst = self._most_harmful(model, goal, images, rows, tried, x.shape)
            for row, chosen in zip(rows, worst, strict=True):
                images[row, chosen] = _cyclic(self.scale * images[row, chosen], self.scale)
                near = self._neighbours(chosen, height, width)
                order = draws.permutations([row], len(near))[0]
                tried[row] = near[order][: self.candidates]
            trial = np.clip(_back(images[rows], x.shape, model.value_range), low, high)
            won = model.is_adversarial(trial, goal.take(rows))
            adversarial[rows[won]] = trial[won]
            rows = rows[~won]
        return adversarial

    def _most_harmful(
        self,
        model: Classifier,
        goal: Goal,
        images: np.ndarray,
        rows: np.ndarray,
        tried: list[np.ndarray],
        shape: tuple[int, ...],
    ) -> list[np.ndarray]:
        """The tried pixels of each row whose extreme change helps the attack most."""
        owners = np.concatenate([np.full(len(tried[row]), row) for row in rows])
        places = np.concatenate([tried[row] for row in rows])
        scores = np.empty(len(owners))
        for start in range(0, len(owners), 1024):
            part = slice(start, start + 1024)
            owner, pixel = owners[part], places[part]
            probes = images[owner]
            place = (np.arange(len(owner)), pixel)
            if self.magnitude is None:
                probes[place] = _cyclic(self.scale * probes[place], self.scale)
            else:
                probes[place] = self.magnitude * np.sign(probes[place])
            probes = _back(probes, shape, model.value_range)
            scores[part] = _score(model.logits(probes), goal.take(owner))
        starts = np.cumsum([0, *(len(tried[row]) for row in rows)])
        return [
            places[a:b][np.argsort(scores[a:b], kind="stable")[: self.changed]]
            for a, b in itertools.pairwise(starts)
        ]

    def _neighbours(self, chosen: np.ndarray, height: int, width: int) -> np.ndarray:
        offsets = np.arange(-self.radius, self.radius + 1)
        y = (chosen // width)[:, None, None] + offsets[None, :, None]
        x = (chosen % width)[:, None, None] + offsets[None, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return np.unique((y * width + x)[np.broadcast_to(inside, (y * width + x).shape)])


def _score(logits: np.ndarray, goal: Goal) -> np.ndarray:
    """Log-probability of the label, or minus that of the target: lower is better."""
    logits = logits.astype("float64")
    logits -= logits.max(axis=1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    score = log[np.arange(len(log)), goal.classes]
    return -score if goal.targeted else score


def _cyclic(values: np.ndarray, scale: float) -> np.ndarray:
    """Values beyond the bounds come in again from the other side (the paper's CYCLIC)."""
    values = np.where(values < -0.5, values / scale + 1.0, values)
    return np.clip(np.where(values > 0.5, values / scale - 1.0, values), -0.5, 0.5)


def _back(images: np.ndarray, shape: tuple[int, ...], bounds: tuple[float, float]) -> np.ndarray:
    """From (-1/2, 1/2) to the bounds."""
    low, high = bounds
    values = images * (high - low) + (low + high) / 2
    return values.astype("float32").reshape(-1, *shape[1:])
