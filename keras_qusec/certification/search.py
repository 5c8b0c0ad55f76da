"""Exact search: branch and bound over the levels that an image's free pixels can reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from keras_qusec.certification.curves import RELU
from keras_qusec.certification.reduced import Reduced
from keras_qusec.results import BROKEN, OPEN, PROVED

Array = np.ndarray
# Asked whether an input, one number for each free value, is an adversarial example; None if it
# is none and yet its outputs are within rounding of it, so that nothing is proved of it.
Check = Callable[[Array], bool | None]

# So many corners are cheaper to be tried at once than to be searched.
_ENUMERATED = 2048
# Corners of such a box that are asked for, if so many are within rounding of being adversarial.
_ASKED = 32
# Gradient steps on the slopes of the lines below ReLUs, at each box.
_SLOPE_STEPS = 5
# Inputs at which a box is split at once.
_SPLITS = 2
# Boxes, the first ones, whose units' bounds are computed with such steps, too.
_CAREFUL = 1


class Found(NamedTuple):
    """What a search says of an image.

    Attributes:
        state: ``"proved"``, ``"broken"`` or ``"open"``.
        bound: no margin of the box is larger than this, as far as the search came; above 0 the
            image may be misclassified.
        nodes: boxes that were bounded.
    """

    state: str
    bound: float
    nodes: int


class _Box(NamedTuple):
    """A part of the box that is not decided yet.

    Attributes:
        network: reduced to it, its outputs the margins of the classes that are left.
        levels: for each free input the values it can have; None for all between its ends.
        places: for each free input its number among those of the whole box.
        fixed: values of all inputs of the whole box, those that are free excepted.
        margins: rounding of each output that is left.
        bound: that of the box it comes from.
    """

    network: Reduced
    levels: list[Array | None]
    places: Array
    fixed: Array
    margins: Array
    bound: float


def search(
    network: Reduced,
    levels: Sequence[Array | None],
    margins: Array,
    check: Check,
    *,
    seconds: float,
    exact: bool = True,
) -> Found:
    """Decide whether any output of a reduced network can be above its margin below zero.

    Args:
        network: its outputs are the logits of other classes minus that of the label.
        levels: for each free input the values it can have, or None for all between its ends.
        margins: how much rounding may add to each output, above 0.
        check: asked for inputs that seem adversarial.
        seconds: time after which the search gives up.
        exact: the values that the reduced network computes are those of the network; False if it
            has steps inside.

    Returns:
        `Found`. Proved means that every output is below zero by more than its margin wherever the
        inputs may be.
    """
    return _Search(margins, check, time.perf_counter() + seconds, exact).run(network, levels)


class _Search:
    def __init__(self, margins: Array, check: Check, end: float, exact: bool) -> None:
        self.margins, self.check, self.end, self.exact = margins, check, end, exact
        self.nodes = 0
        self.broken = False
        self.tried: set[bytes] = set()
        # The largest bound among the boxes that can be split no more.
        self.undecided = -np.inf
        # The largest output of an input that was asked for, and is not adversarial: within
        # rounding of it, so that no proof is possible. Only what is larger is of use then.
        self.reached = -np.inf

    def run(self, network: Reduced, levels: Sequence[Array | None]) -> Found:
        count = len(network.low)
        first = _Box(
            network, list(levels), np.arange(count), (network.low + network.high) / 2,
            self.margins, np.inf,
        )  # fmt: skip
        waiting = [first]
        while waiting and not self.broken:
            if self.nodes and time.perf_counter() > self.end:
                bound = max(box.bound for box in waiting)
                return Found(OPEN, max(bound, self.undecided), self.nodes)
            waiting += self._divided(waiting.pop())
        if self.broken:
            return Found(BROKEN, np.inf, self.nodes)
        if self.undecided > -np.inf:
            return Found(OPEN, self.undecided, self.nodes)
        return Found(PROVED, 0.0, self.nodes)

    def _divided(self, box: _Box) -> list[_Box]:
        """The parts of a box that are left to look at, the most promising one last."""
        self.nodes += 1
        careful = self.nodes <= _CAREFUL
        # Many images are proved by the bounds that came with them, at a tenth of the time.
        if careful and (box.network.upper_lines()[0] + box.margins < 0).all():
            return []
        network = box.network.tighten(_SLOPE_STEPS if careful else 0)
        if network is None:
            return []
        highest, slopes, weights = network.upper_lines()
        left = np.flatnonzero(~((highest + box.margins < 0) | (highest <= self.reached)))
        if not len(left):
            return []
        network, margins = network.outputs(left), box.margins[left]
        box = box._replace(network=network, margins=margins)
        if self._enumerated(box):
            return []
        highest, slopes, weights = network.optimized_lines(_SLOPE_STEPS)
        left = np.flatnonzero(~((highest + margins < 0) | (highest <= self.reached)))
        if not len(left):
            return []
        self._try_corners(network, box, slopes[left])
        if self.broken:
            return []
        bound = float((highest + margins)[left].max())
        gains, gaps = _gains(network, highest, margins[left], left, slopes, weights)
        box = box._replace(network=network.outputs(left), margins=margins[left], bound=bound)
        parts = []
        if any(values is None for values in box.levels):
            parts = _switched(box, gaps)
        parts = parts or _split_at(box, box.places[np.argsort(-gains)])
        if not parts:
            self.undecided = max(self.undecided, bound)
        return parts

    def _try_corners(self, network: Reduced, box: _Box, slopes: Array) -> None:
        """Ask for the corners at which the bounds are largest, if they seem adversarial."""
        if not len(network.low):
            corners = np.zeros((1, 0))
        else:
            corners = np.where(slopes > 0, network.high, network.low)
        self._ask(corners, network.forward(corners), box)

    def _ask(self, corners: Array, outputs: Array, box: _Box, *, most: int = 3) -> None:
        """Ask for inputs whose outputs are not clearly below zero, the most likely first."""
        highest = (outputs + box.margins).max(axis=1)
        for row in np.argsort(-highest)[:most]:
            if highest[row] < 0:
                return
            whole = box.fixed.copy()
            whole[box.places] = corners[row]
            if whole.tobytes() in self.tried:
                continue
            self.tried.add(whole.tobytes())
            answer = self.check(whole)
            if answer:
                self.broken = True
                return
            if answer is None:
                self.reached = max(self.reached, float(outputs[row].max()))
                self.undecided = max(self.undecided, float(highest[row]))

    def _enumerated(self, box: _Box) -> bool:
        """Try all corners of a small box; whether that was done."""
        if not self.exact or any(values is None for values in box.levels):
            return False
        count = np.prod([float(len(values)) for values in box.levels if values is not None])
        if count > _ENUMERATED:
            return False
        choices = [values for values in box.levels if values is not None]
        grid = np.meshgrid(*choices, indexing="ij") if choices else []
        corners = np.stack([axis.ravel() for axis in grid], axis=1) if grid else np.zeros((1, 0))
        outputs = box.network.forward(corners)
        highest = (outputs + box.margins).max(axis=1)
        near = np.flatnonzero(~(highest < 0))
        # Alone, a corner has a smaller margin than the box.
        self._ask(corners, outputs, box, most=_ASKED)
        if len(near) > _ASKED and not self.broken:
            self.undecided = max(self.undecided, float(highest.max()))
        return True


def _gains(
    network: Reduced,
    highest: Array,
    margins: Array,
    left: Array,
    slopes: Array,
    weights: Sequence[Array],
) -> tuple[Array, list[Array]]:
    """How much each free input, and each unit, loosens the bound farthest from proved."""
    worst = left[np.argmax(highest[left] + margins)]
    width = network.high - network.low
    gains = 0.5 * np.abs(slopes[worst]) * width
    reach: list[Array] = []
    gaps: list[Array] = []
    for group, weight in zip(network.groups, weights, strict=True):
        # How much each free input moves each unit, through the units before at their chords.
        lines = group.lines()
        moved = np.abs(group.matrices[0])
        for matrix, before in zip(group.matrices[1:], reach, strict=True):
            moved = moved + np.abs(matrix) @ before
        reach.append(np.abs(lines.high_slope)[:, None] * moved)
        if not weight.size:
            gaps.append(np.zeros(0))
            continue
        gap = (lines.high_slope - lines.low_slope) * group.high
        gap = np.abs(weight[worst]) * np.maximum(
            lines.high_offset - lines.low_offset, np.maximum(gap, 0.0)
        )
        gaps.append(gap)
        shares = moved * width
        total = shares.sum(axis=1)
        gains = gains + (gap / np.maximum(total, 1e-30)) @ shares
    return gains, gaps


def _switched(box: _Box, gaps: Sequence[Array]) -> list[_Box]:
    """A box with the ReLU off and on that loosens the bound most; none if there is no ReLU left."""
    network = box.network
    best = [
        float(gap.max(initial=0.0)) if group.curve is RELU else 0.0
        for group, gap in zip(network.groups, gaps, strict=True)
    ]
    if not best or max(best) <= 0:
        return []
    number = int(np.argmax(best))
    halves = network.switched(number, int(np.argmax(gaps[number])))
    return [box._replace(network=half) for half in halves]


def _split_at(box: _Box, order: Array) -> list[_Box]:
    """Parts of a box, split at the first inputs of an order that can be split.

    Two at once: the boxes between are bounded only to be split again.
    """
    parts, splits = [box], 0
    for name in order:
        divided = []
        for part in parts:
            (place,) = np.flatnonzero(part.places == name)
            divided += _split(part, int(place)) or [part]
        if len(divided) > len(parts):
            parts, splits = divided, splits + 1
        if splits == _SPLITS:
            break
    return parts if splits else []


def _split(box: _Box, place: int) -> list[_Box]:
    """Two boxes, or one for each level, that make up one; none if an input cannot be split."""
    low, high = float(box.network.low[place]), float(box.network.high[place])
    levels = box.levels[place]
    if levels is None:
        middle = (low + high) / 2
        if not low < middle < high:
            return []
        parts: list[tuple[float, float, Array | None]] = [(low, middle, None), (middle, high, None)]
    else:
        half = len(levels) // 2
        if not half:
            return []
        parts = [
            (float(values[0]), float(values[-1]), values)
            for values in (levels[:half], levels[half:])
        ]
    boxes = []
    for least, most, values in parts:
        network = box.network.restricted(place, least, most)
        fixed, places, rest = box.fixed, box.places, list(box.levels)
        if least == most:
            fixed = fixed.copy()
            fixed[places[place]] = least
            places = np.delete(places, place)
            del rest[place]
        else:
            rest[place] = values
        boxes.append(box._replace(network=network, levels=rest, places=places, fixed=fixed))
    return boxes
