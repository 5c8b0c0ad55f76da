"""The attack on quantizers: a search in the levels that each pixel can reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.gradient_attack import rounds
from keras_qusec.attacks.input_quantizer import InputQuantizer, input_quantizer
from keras_qusec.attacks.objective import Objective
from keras_qusec.attacks.target_order import target_order
from keras_qusec.checks import whole_number

Tensor = Any

# Numbers of pixels, those of the largest gain, that a flip moves at once; and how many of them
# are also moved alone.
_TOGETHER = (1, 2, 3, 5, 8, 13, 21, 34)
_ALONE = 5
# Values of all choices that are computed together, 64 MiB.
_VALUES_AT_A_TIME = 2**24
_MOST_FLIPS = 20


class ReachableLevels(Attack):
    """Search the outputs of a quantizer instead of replacing its gradient.

    A quantizer rises with each value, so within L-infinity epsilon a value reaches exactly the
    levels between those of its darkest and its brightest neighbour. Behind the quantizer the
    gradient is exact. Each round makes gradient steps between these ends, rounds to levels
    (LS-PGA), and then moves the values of largest first-order gain, several choices tried at
    once, until none helps. The levels are mapped back to the nearest pixels, so that the result
    is a real image, checked on the whole model like any other.

    The first round climbs the log-odds, the second the margin, each further one that of a
    target, the nearest first (MALT). Only for models with a quantizer in front:
    `QuSecQuantization`, `TrainableQuSecQuantization`, `BitDepthReduction` or any
    `ValueQuantizer`. It must receive the image, or each of its values scaled and shifted, and
    nothing of the image may reach the model beside it.

    Args:
        steps: gradient steps of a round.
        rounds: number of rounds, on the images that are not broken.
        restarts: how often an evaluation runs it on each image.

    Raises:
        ValueError: for unusable arguments; when it runs, for a model without such a quantizer.

    Source: Buckman et al. 2018, Thermometer encoding (LS-PGA), for the gradient steps.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.attacks import AttackedModel, Goal, ReachableLevels
    >>> model = keras.Sequential([keras.Input((2,)), QuSecQuantization(2, hard=True),
    ...                           keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array(50.0), np.array([[1, 0], [0, 2]], "float32")])
    >>> x, goal = np.array([[0.8, 0.45]], "float32"), Goal(np.array([0]))
    >>> found = ReachableLevels().run(AttackedModel(model), x, goal, epsilon=0.1, seed=0)
    >>> [round(change, 2) for change in (found - x)[0].tolist()]
    [0.0, 0.05]
    """

    norm, is_random, attacks_defense = "linf", True, True

    def __init__(self, *, steps: int = 20, rounds: int = 2, restarts: int = 1) -> None:
        self.steps = whole_number(steps, "steps")
        self.rounds = whole_number(rounds, "rounds")
        self.restarts = whole_number(restarts, "restarts")
        self.cost = f"{steps} gradients and some 100 queries a round, {rounds} rounds"

    def applies_to(self, model: AttackedModel, x: np.ndarray) -> bool:
        return input_quantizer(model, x) is not None

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        quantizer = checked_quantizer(model, x)
        low, high = norms.LInfinity().ends(x, epsilon or 0.0, model.value_range)
        box = _Box(quantizer, goal, quantizer.outputs(low), quantizer.outputs(high))
        own = quantizer.outputs(x)
        outputs = own.copy()
        margins = np.full(len(x), -np.inf, "float32")
        draws = ImageDraws(x, seed)
        targets = np.zeros((len(x), 0), int)
        for number in range(self.rounds):
            rows = np.flatnonzero(margins <= 0)
            if not len(rows):
                break
            aimed = number >= 2 and not goal.targeted
            if aimed and not targets.shape[1]:
                count = self.rounds - 2
                targets = target_order(quantizer.model, outputs, goal.labels, count, "malt", "linf")
            aims = goal.classes[rows]
            if aimed:
                aims = targets[rows, (number - 2) % targets.shape[1]].astype(aims.dtype)
            loss = "log-odds" if number == 0 else "margin"
            objective = goal.objective(loss, aimed=aimed)
            shares = draws.uniform(rows, *x.shape[1:]).astype("float32")
            found, reached = box.relaxed(rows, objective, aims, shares, self.steps)
            found, reached = box.flipped(rows, found, reached)
            higher = reached > margins[rows]
            outputs[rows[higher]], margins[rows[higher]] = found[higher], reached[higher]
        ends = np.where(outputs > own, high, low)
        return quantizer.images(x, ends, outputs)


class _Box:
    """The outputs that images can reach, and searches among them for some rows.

    Args:
        quantizer: through which all of an image passes.
        goal: what the images must reach.
        low: smallest reachable outputs, ``(n, ...)``.
        high: largest reachable outputs.
    """

    def __init__(
        self, quantizer: InputQuantizer, goal: Goal, low: np.ndarray, high: np.ndarray
    ) -> None:
        self.quantizer, self.model, self.goal = quantizer, quantizer.model, goal
        self.low, self.high = low, high

    def margins(self, outputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How far each output is on the wrong side, ``(n,)``: above 0 where it is adversarial."""
        return self.model.margins(outputs, self.goal.take(rows))

    def rounded(self, outputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The nearest levels; a quantizer without steps reaches all outputs."""
        if self.quantizer.grid is None:
            return outputs
        first, step = self.quantizer.grid
        levels = (first + np.round((outputs - first) / step) * step).astype("float32")
        return np.clip(levels, self.low[rows], self.high[rows])

    def relaxed(
        self,
        rows: np.ndarray,
        objective: Objective,
        aims: np.ndarray,
        shares: np.ndarray,
        steps: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient steps between the ends, rounded: the best outputs and their margins.

        Args:
            rows: images.
            objective: what to climb.
            aims: targets, ``(len(rows),)``.
            shares: where to start, from 0 at the smallest output to 1 at the largest.
            steps: their number.
        """
        shape = (-1, *([1] * (shares.ndim - 1)))

        def run(
            mapping: Any, low: Tensor, width: Tensor, labels: Tensor, aims: Tensor, shares: Tensor,
            first: Tensor, steps: Tensor, total: Tensor,
        ) -> Tensor:  # fmt: skip
            def step(place: Tensor, shares: Tensor) -> Tensor:
                ascent = self.model.traced_ascent(
                    mapping, low + width * shares, labels, aims, objective
                )
                done = (first + ops.cast(place, "float32")) / total
                size = 0.2 * (1.0 + ops.cos(math.pi * done))
                moved = shares + size * ops.sign(ops.nan_to_num(ascent.gradient) * width)
                return ops.clip(moved, 0.0, 1.0)

            return ops.fori_loop(0, steps, step, shares)

        compiled = self.model.compiled(("reachable", objective, len(shape)), run, batches=5)
        best = np.zeros_like(shares)
        margins = np.full(len(rows), -np.inf, "float32")
        left, done = np.arange(len(rows)), 0
        for count in rounds(steps):
            part = rows[left]
            width = self.high[part] - self.low[part]
            self.model.counter.count(len(left), count)
            shares[left] = self.model.on_rows(
                compiled, self.low[part], width, self.goal.labels[part], aims[left], shares[left],
                scalars=(np.float32(done), np.int32(count), np.float32(steps)),
            )  # fmt: skip
            done += count
            outputs = self.rounded(self.low[part] + width * shares[left], part)
            reached = self.margins(outputs, part)
            higher = reached > margins[left]
            best[left[higher]], margins[left[higher]] = outputs[higher], reached[higher]
            left = left[reached <= 0]
            if not len(left):
                break
        return best, margins

    def flipped(
        self, rows: np.ndarray, outputs: np.ndarray, margins: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move the values of largest first-order gain as long as that raises the margin."""
        left = np.flatnonzero(margins <= 0)
        for _ in range(_MOST_FLIPS):
            if not len(left):
                break
            # Each image has some forty choices, so only a few are looked at together.
            at_a_time = max(1, _VALUES_AT_A_TIME // (64 * outputs[0].size))
            blocks = [left[i : i + at_a_time] for i in range(0, len(left), at_a_time)]
            left = np.concatenate([self._flip(rows, b, outputs, margins) for b in blocks])
        return outputs, margins

    def _flip(
        self, rows: np.ndarray, left: np.ndarray, outputs: np.ndarray, margins: np.ndarray
    ) -> np.ndarray:
        """One round of moves of the outputs `left` among `rows`; those for which to go on."""
        part, present = rows[left], outputs[left]
        gradient = np.nan_to_num(self.model.ascent(present, self.goal.take(part), "margin"))
        choices = self._choices(part, present, gradient)
        count = choices.shape[1]
        repeated = self.margins(
            choices.reshape(-1, *present.shape[1:]), np.repeat(part, count)
        ).reshape(-1, count)
        best = repeated.argmax(axis=1)
        reached = np.take_along_axis(repeated, best[:, None], axis=1)[:, 0]
        higher = reached > margins[left]
        outputs[left[higher]] = choices[higher, best[higher]]
        margins[left[higher]] = reached[higher]
        kept: np.ndarray = left[higher & (reached <= 0)]
        return kept

    def _choices(self, rows: np.ndarray, outputs: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Outputs to try next, ``(n, choices, ...)``: moves to the ends, and by one level."""
        ends = _moves(outputs, gradient, self.low[rows], self.high[rows])
        if self.quantizer.grid is None or np.isclose(self.quantizer.grid[1], 1.0):
            return ends
        step = np.float32(self.quantizer.grid[1])
        low, high = (self.rounded(outputs + side * step, rows) for side in (-1, 1))
        return np.concatenate([ends, _moves(outputs, gradient, low, high)], axis=1)


def _moves(
    outputs: np.ndarray, gradient: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Outputs with some values moved to the end that raises a linear function, several choices."""
    target = np.where(gradient > 0, high, low).reshape(len(outputs), -1)
    flat = outputs.reshape(len(outputs), -1)
    gain = gradient.reshape(len(outputs), -1) * (target - flat)
    most = min(max(_TOGETHER), gain.shape[1])
    order = np.argpartition(-gain, most - 1, axis=1)[:, :most]
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(gain, order, axis=1)), axis=1)
    groups = [order[:, :count] for count in _TOGETHER if count <= most]
    groups += [order[:, place : place + 1] for place in range(1, min(_ALONE + 1, most))]
    choices = np.repeat(flat[:, None], len(groups), axis=1)
    for place, group in enumerate(groups):
        values = np.take_along_axis(target, group, axis=1)
        np.put_along_axis(choices[:, place], group, values, axis=1)
    return choices.reshape(len(outputs), len(groups), *outputs.shape[1:])


def checked_quantizer(model: AttackedModel, x: np.ndarray) -> InputQuantizer:
    """The quantizer in front of a model.

    Raises:
        ValueError: if there is none.
    """
    quantizer = input_quantizer(model, x)
    if quantizer is None:
        raise ValueError(
            "Expected a model with a quantizer in front, which all of the image passes. Received: "
            f"{model.model.name!r}. Attack it with surrogate gradients: "
            'threat_models=["white-box", "adaptive"].'
        )
    return quantizer
