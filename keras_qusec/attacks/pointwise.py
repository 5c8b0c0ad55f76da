"""The pointwise attack (Schott et al. 2019), which Foolbox 3 breaks on TensorFlow."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks.numpy_attack import NumpyAttack, Oracle


class Pointwise(NumpyAttack):
    """From noisy adversarial images, put back pixel after pixel while they stay adversarial.

    Starts from salt-and-pepper noise, as little as fools the model, or from the closest other
    image of the batch of another class where no noise does. Then each changed feature, in random
    order, is set back to its clean value if the image stays adversarial without it, until
    none can be; so no single feature of the result could be set back. Only predictions are
    asked for.

    Args:
        noise_levels: shares of the pixels that become noise, tried in rising order.
        draws: noisy images tried at each level.
        seed: seed of the noise and the orders.

    Raises:
        ValueError: for levels outside (0, 1] or draws below 1.

    Source: Schott et al. 2019, Towards the first adversarially robust neural network model on
    MNIST.

    Example:

    >>> from keras_qusec.evaluation.bridge import foolbox_model, to_tensor
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 2], [0, 0]], "float32")])
    >>> x, y = to_tensor(np.array([[0.5, 0.1, 0.7]], "float32")), to_tensor(np.array([0]))
    >>> found = Pointwise().run(foolbox_model(model), x, y)
    >>> int((keras.ops.convert_to_numpy(found) != keras.ops.convert_to_numpy(x)).sum())
    1
    """

    def __init__(
        self,
        noise_levels: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
        draws: int = 5,
        seed: int = 0,
    ) -> None:
        if not noise_levels or not all(0 < level <= 1 for level in noise_levels):
            raise ValueError(
                "Expected noise_levels above 0 and at most 1, shares of the pixels. "
                f"Received: {noise_levels!r}."
            )
        if draws < 1:
            raise ValueError(f"Expected draws to be 1 or more. Received: draws={draws!r}.")
        self.noise_levels = tuple(sorted(noise_levels))
        self.draws = draws
        self.seed = seed

    def search(self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        starts, ready = self._starts(oracle, x, bounds, rng)
        found = x.copy()
        rows = np.flatnonzero(ready)
        while len(rows):
            improved = self._pass(oracle, x, starts, rows, rng)
            rows = rows[improved]
        found[ready] = starts[ready]
        return found

    def _starts(
        self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        everyone = np.arange(len(x))
        starts = x.copy()
        logits = oracle.logits(x)
        ready = oracle.won(logits, everyone)
        for level in np.repeat(self.noise_levels, self.draws):
            rows = np.flatnonzero(~ready)
            if not len(rows):
                return starts, ready
            trial = np.where(
                rng.random(x[rows].shape) < level, rng.choice(bounds, x[rows].shape), x[rows]
            ).astype(x.dtype)
            won = oracle.is_adversarial(trial, rows)
            starts[rows[won]] = trial[won]
            ready[rows[won]] = True
        for row in np.flatnonzero(~ready):
            fit = np.flatnonzero(oracle.won(logits, np.full(len(x), row)))
            if len(fit):
                gaps = np.square(x[fit] - x[row]).reshape(len(fit), -1).sum(axis=1)
                starts[row] = x[fit[gaps.argmin()]]
                ready[row] = True
        return starts, ready

    def _pass(
        self,
        oracle: Oracle,
        x: np.ndarray,
        images: np.ndarray,
        rows: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Try to put back each changed feature once, in place; which rows had one put back."""
        clean, flat = x.reshape(len(x), -1), images.reshape(len(images), -1)
        orders = [rng.permutation(np.flatnonzero(flat[row] != clean[row])) for row in rows]
        improved = np.zeros(len(rows), bool)
        for turn in range(max(map(len, orders))):
            here = np.flatnonzero([len(order) > turn for order in orders])
            features = np.array([orders[place][turn] for place in here])
            trial = flat[rows[here]]
            trial[np.arange(len(here)), features] = clean[rows[here], features]
            won = oracle.is_adversarial(trial.reshape(-1, *x.shape[1:]), rows[here])
            flat[rows[here[won]], features[won]] = clean[rows[here[won]], features[won]]
            improved[here[won]] = True
        return improved
