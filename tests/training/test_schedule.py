"""HardnessSchedule: rises, compiled once, not frozen, saved."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND

from keras_qusec import HardnessSchedule, QuSecQuantization, TrainableQuSecQuantization

X = np.random.default_rng(0).random((32, 4)).astype("float32")
Y = np.zeros((32, 2), "float32")


class Recorder(keras.layers.Layer):
    """Counts how often the model is traced, and returns its input."""

    def __init__(self):
        super().__init__()
        self.traces = 0

    def call(self, x):
        self.traces += 1
        return x


def fit(schedule, epochs=3, quantizer=None, **settings):
    quantizer = quantizer or QuSecQuantization(2)
    recorder = Recorder()
    model = keras.Sequential([keras.Input((4,)), quantizer, recorder, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    recorder.traces = 0
    history = model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False,
                        callbacks=[schedule], **settings)  # fmt: skip
    return history.history, quantizer, recorder, model


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (HardnessSchedule(10, 30), [10, 20, 30]),
        (HardnessSchedule(4, 16, schedule="geometric"), [4, 8, 16]),
        (HardnessSchedule(schedule=lambda p: 1 + p * p), [1, 1.25, 2]),
        (HardnessSchedule(10, 30, epochs=2), [10, 30, 30]),
    ],
)
def test_epochs(schedule, expected):
    logs, quantizer, recorder, _ = fit(schedule)
    np.testing.assert_allclose(logs["hardness"], expected, rtol=1e-6)
    assert quantizer.hardness == pytest.approx(expected[-1])
    if BACKEND != "torch":  # PyTorch calls the layers at each step: nothing is traced
        assert recorder.traces <= 3


@pytest.mark.parametrize("update", ["epoch", "batch"])
def test_the_compiled_step_sees_the_new_hardness(update):
    # With a learning rate of 0, only the hardness can change the loss between epochs.
    logs, quantizer, _, model = fit(HardnessSchedule(2, 200, update=update), epochs=4)
    losses = []
    for z in logs["hardness"]:
        quantizer.hardness = z
        losses.append(model.evaluate(X, Y, verbose=0))
    assert len({round(loss, 5) for loss in losses}) == 4
    if update == "epoch":
        np.testing.assert_allclose(logs["loss"], losses, rtol=1e-4)
    else:
        # Within an epoch the hardness moves on, so only the last, constant epoch agrees.
        np.testing.assert_allclose(logs["loss"][-1], losses[-1], rtol=1e-4)
        assert abs(logs["loss"][0] - losses[0]) > 1e-4


def test_validation_and_saving_use_the_hardness_reached(tmp_path):
    logs, quantizer, _, model = fit(
        HardnessSchedule(5, 25),
        validation_data=(X, Y),
        quantizer=TrainableQuSecQuantization(2),
    )
    assert len(logs["val_loss"]) == 3
    model.save_weights(tmp_path / "w.weights.h5")
    quantizer.hardness = 1.0
    model.load_weights(tmp_path / "w.weights.h5")
    assert quantizer.hardness == 25


def test_continues_at_initial_epoch():
    logs, *_ = fit(HardnessSchedule(10, 30), epochs=3, initial_epoch=2)
    assert logs["hardness"] == [30]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0}, "Expected start to be a number above 0"),
        ({"end": -1}, "Expected end to be a number above 0"),
        ({"schedule": "cosine"}, "Expected schedule to be"),
        ({"update": "step"}, "Expected update to be"),
        ({"epochs": 0}, "Expected epochs to be a whole number"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HardnessSchedule(**settings)


def test_a_function_that_returns_no_hardness():
    with pytest.raises(ValueError, match="Expected the schedule's hardness"):
        fit(HardnessSchedule(schedule=lambda p: -1.0))


def test_a_model_without_quantizers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Expected a model with a QuSecQuantization"):
        model.fit(X, Y, verbose=0, callbacks=[HardnessSchedule()])
