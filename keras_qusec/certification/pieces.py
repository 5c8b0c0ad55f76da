"""The pieces that layers are made of, as bounds go through them.

A rule says which pieces a layer is. Each piece knows how an interval goes through it in
`keras.ops`, for training, how the coefficients of a linear bound go back through it, and what it
is as a matrix or curve in float64, for proofs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qusec.backends import backend
from keras_qusec.certification import matrices
from keras_qusec.certification.curves import RELU, Curve

Tensor = Any
Array = np.ndarray
Shape = tuple[int, ...]


class Interval(NamedTuple):
    """Tensors of one shape between which values lie."""

    low: Tensor
    high: Tensor


class Backward(NamedTuple):
    """An upper bound that is linear in the inputs of a piece.

    Attributes:
        coefficients: for each input, ``(batch, bounds, ...)``.
        constant: what is added, ``(batch, bounds)``.
    """

    coefficients: list[Tensor]
    constant: Tensor


class Linear(NamedTuple):
    """A sum of matrices times inputs, and an offset, in float64.

    Attributes:
        matrices: one for each input, outputs by inputs, ``scipy.sparse``.
        offset: ``(outputs,)``.
        offset_size: sum of the sizes of the numbers that are added up to the offset.
        terms: how many float32 roundings computing one output takes at most; 0 if it is exact.
    """

    matrices: tuple[Any, ...]
    offset: Array
    offset_size: Array
    terms: int


class Largest(NamedTuple):
    """The largest of some values: their indices, ``(outputs, values)``, -1 for none."""

    windows: Array


class Squash(NamedTuple):
    """A softmax or sigmoid, which the end of a classifier may have, left out of proofs."""

    name: str


class Piece(ABC):
    """A part of a layer.

    Attributes:
        shape: of its output without the batch, where that is not the layer's own.
    """

    shape: Shape | None = None

    @abstractmethod
    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        """Bounds of the output from bounds of the inputs, in `keras.ops`.

        Args:
            inputs: bounds, each of tensors ``(batch, ...)``.
            training: in training, where a layer may use statistics of the batch.
        """

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward | None:
        """An upper bound that is linear in the inputs, of one that is linear in the output.

        Args:
            coefficients: of the output, ``(batch, bounds, ...)``.
            inputs: bounds of the inputs, each of tensors ``(batch, ...)``.
            training: as for `interval`.

        Returns:
            The bound, or None where this piece has no such bound: its interval is taken then.
        """
        return None

    @abstractmethod
    def exact(self, shapes: Sequence[Shape]) -> Linear | Curve | Largest | Squash:
        """What it computes, from the shapes of the inputs without the batch."""


def rising(function: Callable[..., Tensor], inputs: Sequence[Interval]) -> Interval:
    """Bounds through a function that falls with none of its inputs."""
    low, high = zip(*inputs, strict=True)
    return Interval(function(*low), function(*high))


def linear_backward(
    function: Callable[..., Tensor],
    coefficients: Tensor,
    inputs: Sequence[Interval],
    offset: Tensor | None = None,
) -> Backward:
    """A linear bound back through a linear function: exact, by automatic differentiation.

    Args:
        function: linear, of one tensor for each input.
        coefficients: see `Piece.backward`.
        inputs: bounds of the inputs.
        offset: what is added to the function's output, broadcast over it.
    """
    bounds = coefficients.shape[1]
    rows = ops.reshape(coefficients, (-1, *coefficients.shape[2:]))
    given = [
        ops.repeat(ops.zeros_like(ops.stop_gradient(low)), bounds, axis=0) for low, _ in inputs
    ]
    found = []
    for place, zeros in enumerate(given):

        def total(values: Tensor, place: int = place) -> tuple[Tensor, tuple[()]]:
            tensors = [*given[:place], values, *given[place + 1 :]]
            return ops.sum(function(*tensors) * rows), ()

        gradient, _ = backend().input_gradient(total, zeros, differentiable=True)
        found.append(ops.reshape(gradient, (-1, bounds, *zeros.shape[1:])))
    if offset is None:
        return Backward(found, ops.zeros_like(summed(coefficients)))
    return Backward(found, summed(coefficients * offset))


def summed(values: Tensor) -> Tensor:
    """The sums ``(batch, bounds)`` over all other axes."""
    return ops.sum(values, axis=tuple(range(2, len(values.shape))))


def highest(coefficients: Tensor, interval: Interval) -> Tensor:
    """The largest value ``(batch, bounds)`` of a linear function within an interval.

    Args:
        coefficients: ``(batch, bounds, ...)``.
        interval: of tensors ``(batch, ...)``.
    """
    low, high = (ops.expand_dims(end, 1) for end in interval)
    return summed(ops.relu(coefficients) * high - ops.relu(-coefficients) * low)


class Selection(Piece):
    """Values moved, repeated, left out, put together, or zero; none is changed.

    Args:
        function: of one tensor for each input.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        return rising(self.function, inputs)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward:
        return linear_backward(self.function, coefficients, inputs)

    def exact(self, shapes: Sequence[Shape]) -> Linear:
        # What the layer does to numbers from 1 up says where each value comes from.
        sizes = [int(np.prod(shape)) for shape in shapes]
        starts = np.cumsum([0, *sizes])
        check_countable(int(starts[-1]))
        numbered = [
            np.arange(1 + start, 1 + start + size, dtype="float32").reshape(1, *shape)
            for start, size, shape in zip(starts[:-1], sizes, shapes, strict=True)
        ]
        given = [ops.convert_to_tensor(numbers) for numbers in numbered]
        moved = np.ravel(ops.convert_to_numpy(self.function(*given)))
        chosen = np.round(moved).astype("int64") - 1
        if (chosen + 1 != moved).any() or chosen.max(initial=0) >= starts[-1]:
            raise ValueError(
                "Expected a layer that moves values and changes none. Received: one that does "
                "change them. Register another rule for it."
            )
        parts = []
        for start, size in zip(starts[:-1], sizes, strict=True):
            inside = (chosen >= start) & (chosen < start + size)
            parts.append(matrices.selection(np.where(inside, chosen - start, -1), size))
        none = np.zeros(len(chosen))
        return Linear(tuple(parts), none, none, 0)


