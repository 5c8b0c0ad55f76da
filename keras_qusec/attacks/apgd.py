"""Auto-PGD: projected gradient steps whose size follows from their success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.ball import Ball, ball_around, random_images
from keras_qusec.attacks.base import Attack, BatchSearch
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.gradient_attack import rounds
from keras_qusec.attacks.objective import Objective, check_loss
from keras_qusec.attacks.target_order import ORDERS, target_order
from keras_qusec.checks import number, one_of, whole_number
from keras_qusec.norms import column

Tensor = Any

# The share of the steps that are made in a larger ball first.
_FIRST_SHARE = 0.4


class Climb(NamedTuple):
    """Where each image is on its way up, as arrays or tensors.

    Attributes:
        images: present images, ``(n, ...)``.
        before: images one step before.
        gradient: at the present images.
        best: images where the objective was highest.
        best_gradient: gradient there.
        value: present value of the objective, ``(n,)``.
        best_value: its highest value.
        size: step size.
        rises: steps since the last checkpoint that raised the objective.
        unbroken: 0 where the image is adversarial, which then stays, else 1; always 1 where an
            attack goes on with all its steps.
        last_best: highest value at the last checkpoint; for L1 the number of changed values.
        memory: whether the size was halved at the last checkpoint; for L1 the share of the
            values that a step changes.
    """

    images: Any
    before: Any
    gradient: Any
    best: Any
    best_gradient: Any
    value: Any
    best_value: Any
    size: Any
    rises: Any
    unbroken: Any
    last_best: Any
    memory: Any


class Momentum:
    """Steps with momentum, halved where they fail, for L-infinity and L2 (Croce and Hein 2020)."""

    first_size = 2.0

    def checkpoints(self, steps: int) -> list[int]:
        """The numbers of steps between checkpoints."""
        length, shorter, shortest = (max(1, int(share * steps)) for share in (0.22, 0.03, 0.06))
        lengths: list[int] = []
        while sum(lengths) < steps:
            lengths.append(min(length, steps - sum(lengths)))
            length = max(length - shorter, shortest)
        return lengths

    def memory(self, x: np.ndarray) -> tuple[float, float]:
        """What `last_best` and `memory` begin with; no image stalls before it was halved once."""
        return 0.0, 1.0

    def step(self, climb: Climb, ball: Ball, size: Tensor, share: Tensor) -> Tensor:
        """The next images; `share` is the share of the step, the rest is momentum."""
        there = ball.project(climb.images + size * ball.norm.direction(climb.gradient))
        ahead = share * (there - climb.images) + (1.0 - share) * (climb.images - climb.before)
        return ball.project(climb.images + ahead)

    def check(self, climb: Climb, x: np.ndarray, epsilon: float, steps: int) -> Climb:
        """Halve the sizes of images that rose in few steps or not at all, back at their best."""
        stalled = (climb.memory == 0) & (climb.last_best >= climb.best_value)
        halved = (climb.rises <= 0.75 * steps) | stalled
        return _back_to_best(climb, halved)._replace(
            size=np.where(halved, climb.size / 2, climb.size).astype("float32"),
            last_best=climb.best_value.copy(),
            memory=halved.astype("float32"),
        )


class Sparse:
    """Steps that change a share of the values, ever fewer, for L1 (Croce and Hein 2021)."""

    first_size = 1.0

    def checkpoints(self, steps: int) -> list[int]:
        """The numbers of steps between checkpoints."""
        length = max(1, int(0.04 * steps))
        return [min(length, steps - done) for done in range(0, steps, length)]

    def memory(self, x: np.ndarray) -> tuple[float, float]:
        """What `last_best` and `memory` begin with."""
        return float(x[0].size), 0.2

    def step(self, climb: Climb, ball: Ball, size: Tensor, share: Tensor) -> Tensor:
        """The next images: the values of the steepest gradients change equally."""
        width = int(np.prod(ball.x.shape[1:]))
        slope = ops.reshape(ops.absolute(climb.gradient), (-1, width))
        place = ops.cast(ops.clip((1.0 - climb.memory) * width, 0, width - 1), "int32")
        least = ops.take_along_axis(ops.sort(slope, axis=1), place[:, None], axis=1)
        sign = ops.reshape(ops.sign(climb.gradient), (-1, width)) * ops.cast(
            slope >= least, slope.dtype
        )
        count = ops.maximum(ops.sum(ops.absolute(sign), axis=1, keepdims=True), 1.0)
        return ball.project(climb.images + size * ops.reshape(sign / count, ops.shape(ball.x)))

    def check(self, climb: Climb, x: np.ndarray, epsilon: float, steps: int) -> Climb:
        """Steps of full size and fewer values where the best image lost changed values."""
        changed = (climb.best != x).reshape(len(x), -1).sum(axis=1)
        fewer = changed < 0.95 * climb.last_best
        size = np.where(fewer, epsilon, climb.size / 1.5)
        return _back_to_best(climb, fewer)._replace(
            size=np.clip(size, epsilon / 10, epsilon).astype("float32"),
            last_best=changed.astype("float32"),
            memory=(changed / x[0].size / 1.5).astype("float32"),
        )


def _back_to_best(climb: Climb, rows: np.ndarray) -> Climb:
    """The climb with some rows at their best images, as the gradient there; all count anew."""
    rows = rows & (climb.unbroken > 0)
    mask = column(rows, climb.images)
    return climb._replace(
        images=np.where(mask, climb.best, climb.images),
        gradient=np.where(mask, climb.best_gradient, climb.gradient),
        rises=np.zeros_like(climb.rises),
    )


class APGD(Attack):
    """Auto-PGD: gradient steps without a step size to choose.

    Steps begin at twice epsilon and are halved, image by image, at checkpoints where too few of
    them raised the loss; the image then goes on from its best point. For L1, steps change ever
    fewer values and are projected exactly onto the ball inside the value range. Images leave
    when they are adversarial.

    Args:
        loss: ``"ce"`` (cross-entropy), ``"dlr"`` (difference of logits ratio), ``"margin"``
            or ``"log-odds"``, cross-entropy's direction without its saturation. DLR needs three
            classes, and four towards targets; with fewer it is the margin.
        steps: number of gradient steps.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        targets: None to leave the label; a number to try as many wrong classes, one after
            the other (APGD-T).
        order: order of the targets: ``"logits"``, the likeliest first, or ``"malt"``,
            the nearest first if the model were linear (Melamed et al. 2024).
        first_radius: radius of the first two fifths of the steps, in multiples of epsilon. Their
            best image is brought into the ball, where the other steps begin. Where the loss is
            rugged this finds more than random starts do; 1.5 is measured, 1 is published for
            L-infinity and L2, and 3 for L1 (there in three stages).
        restarts: how often an evaluation runs it on each image.

    Raises:
        ValueError: for unusable arguments.

    Source: Croce and Hein 2020, Reliable evaluation of adversarial robustness; 2021, Mind the box.

    Example:

    >>> from keras_qusec.attacks import APGD, AttackedModel, Goal
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> x, goal = np.array([[0.6, 0.5]], "float32"), Goal(np.array([0]))
    >>> attacked = AttackedModel(model)
    >>> found = APGD(steps=10).run(attacked, x, goal, epsilon=0.1, seed=0)
    >>> attacked.predictions(found).tolist()
    [1]
    """

    is_random = True

    def __init__(
        self,
        *,
        loss: str = "ce",
        steps: int = 100,
        norm: str = "linf",
        targets: int | None = None,
        order: str = "logits",
        first_radius: float = 1.0,
        restarts: int = 1,
    ) -> None:
        self.loss = check_loss(loss)
        self.steps = whole_number(steps, "steps", hint="The published number is 100.")
        self.norm = one_of(norm, "norm", ("linf", "l2", "l1"))
        if targets is not None:
            whole_number(targets, "targets", hint="None leaves the label; 9 is published.")
        self.targets = targets
        self.order = one_of(order, "order", ORDERS)
        self.first_radius = float(number(first_radius, "first_radius", least=1))
        self.restarts = whole_number(restarts, "restarts")
        looks = 2 if self.first_radius > 1 else 1
        self.cost = f"{self.steps + looks} gradients" + (f", {targets} times" if targets else "")
        self._rule = Sparse() if norm == "l1" else Momentum()

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        return self.on_batch(model, x, goal)(np.arange(len(x)), epsilon, seed)

    def on_batch(self, model: AttackedModel, x: np.ndarray, goal: Goal) -> BatchSearch:
        """All steps at each radius, from the last radius's perturbation brought to the new one."""
        ends, radii = x.copy(), np.zeros(len(x))
        aims: dict[int, np.ndarray] = {}

        def search(rows: np.ndarray, epsilon: float | None, seed: int) -> np.ndarray:
            radius = epsilon or 0.0
            warm = rows[(radii[rows] > 0) & (radii[rows] != radius)]
            if len(warm):
                scale = column((radius / radii[warm]).astype("float32"), x)
                ends[warm] = np.clip(x[warm] + (ends[warm] - x[warm]) * scale, *model.value_range)
            unbroken = rows
            if len(warm) and not goal.transfer:
                fooled = warm[model.is_adversarial(ends[warm], goal.take(warm))]
                unbroken = rows[~np.isin(rows, fooled)]
            radii[rows] = radius
            if self.targets is None or goal.targeted:
                starts = self._starts(model, x[unbroken], radius, seed)
                again = np.isin(unbroken, warm)
                starts[again] = ends[unbroken[again]]
                ends[unbroken] = self._climb(
                    model, x[unbroken], goal.take(unbroken), None, radius, starts
                )
                return ends[rows]
            new = np.array([row for row in unbroken if row not in aims], int)
            if len(new):
                order = target_order(
                    model, x[new], goal.labels[new], self.targets, self.order, self.norm
                )
                aims.update(zip(new.tolist(), order, strict=True))
            for place in range(self.targets):
                left = unbroken[[place < len(aims[row]) for row in unbroken]]
                if not len(left):
                    break
                starts = self._starts(model, x[left], radius, seed + place)
                aim = np.array([aims[row][place] for row in left])
                part = goal.take(left)
                ends[left] = self._climb(model, x[left], part, aim, radius, starts)
                if not goal.transfer:
                    unbroken = left[~model.is_adversarial(ends[left], part)]
            return ends[rows]

        return search

    def _starts(self, model: AttackedModel, x: np.ndarray, radius: float, seed: int) -> np.ndarray:
        return random_images(model, x, self.norm, radius, seed)

    def _climb(
        self,
        model: AttackedModel,
        x: np.ndarray,
        goal: Goal,
        aims: np.ndarray | None,
        epsilon: float,
        images: np.ndarray,
    ) -> np.ndarray:
        """All steps on a batch; adversarial images, or those where the objective was highest."""
        steps = self.steps
        if self.first_radius > 1:
            first, wide = int(_FIRST_SHARE * steps), self.first_radius * epsilon
            all_steps = goal._replace(transfer=True)
            images = self._stage(model, x, all_steps, aims, wide, images, first)
            images = norms.get(self.norm).into_ball(x, images, epsilon)
            steps -= first
        return self._stage(model, x, goal, aims, epsilon, images, steps)

    def _stage(
        self,
        model: AttackedModel,
        x: np.ndarray,
        goal: Goal,
        aims: np.ndarray | None,
        epsilon: float,
        images: np.ndarray,
        steps: int,
    ) -> np.ndarray:
        """Steps in one ball, from given images."""
        if not len(x) or not steps:
            return images
        objective = goal.objective(self.loss, aimed=aims is not None)
        aims = goal.classes if aims is None else aims.astype(goal.classes.dtype)
        look, advance = self._compiled(model, objective)
        all_steps = np.float32(goal.transfer)
        model.counter.count(len(x))
        gradient, value, unbroken = model.on_rows(
            look, images, goal.labels, aims, scalars=(all_steps,)
        )
        last_best, memory = self._rule.memory(x)
        full = np.full(len(x), self._rule.first_size * epsilon, "float32")
        climb = Climb(
            images, images, gradient, images, gradient, value, value, full,
            np.zeros_like(full), unbroken, np.full_like(full, last_best),
            np.full_like(full, memory),
        )  # fmt: skip
        climb = Climb(*(np.array(part) for part in climb))
        radius, first = np.float32(epsilon), True
        for length in self._rule.checkpoints(steps):
            for count in [1, *rounds(length - 1)] if first else rounds(length):
                rows = np.flatnonzero(_moving(climb))
                if not len(rows):
                    break
                model.counter.count(len(rows), count)
                share = np.float32(1.0 if first else 0.75)
                parts = (part[rows] for part in climb)
                arrays = (x[rows], goal.labels[rows], aims[rows], *parts)
                scalars = (all_steps, radius, share, np.int32(count))
                moved = model.on_rows(advance, *arrays, scalars=scalars)
                for part, new in zip(climb, moved, strict=True):
                    part[rows] = new
                first = False
            climb = self._rule.check(climb, x, epsilon, length)
        return np.where(column(climb.unbroken > 0, x), climb.best, climb.images)

    def _compiled(
        self, model: AttackedModel, objective: Objective
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Functions that look at images, and that make steps."""

        def look(
            mapping: Any, images: Tensor, labels: Tensor, aims: Tensor, all_steps: Tensor
        ) -> tuple[Tensor, ...]:
            ascent = model.traced_ascent(mapping, images, labels, aims, objective)
            unbroken = ops.maximum(ascent.unbroken, all_steps)
            return ops.nan_to_num(ascent.gradient), ascent.value, unbroken

        def advance(mapping: Any, x: Tensor, labels: Tensor, aims: Tensor, *rest: Tensor) -> Any:
            *parts, all_steps, epsilon, share, steps = rest
            ball = ball_around(x, epsilon, self.norm, model.value_range)
            shape = (-1, *([1] * (len(x.shape) - 1)))

            def step(_: Any, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                climb = Climb(*parts)
                moves = ops.reshape(climb.unbroken, shape)
                there = self._rule.step(climb, ball, ops.reshape(climb.size, shape), share)
                images = climb.images + moves * (there - climb.images)
                gradient, value, unbroken = look(mapping, images, labels, aims, all_steps)
                higher = value > climb.best_value
                mask = ops.reshape(higher, shape)
                climb = Climb(
                    images=images,
                    before=climb.images,
                    gradient=gradient,
                    best=ops.where(mask, images, climb.best),
                    best_gradient=ops.where(mask, gradient, climb.best_gradient),
                    value=value,
                    best_value=ops.where(higher, value, climb.best_value),
                    size=climb.size,
                    rises=climb.rises + ops.cast(value > climb.value, value.dtype),
                    unbroken=unbroken,
                    last_best=climb.last_best,
                    memory=climb.memory,
                )
                return tuple(climb)  # JAX wants the type that came in

            return Climb(*ops.fori_loop(0, steps, step, tuple(parts)))

        key = (self.norm, objective)
        return (
            model.compiled(("apgd look", *key), look, batches=3),
            model.compiled(("apgd advance", *key), advance, batches=3 + len(Climb._fields)),
        )


def _moving(climb: Climb) -> np.ndarray:
    """Which images a step can still change: those that stand, but for a gradient of zero."""
    axes = tuple(range(1, climb.images.ndim))
    still = (climb.gradient == 0).all(axis=axes) & (climb.images == climb.before).all(axis=axes)
    return ~still & (climb.unbroken > 0)
