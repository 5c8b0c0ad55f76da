"""Attacks on single pixels that only ask for predictions, which Foolbox 3 lacks."""

from __future__ import annotations

import itertools

import numpy as np

from keras_qusec.attacks.numpy_attack import NumpyAttack, Oracle


def _check_count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(
            f"Expected {name} to be a whole number from 1 up. Received: {name}={value!r}."
        )
    return int(value)


def _pixels(x: np.ndarray) -> np.ndarray:
    """Images as ``(n, pixels, channels)``; without a channel axis each feature is a pixel."""
    return x.reshape(len(x), -1, x.shape[-1] if x.ndim == 4 else 1)


class SinglePixel(NumpyAttack):
    """Set one pixel, with all its channels, to the smallest or the largest value.

    Pixels are tried in an order that is random but for the seed; the whole batch tries a
    pixel at once.

    Args:
        max_pixels: how many pixels are tried; None for all.
        seed: seed of their order.

    Raises:
        ValueError: for max_pixels below 1.

    Source: Narodytska and Kasiviswanathan 2016; Foolbox 1's SinglePixelAttack.

    Example:

    >>> from keras_qusec.evaluation.bridge import foolbox_model, to_tensor
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 2]], "float32")])
    >>> x, y = to_tensor(np.array([[0.5, 0.1]], "float32")), to_tensor(np.array([0]))
    >>> found = SinglePixel().run(foolbox_model(model), x, y)
    >>> int((keras.ops.convert_to_numpy(found) != keras.ops.convert_to_numpy(x)).sum())
    1
    """

    def __init__(self, max_pixels: int | None = None, seed: int = 0) -> None:
        self.max_pixels = None if max_pixels is None else _check_count(max_pixels, "max_pixels")
        self.seed = seed

    def search(self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        found = x.copy()
        count = _pixels(x).shape[1]
        order = np.random.default_rng(self.seed).permutation(count)[: self.max_pixels]
        rows = np.flatnonzero(~oracle.is_adversarial(x, np.arange(len(x))))
        for pixel in order:
            for value in bounds:
                if not len(rows):
                    return found
                trial = x[rows]
                _pixels(trial)[:, pixel] = value
                won = oracle.is_adversarial(trial, rows)
                found[rows[won]] = trial[won]
                rows = rows[~won]
        return found


class LocalSearch(NumpyAttack):
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
        seed: seed of the first pixels and of which neighbours are tried.

    Raises:
        ValueError: for counts below 1.

    Source: Narodytska and Kasiviswanathan 2016, Simple Black-Box Adversarial Perturbations;
    Foolbox 1's LocalSearchAttack, whose defaults these are but for magnitude=10.

    Example:

    >>> from keras_qusec.evaluation.bridge import foolbox_model, to_tensor
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(),
    ...     keras.layers.Dense(2)])
    >>> x = to_tensor(np.full((1, 4, 4, 1), 0.4, "float32"))
    >>> label = to_tensor(keras.ops.convert_to_numpy(model(x)).argmax(axis=1))
    >>> found = LocalSearch(rounds=3).run(foolbox_model(model), x, label)
    >>> tuple(found.shape)
    (1, 4, 4, 1)
    """

    def __init__(
        self,
        scale: float = 1.5,
        magnitude: float | None = None,
        radius: int = 5,
        changed: int = 5,
        rounds: int = 150,
        candidates: int = 128,
        seed: int = 0,
    ) -> None:
        self.scale = scale
        self.magnitude = magnitude
        self.radius = _check_count(radius, "radius")
        self.changed = _check_count(changed, "changed")
        self.rounds = _check_count(rounds, "rounds")
        self.candidates = _check_count(candidates, "candidates")
        self.seed = seed

    def search(self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        low, high = bounds
        rng = np.random.default_rng(self.seed)
        height, width = x.shape[1:3] if x.ndim == 4 else (1, x[0].size)
        # The attack's arithmetic is on values from -1/2 to 1/2.
        images = (_pixels(x) - (low + high) / 2) / (high - low)
        count = min(self.candidates, max(height * width // 10, 1))
        tried = [rng.permutation(height * width)[:count] for _ in x]
        found = x.copy()
        rows = np.flatnonzero(~oracle.is_adversarial(x, np.arange(len(x))))
        for _ in range(self.rounds):
            if not len(rows):
                break
            worst = self._most_harmful(oracle, images, rows, tried, x.shape, bounds)
            for row, pixels in zip(rows, worst, strict=True):
                images[row, pixels] = _cyclic(self.scale * images[row, pixels], self.scale)
                tried[row] = self._neighbours(pixels, height, width, rng)
            trial = np.clip(_back(images[rows], x.shape, bounds), low, high)
            won = oracle.is_adversarial(trial, rows)
            found[rows[won]] = trial[won]
            rows = rows[~won]
        return found

    def _most_harmful(
        self,
        oracle: Oracle,
        images: np.ndarray,
        rows: np.ndarray,
        tried: list[np.ndarray],
        shape: tuple[int, ...],
        bounds: tuple[float, float],
    ) -> list[np.ndarray]:
        """The tried pixels of each row whose extreme change helps the attack most."""
        owners = np.concatenate([np.full(len(tried[row]), row) for row in rows])
        pixels = np.concatenate([tried[row] for row in rows])
        scores = np.empty(len(owners))
        for start in range(0, len(owners), 1024):
            part = slice(start, start + 1024)
            owner, pixel = owners[part], pixels[part]
            probes = images[owner]
            place = (np.arange(len(owner)), pixel)
            if self.magnitude is None:
                probes[place] = _cyclic(self.scale * probes[place], self.scale)
            else:
                probes[place] = self.magnitude * np.sign(probes[place])
            scores[part] = self._score(oracle, _back(probes, shape, bounds), owner)
        starts = np.cumsum([0, *(len(tried[row]) for row in rows)])
        return [
            pixels[a:b][np.argsort(scores[a:b], kind="stable")[: self.changed]]
            for a, b in itertools.pairwise(starts)
        ]

    def _score(self, oracle: Oracle, probes: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Log-probability of the label, or minus that of the target: lower is better."""
        logits = oracle.logits(probes).astype("float64")
        logits -= logits.max(axis=1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        score = log[np.arange(len(owner)), oracle.classes[owner]]
        return -score if oracle.targeted else score

    def _neighbours(
        self, pixels: np.ndarray, height: int, width: int, rng: np.random.Generator
    ) -> np.ndarray:
        offsets = np.arange(-self.radius, self.radius + 1)
        y = (pixels // width)[:, None, None] + offsets[None, :, None]
        x = (pixels % width)[:, None, None] + offsets[None, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        near = np.unique((y * width + x)[np.broadcast_to(inside, (y * width + x).shape)])
        return rng.permutation(near)[: self.candidates]


def _cyclic(values: np.ndarray, scale: float) -> np.ndarray:
    """Values beyond the bounds come in again from the other side (the paper's CYCLIC)."""
    values = np.where(values < -0.5, values / scale + 1.0, values)
    return np.clip(np.where(values > 0.5, values / scale - 1.0, values), -0.5, 0.5)


def _back(images: np.ndarray, shape: tuple[int, ...], bounds: tuple[float, float]) -> np.ndarray:
    """From (-1/2, 1/2) to the bounds."""
    low, high = bounds
    values = images * (high - low) + (low + high) / 2
    return values.astype("float32").reshape(-1, *shape[1:])
