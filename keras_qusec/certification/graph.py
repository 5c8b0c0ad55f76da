"""A classifier as a list of pieces, from its input, or from behind its quantizer, to its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_qusec.certification.curves import CURVES
from keras_qusec.certification.pieces import (
    Activation,
    Interval,
    Matrix,
    Piece,
    Selection,
    Squashing,
    highest,
)
from keras_qusec.certification.rules import pieces_of
from keras_qusec.graphs import has_graph, made_by

Tensor = Any
Shape = tuple[int, ...]

# Up to so many classes each pair of them has its own bound.
_MOST_PAIRED = 32


class Step(NamedTuple):
    """One piece, with the numbers of the values that it takes and of the one that it makes."""

    piece: Piece
    inputs: tuple[int, ...]
    output: int


class Pieces(NamedTuple):
    """A network as pieces in the order in which they are computed; value 0 is what comes in.

    Attributes:
        steps: the pieces.
        output: number of the value that is the logits.
        shapes: of each value, without the batch.
    """

    steps: tuple[Step, ...]
    output: int
    shapes: tuple[Shape, ...]

    def intervals(self, given: Interval, *, training: bool = False) -> dict[int, Interval]:
        """Bounds of every value from bounds of the input, by intervals, in `keras.ops`.

        Args:
            given: of the input.
            training: as batch normalization and the like compute in training.
        """
        values = {0: given}
        for step in self.steps:
            inputs = [values[number] for number in step.inputs]
            values[step.output] = step.piece.interval(inputs, training=training)
        return values

    def gaps(self, values: dict[int, Interval], labels: Tensor) -> Tensor:
        """The largest differences ``(n, classes)`` of each logit from that of the label.

        An image is proved if all but that of its label, which is 0, are below zero.

        Args:
            values: from `intervals`.
            labels: ``(n, classes)``, 1 at the label and 0 elsewhere.
        """
        low, high = values[self.output]
        last = self.steps[-1] if self.steps else None
        if low.shape[-1] == 1:
            # The logit of class 1 of two; that of class 0 is 0.
            worst = ops.concatenate([-low, high], axis=-1)
            return worst * (1.0 - labels)
        paired = low.shape[-1] <= _MOST_PAIRED
        if last and paired and last.output == self.output and isinstance(last.piece, Matrix):
            return last.piece.gaps(values[last.inputs[0]], labels) * (1.0 - labels)
        return (high - ops.sum(low * labels, axis=1, keepdims=True)) * (1.0 - labels)

    def linear_gaps(
        self, values: dict[int, Interval], labels: Tensor, *, training: bool = False
    ) -> Tensor:
        """The same by linear bounds, with intervals for what ReLUs receive (CROWN-IBP).

        A bound starts as a difference of two logits and goes back from layer to layer, as a linear
        function of what each receives. It ends at the image, a quantizer, or any other piece
        without a linear bound, where the highest value within its interval is taken.

        Args:
            values: from `intervals`.
            labels: ``(n, classes)``, 1 at the label and 0 elsewhere.
            training: as for `intervals`.

        Source: Zhang et al. 2020, Towards stable and efficient training of verifiably robust
        neural networks.
        """
        low = values[self.output].low
        classes = labels.shape[-1]
        if low.shape[-1] == 1:
            # The logit of class 1 of two; that of class 0 is 0.
            logits = ops.convert_to_tensor([[-1.0], [1.0]], dtype=low.dtype)
            start = ops.expand_dims(1.0 - labels, 2) * ops.expand_dims(logits, 0)
        else:
            start = ops.expand_dims(ops.eye(classes, dtype=low.dtype), 0) - ops.expand_dims(
                labels, 1
            )
        total = ops.zeros_like(labels)
        coefficients = {self.output: start}
        for step in reversed(self.steps):
            taken = coefficients.pop(step.output, None)
            if taken is None:
                continue
            inputs = [values[number] for number in step.inputs]
            found = step.piece.backward(taken, inputs, training=training)
            if found is None:
                total = total + highest(taken, values[step.output])
                continue
            total = total + found.constant
            for number, part in zip(step.inputs, found.coefficients, strict=True):
                coefficients[number] = (
                    coefficients[number] + part if number in coefficients else part
                )
        for number, taken in coefficients.items():
            total = total + highest(taken, values[number])
        return total * (1.0 - labels)


def pieces_between(model: keras.Model, start: Any = None) -> Pieces:
    """The pieces of a classifier up to its logits, without a softmax or sigmoid at its end.

    Args:
        model: built functional or sequential classifier with one input and one output.
        start: layer of it, of which the output is value 0; None for the model's input.

    Raises:
        ValueError: for a model without a graph, or with a layer without a rule.
    """
    reader = _Reader(start)
    output = reader.read(model, None)
    if not reader.found:
        raise ValueError(
            f"Expected a path from {start.name!r} to the logits of {model.name!r}. Received: a "
            "model whose output does not depend on it."
        )
    steps = _needed(reader.steps, output)
    if any(_IMAGE in step.inputs for step in steps) or output == _IMAGE:
        raise SidePathError(
            f"Expected {start.name!r} to receive all of the image. Received: {model.name!r}, where "
            "a path leads past it."
        )
    # A classifier's end: what squashes logits, and what only moves them.
    ending = [place for place, step in enumerate(steps) if _squashes(step.piece)]
    if ending and all(
        isinstance(s.piece, Selection) and len(s.inputs) == 1 for s in steps[ending[-1] + 1 :]
    ):
        squashed = steps.pop(ending[-1])
        steps = [
            step._replace(inputs=tuple(_other(n, squashed) for n in step.inputs)) for step in steps
        ]
        output = _other(output, squashed)
    return Pieces(tuple(steps), output, tuple(reader.shapes))


def pieces_before(model: keras.Model, layer: Any) -> Pieces:
    """The pieces of a model from its input to what one of its layers receives.

    Args:
        model: built functional or sequential model with one input.
        layer: a layer of it.

    Raises:
        ValueError: as `pieces_between`.
    """
    reader = _Reader(None)
    reader.end = layer
    try:
        reader.read(model, None)
    except _ReachedError as reached:
        steps = _needed(reader.steps, reached.number)
        return Pieces(tuple(steps), reached.number, tuple(reader.shapes))
    raise ValueError(
        f"Expected {layer.name!r} to be a layer of {model.name!r}. Received: a model whose output "
        "does not depend on it."
    )


class SidePathError(ValueError):
    """A path from the image leads past a quantizer."""


class _ReachedError(Exception):
    """The layer up to which a graph is read was reached."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


