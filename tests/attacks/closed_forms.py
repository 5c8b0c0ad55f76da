"""A linear model of three classes whose nearest adversarial examples are known exactly."""

from __future__ import annotations

import keras
import numpy as np

RNG = np.random.default_rng(3)
FEATURES, CLASSES = 8, 3
WEIGHTS = RNG.normal(size=(FEATURES, CLASSES)).astype("float32")
BIAS = RNG.normal(0, 0.1, CLASSES).astype("float32")
# Far from the ends of the value range, so that they forbid nothing.
X = RNG.uniform(0.42, 0.58, (24, FEATURES)).astype("float32")
LOGITS = X.astype("float64") @ WEIGHTS + BIAS
Y = LOGITS.argmax(axis=1)


def model() -> keras.Model:
    linear = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    linear.set_weights([WEIGHTS, BIAS])
    return linear


def nearest(norm: str, value_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """The distance of the nearest other class, ``(n,)``; L1 and L0 inside the value range."""
    distances = np.full(Y.shape, np.inf)
    for row, label in enumerate(Y):
        for other in set(range(CLASSES)) - {label}:
            slope = (WEIGHTS[:, other] - WEIGHTS[:, label]).astype("float64")
            gap = LOGITS[row, label] - LOGITS[row, other]
            room = np.where(slope > 0, value_range[1] - X[row], X[row] - value_range[0])
            if norm == "l0":
                gains = np.cumsum(np.sort(np.abs(slope) * room)[::-1])
                size = 1.0 + (gains < gap).sum()
            elif norm == "l1":
                # The steepest values change as far as they can, the last one in part.
                steepest = np.argsort(-np.abs(slope))
                slopes, rooms = np.abs(slope)[steepest], room[steepest]
                gains = np.cumsum(slopes * rooms)
                last = int((gains < gap).sum())
                before = gains[last - 1] if last else 0.0
                size = rooms[:last].sum() + (gap - before) / slopes[last]
            else:
                order = {"linf": 1, "l2": 2}[norm]
                size = gap / np.linalg.norm(slope, order)
            distances[row] = min(distances[row], size)
    return distances


def between(distances: np.ndarray) -> float:
    """A radius between two images' distances, so that rounding decides nothing."""
    return float(np.sort(distances)[len(distances) // 2 - 1 : len(distances) // 2 + 1].mean())
