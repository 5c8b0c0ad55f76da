"""The order of targets, against a model made linear by hand."""

from __future__ import annotations

import keras
import numpy as np

from keras_qusec.attacks import AttackedModel
from keras_qusec.attacks.target_order import target_order

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (20, 6)).astype("float32")
WEIGHTS = (RNG.normal(size=(6, 5)) * [1, 5, 0.2, 2, 1]).astype("float32")


def attacked():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, use_bias=False)])
    model.set_weights([WEIGHTS])
    return AttackedModel(model)


def test_the_nearest_target_is_first_on_a_linear_model():
    model = attacked()
    logits = X @ WEIGHTS
    labels = logits.argmax(axis=1)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        order = target_order(model, X, labels, 4, "malt", norm)
        for row, label in enumerate(labels):
            distance = [
                (logits[row, label] - logits[row, other])
                / np.linalg.norm(WEIGHTS[:, label] - WEIGHTS[:, other], dual)
                for other in order[row]
            ]
            assert (np.diff(distance) >= -1e-5).all()
            assert set(order[row]) == set(range(5)) - {label}


def test_by_logits_the_likeliest_is_first_and_costs_no_gradient():
    model = attacked()
    logits = X @ WEIGHTS
    labels = logits.argmax(axis=1)
    order = target_order(model, X, labels, 2, "logits", "linf")
    np.testing.assert_array_equal(order, np.argsort(-logits, axis=1)[:, 1:3])
    assert model.counter.gradients == 0
    target_order(model, X, labels, 2, "malt", "linf")
    assert model.counter.gradients == 4 * len(X)