# The number of the image where value 0 is the output of a layer behind it.
_IMAGE = 1


def _needed(steps: Sequence[Step], output: int) -> list[Step]:
    """The steps that a value depends on, in their order."""
    wanted, kept = {output}, []
    for step in reversed(steps):
        if step.output in wanted:
            wanted |= set(step.inputs)
            kept.append(step)
    return kept[::-1]


def _squashes(piece: Piece) -> bool:
    """Whether a piece makes probabilities of logits, without a change of their order."""
    sigmoid = isinstance(piece, Activation) and piece.curve is CURVES["sigmoid"]
    return sigmoid or isinstance(piece, Squashing)


def _other(number: int, squashed: Step) -> int:
    """The number of a value, where that of a squashed one gives way to the one before it."""
    return squashed.inputs[0] if number == squashed.output else number


class _Reader:
    """Reads the pieces of a graph and of the models inside it."""

    def __init__(self, start: Any) -> None:
        self.start, self.end = start, None
        self.found = start is None
        self.steps: list[Step] = []
        self.shapes: list[Shape] = [(), ()]

    def read(self, model: Any, given: Sequence[int] | None) -> int:
        """The number of a model's output, from those of its inputs; None: the model's own input."""
        if not has_graph(model):
            raise ValueError(
                f"Expected a functional or sequential model, whose graph says what it computes. "
                f"Received: {model.name!r}, which is code of {type(model).__name__}.call. Write "
                "it with keras.Model(inputs, outputs) or keras.Sequential."
            )
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"Expected models with one input and one output. Received: {model.name!r} with "
                f"{len(model.inputs)} and {len(model.outputs)}."
            )
        if given is None:
            given = [0 if self.start is None else _IMAGE]
            self.shapes[given[0]] = _shape(model.inputs[0])
        known = {id(model.inputs[0]): given[0]}
        waiting = [model.outputs[0]]
        while waiting:
            tensor = waiting[-1]
            if id(tensor) in known:
                waiting.pop()
                continue
            call = made_by(tensor)
            if self.start is not None and call.operation is self.start:
                self.found, self.shapes[0] = True, _shape(tensor)
                known[id(tensor)] = 0
                continue
            missing = [parent for parent in call.parents if id(parent) not in known]
            if missing:
                waiting += missing
                continue
            inputs = tuple(known[id(parent)] for parent in call.parents)
            if self.end is not None and call.operation is self.end:
                raise _ReachedError(inputs[0])
            known[id(tensor)] = self._call(call, inputs)
        return known[id(model.outputs[0])]

    def _call(self, call: Any, inputs: tuple[int, ...]) -> int:
        if isinstance(call.operation, keras.Model):
            return self.read(call.operation, inputs)
        number = inputs[0]
        pieces = pieces_of(call)
        for place, piece in enumerate(pieces):
            taken = inputs if place == 0 else (number,)
            number = len(self.shapes)
            self.shapes.append(piece.shape or _shape(call.output))
            self.steps.append(Step(piece, taken, number))
        return number


def _shape(tensor: Tensor) -> Shape:
    """The shape of one image's part of a symbolic tensor, all of it known."""
    shape = tuple(tensor.shape[1:])
    if any(size is None for size in shape):
        raise ValueError(
            f"Expected a model whose sizes are known. Received: a tensor of shape {shape} for each "
            "image. Give keras.Input the full shape."
        )
    return tuple(int(size) for size in shape)


def size_of(shape: Shape) -> int:
    """Number of values of a shape."""
    return math.prod(shape)
