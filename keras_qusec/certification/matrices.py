"""Sparse matrices of Keras' linear layers, in float64, from their weights alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Places(NamedTuple):
    """Where the values of an image of positions and channels lie in a flat vector.

    Attributes:
        spatial: sizes of the axes of positions.
        channels: number of channels.
        first: whether the channels come before the positions.
    """

    spatial: tuple[int, ...]
    channels: int
    first: bool = False

    @classmethod
    def of(cls, shape: Sequence[int], data_format: str) -> Places:
        """The places of a tensor of a shape without the batch."""
        first = data_format == "channels_first"
        spatial = tuple(shape[1:]) if first else tuple(shape[:-1])
        return cls(spatial, shape[0] if first else shape[-1], first)

    @property
    def positions(self) -> int:
        """Number of positions."""
        return math.prod(self.spatial)

    @property
    def size(self) -> int:
        """Number of values."""
        return self.positions * self.channels

    def place(self, position: Array, channel: Array) -> Array:
        """Indices of values in the flat vector."""
        if self.first:
            return channel * self.positions + position
        return position * self.channels + channel


class Window(NamedTuple):
    """How a kernel moves over positions; each part has a number for each axis.

    Attributes:
        size: of the kernel.
        strides: from one output to the next.
        padding: ``"valid"``, ``"same"`` or ``"causal"``.
        dilation: distance between neighbouring weights.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    dilation: tuple[int, ...]

    def outputs(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the axes of the output."""
        sizes = []
        for n, size, stride, gap in zip(
            spatial, self.size, self.strides, self.dilation, strict=True
        ):
            reach = n if self.padding != "valid" else n - (size - 1) * gap
            sizes.append(-(-reach // stride))
        return tuple(sizes)

    def _before(self, axis: int, n: int, out: int) -> int:
        """Number of values of padding before the first one of an axis."""
        reach = (self.size[axis] - 1) * self.dilation[axis]
        if self.padding == "causal":
            return reach
        if self.padding == "valid":
            return 0
        return max((out - 1) * self.strides[axis] + reach + 1 - n, 0) // 2

    def positions(self, spatial: Sequence[int]) -> Array:
        """Input positions below each weight at each output, ``(weights, outputs)``; -1 outside."""
        outs = self.outputs(spatial)
        columns = []
        for offset in itertools.product(*map(range, self.size)):
            flat = np.zeros(outs, "int64")
            inside = np.ones(outs, bool)
            for axis, (n, out) in enumerate(zip(spatial, outs, strict=True)):
                place = np.arange(out) * self.strides[axis] - self._before(axis, n, out)
                place = place + offset[axis] * self.dilation[axis]
                shape = [1] * len(outs)
                shape[axis] = out
                place = place.reshape(shape)
                flat = flat * n + np.clip(place, 0, n - 1)
                inside = inside & (place >= 0) & (place < n)
            columns.append(np.where(inside, flat, -1).ravel())
        return np.stack(columns)


def convolution(
    kernel: Array, window: Window, inputs: Places, *, groups: int = 1, first: bool = False
) -> Any:
    """The matrix of a convolution, outputs by inputs, as ``scipy.sparse.csr_array``.

    Args:
        kernel: ``(*size, channels of a group, filters)``.
        window: how it moves.
        inputs: where the values of the input lie.
        groups: of channels.
        first: whether the channels of the output come first.
    """
    filters = kernel.shape[-1]
    flat = kernel.reshape(-1, *kernel.shape[-2:]).astype("float64")
    outputs = Places(window.outputs(inputs.spatial), filters, first)
    f, c = np.arange(filters), np.arange(kernel.shape[-2])
    # The channels that each filter sees.
    channel = c[:, None] + (f // (filters // groups))[None] * kernel.shape[-2]
    rows, columns, values = [], [], []
    for weights, positions in zip(flat, window.positions(inputs.spatial), strict=True):
        out = np.flatnonzero(positions >= 0)
        place = positions[out][:, None, None]
        shape = (len(out), *weights.shape)
        rows.append(np.broadcast_to(outputs.place(out[:, None, None], f), shape).ravel())
        columns.append(np.broadcast_to(inputs.place(place, channel), shape).ravel())
        values.append(np.broadcast_to(weights, shape).ravel())
    return sparse(values, rows, columns, (outputs.size, inputs.size))


def sparse(values: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> Any:
    """A sparse matrix from its entries; entries of one place add up."""
    from scipy.sparse import coo_array

    entries = [np.concatenate(part) if isinstance(part, list) else part
               for part in (values, rows, columns)]  # fmt: skip
    # Products take as long as reading the matrix does: half of it would be indices.
    index = "int32" if max(*shape, len(entries[0])) < 2**31 else "int64"
    places = entries[1].astype(index), entries[2].astype(index)
    return coo_array((entries[0], places), shape=shape).tocsr()


def selection(indices: Array, size: int) -> Any:
    """The matrix that takes values by their indices; 0 where an index is -1."""
    rows = np.flatnonzero(indices >= 0)
    shape = (len(indices), size)
    return sparse(np.ones(len(rows)), rows, indices[rows], shape)


def diagonal(values: Array) -> Any:
    """The matrix that multiplies each value by a number."""
    from scipy.sparse import csr_array, diags_array

    return csr_array(diags_array(np.asarray(values, "float64")))


def mean_of(windows: Array, size: int) -> Any:
    """The matrix of the mean over windows of indices ``(outputs, values)``; -1 is left out."""
    counts = (windows >= 0).sum(axis=1)
    rows, places = np.nonzero(windows >= 0)
    return sparse(1.0 / counts[rows], rows, windows[rows, places], (len(windows), size))


def pooling_windows(window: Window, inputs: Places) -> Array:
    """Indices of the values below a window at each output value, ``(outputs, values)``."""
    positions = window.positions(inputs.spatial).T
    channels = np.arange(inputs.channels)
    grid = inputs.place(positions[:, None, :], channels[None, :, None])
    grid = np.where(positions[:, None, :] >= 0, grid, -1)
    if inputs.first:
        grid = grid.transpose(1, 0, 2)
    return grid.reshape(-1, positions.shape[1])
