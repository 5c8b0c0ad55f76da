"""Random numbers that belong to the images, whatever batch they are attacked in."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

# So many numbers are drawn for an image at once, where few are asked for at a time.
_AT_ONCE = 256


class ImageDraws:
    """Random numbers for images, the same for an image in any batch and beside any others.

    So an attack of an ensemble finds on an image what it finds alone, and an evaluation does not
    depend on its batch size. The seed of an image is a hash of its values and of a number.

    Args:
        x: images ``(n, ...)``.
        seed: other draws for the same images.

    Source: the counter-based generator is Philox (Salmon et al. 2011), NumPy's.

    Example:

    >>> from keras_qusec.attacks.draws import ImageDraws
    >>> x = np.random.default_rng(0).random((5, 2)).astype("float32")
    >>> together = ImageDraws(x, seed=1).uniform([3, 4], 2)
    >>> bool((ImageDraws(x[3:], seed=1).uniform([0, 1], 2) == together).all())
    True
    """

    def __init__(self, x: np.ndarray, seed: int) -> None:
        images = np.ascontiguousarray(x, "float32")
        salt = (int(seed) % 2**64).to_bytes(16, "big")
        self._generators = [
            np.random.Generator(np.random.Philox(key=int.from_bytes(_hash(image, salt), "big")))
            for image in images
        ]
        # What was drawn and not yet used, and where it goes on.
        self._drawn = np.zeros((len(images), _AT_ONCE))
        self._place = np.full(len(images), _AT_ONCE)

    def uniform(self, rows: Any, *shape: int) -> np.ndarray:
        """Numbers in [0, 1) for some images, ``(len(rows), *shape)`` float64."""
        rows, count = np.asarray(rows, int), math.prod(shape)
        if count > _AT_ONCE:
            # An empty one keeps its shape.
            numbers = np.empty((len(rows), count))
            for place, row in enumerate(rows):
                numbers[place] = self._generators[row].random(count)
            return numbers.reshape(len(rows), *shape)
        for row in rows[self._place[rows] + count > _AT_ONCE]:
            self._drawn[row], self._place[row] = self._generators[row].random(_AT_ONCE), 0
        places = self._place[rows][:, None] + np.arange(count)
        self._place[rows] += count
        return self._drawn[rows[:, None], places].reshape(len(rows), *shape)

    def normal(self, rows: Any, *shape: int) -> np.ndarray:
        """Standard normal numbers for some images, ``(len(rows), *shape)`` float64."""
        numbers = np.empty((len(rows), *shape))
        for place, row in enumerate(rows):
            numbers[place] = self._generators[row].standard_normal(shape)
        return numbers

    def integers(self, rows: Any, end: int, *shape: int) -> np.ndarray:
        """Whole numbers from 0 on and below `end` for some images, ``(len(rows), *shape)``."""
        # The product may be rounded up to the end.
        numbers = (self.uniform(rows, *shape) * end).astype("int64")
        return np.minimum(numbers, end - 1)

    def signs(self, rows: Any, *shape: int) -> np.ndarray:
        """-1 or 1 for some images, ``(len(rows), *shape)`` float32."""
        return np.where(self.uniform(rows, *shape) < 0.5, np.float32(-1), np.float32(1))

    def permutations(self, rows: Any, count: int) -> np.ndarray:
        """For some images the numbers below `count` in random order, ``(len(rows), count)``."""
        orders = np.empty((len(rows), count), "int64")
        for place, row in enumerate(rows):
            orders[place] = self._generators[row].permutation(count)
        return orders


def _hash(image: np.ndarray, salt: bytes) -> bytes:
    return hashlib.blake2b(image.data.cast("B"), digest_size=16, salt=salt).digest()
