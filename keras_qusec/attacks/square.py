"""Square attack: random squares, kept where they help; asks for outputs only."""

from __future__ import annotations

import math

import numpy as np

from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.goal import Goal
from keras_qusec.checks import number, one_of, whole_number

# After how many of 10,000 queries the share of changed pixels is halved once more.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(Attack):
    """Random search with squares of pixels, without gradients.

    Begins with stripes (L-infinity) or a grid of patches (L2) and changes one square of each
    image at a time, smaller and smaller; a change stays if it raises the margin. Each
    image has squares of its own. It finds what masked gradients hide, but needs thousands of
    queries.

    Args:
        queries: forward passes of each image.
        norm: ``"linf"`` or ``"l2"``; L2 needs images ``(n, height, width, channels)`` of at
            least five pixels a side.
        share: share of the pixels that the first square covers.
        restarts: how often an evaluation runs it on each image.

    Raises:
        ValueError: for unusable arguments; when it runs, for images that do not fit L2.

    Source: Andriushchenko et al. 2020, Square attack.

    Example:

    >>> from keras_qusec.attacks import AttackedModel, Goal, Square
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> x, goal = np.array([[0.6, 0.5]], "float32"), Goal(np.array([0]))
    >>> attacked = AttackedModel(model)
    >>> found = Square(queries=50).run(attacked, x, goal, epsilon=0.1, seed=0)
    >>> attacked.predictions(found).tolist()
    [1]
    """

    uses_gradients, is_random = False, True

    def __init__(
        self, *, queries: int = 5000, norm: str = "linf", share: float = 0.8, restarts: int = 1
    ) -> None:
        self.queries = whole_number(queries, "queries", hint="The published number is 5000.")
        self.norm = one_of(norm, "norm", ("linf", "l2"))
        self.share = number(share, "share", above=0, most=1)
        self.restarts = whole_number(restarts, "restarts")
        self.cost = f"up to {queries} queries"

    def run(
        self, model: Classifier, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        clean = _as_images(x)
        if self.norm == "l2" and min(clean.shape[1:3]) < 5:
            raise ValueError(
                "Expected images (n, height, width, channels) of at least 5 pixels a side for "
                f'Square in L2. Received: shape {x.shape}. Use norm="linf", or another attack.'
            )
        search = _LinfSquares if self.norm == "linf" else _L2Squares
        squares = search(np.float32(epsilon or 0.0), model.value_range, ImageDraws(x, seed))

        def margins(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return model.margins(images.reshape(-1, *x.shape[1:]), goal.take(rows))

        rows = np.arange(len(x))
        best = squares.start(clean, rows)
        reached = margins(best, rows)
        for query in range(1, self.queries):
            rows = rows[reached[rows] <= 0] if not goal.transfer else rows
            if not len(rows):
                break
            share = self.share_at(query)
            tried = squares.changed(clean[rows], best[rows], share, rows)
            margin = margins(tried, rows)
            higher = margin > reached[rows]
            best[rows[higher]], reached[rows[higher]] = tried[higher], margin[higher]
        return best.reshape(x.shape)

    def share_at(self, query: int) -> float:
        """The share of the pixels that a square covers at a query."""
        done = int(query / self.queries * 10000)
        return self.share / 2 ** sum(done > limit for limit in _HALVED_AFTER)


class _LinfSquares:
    """Squares of plus or minus epsilon.

    Args:
        radius: epsilon.
        values: smallest and largest pixel value.
        draws: random numbers of each image.
    """

    def __init__(self, radius: np.float32, values: tuple[float, float], draws: ImageDraws) -> None:
        self.radius, self.values, self.draws = radius, values, draws

    def start(self, clean: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Vertical stripes on the images of these numbers."""
        _, _, width, channels = clean.shape
        moved = clean + self.radius * self.draws.signs(rows, 1, width, channels)
        return np.clip(moved, *self.values).astype("float32")

    def changed(
        self, clean: np.ndarray, best: np.ndarray, share: float, rows: np.ndarray
    ) -> np.ndarray:
        """The best images of these numbers with one square more."""
        _, height, width, channels = clean.shape
        tall, wide = square_size(share, height, width)
        place = self.places(rows, clean.shape, tall, wide)
        tried, sign = best.copy(), self.draws.signs(rows, 1, 1, channels)
        tried[place] = np.clip(clean[place] + self.radius * sign, *self.values)
        return tried

    def places(
        self, rows: np.ndarray, shape: tuple[int, ...], tall: int, wide: int
    ) -> tuple[np.ndarray, ...]:
        """Where a square lies in each image, to index arrays ``(n, tall, wide, channels)``."""
        n, height, width, channels = shape
        top = self.draws.integers(rows, height - tall + 1)[:, None, None, None]
        left = self.draws.integers(rows, width - wide + 1)[:, None, None, None]
        return (
            np.arange(n)[:, None, None, None],
            top + np.arange(tall)[None, :, None, None],
            left + np.arange(wide)[None, None, :, None],
            np.arange(channels)[None, None, None, :],
        )


class _L2Squares(_LinfSquares):
    """Squares that take over the length of other squares."""

    def start(self, clean: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A grid of patches."""
        _, height, width, channels = clean.shape
        size = height // 5
        change = np.zeros_like(clean)
        for row in range((height - size * 5) // 2, height - size + 1, size):
            for place in range((height - size * 5) // 2, width - size + 1, size):
                patch = self.patches(rows, size) * self.draws.signs(rows, 1, 1, channels)
                change[:, row : row + size, place : place + size] += patch
        return self._of_length(clean, change)

    def changed(
        self, clean: np.ndarray, best: np.ndarray, share: float, rows: np.ndarray
    ) -> np.ndarray:
        """The best images, the length of a second square moved to a first one."""
        _, height, width, channels = clean.shape
        size = max(square_size(share, height, width)[0], 3)
        size = min(size + (size % 2 == 0), height - (height % 2 == 0), width - (width % 2 == 0))
        change = best - clean
        first, second = (self.places(rows, clean.shape, size, size) for _ in range(2))
        covered = np.zeros_like(change)
        covered[first], covered[second] = 1.0, 1.0
        inside = np.square(change * covered).sum(axis=(1, 2), keepdims=True)
        unused = np.maximum(self.radius**2 - np.square(change).sum((1, 2, 3), keepdims=True), 0)
        old = change[first]
        old = old / (1e-12 + np.sqrt(np.square(old).sum(axis=(1, 2), keepdims=True)))
        new = self.patches(rows, size) * self.draws.signs(rows, 1, 1, channels) + old
        new = new / (1e-12 + np.sqrt(np.square(new).sum(axis=(1, 2), keepdims=True)))
        change[second] = 0.0
        change[first] = new * np.sqrt(unused / channels + inside)
        return self._of_length(clean, change)

    def _of_length(self, clean: np.ndarray, change: np.ndarray) -> np.ndarray:
        length = np.sqrt(np.square(change).sum(axis=(1, 2, 3), keepdims=True))
        moved = clean + change / np.maximum(length, 1e-12) * self.radius
        return np.clip(moved, *self.values).astype("float32")

    def patches(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Two rectangles of opposite sign that fade from their centres, ``(n, size, size, 1)``.

        Side by side or one above the other, as each image draws.
        """
        upper = _faded(size // 2, size)
        patch = np.concatenate([upper, -_faded(size - size // 2, size)])
        patch /= np.linalg.norm(patch)
        turned = self.draws.signs(rows, 1, 1, 1) > 0
        return np.where(turned, patch.T[..., None], patch[..., None]).astype("float32")


def _faded(tall: int, wide: int) -> np.ndarray:
    """A rectangle of length 1 whose values fall from its centre."""
    values = np.zeros((tall, wide), "float32")
    row, place = tall // 2, wide // 2
    for ring in range(max(row, place) + 1):
        rows = slice(max(row - ring, 0), min(row + ring + 1, tall))
        places = slice(max(place - ring, 0), min(place + ring + 1, wide))
        values[rows, places] += 1.0 / (ring + 1) ** 2
    return values / max(float(np.linalg.norm(values)), 1e-12)


def square_size(share: float, height: int, width: int) -> tuple[int, int]:
    """Height and width of a square that covers a share of the pixels; narrow in narrow images."""
    pixels = share * height * width
    side = round(math.sqrt(pixels))
    tall = max(1, min(side, height - 1 if height > 1 else 1))
    wide = side if tall == side else round(pixels / tall)
    return tall, max(1, min(wide, width - 1 if width > 1 else 1))


def _as_images(x: np.ndarray) -> np.ndarray:
    """Data of any shape as images ``(n, height, width, channels)``; a row of values is one high."""
    if x.ndim == 4:
        return x
    return x[..., None] if x.ndim == 3 else x.reshape(len(x), 1, -1, 1)
