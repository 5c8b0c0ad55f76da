"""Recipes: their data, their precision, and training that goes on where it stopped."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec.comparison.contenders import Training
from keras_qusec.datasets import Dataset
from keras_qusec.defenses import find_quantizers
from keras_qusec.reproduction import recipes
from keras_qusec.reproduction.recipes import CIFAR10, MNIST, Augmented, turned

(TRADES,) = (recipe for recipe in MNIST if recipe.objective == "trades")


def training(images=256, backup="", shape=(28, 28, 1), **settings):
    random = np.random.default_rng(0)
    x = random.random((images, *shape), dtype="float32")
    y = random.integers(0, 10, images)
    y[0] = 9
    return Training(Dataset("some", x, y, x, y), 0.3, 1, 0, backup)._replace(**settings)


def test_each_image_once_an_epoch():
    data = Augmented(training(), shift=0, flip=False)
    seen = np.concatenate([data[place][0] for place in range(len(data))])
    assert len(data) == 2
    assert sorted(seen.sum(axis=(1, 2, 3))) == pytest.approx(sorted(data.x.sum(axis=(1, 2, 3))))
    order = data.order.copy()
    data.on_epoch_end()
    assert (order != data.order).any()


def test_shifts_and_mirror_images():
    one = training(images=128)
    data = Augmented(one, shift=2, flip=True)
    images, labels = data[0]
    for image, label, row in zip(images, labels, data.order, strict=True):
        original = one.data.x_train[row]
        if data.mirrored[row]:
            original = original[:, ::-1]
        down, right = data.shifts[row]
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)))
        expected = padded[2 + down : 30 + down, 2 + right : 30 + right]
        np.testing.assert_array_equal(image, expected)
        assert label == one.data.y_train[row]
    assert set(np.unique(data.shifts)) == {-2, -1, 0, 1, 2}
    assert 0.2 < data.mirrored.mean() < 0.8


def blob(row, column):
    """A smooth spot with its centre at a place."""
    down, right = np.indices((28, 28))
    return np.exp(-((down - row) ** 2 + (right - column) ** 2) / 4.5)[..., None]


@pytest.mark.parametrize(
    ("angle", "zoom", "shift", "row", "column"),
    [
        (0.0, 1.0, (0, 0), 8.0, 13.5),
        (0.0, 1.0, (2, -3), 6.0, 16.5),
        (np.pi / 2, 1.0, (0, 0), 13.5, 8.0),
        (0.0, 1.2, (0, 0), 13.5 - 1.2 * 5.5, 13.5),
    ],
)
def test_turned_images(angle, zoom, shift, row, column):
    images = np.stack([blob(8.0, 13.5), blob(13.5, 13.5)]).astype("float32")
    moved = turned(images, np.array([angle, 0.0]), np.array([zoom, 1.0]), np.array([shift, (0, 0)]))
    weights = moved[0, ..., 0] / moved[0].sum()
    places = [(weights * place).sum() for place in np.indices((28, 28))]
    np.testing.assert_allclose(places, (row, column), atol=0.05)
    # Only the image that is asked for moves.
    np.testing.assert_allclose(moved[1], images[1], atol=0.05)


def test_turned_images_keep_their_channels():
    one = blob(8.0, 13.5).astype("float32")
    images = np.concatenate([one, 0.5 * one], axis=-1)[None]
    moved = turned(images, np.array([0.3]), np.array([1.1]), np.array([(1, 1)]))
    assert moved.shape == (1, 28, 28, 2)
    np.testing.assert_allclose(moved[..., 1], 0.5 * moved[..., 0], atol=1e-5)


def test_images_of_a_recipe_are_turned():
    data = Augmented(training(images=128), rotation=10.0, zoom=0.1)
    images, labels = data[0]
    rows = data.order
    expected = turned(
        data.x[rows], data.angles[rows], data.zooms[rows], np.zeros((128, 2), dtype=int)
    )
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, data.y[rows])
    assert np.abs(np.degrees(data.angles)).max() <= 10
    assert np.degrees(data.angles).std() > 4
    assert data.zooms.std() > 0.04


@pytest.mark.once
def test_a_recipe_returns_a_network_in_float32(tmp_path):
    before = keras.config.dtype_policy()
    model = TRADES.trained(training(backup=str(tmp_path / "backup")))
    assert keras.config.dtype_policy() == before
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    (layer,) = find_quantizers(model)
    assert (layer.levels, layer.hard) == (2, True)
    assert len(model.history.history["adversarial_accuracy"]) == 1
    assert np.isfinite(model.predict(np.zeros((1, 28, 28, 1)), verbose=0)).all()


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    epochs = []

    class Stops(recipes.AdversarialTraining):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1 and "stopped" not in epochs:
                epochs.append("stopped")
                raise KeyboardInterrupt
            epochs.append(epoch)
            super().on_epoch_begin(epoch, logs)

    monkeypatch.setattr(recipes, "AdversarialTraining", Stops)
    two = training(backup=str(tmp_path / "backup"), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        TRADES.trained(two)
    TRADES.trained(two)
    assert epochs == [0, "stopped", 1]


def test_names_are_unique():
    names = [recipe.name for recipe in (*MNIST, *CIFAR10)]
    assert len(set(names)) == len(names)


def test_settings_say_what_was_done():
    text = TRADES.settings()
    assert "TRADES" in text
    assert "22 epochs, PGD of 4 steps of 0.2 from a random start, epsilon 0.3" in text
    assert "mirrored" not in text
    assert "mirrored images" in CIFAR10[0].settings()
