"""A network reduced to what can change within one image's box: free inputs and unstable units.

Inputs that are fixed and units that are linear within the box are folded into what takes them. What
is left are small dense matrices, on which linear bounds (CROWN, Zhang et al. 2018) and a search
cost a fraction of the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_qusec.certification.curves import RELU, Curve, Lines

Array = np.ndarray


# More than float64 rounds in the bounds of a unit, in shares of their size.
_ROUNDING = 1e-9


@dataclasses.dataclass
class Group:
    """Unstable units of one layer: a curve of a linear function of what comes before.

    Attributes:
        curve: what they compute.
        low: smallest value before the curve, ``(units,)``.
        high: largest value.
        matrices: of the free inputs and of each group before, ``(units, size)``.
        offset: ``(units,)``.
        error: how far float32 may be from exact arithmetic before the curve; for steps.
    """

    curve: Curve
    low: Array
    high: Array
    matrices: list[Array]
    offset: Array
    error: Array
    _lines: Lines | None = None

    def rows(self, chosen: Array) -> Group:
        """Some of the units."""
        return Group(
            self.curve.of(chosen), self.low[chosen], self.high[chosen],
            [matrix[chosen] for matrix in self.matrices], self.offset[chosen], self.error[chosen],
        )  # fmt: skip

    def ends(self) -> tuple[Array, Array]:
        """The smallest and the largest output of each unit."""
        slack = self.error if self.curve.has_steps else 0.0
        return self.curve.ends(self.low - slack, self.high + slack)

    def lines(self) -> Lines:
        """Lines below and above each unit; kept, so a group with other bounds is another one."""
        if self._lines is None:
            slack = self.error if self.curve.has_steps else 0.0
            self._lines = self.curve.lines(self.low - slack, self.high + slack)
        return self._lines


@dataclasses.dataclass
class Reduced:
    """A reduced network and its box.

    Attributes:
        low: smallest free inputs, ``(free,)``.
        high: largest free inputs.
        groups: unstable units, layer by layer.
        matrices: of the outputs: of the free inputs, and of each group.
        offset: of the outputs.
        known: number of the last outputs which are no outputs: they are known to be 0 or more,
            since a search has split units there.
    """

    low: Array
    high: Array
    groups: list[Group]
    matrices: list[Array]
    offset: Array
    known: int = 0

    @property
    def count(self) -> int:
        """Number of the outputs, without what is known of them."""
        return len(self.offset) - self.known

    def forward(self, inputs: Array) -> Array:
        """Outputs ``(n, outputs)`` of free inputs ``(n, free)``."""
        values = [inputs]
        for group in self.groups:
            received = group.offset + sum(
                value @ matrix.T for value, matrix in zip(values, group.matrices, strict=True)
            )
            values.append(group.curve.function(received))
        outputs = self.offset + sum(
            value @ matrix.T for value, matrix in zip(values, self.matrices, strict=True)
        )
        return np.asarray(outputs[:, : self.count])

    def tighten(self, steps: int = 0) -> Reduced | None:
        """The same with bounds computed anew for its box, and what became linear folded away.

        None if no input of the box switches the units as a search has split them.

        Args:
            steps: gradient steps on the slopes below ReLUs, for bounds of units.
        """
        groups: list[Group] = []
        # What is left of each group, and what is folded: rows, slopes and offsets.
        folds: list[_Fold | None] = [None]
        for group in self.groups:
            matrices, offset = _folded(group.matrices, group.offset, folds)
            known = Group(group.curve, group.low, group.high, matrices, offset, group.error)
            below = Reduced(self.low, self.high, groups, matrices, offset)
            low, high = below.bounds(both=True, steps=steps)
            known.low, known.high = np.maximum(low, known.low), np.minimum(high, known.high)
            size = 1 + np.abs(low) + np.abs(high) + np.abs(group.low) + np.abs(group.high)
            if (known.low > known.high + _ROUNDING * size).any():
                return None
            known.high = np.maximum(known.low, known.high)
            fold = _Fold.of(known)
            groups.append(known.rows(fold.kept))
            folds.append(fold)
        matrices, offset = _folded(self.matrices, self.offset, folds)
        return Reduced(self.low, self.high, groups, matrices, offset, self.known)

    def bounds(self, *, both: bool = False, steps: int = 0) -> Any:
        """The largest value of each output, by linear bounds; or smallest and largest.

        Args:
            both: smallest and largest.
            steps: gradient steps on the slopes below ReLUs; with `both` alone.
        """
        middle, radius = self._interval()
        if not self.groups:
            # Intervals are exact for linear functions of the free inputs.
            return (middle - radius, middle + radius) if both else middle + radius
        if not both:
            return np.minimum(self._linear(self.matrices, self.offset)[0], middle + radius)
        count = len(self.offset)
        twice = [np.concatenate([matrix, -matrix]) for matrix in self.matrices]
        offsets = np.concatenate([self.offset, -self.offset])
        if steps:
            found = Reduced(self.low, self.high, self.groups, twice, offsets)
            highest = found.optimized_lines(steps)[0]
        else:
            highest = self._linear(twice, offsets)[0]
        low, high = -highest[count:], highest[:count]
        return np.maximum(low, middle - radius), np.minimum(high, middle + radius)

    def upper_lines(self) -> tuple[Array, Array, list[Array]]:
        """Linear functions of the free inputs above the outputs.

        Returns:
            Their largest values in the box ``(outputs,)``, slopes ``(outputs, free)``, and the
            weight of each group's units in them, ``(outputs, units)`` for each group.
        """
        return self._linear(*self._rows(slice(self.count)))

    def optimized_lines(self, steps: int) -> tuple[Array, Array, list[Array]]:
        """As `upper_lines`, with slopes of the lines below each ReLU that make the bounds smaller.

        Each output has slopes of its own. Any slope from 0 to 1 is right, so that whatever the
        steps do, what comes out is a bound.

        Args:
            steps: gradient steps.

        Source: Xu et al. 2021, alpha-CROWN.
        """
        outputs, known = self._rows(slice(self.count)), self._rows(slice(self.count, None))
        found = self._linear(*outputs)
        best, slopes = found[0].copy(), found[1].copy()
        # What each output takes of what is known to be 0 or more, which only raises it.
        shares = np.zeros((self.count, self.known))
        pushed = np.zeros_like(shares)
        weights = [weight.copy() for weight in found[2]]
        alphas: list[Array | None] = [
            np.repeat(group.lines().low_slope[None], len(best), axis=0)
            if group.curve is RELU
            else None
            for group in self.groups
        ]
        means = [np.zeros(0) if alpha is None else np.zeros_like(alpha) for alpha in alphas]
        for step in range(steps):
            values, gradients = self._at_corners(found, alphas)
            if self.known:
                reached = known[1] + sum(v @ m.T for v, m in zip(values, known[0], strict=True))
                pushed = 0.7 * pushed + reached
                size = np.abs(known[0][0]).sum(axis=1) + 1e-9
                scale = np.abs(found[1]).sum(axis=1, keepdims=True) / size
                largest = np.abs(pushed).max(axis=1, keepdims=True, initial=1e-30)
                shares = np.maximum(shares - 0.5 * 0.7**step * scale * pushed / largest, 0.0)
            for place, gradient in enumerate(gradients):
                alpha = alphas[place]
                if alpha is None or gradient is None or not alpha.size:
                    continue
                means[place] = 0.7 * means[place] + gradient
                size = np.abs(means[place]).max(axis=1, keepdims=True, initial=1e-30)
                rate = 0.5 * 0.7**step
                alpha -= rate * np.clip(3.0 * means[place] / size, -1.0, 1.0)
                np.clip(alpha, 0.0, 1.0, out=alpha)
            taken = outputs
            if self.known:
                taken = (
                    [one + shares @ more for one, more in zip(outputs[0], known[0], strict=True)],
                    outputs[1] + shares @ known[1],
                )
            found = self._linear(*taken, alphas)
            better = found[0] < best
            best[better], slopes[better] = found[0][better], found[1][better]
            for kept, weight in zip(weights, found[2], strict=True):
                if kept.size:
                    kept[better] = weight[better]
        return best, slopes, weights

    def _rows(self, chosen: slice) -> tuple[list[Array], Array]:
        return [matrix[chosen] for matrix in self.matrices], self.offset[chosen]

    def _at_corners(
        self, found: tuple[Array, Array, list[Array]], alphas: Sequence[Array | None]
    ) -> tuple[list[Array], list[Array | None]]:
        """What the lines give where each bound is reached, and how it changes with their slopes."""
        _, slopes, weights = found
        # The corner at which each bound is reached, and what the lines in force give there.
        values = [np.where(slopes > 0, self.high, self.low)]
        gradients: list[Array | None] = []
        for group, weight, alpha in zip(self.groups, weights, alphas, strict=True):
            received = group.offset + sum(
                value @ matrix.T for value, matrix in zip(values, group.matrices, strict=True)
            )
            if not len(group.offset):
                values.append(received)
                gradients.append(None)
                continue
            lines = group.lines()
            below = lines.low_slope if alpha is None else alpha
            above = weight > 0
            high = lines.high_slope * received + lines.high_offset
            values.append(np.where(above, high, below * received + lines.low_offset))
            gradients.append(None if alpha is None else np.where(above, 0.0, weight * received))
        return values, gradients

    def _linear(
        self,
        matrices: Sequence[Array],
        offset: Array,
        alphas: Sequence[Array | None] | None = None,
    ) -> tuple[Array, Array, list[Array]]:
        left = list(matrices)
        constant = offset.copy()
        weights: list[Array] = [np.zeros(0)] * len(self.groups)
        for place in range(len(self.groups) - 1, -1, -1):
            group, coefficients = self.groups[place], left[place + 1]
            weights[place] = coefficients
            if not coefficients.shape[1]:
                continue
            lines = group.lines()
            above = np.maximum(coefficients, 0.0)
            below = coefficients - above
            alpha = None if alphas is None else alphas[place]
            slopes = above * lines.high_slope
            slopes += below * (lines.low_slope if alpha is None else alpha)
            constant += above @ lines.high_offset + below @ lines.low_offset
            constant += slopes @ group.offset
            for number, matrix in enumerate(group.matrices):
                left[number] = left[number] + slopes @ matrix
        slopes = left[0]
        middle, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        return constant + slopes @ middle + np.abs(slopes) @ radius, slopes, weights

    def _interval(self) -> tuple[Array, Array]:
        """Middle and radius of the outputs by one step of intervals."""
        ends = [(self.low, self.high), *(group.ends() for group in self.groups)]
        middle, radius = self.offset.copy(), np.zeros_like(self.offset)
        for matrix, (low, high) in zip(self.matrices, ends, strict=True):
            middle += matrix @ ((low + high) / 2)
            radius += np.abs(matrix) @ ((high - low) / 2)
        return middle, radius

    def restricted(self, place: int, low: float, high: float) -> Reduced:
        """The same with other ends of one free input, which is folded away if they meet."""
        lows, highs = self.low.copy(), self.high.copy()
        lows[place], highs[place] = low, high
        if low < high:
            return dataclasses.replace(self, low=lows, high=highs)

        def without(matrices: Sequence[Array], offset: Array) -> tuple[list[Array], Array]:
            column = matrices[0][:, place]
            others = np.delete(matrices[0], place, axis=1)
            return [others, *matrices[1:]], offset + low * column

        groups = []
        for group in self.groups:
            matrices, offset = without(group.matrices, group.offset)
            groups.append(Group(group.curve, group.low, group.high, matrices, offset, group.error))
        matrices, offset = without(self.matrices, self.offset)
        lows, highs = np.delete(lows, place), np.delete(highs, place)
        return Reduced(lows, highs, groups, matrices, offset, self.known)

    def outputs(self, chosen: Array) -> Reduced:
        """The same with some of the outputs, and what is known of them."""
        rows = np.concatenate([chosen, np.arange(self.count, len(self.offset))])
        return dataclasses.replace(
            self, matrices=[matrix[rows] for matrix in self.matrices], offset=self.offset[rows]
        )

    def switched(self, number: int, unit: int) -> tuple[Reduced, Reduced]:
        """The same where a ReLU is off, and where it is on.

        Args:
            number: of its group.
            unit: which of the group.
        """
        group = self.groups[number]
        parts = []
        for sign in (-1.0, 1.0):
            low, high = group.low.copy(), group.high.copy()
            (high if sign < 0 else low)[unit] = 0.0
            changed = Group(group.curve, low, high, group.matrices, group.offset, group.error)
            rows = [sign * matrix[unit] for matrix in group.matrices]
            rows += [np.zeros(matrix.shape[1]) for matrix in self.matrices[len(rows) :]]
            matrices = [
                np.concatenate([matrix, row[None]])
                for matrix, row in zip(self.matrices, rows, strict=True)
            ]
            offset = np.append(self.offset, sign * group.offset[unit])
            groups = [*self.groups[:number], changed, *self.groups[number + 1 :]]
            parts.append(Reduced(self.low, self.high, groups, matrices, offset, self.known + 1))
        return parts[0], parts[1]


@dataclasses.dataclass
class _Fold:
    """Units of a group that are linear within their bounds.

    Attributes:
        kept: units that are not, as indices.
        gone: units that are.
        slope: of their lines.
        offset: of their lines.
        group: what they receive.
    """

    kept: Array
    gone: Array
    slope: Array
    offset: Array
    group: Group

    @classmethod
    def of(cls, group: Group) -> _Fold:
        slack = group.error if group.curve.has_steps else 0.0
        low, high = group.low - slack, group.high + slack
        straight = group.curve.is_linear(low, high)
        gone = np.flatnonzero(straight)
        lines = straight_lines(group.curve.of(gone), low[gone], high[gone])
        return cls(np.flatnonzero(~straight), gone, *lines, group.rows(gone))


def straight_lines(curve: Curve, low: Array, high: Array) -> tuple[Array, Array]:
    """Slope and offset of a curve that is a straight line between two ends."""
    if curve is RELU:
        return (high > 0).astype("float64"), np.zeros_like(low)
    lines = curve.lines(low, high)
    # A line above and one below are the same but for rounding.
    return lines.high_slope, lines.high_offset


def _folded(
    matrices: Sequence[Array], offset: Array, folds: Sequence[_Fold | None]
) -> tuple[list[Array], Array]:
    """Matrices over what is left of the groups, and the offset with what was folded."""
    left = list(matrices)
    offset = offset.copy()
    # From the first: a folded unit is linear in what is left of the groups before its own.
    for place in range(1, len(folds)):
        fold = folds[place]
        assert fold is not None  # only the free inputs have none
        columns = left[place][:, fold.gone]
        left[place] = left[place][:, fold.kept]
        if columns.shape[1]:
            slopes = columns * fold.slope
            offset += columns @ fold.offset + slopes @ fold.group.offset
            for number, matrix in enumerate(fold.group.matrices):
                left[number] = left[number] + slopes @ matrix
    return left, offset
