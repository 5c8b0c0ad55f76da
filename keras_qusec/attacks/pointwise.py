"""The pointwise attack (Schott et al. 2019), which Foolbox 3 breaks on TensorFlow."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.starting_points import nearest_other_images
from keras_qusec.checks import whole_number
from keras_qusec.norms import column


class Pointwise(Attack):
    """From noisy adversarial images, put back pixel after pixel while they stay adversarial.

    Starts from salt-and-pepper noise, as little as fools the model, or from the closest other
    image of the batch of another class where no noise does. Then each changed feature, in random
    order, is set back to its clean value if the image stays adversarial without it, until
    none can be; so no single feature of the result could be set back. Only predictions are
    asked for.

    Args:
        noise_levels: shares of the pixels that become noise, tried in rising order.
        draws: noisy images tried at each level.

    Raises:
        ValueError: for levels outside (0, 1] or draws below 1.

    Source: Schott et al. 2019, Towards the first adversarially robust neural network model on
    MNIST.

    Example:

    >>> from keras_qusec.attacks import AttackedModel, Goal, Pointwise
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 2], [0, 0]], "float32")])
    >>> x, goal = np.array([[0.5, 0.1, 0.7]], "float32"), Goal(np.array([0]))
    >>> images = Pointwise().run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> int((images != x).sum())
    1
    """

    norm, minimizes, uses_gradients, is_random = "l0", True, False, True
    cost = "a few queries a changed feature"

    def __init__(
        self,
        noise_levels: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
        draws: int = 5,
    ) -> None:
        if not noise_levels or not all(0 < level <= 1 for level in noise_levels):
            raise ValueError(
                "Expected noise_levels above 0 and at most 1, shares of the pixels. "
                f"Received: {noise_levels!r}."
            )
        self.noise_levels = tuple(sorted(noise_levels))
        self.draws = whole_number(draws, "draws")

    def run(
        self, model: Classifier, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        draws = ImageDraws(x, seed)
        starts, ready = self._starts(model, x, goal, draws)
        rows = np.flatnonzero(ready)
        while len(rows):
            rows = rows[self._pass(model, x, goal, starts, rows, draws)]
        return np.where(column(ready, x), starts, x)

    def _starts(
        self, model: Classifier, x: np.ndarray, goal: Goal, draws: ImageDraws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adversarial images to begin with, and for which rows there is one."""
        starts = x.copy()
        predictions = model.predictions(x)
        ready = goal.reached(predictions)
        for level in np.repeat(self.noise_levels, self.draws):
            rows = np.flatnonzero(~ready)
            if not len(rows):
                return starts, ready
            trial = np.where(
                draws.uniform(rows, *x.shape[1:]) < level,
                np.array(model.value_range)[draws.integers(rows, 2, *x.shape[1:])],
                x[rows],
            ).astype(x.dtype)
            won = model.is_adversarial(trial, goal.take(rows))
            starts[rows[won]] = trial[won]
            ready[rows[won]] = True
        rows = np.flatnonzero(~ready)
        others, known = nearest_other_images(x, predictions, goal, rows)
        starts[rows[known]] = others[known]
        ready[rows[known]] = True
        return starts, ready

    def _pass(
        self,
        model: Classifier,
        x: np.ndarray,
        goal: Goal,
        images: np.ndarray,
        rows: np.ndarray,
        draws: ImageDraws,
    ) -> np.ndarray:
        """Try to put back each changed feature once, in place; which rows had one put back."""
        clean, flat = x.reshape(len(x), -1), images.reshape(len(images), -1)
        orders = [
            order[flat[row, order] != clean[row, order]]
            for row, order in zip(rows, draws.permutations(rows, flat.shape[1]), strict=True)
        ]
        improved = np.zeros(len(rows), bool)
        for number in range(max(map(len, orders))):
            places = np.flatnonzero([len(order) > number for order in orders])
            features = np.array([orders[place][number] for place in places])
            trial = flat[rows[places]]
            trial[np.arange(len(places)), features] = clean[rows[places], features]
            won = model.is_adversarial(trial.reshape(-1, *x.shape[1:]), goal.take(rows[places]))
            put_back = rows[places[won]], features[won]
            flat[put_back] = clean[put_back]
            improved[places[won]] = True
        return improved
