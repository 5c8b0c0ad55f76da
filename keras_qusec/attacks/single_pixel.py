"""The single-pixel attack, which Foolbox 3 lacks."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.goal import Goal
from keras_qusec.checks import whole_number
from keras_qusec.norms import pixels


class SinglePixel(Attack):
    """Set one pixel, with all its channels, to the smallest or the largest value.

    Pixels are tried in an order that is random but for the seed; the whole batch tries a
    pixel at once.

    Args:
        max_pixels: how many pixels are tried; None for all.

    Raises:
        ValueError: for max_pixels below 1.

    Source: Narodytska and Kasiviswanathan 2016; Foolbox 1's SinglePixelAttack.

    Example:

    >>> from keras_qusec.attacks import AttackedModel, Goal, SinglePixel
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 2]], "float32")])
    >>> x, goal = np.array([[0.5, 0.1]], "float32"), Goal(np.array([0]))
    >>> images = SinglePixel().run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> int((images != x).sum())
    1
    """

    norm, minimizes, uses_gradients = "l0", True, False
    cost = "2 queries a pixel"

    def __init__(self, max_pixels: int | None = None) -> None:
        self.max_pixels = None if max_pixels is None else whole_number(max_pixels, "max_pixels")

    def run(
        self, model: Classifier, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        images = x.copy()
        order = np.random.default_rng(seed).permutation(pixels(x).shape[1])[: self.max_pixels]
        rows = np.flatnonzero(~model.is_adversarial(x, goal))
        for pixel in order:
            for value in model.value_range:
                if not len(rows):
                    return images
                trial = x[rows]
                pixels(trial)[:, pixel] = value
                won = model.is_adversarial(trial, goal.take(rows))
                images[rows[won]] = trial[won]
                rows = rows[~won]
        return images
