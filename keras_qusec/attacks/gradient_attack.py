"""Steps along the gradient inside a ball: the one loop behind FGSM, BIM and PGD, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec import checks, norms
from keras_qusec.attacks.attacked_model import AttackedModel, padded_tensors
from keras_qusec.attacks.ball import Ball, ball_around, random_images
from keras_qusec.attacks.base import Attack, BatchSearch
from keras_qusec.attacks.goal import Goal
from keras_qusec.backends import with_gradients
from keras_qusec.expected_inputs import check_expected_range
from keras_qusec.integer_inputs import whole_images

Tensor = Any
# The gradient to climb at some images, and an auxiliary output.
Gradient = Callable[[Tensor], tuple[Tensor, Any]]

_UNITS = (
    "In units of the pixel values: for images in [0, 1], epsilon 0.3 is usual on MNIST and "
    "8/255 on CIFAR-10."
)


class Perturbed(NamedTuple):
    """Adversarial images, and what the first gradient pass saw at its starting point.

    An attack of training may say where it started, and what it wants back at the next epoch.
    """

    images: Tensor
    largest_gradient: Tensor
    first_output: Any
    start: Any = None
    kept: Any = None


class GradientAttack(Attack):
    """Steps along the gradient of the loss, projected onto a ball around the clean images.

    ``x <- project(x + step_size * direction(gradient))``, where the direction is the sign for
    L-infinity and the gradient of unit length for L2. `FGSM`, `BIM` and `PGD` are this class
    with their usual settings; a subclass may override `step`.

    Called on a model, and in an evaluation, it follows the log-odds against the label: the
    direction of cross-entropy, but never zero because a softmax is saturated. In training it
    follows the loss that the model was compiled with, which is what training lowers.

    Args:
        epsilon: radius of the ball, in units of the pixel values, 0 or more; leave it out for
            `evaluate_robustness`, which has radii of its own.
        steps: number of gradient steps, 1 or more.
        step_size: length of one step.
        relative_step_size: length of one step as a share of epsilon; default 2.5 / steps, or
            1 for a single step.
        norm: ``"linf"``, ``"l2"`` or another norm with a projection.
        random_start: start at a random point of the ball and not at the clean image.
        targeted: move towards the labels given instead of away from them; in an evaluation,
            its `targets` say so.
        value_range: smallest and largest pixel value; in an evaluation, that of the evaluation.
        restarts: how often an evaluation runs it on each image.

    Raises:
        ValueError: for unusable arguments.

    Source: Madry et al. 2018.

    Example:

    >>> from keras_qusec.attacks import PGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.full((3, 4), 0.5, "float32"), np.array([0, 1, 0])
    >>> adversarial = PGD(epsilon=0.1, steps=5)(model, x, y, seed=0)
    >>> bool(np.abs(adversarial - x).max() <= 0.1 + 1e-6)
    True
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        steps: int,
        step_size: float | None = None,
        relative_step_size: float | None = None,
        norm: str = "linf",
        random_start: bool = True,
        targeted: bool = False,
        value_range: tuple[float, float] = (0.0, 1.0),
        restarts: int = 1,
    ) -> None:
        self.epsilon = epsilon
        if epsilon is not None:
            self.epsilon = checks.number(epsilon, "epsilon", least=0, hint=_UNITS)
        hint = "Use 1 for FGSM, 7 to 40 for PGD."
        self.steps = checks.whole_number(steps, "steps", hint=hint)
        if step_size is not None and relative_step_size is not None:
            raise ValueError(
                "Expected step_size, in units of the pixel values, or relative_step_size, a share "
                f"of epsilon. Received: step_size={step_size!r} and "
                f"relative_step_size={relative_step_size!r}. Leave one out."
            )
        if step_size is not None:
            limit = {"least": 0} if self.epsilon == 0 else {"above": 0}
            step_size = checks.number(step_size, "step_size", hint=_UNITS, **limit)
        if relative_step_size is None:
            relative_step_size = 1.0 if self.steps == 1 else 2.5 / self.steps
        share = checks.number(relative_step_size, "relative_step_size", above=0)
        self._step_size, self.relative_step_size = step_size, share
        norms.get(norm).check_gradient_steps()
        self.norm = norm
        self.random_start = self.is_random = bool(random_start)
        self.targeted = bool(targeted)
        self.value_range = checks.value_range(value_range)
        if self.epsilon is not None and norm == "linf":
            checks.epsilon_inside(self.epsilon, self.value_range)
        if self.epsilon:
            self.check_step_size(self.epsilon)
        self.restarts = checks.whole_number(restarts, "restarts")
        self.cost = f"{self.steps} gradient{'s' if self.steps > 1 else ''}"

    @property
    def step_size(self) -> float | None:
        """Length of one step; None as long as it depends on an epsilon that is not known."""
        return None if self.epsilon is None else self.step_size_at(self.epsilon)

    def step_size_at(self, epsilon: float) -> float:
        """Length of one step in a ball of radius epsilon."""
        return self.relative_step_size * epsilon if self._step_size is None else self._step_size

    def check_step_size(self, epsilon: float) -> None:
        """Raise a ValueError for steps that are in other units than a radius.

        Args:
            epsilon: radius of the ball.
        """
        if self._step_size is None:
            return
        step = self._step_size
        if self.steps * step < epsilon / 10 or step > 20 * epsilon:
            way = "all of them together stay inside a tenth of it"
            if step > epsilon:
                way = "each is more than twenty times as long"
            raise ValueError(
                "Expected step_size in the same units as epsilon, those of the pixel values. "
                f"Received: {self.steps} steps of {step:g} for epsilon {epsilon:g}; {way}. Leave "
                "it out, or give relative_step_size, a share of epsilon."
            )

    def settings(self) -> dict[str, Any]:
        relative = self.relative_step_size if self._step_size is None else None
        return {
            "epsilon": self.epsilon,
            "steps": self.steps,
            "step_size": self._step_size,
            "relative_step_size": relative,
            "norm": self.norm,
            "random_start": self.random_start,
            "targeted": self.targeted or None,
            "value_range": None if self.value_range == (0.0, 1.0) else self.value_range,
            "restarts": self.restarts,
        }

    def check_for_evaluation(self) -> None:
        given = {"epsilons": self.epsilon is not None, "targets": self.targeted,
                 "value_range": self.value_range != (0.0, 1.0)}  # fmt: skip
        for argument, has_own in given.items():
            if has_own:
                raise ValueError(
                    f"Expected an attack without {_OWN[argument]} of its own. Received: {self!r}. "
                    f"The evaluation has the argument {argument}; give the other settings beside "
                    'the name: ("pgd", {"steps": 40}).'
                )

    # Use alone and in an evaluation.

    @with_gradients
    def __call__(
        self,
        model: keras.Model | AttackedModel,
        x: Any,
        y: Any,
        *,
        outputs: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Adversarial images for a model, white-box, as a NumPy array.

        All steps are taken, also by images that fool the model before the last one. Restarts go
        on with the images that do not fool it.

        Args:
            model: built Keras classifier, logits ``(n, classes)`` or softmax probabilities,
                compiled for this call; an `AttackedModel` is compiled once for many calls.
            x: float images in the value range, ``(n, ...)``.
            y: labels ``(n,)`` or one-hot ``(n, classes)``; target labels if targeted.
            outputs: ``"logits"`` or ``"probabilities"``, for a model whose graph does not say.
            seed: seed of the random start; the same seed gives the same images.
            batch_size: images attacked at a time.

        Raises:
            ValueError: for integer images, images outside the value range, labels that do
                not fit, or an attack without an epsilon.
        """
        if self.epsilon is None:
            raise ValueError(
                f"Expected an attack with an epsilon. Received: {self!r}. Set it where the "
                f"attack is made: {type(self).__name__}(epsilon=0.1)."
            )
        x = whole_images(x, [model.model if isinstance(model, AttackedModel) else model])
        checks.float_images(x)
        checks.images_inside(x, self.value_range)
        checks.pixels_used(x, self.value_range)
        if len(x) == 0 or len(np.asarray(y)) != len(x):
            raise ValueError(
                f"Expected as many labels as images, at least one. Received: {len(x)} images "
                f"and {len(np.asarray(y))} labels."
            )
        if not isinstance(model, AttackedModel):
            if not model.built:
                model(ops.convert_to_tensor(x[:1]), training=False)
            check_expected_range(model, self.value_range, model.name)
            model = AttackedModel(model, self.value_range, outputs=outputs)
        labels = checks.class_labels(y, len(x), classes=model.logits(x[:1]).shape[1])
        goal = Goal(labels, labels if self.targeted else None, transfer=True)
        parts, radius = [], model.reach(self.norm, self.epsilon)
        for start in range(0, len(x), batch_size):
            rows = np.arange(start, min(start + batch_size, len(x)))
            images = self._search(model, x[rows], goal.take(rows), radius, seed)
            for restart in range(1, self.restarts):
                left = np.flatnonzero(~model.is_adversarial(images, goal.take(rows)))
                if not len(left):
                    break
                part = rows[left]
                images[left] = self._search(model, x[part], goal.take(part), radius, seed + restart)
            parts += model.deliverable(x[rows], images, self.norm, self.epsilon)
        return np.concatenate(parts)

    def on_batch(self, model: AttackedModel, x: np.ndarray, goal: Goal) -> BatchSearch:
        if self.steps == 1 and not self.random_start:
            return self._one_step(model, x, goal)
        return self._many_steps(model, x, goal)

    def _one_step(self, model: AttackedModel, x: np.ndarray, goal: Goal) -> BatchSearch:
        """A single step from the clean images, whose gradient serves every radius."""
        ascents = np.zeros_like(x)
        known = np.zeros(len(x), bool)

        def search(rows: np.ndarray, epsilon: float | None, _: int) -> np.ndarray:
            new = rows[~known[rows]]
            if len(new):
                ascents[new], known[new] = model.ascent(x[new], goal.take(new)), True
            radius = epsilon or 0.0
            clean, ascent = map(ops.convert_to_tensor, (x[rows], ascents[rows]))
            ball = Ball(clean, radius, norms.get(self.norm), model.value_range)
            moved = self.step(clean, ascent, ball, self.step_size_at(radius))
            return ops.convert_to_numpy(moved)

        return search

    def _many_steps(self, model: AttackedModel, x: np.ndarray, goal: Goal) -> BatchSearch:
        """All steps at each radius; but first the last radius's perturbation made larger.

        Most images that fall at a radius do so to that: one forward pass instead of many steps.
        """
        ends, last = x.copy(), 0.0

        def search(rows: np.ndarray, epsilon: float | None, seed: int) -> np.ndarray:
            nonlocal last
            radius = epsilon or 0.0
            unbroken = rows
            if not goal.transfer and 0 < last < radius:
                larger = x[rows] + (ends[rows] - x[rows]) * np.float32(radius / last)
                ends[rows] = np.clip(larger, *model.value_range)
                unbroken = rows[~model.is_adversarial(ends[rows], goal.take(rows))]
            last = radius
            if len(unbroken):
                ends[unbroken] = self._search(model, x[unbroken], goal.take(unbroken), radius, seed)
            return ends[rows]

        return search

    def _search(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, epsilon: float, seed: int
    ) -> np.ndarray:
        """All steps on a batch; images that reach the goal stay there and leave the batch.

        So do images that are where they have been before: all steps are of one size, so they
        would go round in a circle of which every image was seen (Doldo et al. 2025).
        """
        radius, size = np.float32(epsilon), np.float32(self.step_size_at(epsilon))
        radii = [ops.convert_to_tensor(radius), ops.convert_to_tensor(size)]
        images = x.copy()
        if self.random_start:
            images = random_images(model, x, self.norm, epsilon, seed)
        climb = self._compiled_climb(model, goal)
        moving = np.arange(len(x))
        seen = [{hash(image.tobytes())} for image in images]
        for steps in [self.steps] if goal.transfer else rounds(self.steps):
            if not len(moving):
                break
            model.counter.count(len(moving), steps)
            part = goal.take(moving)
            batches = padded_tensors(x[moving], part.labels, part.classes, images[moving])
            moved, still = climb(*batches, *radii, ops.convert_to_tensor(np.int32(steps)))
            images[moving] = ops.convert_to_numpy(moved)[: len(moving)]
            moving = moving[ops.convert_to_numpy(still)[: len(moving)] > 0]
            places = {row: hash(images[row].tobytes()) for row in moving}
            moving = np.array([r for r in moving if places[r] not in seen[r]], int)
            for row in moving:
                seen[row].add(places[row])
        return images

    def _compiled_climb(self, model: AttackedModel, goal: Goal) -> Callable[..., Any]:
        objective, transfer = goal.objective(), goal.transfer

        def run(
            mapping: Any, x: Tensor, labels: Tensor, aims: Tensor, images: Tensor,
            epsilon: Tensor, step_size: Tensor, steps: Tensor,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            def gradient(images: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
                ascent = model.traced_ascent(mapping, images, labels, aims, objective)
                return ascent.gradient, moving if transfer else moving * ascent.unbroken

            moving = ops.ones_like(ops.cast(labels, x.dtype))
            ball = ball_around(x, epsilon, self.norm, model.value_range)
            return self.climb(gradient, images, moving, ball, step_size, steps)

        return model.compiled((self, "climb", objective, transfer), run, batches=4)

    # The attack itself, inside compiled functions.

    def perturb(
        self,
        gradient: Gradient,
        x: Tensor,
        state: Tensor,
        *,
        epsilon: Tensor,
        step_size: Tensor,
        start: Tensor | None = None,
    ) -> Perturbed:
        """The whole attack, for a training step.

        Args:
            gradient: gradient of the objective to climb, and an auxiliary output.
            x: clean images.
            state: two integers, the state of a `keras.random.SeedGenerator`.
            epsilon: radius of the ball, a number or scalar tensor.
            step_size: length of one step, a number or scalar tensor.
            start: where to start, projected onto the ball; default at random or at `x`.
        """
        step_size = ops.cast(step_size, x.dtype)
        ball = ball_around(x, epsilon, self.norm, self.value_range)
        images = self.start(ball, state) if start is None else ball.project(start)
        # The first step stands before the loop, since its forward pass may be at the clean
        # images, whose outputs are worth logging, and FGSM needs no loop.
        ascent, output = gradient(images)
        largest = ops.max(ops.absolute(ascent))
        images = self.step(images, ascent, ball, step_size)
        if self.steps > 1:
            images, _ = self.climb(
                lambda images, moving: (gradient(images)[0], moving),
                images, ops.ones((), x.dtype), ball, step_size, self.steps - 1,
            )  # fmt: skip
        return Perturbed(images, largest, output)

    def climb(
        self,
        gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        images: Tensor,
        moving: Tensor,
        ball: Ball,
        step_size: Tensor,
        steps: Any,
    ) -> tuple[Tensor, Tensor]:
        """Some steps from `images`: where they end, and which images still move.

        Args:
            gradient: function of the images and of `moving` that returns the gradient to climb
                and which images move on.
            images: where to start, in the ball.
            moving: ``(n,)`` floats, 1 for images that move and 0 for those that stay; or one
                number for all.
            ball: what the steps may reach.
            step_size: length of one step, a scalar tensor.
            steps: their number, an integer or scalar tensor.
        """
        shape = (-1, *([1] * (len(images.shape) - 1)))

        def advance(_: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            images, moving = state
            ascent, moving = gradient(images, moving)
            # A product and not a choice: `where` is many times slower on TensorFlow.
            sizes = step_size * ops.reshape(moving, shape)
            return self.step(images, ascent, ball, sizes), moving

        return ops.fori_loop(0, steps, advance, (images, moving))

    def step(self, images: Tensor, ascent: Tensor, ball: Ball, step_size: Tensor) -> Tensor:
        """One step along a gradient to climb; `step_size` may differ from image to image."""
        return ball.project(images + step_size * ball.norm.direction(ascent))

    def start(self, ball: Ball, state: Tensor) -> Tensor:
        """Where the steps begin: at the clean images, or at random in the ball around them."""
        if not self.random_start:
            return ball.x
        return ball.random_image(state)


_OWN = {"epsilons": "an epsilon", "targets": "targets", "value_range": "a value range"}


def rounds(steps: int) -> list[int]:
    """Steps between two looks at which images have reached the goal, that sum to `steps`.

    Two at first, since most images fall early, then more. A look costs a small part of a step,
    and an image that has fallen costs whole steps until the next one.
    """
    counts: list[int] = []
    while steps > 0:
        counts.append(min(2 + sum(counts) // 4, steps))
        steps -= counts[-1]
    return counts
