"""The three norms of a perturbation."""

from __future__ import annotations

import numpy as np

NORMS = ("l0", "l2", "linf")
SYMBOLS = {"l0": "L0", "l2": "L2", "linf": "L-inf"}


def distances_of(x: np.ndarray, images: np.ndarray) -> np.ndarray:
    """L0, L2 and L-infinity between images, ``(n, 3)`` float64.

    L0 counts pixels: positions at which any channel differs (without a channel axis, values).

    Example:

    >>> clean = np.zeros((1, 2, 2, 3), "float32")
    >>> changed = clean.copy()
    >>> changed[0, 0, 0] = [0, 3, 4]
    >>> distances_of(clean, changed).tolist()
    [[1.0, 5.0, 4.0]]
    """
    channels = x.shape[-1] if x.ndim == 4 else 1
    gap = np.abs(images.astype("float64") - x).reshape(len(x), -1, channels)
    pixels = (gap > 0).any(axis=2).sum(axis=1)
    lengths = np.sqrt(np.square(gap).sum(axis=(1, 2)))
    return np.stack([pixels, lengths, gap.max(axis=(1, 2))], axis=1)


def within(distances: np.ndarray, epsilon: float) -> np.ndarray:
    """Which distances are at most epsilon, but for the rounding of float32 distances."""
    return np.asarray(distances <= epsilon * (1 + 1e-6))
