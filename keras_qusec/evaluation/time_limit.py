"""An evaluation that ends before all images are attacked: what is done counts for itself."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_qusec.evaluation.checked import Checked
from keras_qusec.evaluation.plan import Unit
from keras_qusec.evaluation.run import Outcome
from keras_qusec.stored_images import StoredImages


class TimeLimit:
    """Says when to stop: so early that the next batch of images would end too late.

    The first batch is always finished, for without one there is nothing to report.

    Args:
        seconds: from now on; None for no limit.
        units: all units of work, batch after batch.
    """

    def __init__(self, seconds: float | None, units: Sequence[Unit]) -> None:
        self.seconds, self.start = seconds, time.monotonic()
        # How many units of each batch are left.
        self.left = Counter(unit.batch for unit in units)
        # Batches that were ready before, such as those from disk, say nothing about the pace.
        self.finished = 0

    def known(self, unit: Unit) -> None:
        """A unit was done before."""
        self.left[unit.batch] -= 1

    def reached(self, unit: Unit) -> bool:
        """Whether to stop after a unit that is done now."""
        self.left[unit.batch] -= 1
        if self.seconds is None or self.left[unit.batch]:
            return False
        self.finished += 1
        gone = time.monotonic() - self.start
        return gone + gone / self.finished > self.seconds


def finished_part(
    inputs: Checked, units: Sequence[Unit], outcomes: Mapping[Unit, Outcome]
) -> tuple[Checked, list[Unit], dict[Unit, Outcome], np.ndarray]:
    """An evaluation of those images alone that all attacks were tried on.

    Args:
        inputs: of all images.
        units: all units of work.
        outcomes: of those that are done.

    Returns:
        The inputs, units and outcomes of these images, and their numbers.
    """
    plan = inputs.plan
    unfinished = {unit.batch for unit in units if unit not in outcomes}
    batches = sorted({unit.batch for unit in units} - unfinished)
    size = plan.batch_size
    rows = np.concatenate(
        [np.arange(len(plan.x))[batch * size : (batch + 1) * size] for batch in batches]
    )
    places = {batch: place for place, batch in enumerate(batches)}
    renumbered = {
        unit: unit._replace(batch=places[unit.batch]) for unit in units if unit.batch in places
    }
    images: Any = plan.x
    images = images.taken(rows) if isinstance(images, StoredImages) else images[rows]
    note = (
        f"The time limit was reached: {len(rows)} of {len(plan.x)} images were attacked, in the "
        "order in which they were given, and the others are left out of all figures. With "
        "resume_dir (--resume) the same call goes on from there."
    )
    return (
        dataclasses.replace(
            inputs,
            plan=dataclasses.replace(
                plan,
                x=images,
                goal=plan.goal.take(rows),
                correct={name: right[rows] for name, right in plan.correct.items()},
            ),
            logits={name: values[rows] for name, values in inputs.logits.items()},
            notes=[note, *inputs.notes],
        ),
        list(renumbered.values()),
        {renumbered[unit]: outcomes[unit] for unit in renumbered},
        rows,
    )