class WeightedSum(Piece):
    """A sum of inputs of one shape, each times a number.

    Args:
        weights: the numbers.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        low = high = 0.0
        for weight, (least, most) in zip(self.weights, inputs, strict=True):
            low = low + weight * (least if weight > 0 else most)
            high = high + weight * (most if weight > 0 else least)
        return Interval(low, high)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward:
        parts = [weight * coefficients for weight in self.weights]
        return Backward(parts, ops.zeros_like(summed(coefficients)))

    def exact(self, shapes: Sequence[Shape]) -> Linear:
        size = int(np.prod(shapes[0]))
        parts = tuple(matrices.diagonal(np.full(size, weight)) for weight in self.weights)
        return Linear(parts, np.zeros(size), np.zeros(size), len(parts) + 1)


class Affine(Piece):
    """A linear function of one input and an offset, such as a convolution.

    Args:
        linear: function of a tensor and the weights that returns the linear part.
        weights: function without arguments that returns the weights, a list of tensors; in
            bounds half of the first one and their absolute values are given to `linear`, too.
        offset: function that returns what is added, broadcast over the output, or None.
        matrix: function of the input's shape and the weights as float64 arrays that returns the
            matrix of the linear part.
        terms: how many products make up one output at most.
    """

    def __init__(
        self,
        linear: Callable[..., Tensor],
        weights: Callable[[], list[Tensor]],
        offset: Callable[[], Tensor | None],
        matrix: Callable[..., Any],
        terms: int,
    ) -> None:
        self.linear, self.weights, self.offset = linear, weights, offset
        self.matrix, self.terms = matrix, terms

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        ((low, high),) = inputs
        (first, *others), offset = self.weights(), self.offset()
        # Halves of the weights and not of the much larger bounds; it is the same to the bit.
        weights = [first / 2.0, *others]
        middle = self.linear(low + high, *weights)
        if offset is not None:
            middle = middle + offset
        radius = self.linear(high - low, *map(ops.absolute, weights))
        return Interval(middle - radius, middle + radius)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward:
        weights = self.weights()
        return linear_backward(
            lambda values: self.linear(values, *weights), coefficients, inputs, self.offset()
        )

    def exact(self, shapes: Sequence[Shape]) -> Linear:
        (shape,) = shapes
        weights = [numbers(weight) for weight in self.weights()]
        matrix = self.matrix(shape, *weights)
        given = self.offset()
        offset = np.zeros(matrix.shape[0])
        if given is not None:
            like = ops.zeros((1, *shape))
            output = ops.shape(self.linear(like, *self.weights()))
            offset = np.broadcast_to(numbers(given), output).ravel().astype("float64")
        return Linear((matrix,), offset, np.abs(offset), self.terms + 1)


class Matrix(Affine):
    """A matrix times the last axis, and an offset, as of a dense layer.

    Args:
        kernel: function without arguments that returns the matrix, inputs by outputs.
        offset: function that returns what is added, or None.
    """

    def __init__(self, kernel: Callable[[], Tensor], offset: Callable[[], Tensor | None]) -> None:
        def matrix(shape: Shape, weights: Array) -> Any:
            from scipy.sparse import csr_array, kron

            rows = int(np.prod(shape[:-1]))
            return csr_array(kron(np.eye(rows), weights.T)) if rows > 1 else csr_array(weights.T)

        super().__init__(ops.matmul, lambda: [kernel()], offset, matrix, int(kernel().shape[0]))
        self.kernel = kernel

    def gaps(self, given: Interval, labels: Tensor) -> Tensor:
        """The largest differences ``(n, classes)`` of each output from that of a label.

        Args:
            given: bounds of the input ``(n, features)``.
            labels: ``(n, classes)``, 1 at the label and 0 elsewhere.
        """
        low, high = given
        kernel, offset = self.kernel(), self.offset()
        middle = ops.matmul((low + high) / 2.0, kernel)
        if offset is not None:
            middle = middle + offset
        own = ops.sum(middle * labels, axis=1, keepdims=True)
        features, classes = kernel.shape
        # What separates the classes of each pair.
        pairs = ops.absolute(ops.expand_dims(kernel, 1) - ops.expand_dims(kernel, 2))
        radius = ops.matmul((high - low) / 2.0, ops.reshape(pairs, (features, classes * classes)))
        radius = ops.reshape(radius, (-1, classes, classes))
        radius = ops.sum(radius * ops.expand_dims(labels, 2), axis=1)
        return middle - own + radius


class Scaling(Piece):
    """Each value times a number, plus a number, both broadcast over the input.

    Args:
        numbers: function without arguments that returns factor and offset, tensors or arrays.
        of_batch: function of the middle of the bounds that returns the factor and offset to be
            used in training, or None for the same.
        offset_size: function that returns the size of the numbers that make up the offset.
    """

    def __init__(
        self,
        numbers: Callable[[], tuple[Any, Any]],
        *,
        of_batch: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        offset_size: Callable[[], Any] | None = None,
    ) -> None:
        self.numbers, self.of_batch, self.offset_size = numbers, of_batch, offset_size

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        ((low, high),) = inputs
        middle, radius = (low + high) / 2.0, (high - low) / 2.0
        factor, offset = self._at(middle, training)
        middle, radius = middle * factor + offset, radius * ops.absolute(factor)
        return Interval(middle - radius, middle + radius)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward:
        ((low, high),) = inputs
        factor, offset = self._at((low + high) / 2.0, training)
        return Backward([coefficients * factor], summed(coefficients * offset))

    def _at(self, middle: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Factor and offset, in training those of the batch."""
        if training and self.of_batch is not None:
            return self.of_batch(middle)
        factor, offset = self.numbers()
        return (
            ops.convert_to_tensor(factor, dtype=middle.dtype),
            ops.convert_to_tensor(offset, dtype=middle.dtype),
        )

    def exact(self, shapes: Sequence[Shape]) -> Linear:
        (shape,) = shapes
        given = [numbers(value) for value in self.numbers()]
        if any(np.broadcast_shapes(part.shape, (1, *shape)) != (1, *shape) for part in given):
            raise ValueError(
                f"Expected factors and offsets that fit values of shape {shape}. Received: shapes "
                f"{[part.shape for part in given]}, with which they would be repeated. Repeat the "
                "values by a layer before."
            )
        factor, offset = (np.broadcast_to(part, (1, *shape)).ravel() for part in given)
        size = np.abs(offset)
        if self.offset_size is not None:
            parts = numbers(self.offset_size())
            size = np.broadcast_to(parts, (1, *shape)).ravel().astype("float64")
        return Linear((matrices.diagonal(factor),), offset, size, 24)


