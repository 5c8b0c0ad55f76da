"""The loop of attacks that look for the closest adversarial example by gradients, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import Ascent, AttackedModel
from keras_qusec.attacks.base import Attack, arguments
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.objective import Objective

Tensor = Any


class View(NamedTuple):
    """What a step may ask of the model, inside compiled code.

    Attributes:
        look: function of images that returns the gradient and value of the objective, and which
            images are not adversarial.
        unbroken: function of images that returns the last alone, without a gradient.
    """

    look: Callable[[Tensor], Ascent]
    unbroken: Callable[[Tensor], Tensor]


# A distance that no image has, in compiled code. An infinite one would stop the tools by which
# users look for a NaN of their own.
FAR = np.float32(3e38)

# Steps in one call of compiled code; images that are close enough leave in between.
_STEPS_AT_ONCE = 10


class MinimumNormAttack(Attack):
    """Steps that bring adversarial images ever closer; a subclass writes `begin` and `step`.

    The state is a tuple of arrays with a row for each image. Its first two are the closest
    adversarial images, and their distances, infinite where there are none.
    """

    minimizes = True
    steps: int

    def begin(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the state begins with behind the closest images and their distances."""
        raise NotImplementedError

    def step(
        self, view: View, x: Tensor, state: tuple[Tensor, ...], place: Tensor,
        values: tuple[float, float],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The next state.

        Args:
            view: what the model says of images.
            x: clean images.
            state: see above.
            place: number of the step, a float scalar from 0.
            values: smallest and largest pixel value.
        """
        raise NotImplementedError

    def objective(self, goal: Goal, aimed: bool) -> Objective:
        """What the look returns the gradient of."""
        return goal.objective("margin", aimed=aimed)

    def closest(
        self,
        model: AttackedModel,
        x: np.ndarray,
        goal: Goal,
        aims: np.ndarray | None,
        close_enough: float | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The closest adversarial images, clean where there are none, and their distances.

        Args:
            model: the classifier.
            x: clean images.
            goal: what to reach.
            aims: targets to go towards, or None for the goal's.
            close_enough: distance at which the search for an image ends; None for never.
        """
        objective = self.objective(goal, aims is not None)
        aims = goal.classes if aims is None else aims.astype(goal.classes.dtype)

        def run(mapping: Any, x: Tensor, labels: Tensor, aims: Tensor, *rest: Tensor) -> Any:
            *state, first, steps = rest

            def look(images: Tensor) -> Ascent:
                seen = model.traced_ascent(mapping, images, labels, aims, objective)
                return seen._replace(gradient=ops.nan_to_num(seen.gradient))

            def unbroken(images: Tensor) -> Tensor:
                return model.traced_unbroken(mapping, images, labels, aims, objective)

            def step(place: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                number = first + ops.cast(place, "float32")
                return self.step(View(look, unbroken), x, state, number, model.value_range)

            return ops.fori_loop(0, steps, step, tuple(state))

        distances = np.full(len(x), FAR, "float32")
        state = [x.copy(), distances, *(np.array(part) for part in self.begin(x))]
        key = (type(self).__name__, arguments(self.settings()), objective)
        compiled = model.compiled(key, run, batches=3 + len(state))
        rows = np.arange(len(x))
        for done in range(0, self.steps, _STEPS_AT_ONCE):
            if not len(rows):
                break
            steps = min(_STEPS_AT_ONCE, self.steps - done)
            self.count(model, len(rows), steps)
            parts = [part[rows] for part in state]
            moved = model.on_rows(
                compiled, x[rows], goal.labels[rows], aims[rows], *parts,
                scalars=(np.float32(done), np.int32(steps)),
            )  # fmt: skip
            for part, new in zip(state, moved, strict=True):
                part[rows] = new
            if close_enough is not None:
                rows = rows[state[1][rows] > close_enough]
        return state[0], np.where(state[1] < FAR, state[1], np.inf).astype("float32")

    def count(self, model: AttackedModel, images: int, steps: int) -> None:
        """Count the passes of some steps."""
        model.counter.count(images, steps)

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        return self.closest(model, x, goal, None, epsilon)[0]


def keep_closer(
    norm: str, x: Tensor, images: Tensor, unbroken: Tensor, best: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """The closest images and their distances, with new ones taken up where they are closer."""
    size = norms.get(norm).length(images - x)
    closer = ops.logical_and(unbroken == 0, size < distance)
    mask = ops.reshape(closer, (-1, *([1] * (len(x.shape) - 1))))
    return ops.where(mask, images, best), ops.where(closer, size, distance)


def columns(values: Tensor, x: Tensor) -> Tensor:
    """Numbers ``(n,)`` with unit axes, to be multiplied with images."""
    return ops.reshape(values, (-1, *([1] * (len(x.shape) - 1))))
