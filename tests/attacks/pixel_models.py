"""Small models for the attacks on pixels, and how the tests run those."""

from __future__ import annotations

import keras
import numpy as np

from keras_qusec.attacks import AttackedModel, Goal

FEATURES = 12
LABEL_0 = np.zeros(1, "int64")


def run(attack, model, x, y, targets=None, value_range=(0.0, 1.0), seed=0):
    goal = Goal(np.asarray(y), None if targets is None else np.asarray(targets))
    return attack.run(AttackedModel(model, value_range), x, goal, epsilon=None, seed=seed)


def predictions(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)


def make_network():
    """A network with one hidden layer, its weights, and images it classifies."""
    rng = np.random.default_rng(3)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )
    model.set_weights([rng.normal(0, 0.8, w.shape).astype("float32") for w in model.get_weights()])
    x = rng.uniform(0.0, 0.9, (20, FEATURES)).astype("float32")
    return model, x, predictions(model, x)


def linear(weights, bias=0.0):
    """Two classes; class 1 where ``weights @ x + bias`` is positive."""
    weights = np.asarray(weights, "float32")
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(2)])
    model.set_weights([np.stack([0 * weights, weights], 1), np.array([0, bias], "float32")])
    return model
