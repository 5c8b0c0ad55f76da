"""FAB: steps to the boundary that stay near the clean image."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.minimum_norm import MinimumNormAttack, View, columns, keep_closer
from keras_qusec.attacks.target_order import ORDERS, target_order
from keras_qusec.checks import one_of, whole_number

Tensor = Any

# The published constants: the most that the clean image weighs, how far a step goes beyond the
# boundary, and how far an adversarial image goes back towards the clean one.
_ALPHA, _ETA, _BETA = 0.1, 1.05, 0.9


class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack towards several classes, one after the other (FAB-T).

    Each step projects the image onto the boundary of the model made linear, inside the value
    range, drawn towards the same projection of the clean image.

    Args:
        steps: steps towards each target.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        targets: how many wrong classes are tried.
        order: order of the targets: ``"logits"`` or ``"malt"``, see `APGD`.

    Raises:
        ValueError: for unusable arguments.

    Source: Croce and Hein 2020, Minimally distorted adversarial examples.

    Example:

    >>> from keras_qusec.attacks import FAB, AttackedModel, Goal
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> x, goal = np.array([[0.6, 0.5]], "float32"), Goal(np.array([0]))
    >>> found = FAB(norm="linf").run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> round(float(np.abs(found - x).max()), 2)
    0.05
    """

    def __init__(
        self, *, steps: int = 100, norm: str = "linf", targets: int = 9, order: str = "logits"
    ) -> None:
        self.steps = whole_number(steps, "steps", hint="The published number is 100.")
        self.norm = one_of(norm, "norm", ("linf", "l2", "l1"))
        self.targets = whole_number(targets, "targets", hint="The published number is 9.")
        self.order = one_of(order, "order", ORDERS)
        self.cost = f"{steps} gradients and as many queries, {targets} times"

    def begin(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x,)

    def count(self, model: AttackedModel, images: int, steps: int) -> None:
        model.counter.count(images, steps)
        model.counter.queries += images * steps

    def step(
        self, view: View, x: Tensor, state: tuple[Tensor, ...], place: Tensor,
        values: tuple[float, float],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        best, distance, images = state
        norm = norms.get(self.norm)
        seen = view.look(images)
        slope, gap = seen.gradient, -seen.value
        axes = tuple(range(1, len(x.shape)))
        gap_of_clean = gap + ops.sum(slope * (images - x), axis=axes)
        from_image = norm.to_hyperplane(images, slope, gap, values) - images
        from_clean = norm.to_hyperplane(x, slope, gap_of_clean, values) - x
        far = ops.maximum(norm.length(from_image), 1e-8)
        near = ops.maximum(norm.length(from_clean), 1e-8)
        weight = columns(ops.minimum(far / (far + near), _ALPHA), x)
        there = (1.0 - weight) * (images + _ETA * from_image) + weight * (x + _ETA * from_clean)
        there = ops.clip(there, *values)
        unbroken = view.unbroken(there)
        best, distance = keep_closer(self.norm, x, there, unbroken, best, distance)
        back = columns(unbroken + (1.0 - unbroken) * _BETA, x)
        return best, distance, x + back * (there - x)

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        if goal.targeted:
            return super().run(model, x, goal, epsilon=epsilon, seed=seed)
        order = target_order(model, x, goal.labels, self.targets, self.order, self.norm)
        best, distances = x.copy(), np.full(len(x), np.inf, "float32")
        for aims in order.T:
            rows = np.flatnonzero(distances > (epsilon or 0.0))
            if not len(rows):
                break
            images, reached = self.closest(model, x[rows], goal.take(rows), aims[rows], epsilon)
            closer = reached < distances[rows]
            best[rows[closer]], distances[rows[closer]] = images[closer], reached[closer]
        return best
