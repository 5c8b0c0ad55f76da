"""A network in float64: bounds of every unit, and how far float32 may be from exact arithmetic.

The reasons for its margins. In any order of summation, fused or not, a float32 sum of n products
differs from the exact one by at most n u times the sum of their sizes, with u = 2^-24 (Jeannerod
and Rump 2013). The errors of a layer's inputs go through the sizes of its weights. What float64
itself rounds is smaller by a factor of 5e8; a share of the margin is kept for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_qusec.certification.curves import Curve
from keras_qusec.certification.graph import Pieces, size_of
from keras_qusec.certification.matrices import selection
from keras_qusec.certification.pieces import Largest, Linear, Squash

Array = np.ndarray

# Half the distance from 1 to the next float32.
UNIT = 2.0**-24
# The share of a margin that is kept for the rounding of float64.
_FOR_FLOAT64 = 1e-3
# Sums whose terms add up to less stay within the range of float32, in any order.
_LARGEST = 1e38
# Sums of so few terms are not looked into for terms that are zero.
_FEW = 32
# Below the smallest normal float32, results may be rounded to zero.
_TINY = 2.0**-126


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A value of a network: what it is computed from, and how.

    Attributes:
        inputs: numbers of the nodes that it takes; none for what comes in.
        made: how it is computed, None for what comes in.
        size: number of values.
        sizes: of a linear node, its matrices with the sizes of their entries.
        patterns: of a linear node, its matrices with 1 where they have entries.
    """

    inputs: tuple[int, ...]
    made: Linear | Curve | Largest | None
    size: int
    sizes: tuple[Any, ...] = ()
    patterns: tuple[Any, ...] = ()


class Bounds(NamedTuple):
    """Bounds of one node on a batch, ``(batch, size)``.

    Attributes:
        low: smallest values, exactly computed.
        high: largest values.
        error: how far a value computed in float32 may be from the exact one.
        moves: whether a value depends on any input that is not fixed.
    """

    low: Array
    high: Array
    error: Array
    moves: Array


def node_of(inputs: Sequence[int], made: Linear | Curve | Largest, size: int) -> Node:
    """A node, with what its bounds need beside what makes it."""
    if not isinstance(made, Linear):
        return Node(tuple(inputs), made, size)
    if len(made.offset) != size:
        raise ValueError(
            f"Expected a layer of {size} values. Received: a rule that gives {len(made.offset)}."
        )
    if not all(np.isfinite(matrix.data).all() for matrix in made.matrices) or (
        not np.isfinite(made.offset).all()
    ):
        raise ValueError(
            "Expected finite weights. Received: a layer with NaN or infinity among its weights, of "
            "which nothing can be proved. Check the model's training."
        )
    patterns: tuple[Any, ...] = ()
    if made.terms > _FEW:
        # Counts below 2**24 are exact in float32, whose products take half the time of bool's.
        patterns = tuple(
            (matrix != 0).astype("float32" if matrix.shape[1] < 2**24 else "float64")
            for matrix in made.matrices
        )
    return Node(tuple(inputs), made, size, tuple(map(abs, made.matrices)), patterns)


def _nodes_of(pieces: Pieces) -> tuple[list[Node], int]:
    """The nodes of pieces, in their order, and the number of the one that is their output."""
    numbers = {0: 0}
    nodes = [Node((), None, size_of(pieces.shapes[0]))]
    for step in pieces.steps:
        made = step.piece.exact([pieces.shapes[number] for number in step.inputs])
        if isinstance(made, Squash):
            raise ValueError(
                f"Expected a {made.name} at the end of a classifier. Received: one in its "
                "middle, which has no rule."
            )
        numbers[step.output] = len(nodes)
        inputs = [numbers[number] for number in step.inputs]
        nodes.append(node_of(inputs, made, size_of(pieces.shapes[step.output])))
    return nodes, numbers[pieces.output]


