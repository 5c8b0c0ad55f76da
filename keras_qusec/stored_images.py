"""Images that stay on disk and are read a few at a time, where memory cannot hold them all."""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray

# Values that are read at a time, 16 MiB of float32.
_AT_A_TIME = 2**22


class StoredImages:
    """An array of images in a file, of which rows are read when they are asked for.

    It has what an evaluation asks of images: `shape`, `dtype`, `ndim`, `len`, rows by number,
    slice or array of numbers, which come as arrays in memory. `np.asarray` reads all.

    Args:
        path: file that holds the values in C order.
        shape: of all images, ``(n, ...)``.
        dtype: of the values in the file.
        offset: bytes before the first value.

    Example:

    >>> from keras_qusec.stored_images import StoredImages, Writer
    >>> writer = Writer()
    >>> writer.add(np.zeros((2, 4), "float32"))
    >>> images = writer.images()
    >>> images.shape, images[1:].shape
    ((2, 4), (1, 4))
    """

    def __init__(
        self, path: str | os.PathLike, shape: tuple[int, ...], dtype: Any, *, offset: int = 0
    ) -> None:
        self._path, self._offset = Path(path), offset
        self._stored_shape, self._stored_dtype = tuple(shape), np.dtype(dtype)
        self.shape, self.dtype = self._stored_shape, self._stored_dtype
        self._change: Callable[[Array], Array] | None = None
        self._rows: Array | None = None
        self._before: StoredImages | None = None

    @classmethod
    def of(cls, array: Any) -> StoredImages | None:
        """The file behind a memory-mapped array, or None for a part or a view of one."""
        whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
        if not whole or not array.flags.c_contiguous or array.filename is None:
            return None
        return cls(array.filename, array.shape, array.dtype, offset=int(array.offset))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all values in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, (int, np.integer)):
            number = int(rows)
            return self[np.array([number + len(self) if number < 0 else number])][0]
        if self._before is not None:
            part = self._before[rows if self._rows is None else self._rows[rows]]
            return part if self._change is None else self._change(part)
        # Opened anew and closed, so that pages that were read do not stay in memory.
        opened = np.memmap(
            self._path, self._stored_dtype, "r", self._offset, shape=self._stored_shape
        )
        return np.array(opened[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        parts = list(parts_of(self))
        array = np.concatenate(parts) if parts else np.zeros(self.shape, self.dtype)
        return array if dtype is None else array.astype(dtype)

    def changed(self, function: Callable[[Array], Array]) -> StoredImages:
        """These images with a function of some rows applied to whatever is read.

        Args:
            function: of an array of rows, each of which it changes for itself.
        """
        first = function(self[:1])
        other = self.taken(None)
        other.shape, other.dtype = (len(self), *first.shape[1:]), first.dtype
        other._change = function
        return other

    def taken(self, rows: Array | None) -> StoredImages:
        """Some of these images, which stay on disk.

        Args:
            rows: their numbers; None for all.
        """
        other = copy.copy(self)
        other.shape = (len(self) if rows is None else len(rows), *self.shape[1:])
        other._change, other._before, other._rows = None, self, rows
        return other


def parts_of(images: Array | StoredImages) -> Iterator[Array]:
    """All images, some rows at a time, 16 MiB of float32.

    Args:
        images: ``(n, ...)``, in memory or on disk.
    """
    rows = rows_at_a_time(images)
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def rows_at_a_time(images: Array | StoredImages) -> int:
    """How many images, in memory or on disk, are looked at together: 16 MiB of float32."""
    return max(1, _AT_A_TIME * len(images) // max(1, images.size))


def on_parts(function: Callable[[Array], Array], images: Array | StoredImages) -> Array:
    """What a function says of each image, asked of some rows at a time, in one array.

    Args:
        function: of an array of rows, with a result for each.
        images: ``(n, ...)``, at least one, in memory or on disk.
    """
    return np.concatenate([function(part) for part in parts_of(images)])


def channels_last(images: Any) -> Any:
    """Images that have their channels first, with their channels last.

    Args:
        images: ``(n, channels, ...)``, in memory or on disk, where they stay.
    """
    if isinstance(images, StoredImages):
        return images.changed(channels_last)
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


class Writer:
    """Writes batches of images to a temporary file, which goes with the last one who reads it.

    Args:
        folder: where; default the system's for temporary files.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed by `images`
            prefix="keras-qusec-", suffix=".images", dir=folder, delete=False
        )
        self._rows = 0
        self._shape: tuple[int, ...] | None = None
        self._dtype: Any = None
        self._removal = weakref.finalize(self, _remove, self._file.name)

    def add(self, batch: Array) -> None:
        """Write the images of a batch.

        Raises:
            ValueError: for images of another shape or dtype than before.
        """
        if self._shape is None:
            self._shape, self._dtype = batch.shape[1:], batch.dtype
        if batch.shape[1:] != self._shape or batch.dtype != self._dtype:
            raise ValueError(
                f"Expected batches of images of one shape and dtype, {self._shape} and "
                f"{self._dtype}. Received: one of {batch.shape[1:]} and {batch.dtype}. Resize the "
                "images to one size."
            )
        self._file.write(np.ascontiguousarray(batch).tobytes())
        self._rows += len(batch)

    def images(self) -> StoredImages:
        """All that was written."""
        self._file.close()
        found = StoredImages(self._file.name, (self._rows, *(self._shape or ())), self._dtype)
        self._removal.detach()
        weakref.finalize(found, _remove, self._file.name)
        return found


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