class Mean(Piece):
    """Means over windows of values.

    Args:
        function: the layer itself, which falls with none of its values.
        windows: function of the input's shape that returns indices ``(outputs, values)``.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], windows: Callable[[Shape], Array]
    ) -> None:
        self.function, self.windows = function, windows

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        return rising(self.function, inputs)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward | None:
        return linear_backward(self.function, coefficients, inputs)

    def exact(self, shapes: Sequence[Shape]) -> Linear | Largest:
        windows = self.windows(shapes[0])
        none = np.zeros(len(windows))
        matrix = matrices.mean_of(windows, int(np.prod(shapes[0])))
        return Linear((matrix,), none, none, windows.shape[1] + 2)


class Maximum(Mean):
    """The largest values of windows; its arguments are those of `Mean`."""

    def backward(self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool) -> None:
        return None

    def exact(self, shapes: Sequence[Shape]) -> Largest:
        return Largest(self.windows(shapes[0]))


class Activation(Piece):
    """A curve, applied to each value.

    Args:
        function: in `keras.ops`.
        curve: the same in float64, or a function of the input's shape that returns it.
        turns: of a curve that is such a function, where it may turn from rising to falling.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        curve: Curve | Callable[[Shape], Curve],
        *,
        turns: Sequence[float] = (),
    ) -> None:
        self.function, self.curve = function, curve
        self.turns = curve.turns if isinstance(curve, Curve) else tuple(turns)

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        ((low, high),) = inputs
        first, last = self.function(low), self.function(high)
        if not self.turns:
            return Interval(first, last)
        least, most = ops.minimum(first, last), ops.maximum(first, last)
        for turn in self.turns:
            between = self.function(ops.clip(ops.zeros_like(low) + turn, low, high))
            least, most = ops.minimum(least, between), ops.maximum(most, between)
        return Interval(least, most)

    def backward(
        self, coefficients: Tensor, inputs: Sequence[Interval], *, training: bool
    ) -> Backward | None:
        if self.curve is not RELU:
            return None
        ((low, high),) = inputs
        # A ReLU lies below the line through its ends, and above a line through 0.
        least, most = -ops.relu(-low), ops.relu(high)
        above = ops.expand_dims(most / ops.maximum(most - least, 1e-12), 1)
        below = ops.expand_dims(ops.cast(high + low > 0, high.dtype), 1)
        rising, falling = ops.relu(coefficients) * above, ops.relu(-coefficients) * below
        return Backward([rising - falling], summed(rising * -ops.expand_dims(least, 1)))

    def exact(self, shapes: Sequence[Shape]) -> Curve:
        return self.curve if isinstance(self.curve, Curve) else self.curve(shapes[0])


class Squashing(Piece):
    """A softmax or sigmoid at the end of a classifier: proofs are about the logits before it.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def interval(self, inputs: Sequence[Interval], *, training: bool) -> Interval:
        raise ValueError(
            f"Expected a {self.name} at the end of a classifier. Received: one in its middle, "
            "which has no bounds here. Register a rule for its layer."
        )

    def exact(self, shapes: Sequence[Shape]) -> Squash:
        return Squash(self.name)


def numbers(values: Any) -> Array:
    """Weights as float64, of the same values to the last bit."""
    return np.asarray(ops.convert_to_numpy(values)).astype("float64")


def check_countable(size: int) -> None:
    """Raise a ValueError for tensors whose values float32 cannot count."""
    if size >= 2**24:
        raise ValueError(
            f"Expected layers of at most {2**24 - 1} values. Received: one of {size}. Prove a "
            "smaller network."
        )
