"""From a network and the bounds of one image to the reduced network of that image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_qusec.certification.curves import RELU, Curve
from keras_qusec.certification.network import Bounds, Network, Node
from keras_qusec.certification.pieces import Largest, Linear
from keras_qusec.certification.reduced import Group, Reduced, straight_lines

Array = np.ndarray


@dataclasses.dataclass
class Expression:
    """Values as linear functions of the free inputs and of the groups so far.

    Attributes:
        matrices: one for each of them, ``(values, size)``.
        offset: ``(values,)``.
    """

    matrices: list[Array]
    offset: Array

    def rows(self, chosen: Array) -> Expression:
        """Some of the values."""
        return Expression([matrix[chosen] for matrix in self.matrices], self.offset[chosen])

    def over(self, sizes: Sequence[int]) -> Expression:
        """The same with zeros for groups that came later."""
        more = [np.zeros((len(self.offset), size)) for size in sizes[len(self.matrices) :]]
        return Expression([*self.matrices, *more], self.offset)


@dataclasses.dataclass
class _Values:
    """What is known of a node's values.

    Attributes:
        constant: ``(size,)``: the value of what does not move; 0 of what is in a part.
        parts: indices of values, and an expression of them or the number of the group that
            they are.
    """

    constant: Array
    parts: list[tuple[Array, Expression | int]]


def reduced(network: Network, bounds: Sequence[Bounds], image: int) -> Reduced:
    """The reduced network of one image, its outputs the logits.

    Args:
        network: the network.
        bounds: of its nodes on a batch, from `Network.bounds`.
        image: row of the batch.
    """
    return reduced_and_bounds(network, bounds, image)[0]


def reduced_and_bounds(
    network: Network, bounds: Sequence[Bounds], image: int
) -> tuple[Reduced, list[Bounds]]:
    """The reduced network of one image, and bounds of all nodes that linear bounds have tightened.

    So are the margins for rounding, which grow with the sizes of the values: intervals widen from
    layer to layer.

    Args:
        network: the network.
        bounds: of its nodes on a batch, from `Network.bounds`.
        image: row of the batch.

    Returns:
        The network, and the bounds on a batch of one.
    """
    reduction = _Reduction(network, [_row(b, image) for b in bounds])
    return reduction.run(), [Bounds(*(part[None] for part in b)) for b in reduction.bounds]


def _row(bounds: Bounds, image: int) -> Bounds:
    return Bounds(*(part[image].copy() for part in bounds))


class _Reduction:
    """Goes through a network once, for one image."""

    def __init__(self, network: Network, bounds: Sequence[Bounds]) -> None:
        self.network, self.nodes, self.bounds = network, network.nodes, list(bounds)
        self.groups: list[Group] = []
        self.values: list[_Values] = []
        self.free = np.flatnonzero(bounds[0].moves)
        self.low, self.high = bounds[0].low[self.free], bounds[0].high[self.free]
        self.wanted = self._wanted()
        # Nodes whose bounds became tighter than those of intervals alone.
        self.tightened: set[int] = set()

    @property
    def sizes(self) -> list[int]:
        """Number of free inputs, and of units of each group so far."""
        return [len(self.free), *(len(group.offset) for group in self.groups)]

    def _wanted(self) -> list[Array]:
        """Of each node the values that move and that anything takes which is not fixed."""
        wanted = [np.zeros(node.size, bool) for node in self.nodes]
        wanted[-1][:] = True
        for number in range(len(self.nodes) - 1, 0, -1):
            node, moves = self.nodes[number], self.bounds[number].moves
            for source in node.inputs:
                if isinstance(node.made, Linear):
                    wanted[source][:] = True
                elif isinstance(node.made, Largest):
                    windows = node.made.windows[wanted[number] & moves]
                    wanted[source][windows[windows >= 0]] = True
                else:
                    wanted[source] |= wanted[number] & moves & ~self._is_constant(number)
        return wanted

    def _is_constant(self, number: int) -> Array:
        """Which values of a curve are the same number anywhere within their bounds."""
        found, (source,) = self.bounds[number], self.nodes[number].inputs
        before, curve = self.bounds[source], self.nodes[number].made
        if isinstance(curve, Curve) and curve.linear:
            # By the same question as later, so that nothing is left out that is asked for.
            straight = curve.is_linear(before.low, before.high)
            return np.asarray(straight & (found.low == found.high))
        return np.zeros(len(found.low), bool)

    def run(self) -> Reduced:
        for number, node in enumerate(self.nodes):
            self._refine(number)
            found = self.bounds[number]
            moving = np.flatnonzero(found.moves & self.wanted[number])
            constant = (found.low + found.high) / 2
            constant[found.moves] = 0.0
            if node.made is None:
                unit = Expression([np.eye(len(self.free))], np.zeros(len(self.free)))
                self.values.append(_Values(constant, [(self.free, unit)]))
            elif isinstance(node.made, Linear):
                parts = self._linear(node, node.made, moving)
                self.values.append(_Values(constant, [(moving, parts)]))
            elif isinstance(node.made, Largest):
                parts = self._largest(node, node.made, moving)
                self.values.append(_Values(constant, [(moving, parts)]))
            else:
                self.values.append(self._curve(number, node, node.made, moving, constant))
        last = self.expression(len(self.nodes) - 1, np.arange(self.nodes[-1].size))
        return Reduced(self.low, self.high, self.groups, last.matrices, last.offset)

    def _refine(self, number: int) -> None:
        """Bounds of a node again, from those of its inputs, which may have become tighter."""
        node, known = self.nodes[number], self.bounds[number]
        if not any(source in self.tightened for source in node.inputs):
            return
        given = [Bounds(*(part[None] for part in self.bounds[source])) for source in node.inputs]
        again = _row(self.network.bounds_of(node, given), 0)
        low, high = np.maximum(known.low, again.low), np.minimum(known.high, again.high)
        # Both hold, so they meet but for what float64 rounds.
        self.bounds[number] = Bounds(
            low, np.maximum(low, high), np.minimum(known.error, again.error), known.moves
        )
        self.tightened.add(number)

    def _linear(self, node: Node, made: Linear, moving: Array) -> Expression:
        sizes = self.sizes
        matrices = [np.zeros((len(moving), size)) for size in sizes]
        offset = made.offset[moving].copy()
        for matrix, source in zip(made.matrices, node.inputs, strict=True):
            rows = matrix[moving]
            values = self.values[source]
            constant = values.constant.copy()
            for taken, part in values.parts:
                if not len(taken):
                    continue
                columns = rows[:, taken]
                if isinstance(part, int):
                    matrices[part] += columns.toarray()
                else:
                    constant[taken] = part.offset
                    # A dense layer is multiplied five times as fast as such.
                    if columns.nnz > np.prod(columns.shape) / 2:
                        columns = columns.toarray()
                    for place, block in enumerate(part.matrices):
                        if block.shape[1]:
                            matrices[place] += columns @ block
            offset += rows @ constant
        return Expression(matrices, offset)

    def expression(self, number: int, rows: Array) -> Expression:
        """Some values of a node as one expression over all groups so far."""
        values, sizes = self.values[number], self.sizes
        place = np.full(self.nodes[number].size, -1)
        place[rows] = np.arange(len(rows))
        matrices = [np.zeros((len(rows), size)) for size in sizes]
        offset = values.constant[rows].copy()
        for taken, part in values.parts:
            inside = np.flatnonzero(place[taken] >= 0)
            into = place[taken[inside]]
            if isinstance(part, int):
                matrices[part][into, inside] = 1.0
                continue
            chosen = part.over(sizes).rows(inside)
            offset[into] = chosen.offset
            for matrix, block in zip(matrices, chosen.matrices, strict=True):
                matrix[into] = block
        return Expression(matrices, offset)

    def _tightened(self, given: Expression, low: Array, high: Array) -> tuple[Array, Array]:
        """Bounds of an expression by linear bounds, where they are tighter than those given."""
        if not len(low):
            return low, high
        found = Reduced(self.low, self.high, self.groups, given.matrices, given.offset)
        least, most = found.bounds(both=True)
        low, high = np.maximum(low, least), np.minimum(high, most)
        return low, np.maximum(low, high)

    def _curve(
        self, number: int, node: Node, curve: Curve, moving: Array, constant: Array
    ) -> _Values:
        (source,) = node.inputs
        before = self.bounds[source]
        given, curve = self.expression(source, moving), curve.of(moving)
        low, high = before.low[moving], before.high[moving]
        error = before.error[moving]
        slack = error if curve.has_steps else 0.0
        bent = np.flatnonzero(~curve.is_linear(low - slack, high + slack))
        low[bent], high[bent] = self._tightened(given.rows(bent), low[bent], high[bent])
        if len(bent):
            before.low[moving], before.high[moving] = low, high
            self.tightened.add(source)
            self._refine(number)
        group = Group(curve, low, high, given.matrices, given.offset, error)
        return self._added(group, moving, constant)

    def _added(self, group: Group, moving: Array, constant: Array) -> _Values:
        """The values of units, of which those that are not linear become a group."""
        slack = group.error if group.curve.has_steps else 0.0
        straight = group.curve.is_linear(group.low - slack, group.high + slack)
        kept, gone = np.flatnonzero(~straight), np.flatnonzero(straight)
        slope, offset = straight_lines(group.curve.of(gone), (group.low - slack)[gone],
                                       (group.high + slack)[gone])  # fmt: skip
        fixed = slope == 0
        constant[moving[gone[fixed]]] = offset[fixed]
        active = group.rows(gone[~fixed])
        slope, offset = slope[~fixed], offset[~fixed]
        lines = Expression(
            [slope[:, None] * matrix for matrix in active.matrices], slope * active.offset + offset
        )
        parts: list[tuple[Array, Expression | int]] = [(moving[gone[~fixed]], lines)]
        if len(kept):
            self.groups.append(group.rows(kept))
            parts.append((moving[kept], len(self.groups)))
        return _Values(constant, parts)

    def _largest(self, node: Node, made: Largest, moving: Array) -> Expression:
        """The largest of some values, two at a time: ``max(a, b) = a + relu(b - a)``."""
        (source,) = node.inputs
        found, windows = self.bounds[source], made.windows[moving]
        taken = np.unique(windows[windows >= 0])
        entries = self.expression(source, taken)
        low, high = found.low[taken], found.high[taken]
        place = np.where(windows >= 0, np.searchsorted(taken, np.maximum(windows, 0)), -1)
        padded = np.append(low, -np.inf)
        floor = padded[place].max(axis=1) if place.size else np.zeros(0)
        # What cannot be the largest is left out; the first of the others begins.
        able = (place >= 0) & (np.append(high, -np.inf)[place] >= floor[:, None])
        first = np.argsort(~able, axis=1, kind="stable")
        place = np.take_along_axis(np.where(able, place, -1), first, axis=1)
        total = entries.rows(place[:, 0])
        least, most = low[place[:, 0]].copy(), high[place[:, 0]].copy()
        for column in range(1, place.shape[1]):
            rows = np.flatnonzero(place[:, column] >= 0)
            if not len(rows):
                break
            other = entries.rows(place[rows, column]).over(self.sizes)
            total = total.over(self.sizes)
            gap = Expression(
                [b - a[rows] for a, b in zip(total.matrices, other.matrices, strict=True)],
                other.offset - total.offset[rows],
            )
            other_low, other_high = low[place[rows, column]], high[place[rows, column]]
            ends = self._tightened(gap, other_low - most[rows], other_high - least[rows])
            group = Group(RELU, *ends, gap.matrices, gap.offset, np.zeros(len(rows)))
            values = self._added(group, rows, np.zeros(len(moving)))
            sizes = self.sizes
            total = total.over(sizes)
            for indices, part in values.parts:
                if isinstance(part, int):
                    total.matrices[part][indices, np.arange(len(indices))] += 1.0
                    continue
                total.offset[indices] += part.offset
                for matrix, block in zip(total.matrices, part.over(sizes).matrices, strict=True):
                    matrix[indices] += block
            least[rows] = np.maximum(least[rows], other_low)
            most[rows] = np.maximum(most[rows], other_high)
        return total.over(self.sizes)
