"""A classifier under attack: its predictions, and gradient attacks that stop when they win."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec.attacks.gradient_attacks import GradientAttack, seed_state_of
from keras_qusec.evaluation.bridge import Counter, foolbox_model, logits_function, padded
from keras_qusec.gradients import compiled, compiled_forward, input_gradient
from keras_qusec.layers import find_quantizers, surrogate_gradients

Tensor = Any


class Goal(NamedTuple):
    """What an adversarial example must do: leave its label, or reach its target.

    Attributes:
        labels: true classes, ``(n,)`` int64.
        targets: classes to be reached, ``(n,)`` int64, or None for untargeted attacks.
    """

    labels: np.ndarray
    targets: np.ndarray | None = None

    @property
    def classes(self) -> np.ndarray:
        """The classes an attack moves away from, or towards."""
        return self.labels if self.targets is None else self.targets

    def reached(self, predictions: np.ndarray) -> np.ndarray:
        """Which predictions are the attack's success, ``(n,)`` bool."""
        if self.targets is None:
            return predictions != self.labels
        return predictions == self.targets

    def take(self, rows: np.ndarray) -> Goal:
        """The goal of some of the images."""
        targets = None if self.targets is None else self.targets[rows]
        return Goal(self.labels[rows], targets)


class AttackedModel:
    """A Keras classifier compiled for attacks, and counters of its use.

    Args:
        model: built Keras classifier; its weights must not change while this is in use.
        value_range: smallest and largest pixel value.

    Raises:
        ValueError: if the model's logits cannot be reached.
    """

    def __init__(self, model: keras.Model, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.model = model
        self.value_range = value_range
        self.quantized = bool(find_quantizers(model))
        self.counter = Counter()
        self._logits = logits_function(model)
        self._variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._forward = compiled_forward(self._run_forward, self._variables)
        self._searches: dict[Any, Any] = {}
        self._foolbox: dict[float | None, Any] = {}

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits ``(n, classes)`` of images, as NumPy; counted as queries."""
        self.counter.queries += len(x)
        return ops.convert_to_numpy(self._forward(ops.convert_to_tensor(_pad(x))))[: len(x)]

    def outputs(self, x: np.ndarray) -> Tensor:
        """What the model itself gives, softmax and all; not counted."""
        with keras.StatelessScope(state_mapping=[(v, v.value) for v in self._variables]):
            outputs = self.model(ops.convert_to_tensor(x), training=False)
        return ops.stop_gradient(outputs)

    def predictions(self, x: np.ndarray) -> np.ndarray:
        """Predicted classes ``(n,)``; an image with a NaN in its logits is class 0."""
        return np.nan_to_num(self.logits(x), nan=-np.inf).argmax(axis=1)

    @contextlib.contextmanager
    def foolbox(self, hardness: float | None) -> Iterator[Any]:
        """The model for Foolbox's attacks, with surrogate gradients of a hardness or its own."""
        with surrogate_gradients(self.model, hardness):
            if hardness not in self._foolbox:
                self._foolbox[hardness] = foolbox_model(self.model, self.value_range, self.counter)
            yield self._foolbox[hardness]

    def slope(self, attack: GradientAttack, x: np.ndarray, goal: Goal, hardness: float | None,
              ) -> np.ndarray:  # fmt: skip
        """The gradient of the attack's loss at clean images, ``(n, ...)``."""
        self._count(len(x), 1)
        run = self._compiled_search(attack, hardness, "slope")
        inputs = (_pad(x), _pad(goal.classes))
        return ops.convert_to_numpy(run(*map(ops.convert_to_tensor, inputs)))[: len(x)]

    def search(
        self,
        attack: GradientAttack,
        x: np.ndarray,
        goal: Goal,
        *,
        hardness: float | None,
        seed: int,
        stop: bool = True,
    ) -> np.ndarray:
        """Run an attack on a batch and return where it ended.

        An image that has become adversarial at any step stays as it is, and after a while
        leaves the batch; with ``stop=False`` (to transfer to another model) every image takes
        all steps.
        """
        start = self._compiled_search(attack, None, "start")
        keys = (np.float32(attack.epsilon), seed_state_of(seed, 0))
        tensors = [ops.convert_to_tensor(part) for part in (_pad(x), *keys)]
        images = np.array(ops.convert_to_numpy(start(*tensors))[: len(x)])
        run = self._compiled_search(attack, hardness, "stop" if stop else "all")
        alive = np.arange(len(x))
        for steps in _rounds(attack.steps) if stop else [attack.steps]:
            if not len(alive):
                break
            self._count(len(alive), steps)
            parts = (x[alive], goal.classes[alive], goal.labels[alive], images[alive])
            settings = (attack.epsilon, attack.step_size)
            tensors = [ops.convert_to_tensor(_pad(part)) for part in parts]
            tensors += [ops.convert_to_tensor(np.float32(setting)) for setting in settings]
            moved, moving = run(*tensors, ops.convert_to_tensor(np.int32(steps)))
            images[alive] = ops.convert_to_numpy(moved)[: len(alive)]
            alive = alive[ops.convert_to_numpy(moving)[: len(alive)] > 0]
        return images

    def _count(self, images: int, steps: int) -> None:
        self.counter.gradients += images * steps
        self.counter.queries += images * steps

    def _run_forward(self, mapping: Any, images: Tensor) -> Tensor:
        with keras.StatelessScope(state_mapping=mapping):
            return self._logits(images)

    def _compiled_search(self, attack: GradientAttack, hardness: float | None, part: str) -> Any:
        key = (attack.norm, attack.random_start, attack.targeted, hardness, part)
        if key not in self._searches:
            batches = {"start": 1, "slope": 2}.get(part, 4)
            run = self._traced(attack, hardness, part)
            self._searches[key] = compiled(run, self._variables, batches=batches)
        return self._searches[key]

    def _traced(self, attack: GradientAttack, hardness: float | None, part: str) -> Any:
        """The function to compile: the start, the first gradient, or the steps of an attack."""

        def gradient(mapping: Any, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            def objective(images: Tensor) -> tuple[Tensor, Tensor]:
                logits = self._run_forward(mapping, images)
                return log_odds_against(classes, logits), logits

            with surrogate_gradients(self.model, hardness):  # read when traced
                return input_gradient(objective, images)

        def start(_: Any, x: Tensor, epsilon: Tensor, seed_state: Tensor) -> Tensor:
            return attack.start(x, ops.cast(epsilon, x.dtype), seed_state)

        def slope(mapping: Any, x: Tensor, classes: Tensor) -> Tensor:
            return gradient(mapping, x, classes)[0]

        def steps(
            mapping: Any,
            x: Tensor,
            classes: Tensor,
            labels: Tensor,
            images: Tensor,
            epsilon: Tensor,
            step_size: Tensor,
            count: Tensor,
        ) -> tuple[Tensor, Tensor]:
            shape = (-1, *([1] * (len(x.shape) - 1)))

            def advance(_: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
                images, moving = state
                direction, logits = gradient(mapping, images, classes)
                if part == "stop":
                    predicted = ops.cast(ops.argmax(logits, axis=-1), labels.dtype)
                    open_ = predicted != classes if attack.targeted else predicted == labels
                    moving = moving * ops.cast(open_, moving.dtype)
                # A product and not a choice: `where` is many times slower on TensorFlow.
                sizes = step_size * ops.reshape(moving, shape)
                return attack.advance(images, direction, x, epsilon, sizes), moving

            moving = ops.ones_like(ops.cast(labels, x.dtype))
            return ops.fori_loop(0, count, advance, (images, moving))

        return {"start": start, "slope": slope, "stop": steps, "all": steps}[part]


def log_odds_against(classes: Tensor, logits: Tensor) -> Tensor:
    """Sum over the batch of the log-odds that an image is not of a class.

    Its gradient is that of the cross-entropy but for a positive factor, 1 / (1 - p), an image;
    so steps along its sign or its direction are the same. But where p rounds to 1 in float32
    the gradient of the cross-entropy is exactly zero, and an attack stands still.

    Args:
        classes: ``(n,)`` integers.
        logits: ``(n, classes)`` float.

    Example:

    >>> from keras import ops
    >>> logits = ops.convert_to_tensor([[500.0, 100.0]])
    >>> float(log_odds_against(ops.convert_to_tensor([0]), logits))
    -400.0
    """
    own = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    others = ops.logsumexp(logits - 1e9 * own, axis=-1)
    return ops.sum(others - ops.sum(logits * own, axis=-1))


def _rounds(steps: int) -> list[int]:
    """Steps between two looks at which images are done, that sum to `steps`.

    Two at first, since most images fall early, then more. A look costs a small part of a step,
    and an image that has fallen costs whole steps until the next one.
    """
    rounds: list[int] = []
    while steps > 0:
        rounds.append(min(2 + sum(rounds) // 4, steps))
        steps -= rounds[-1]
    return rounds


def _pad(array: np.ndarray) -> np.ndarray:
    return padded(array) if keras.backend.backend() == "jax" else array