class Network:
    """A classifier, or the part of it behind its quantizer, in float64.

    Args:
        nodes: the values in the order in which they are computed; the first is what comes in, the
            last are the logits.

    Attributes:
        classes: number of classes.
        has_steps: whether there is a staircase among its activations.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self.classes = self.nodes[-1].size
        self.has_steps = any(isinstance(n.made, Curve) and n.made.has_steps for n in self.nodes)

    @classmethod
    def of(cls, pieces: Pieces) -> Network:
        """The network of a Keras model.

        Args:
            pieces: see `pieces_between`.

        Raises:
            ValueError: for a softmax in its middle, or a rule of another shape than its layer's.
        """
        nodes, output = _nodes_of(pieces)
        size = nodes[output].size
        if size == 1 or output != len(nodes) - 1:
            # One number is the logit of class 1 of two; that of class 0 is 0.
            matrix = selection(np.arange(size) if size > 1 else np.array([-1, 0]), size)
            none = np.zeros(matrix.shape[0])
            nodes.append(node_of([output], Linear((matrix,), none, none, 0), len(none)))
        return cls(nodes)

    @classmethod
    def of_front(cls, pieces: Pieces) -> Network:
        """The network of the layers before a quantizer: its last node is what that receives."""
        return cls(_nodes_of(pieces)[0])

    def gaps(self, bounds: Sequence[Bounds], labels: Array) -> tuple[Array, Array]:
        """The largest differences of the logits from that of a label, by intervals.

        Args:
            bounds: of all nodes, from `bounds`.
            labels: one for each image, ``(batch,)``.

        Returns:
            The differences in exact arithmetic, and how far those in float32 may be from them;
            ``(batch, classes)`` both.
        """
        node, last = self.nodes[-1], bounds[-1]
        own = np.arange(len(labels)), labels
        gaps = last.high - last.low[own][:, None]
        errors = last.error + last.error[own][:, None]
        made = node.made
        if not isinstance(made, Linear) or len(made.matrices) != 1:
            return gaps, errors
        # What moves two logits alike does not separate them.
        low, high, before, _ = bounds[node.inputs[0]]
        middle, radius = (low + high) / 2, (high - low) / 2
        matrix, sizes = made.matrices[0].toarray(), node.sizes[0].toarray()
        rounding = np.zeros((len(low), 1))
        if made.terms:
            rounding = _rounding(made, node.patterns, low, high, before)
        rounded = rounding * ((largest_of(low, high) + before) @ sizes.T + made.offset_size)
        rounded += made.terms * _TINY
        for label in np.unique(labels):
            of = np.flatnonzero(labels == label)
            apart = matrix - matrix[label]
            highest = middle[of] @ apart.T + radius[of] @ np.abs(apart).T
            highest += made.offset - made.offset[label]
            error = before[of] @ np.abs(apart).T + rounded[of] + rounded[of, label][:, None]
            gaps[of] = np.minimum(gaps[of], highest)
            errors[of] = np.minimum(errors[of], error)
        return gaps, errors

    def forward(self, x: Array) -> Array:
        """Logits ``(batch, classes)`` of inputs ``(batch, size)``, in float64."""
        values: list[Array] = []
        for node in self.nodes:
            if node.made is None:
                values.append(np.asarray(x, "float64"))
            elif isinstance(node.made, Linear):
                total = node.made.offset + _times(node.made.matrices, node.inputs, values)
                values.append(total)
            elif isinstance(node.made, Largest):
                values.append(_largest(values[node.inputs[0]], node.made.windows))
            else:
                values.append(node.made.function(values[node.inputs[0]]))
        return values[-1]

    def bounds(self, low: Array, high: Array, error: Any = 0.0) -> list[Bounds]:
        """Bounds of every node by intervals.

        Args:
            low: smallest inputs, ``(batch, size)``.
            high: largest inputs.
            error: how far each input may be from the number that is taken for it.
        """
        low, high = low.astype("float64"), high.astype("float64")
        moves = high > low
        found = [Bounds(low, high, np.broadcast_to(error, low.shape), moves)]
        for node in self.nodes[1:]:
            found.append(self.bounds_of(node, [found[number] for number in node.inputs]))
        return found

    def bounds_of(self, node: Node, inputs: Sequence[Bounds]) -> Bounds:
        """Bounds of one node by intervals, from those of what it takes."""
        # Where a sum may leave the range of float32, errors are infinite, and what comes of that.
        with np.errstate(invalid="ignore", over="ignore"):
            made = self._bounds(node, inputs)
        unknown = np.isnan(made.error)
        return made._replace(error=np.where(unknown, np.inf, made.error))

    def _bounds(self, node: Node, inputs: Sequence[Bounds]) -> Bounds:
        made = node.made
        if isinstance(made, Linear):
            return _linear_bounds(node, made, inputs)
        ((low, high, error, moves),) = inputs
        if isinstance(made, Largest):
            least, most, error = (_largest(part, made.windows) for part in (low, high, error))
            return Bounds(least, most, error, _largest(1.0 * moves, made.windows) > 0)
        assert made is not None  # only what comes in has nothing that makes it
        if made.has_steps:
            least, most = made.ends(low - error, high + error)
            return Bounds(least, most, np.zeros_like(low), most > least)
        least, most = made.ends(low, high)
        size = largest_of(least, most)
        # Where rounding changes nothing, as where a ReLU is off, no error goes on.
        rounded = made.ends(low - error, high + error)
        passed = np.where(rounded[0] == rounded[1], 0.0, made.slope * error)
        rounded_size = size
        if not made.linear:
            # What cancels on the way is of the size of the input, or of 1 as in exp(z) - 1.
            rounded_size = size + largest_of(low - error, high + error) + 1.0
        error = passed + made.roundings * (UNIT * rounded_size + _TINY)
        if not made.linear:
            # Where a derivative is zero is known to twelve digits.
            least, most = least - 1e-9 * size, most + 1e-9 * size
        return Bounds(least, most, error, moves)


def _linear_bounds(node: Node, made: Linear, inputs: Sequence[Bounds]) -> Bounds:
    middle = np.repeat(made.offset[None], len(inputs[0].low), axis=0)
    radius, error = np.zeros_like(middle), np.zeros_like(middle)
    for matrix, size, (low, high, before, _) in zip(made.matrices, node.sizes, inputs, strict=True):
        width = high - low
        middle = middle + (matrix @ ((low + high) / 2).T).T
        radius = radius + (size @ (width / 2).T).T
        error = error + (size @ before.T).T
        if made.terms:
            rounding = _rounding(made, node.patterns, low, high, before)
            terms = (size @ (largest_of(low, high) + before).T).T + made.offset_size
            error = error + rounding * terms + made.terms * _TINY
            # Where a sum might leave the range of float32, nothing is known.
            error = np.where(terms + error < _LARGEST, error, np.inf)
    # What float64 rounds: in sums as the error of float32 but for the unit, and in their ends.
    slack = 2.0**-27 * error + 2.0**-50 * (np.abs(middle) + radius)
    return Bounds(middle - radius - slack, middle + radius + slack, error, radius > 0)


def _rounding(
    made: Linear, patterns: Sequence[Any], low: Array, high: Array, before: Array
) -> Array:
    """What a float32 sum may be wrong by, in shares of the sizes of its terms.

    Products with inputs that are zero are zero, and adding those is exact. ``(batch, outputs)``, or
    ``(batch, 1)``.
    """
    terms: Any = np.full((len(low), 1), float(made.terms))
    if len(made.matrices) == 1 and patterns:
        others = ((low != 0) | (high != 0) | (before != 0)).astype(patterns[0].dtype)
        terms = np.minimum(made.terms, (patterns[0] @ others.T).T.astype("float64") + 2)
    return np.asarray(terms * UNIT * (1 + _FOR_FLOAT64))


def largest_of(low: Array, high: Array) -> Array:
    """The largest size of a value between two ends."""
    return np.maximum(np.abs(low), np.abs(high))


def _times(parts: Sequence[Any], inputs: Sequence[int], values: Sequence[Array]) -> Any:
    total: Any = 0.0
    for matrix, number in zip(parts, inputs, strict=True):
        total = total + (matrix @ values[number].T).T
    return total


def _largest(values: Array, windows: Array) -> Array:
    """The largest value of each window, ``(batch, outputs)``."""
    least = np.full((len(values), 1), -np.inf)
    padded = np.concatenate([values, least], axis=1)
    return padded[:, windows].max(axis=2)
