"""Random models: what is judged has not been seen by the gradient."""

from __future__ import annotations

import keras
import numpy as np
from helpers import IMAGES
from keras import ops

from keras_qusec.attacks import AttackedModel


class Noise(keras.layers.Layer):
    """Noise of its own at each draw, which the seed generator's state decides."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + 0.5 * keras.random.normal(ops.shape(x), seed=self.generator)


def test_gradients_and_predictions_have_draws_of_their_own():
    dense = keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((8, 8, 1)), Noise(), keras.layers.Flatten(), dense])
    attacked = AttackedModel(model, draws=3)
    labels = np.zeros(len(IMAGES), "int64")
    _, seen = attacked.gradient(IMAGES, labels)
    judged = attacked.logits(IMAGES)
    assert np.abs(seen - judged).max() > 0.05
    # Both are the same at each call: an evaluation repeats itself.
    np.testing.assert_allclose(attacked.gradient(IMAGES, labels)[1], seen, atol=1e-6)
    np.testing.assert_allclose(attacked.logits(IMAGES), judged, atol=1e-6)
    # Of the same model without noise they are the same numbers.
    quiet = AttackedModel(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), dense]))
    np.testing.assert_allclose(quiet.gradient(IMAGES, labels)[1], quiet.logits(IMAGES), atol=1e-5)


def test_no_draw_of_the_gradient_judges():
    """Draws are numbered: those of the gradient first, then as many that judge."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), Noise(), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    one, two = (AttackedModel(model, draws=draws) for draws in (1, 2))
    labels = np.zeros(len(IMAGES), "int64")
    shares = []
    for place in range(4):
        # A draw alone, by the state from which it is the first.
        for seed in one._seeds:
            seed.assign(np.array([3 + place + 1, 0], "uint32"))
        logits = one.outputs(IMAGES)
        shares.append(ops.convert_to_numpy(ops.softmax(logits, axis=-1)))
    for seed in two._seeds:
        seed.assign(np.array([3, 0], "uint32"))
    _, seen = two.gradient(IMAGES, labels)
    judged = two.logits(IMAGES)
    np.testing.assert_allclose(np.exp(seen), (shares[0] + shares[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(np.exp(judged), (shares[2] + shares[3]) / 2, atol=1e-5)
