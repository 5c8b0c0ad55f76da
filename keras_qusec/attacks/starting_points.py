"""Adversarial images, however far away, from which decision-based attacks start."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.goal import Goal


def nearest_other_images(
    x: np.ndarray, predictions: np.ndarray, goal: Goal, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For some images the nearest other one of the batch that is predicted as the goal wants.

    Args:
        x: images of the batch, ``(n, ...)``.
        predictions: predicted classes of all of them.
        goal: goals of all of them.
        rows: for which an image is wanted.

    Returns:
        Images for the rows, and ``(rows,)`` bool: for which there is one.
    """
    images = x[rows].copy()
    known = np.zeros(len(rows), bool)
    for place, row in enumerate(rows):
        others = np.flatnonzero(goal.take(np.full(len(x), row)).reached(predictions))
        if len(others):
            gaps = np.square(x[others] - x[row]).reshape(len(others), -1).sum(axis=1)
            images[place], known[place] = x[others[gaps.argmin()]], True
    return images, known


def starting_points(
    model: Classifier, x: np.ndarray, goal: Goal, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial images for some rows of a batch, and for which rows there is one.

    The nearest other image of the batch; without one, noise of several kinds.
    """
    draws = ImageDraws(x[rows], seed)
    low, high = model.value_range
    starts, _ = nearest_other_images(x, model.predictions(x), goal, rows)
    goals = goal.take(rows)
    for level in (0.1, 0.3, 0.5, 0.7, 0.9, *[None] * 5):
        left = np.flatnonzero(~model.is_adversarial(starts, goals))
        if not len(left):
            break
        if level is None:
            starts[left] = low + (high - low) * draws.uniform(left, *x.shape[1:])
        else:  # black and white pixels, a share of them white
            white = draws.uniform(left, *x.shape[1:]) < level
            starts[left] = np.where(white, high, low)
    return starts, np.flatnonzero(model.is_adversarial(starts, goals))
