"""What a unit of work tells while it runs, and how much of all work is done."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.attacks.classifier import Counter
from keras_qusec.evaluation.ensemble_parts import Tell
from keras_qusec.evaluation.plan import Plan, Unit

# How often at most a unit says that it moves.
_SECONDS_BETWEEN = 0.2
# Passes of an attack whose cost says no number.
_UNKNOWN = 50
# Passes of all images from which on they are timed before.
_WORTH_A_FORECAST = 1e6
# What a pass forward and backward takes, in passes forward.
_GRADIENT = 3


class Costs:
    """What units cost, guessed from their attacks and then measured: the share of work done.

    Args:
        units: all of them.
        plan: of the evaluation.
        done: units that are done already.
    """

    def __init__(self, units: Sequence[Unit], plan: Plan, done: Iterable[Unit]) -> None:
        self.guesses = {unit: _guess(unit, plan) for unit in units}
        finished = set(done)
        # In the order in which they run: the first one does, if they run one after the other.
        self.left = [unit for unit in units if unit not in finished]
        # Seconds and guesses of the units that were measured, by attack and source.
        self.seconds: dict[tuple[str, bool], float] = {}
        self.guessed: dict[tuple[str, bool], float] = {}
        self.largest = 0.0

    def measured(self, unit: Unit, seconds: float) -> None:
        """A unit is done, after some seconds."""
        key = (unit.attack, unit.source is None)
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds
        self.guessed[key] = self.guessed.get(key, 0.0) + self.guesses[unit]
        self.left.remove(unit)

    def share(self, within: float = 0.0) -> float:
        """The share of all work that is done; it never falls.

        Args:
            within: which share of the unit that runs is done.
        """
        guessed = sum(self.guessed.values())
        pace = sum(self.seconds.values()) / guessed if guessed else 1.0
        costs = {}
        for one, guess in self.guesses.items():
            key = (one.attack, one.source is None)
            known = self.seconds[key] / self.guessed[key] if self.guessed.get(key) else pace
            costs[one] = guess * known
        whole = sum(costs.values())
        done = whole - sum(costs[one] for one in self.left)
        if self.left:
            done += within * costs[self.left[0]]
        share = done / whole if whole > 0 else 1.0
        self.largest = max(self.largest, min(1.0, share))
        return self.largest if self.left else 1.0


def forecast(units: Sequence[Unit], plan: Plan, models: Mapping[str, Classifier]) -> float | None:
    """About how many seconds units take if nothing is broken, from the time of a gradient.

    None if that is not long. Images that are broken are left out of what follows.

    Args:
        units: those that are left.
        plan: of the evaluation.
        models: attacked models by name.
    """
    sizes = [min(plan.batch_size, len(plan.x) - u.batch * plan.batch_size) for u in units]
    passes = [_guess(unit, plan) * size for unit, size in zip(units, sizes, strict=True)]
    if sum(passes) < _WORTH_A_FORECAST:
        return None
    paces = {}
    for name in {name for unit in units for name in unit.models}:
        rows = np.arange(min(64, plan.batch_size, len(plan.x)))
        x, goal, model = plan.x[rows], plan.goal.take(rows), models[name]
        began = 0.0
        # The first call compiles.
        for _ in range(2):
            began = time.perf_counter()
            if isinstance(model, AttackedModel):
                model.ascent(x, goal)
            else:
                model.logits(x)
        each = _GRADIENT if isinstance(model, AttackedModel) else 1
        paces[name] = (time.perf_counter() - began) / len(rows) / each
    return sum(
        count * float(np.mean([paces[name] for name in unit.models]))
        for unit, count in zip(units, passes, strict=True)
    )


def _guess(unit: Unit, plan: Plan) -> float:
    """Passes forward of a unit for each image, from what its attacks say that they cost."""
    attack: Any = plan.attacks[unit.attack]
    parts = getattr(attack, "parts", None)
    attacks = list(parts.values()) if parts else [attack]
    passes = 0.0
    for one in attacks:
        numbers = [int(number) for number in re.findall(r"\d+", one.cost)]
        each = _GRADIENT if "gradient" in one.cost else 1
        passes += each * (numbers[0] if numbers else _UNKNOWN)
    # What is not broken is attacked again at each radius, unless the largest one has told.
    again = 1 if getattr(attack, "skip_smaller", False) else len(plan.radii[unit.attack])
    return passes * again * len(unit.models)


class UnitProgress:
    """Tells what a unit is doing, as often as its models are used, but not too often.

    Args:
        unit: what runs.
        counters: of the models that it uses.
        tell: is told.
    """

    def __init__(self, unit: Unit, counters: Sequence[Counter], tell: Tell) -> None:
        self.unit, self.counters, self.tell = unit, counters, tell
        self.part, self.share, self.last = "", 0.0, -math.inf
        self.start = self._passes()

    def _passes(self) -> int:
        return sum(counter.queries for counter in self.counters)

    def on(self, part: str, share: float) -> None:
        """Go on to a part of an ensemble."""
        self.part, self.share = part, share
        self._say()

    def _say(self) -> None:
        passes = self._passes() - self.start
        part = f" {self.part}" if self.part else ""
        self.tell(f"{self.unit.maker}: {self.unit.attack}{part}, {passes:,} passes", self.share)
        self.last = time.monotonic()

    def _counted(self) -> None:
        if time.monotonic() - self.last > _SECONDS_BETWEEN:
            self._say()

    def __enter__(self) -> UnitProgress:
        self._say()
        for counter in self.counters:
            counter.listener = self._counted
        return self

    def __exit__(self, *_: Any) -> None:
        for counter in self.counters:
            counter.listener = None
