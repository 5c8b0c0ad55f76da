"""Objectives of adversarial training: by name, as objects, and one of a user's own."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from keras_qusec import AdversarialTraining
from keras_qusec.training import ModelLoss, Trades, TrainingObjective
from keras_qusec.training.objectives import Batch, halves, map_tensors, rows

RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, (32, 6)).astype("float32")
Y = (X[:, 0] > X[:, 1]).astype("int64")


@dataclasses.dataclass(frozen=True)
class Mixture(TrainingObjective):
    """A share of the adversarial loss, the rest of the clean one."""

    share: float = 0.5

    def raised(self, step, x, y, mapping):
        return ModelLoss().raised(step, x, y, mapping)

    def trained_on(self, batch: Batch):
        return Trades().trained_on(batch)

    def loss(self, step, x, y, y_pred, sample_weight, training, size):
        losses = []
        for take in (rows(None, size), rows(size, None)):
            part = [map_tensors(take, each) for each in (x, y, y_pred, sample_weight)]
            losses.append(step.compute_loss(
                x=part[0], y=part[1], y_pred=part[2], sample_weight=part[3], training=training
            ))  # fmt: skip
        return (1.0 - self.share) * losses[0] + self.share * losses[1]

    def parts(self, trained, count, size, ratio):
        head, tail = halves(trained, count)
        return {"clean": head, "adversarial": tail}


def fitted(objective, epochs=1, **settings):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    weights = np.random.default_rng(1)
    model.set_weights([weights.normal(size=(6, 2)).astype("float32"), np.zeros(2, "float32")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    callback = AdversarialTraining(
        "pgd", epsilon=0.1, steps=3, random_start=False, objective=objective, **settings
    )
    history = model.fit(
        X, Y, batch_size=16, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback]
    ).history
    return model, history


@pytest.mark.parametrize(
    ("name", "thing"), [("loss", ModelLoss()), ("trades", Trades(beta=6.0))], ids=["loss", "trades"]
)
def test_a_name_is_its_object(name, thing):
    (one, logs), (other, same) = fitted(name), fitted(thing)
    assert logs == same
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_beta_belongs_to_trades():
    (_, little), (_, much) = fitted("trades", beta=0.1), fitted(Trades(beta=50.0))
    assert much["loss"][0] > 2 * little["loss"][0]
    assert AdversarialTraining("fgsm", epsilon=0.1, objective="trades", beta=3).objective.beta == 3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_objective_of_ones_own(share):
    """All of the adversarial loss is Madry's training; none of it is plain training."""
    mixed, logs = fitted(Mixture(share))
    assert {"clean_loss", "adversarial_loss"} <= set(logs)
    assert logs["adversarial_loss"][0] > logs["clean_loss"][0]
    expected = fitted("loss")[0] if share == 1 else plainly_fitted()
    for a, b in zip(mixed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def plainly_fitted():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    weights = np.random.default_rng(1)
    model.set_weights([weights.normal(size=(6, 2)).astype("float32"), np.zeros(2, "float32")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    model.fit(X, Y, batch_size=16, verbose=0, shuffle=False)
    return model


def test_another_objective_is_compiled_anew():
    """The same callback with another weight does not run the step of the first."""
    model, _ = fitted(Mixture(0.0))
    callback = AdversarialTraining(
        "pgd", epsilon=0.1, steps=3, random_start=False, objective=Mixture(0.0)
    )
    losses = []
    for share in (0.0, 1.0):
        callback.objective = Mixture(share)
        before = model.get_weights()
        history = model.fit(X, Y, batch_size=32, verbose=0, callbacks=[callback]).history
        model.set_weights(before)
        losses.append(history["loss"][0])
    assert losses[1] > losses[0] + 0.01


def test_what_is_no_objective_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'trades'"):
        AdversarialTraining("fgsm", epsilon=0.1, objective="trade")
    with pytest.raises(ValueError, match="ratio=1"):
        AdversarialTraining("fgsm", epsilon=0.1, objective=Trades(), ratio=0.5)
    with pytest.raises(ValueError, match="beta"):
        AdversarialTraining("fgsm", epsilon=0.1, objective="trades", beta=0)
