"""What a unit of work tells while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from keras_qusec.attacks.classifier import Counter
from keras_qusec.evaluation.ensemble_parts import Tell
from keras_qusec.evaluation.plan import Unit

# How often at most a unit says that it moves.
_SECONDS_BETWEEN = 0.2


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
