"""FGSM, BIM and PGD in ``keras.ops``: one loop, compiled once for any number of steps."""

from __future__ import annotations

import difflib
import math
import numbers
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec.gradients import compiled, input_gradient
from keras_qusec.layers import find_quantizers
from keras_qusec.quantization import check_images_dtype, check_value_range

Tensor = Any
# Gradient of the attack's objective at some images, and the auxiliary output.
Gradient = Callable[[Tensor], tuple[Tensor, Any]]

NORMS = ("linf", "l2")


class Perturbed(NamedTuple):
    """Adversarial images, and what the first gradient pass found at its starting point."""

    images: Tensor
    largest_gradient: Tensor
    first_output: Any


class GradientAttack:
    """Steps along the gradient of the loss, projected onto a ball around the clean images.

    ``x <- project(x + step_size * direction(gradient))``, where the direction is the sign for
    L-infinity and the gradient of unit length for L2, and the projection is onto the ball of
    radius epsilon and the value range. The loss is cross-entropy.

    `FGSM`, `BIM` and `PGD` are this class with their usual settings.

    Args:
        epsilon: radius of the ball, in units of the pixel values; 0 or more.
        steps: number of gradient steps, 1 or more.
        step_size: length of one step; default 2.5 * epsilon / steps, or epsilon if steps
            is 1.
        norm: ``"linf"`` or ``"l2"``.
        random_start: start at a random point of the ball and not at the clean image.
        targeted: move towards the labels given instead of away from them.
        value_range: smallest and largest pixel value.

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
        epsilon: float,
        *,
        steps: int,
        step_size: float | None = None,
        norm: str = "linf",
        random_start: bool = True,
        targeted: bool = False,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.epsilon = _check_number(epsilon, "epsilon", allow_zero=True)
        whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
        if not whole or steps < 1:
            raise ValueError(
                f"Expected steps to be a whole number from 1 up. Received: steps={steps!r}. "
                "Use 1 for FGSM, 7 to 40 for PGD."
            )
        self.steps = int(steps)
        if step_size is None:
            step_size = self.epsilon * (1.0 if self.steps == 1 else 2.5 / self.steps)
        self.step_size = _check_number(step_size, "step_size", allow_zero=self.epsilon == 0)
        if norm not in NORMS:
            raise ValueError(
                f"Expected norm to be one of {NORMS}. Received: norm={norm!r}. "
                'The usual threat model on images is "linf".'
            )
        self.norm = norm
        self.random_start = bool(random_start)
        self.targeted = bool(targeted)
        self.value_range = check_value_range(value_range)
        # Made here because TensorFlow makes no variables inside compiled functions.
        self._generator = keras.random.SeedGenerator(0)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(epsilon={self.epsilon:g}, steps={self.steps}, "
            f"step_size={self.step_size:g}, norm={self.norm!r}, "
            f"random_start={self.random_start}, targeted={self.targeted})"
        )

    def __call__(
        self,
        model: keras.Model,
        x: Any,
        y: Any,
        *,
        seed: int = 0,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Adversarial images for a model, white-box, as a NumPy array.

        Args:
            model: built Keras classifier, logits ``(n, classes)`` or softmax probabilities.
                Logits are attacked; a softmax at the end of the model hides gradients.
            x: float images in the value range, ``(n, ...)``.
            y: labels ``(n,)`` or one-hot ``(n, classes)``; target labels if targeted.
            seed: seed of the random start; the same seed gives the same images.
            batch_size: images attacked at a time.

        Raises:
            ValueError: for integer images, images outside the value range or labels that do
                not fit.
        """
        x, y = np.asarray(x), np.asarray(y)
        check_images_dtype(x)
        check_inside(x, self.value_range)
        if len(x) == 0 or len(y) != len(x):
            raise ValueError(
                f"Expected as many labels as images, at least one. Received: {len(x)} images "
                f"and {len(y)} labels."
            )
        if y.ndim > 1 and y.shape[-1] == 1:
            y = y[..., 0]
        step = _compiled_attack(self, model, probabilities=outputs_probabilities(model))
        settings = (self.epsilon, self.step_size, self.steps)
        batches = []
        for index, start in enumerate(range(0, len(x), batch_size)):
            rows = slice(start, start + batch_size)
            tensors = (x[rows], y[rows], *(np.asarray(s, "float32") for s in settings[:2]))
            keys = (np.asarray(self.steps, "int32"), seed_state_of(seed, index))
            images = step(*map(ops.convert_to_tensor, (*tensors, *keys)))
            batches.append(ops.convert_to_numpy(images))
        return np.concatenate(batches)

    def perturb(
        self,
        gradient: Gradient,
        x: Tensor,
        seed_state: Tensor,
        *,
        epsilon: Tensor,
        step_size: Tensor,
        steps: Any = None,
        start: Tensor | None = None,
    ) -> Perturbed:
        """The attack itself, for use inside a compiled function.

        Args:
            gradient: gradient of the objective to increase, and an auxiliary output.
            x: clean images.
            seed_state: two integers, the state of a `keras.random.SeedGenerator`.
            epsilon: radius of the ball, a number or scalar tensor.
            step_size: length of one step, a number or scalar tensor.
            steps: number of steps, an integer or scalar tensor; default `self.steps`.
            start: where to start, projected onto the ball; default at random or at `x`.
        """
        epsilon, step_size = ops.cast(epsilon, x.dtype), ops.cast(step_size, x.dtype)
        if start is not None:
            start = self._project(start, x, epsilon)
        else:
            start = self.start(x, epsilon, seed_state)

        def advance(images: Tensor, slope: Tensor) -> Tensor:
            return self.advance(images, slope, x, epsilon, step_size)

        # The first step stands before the loop: its forward pass may be at the clean images,
        # whose outputs are worth logging, and FGSM needs no loop.
        slope, output = gradient(start)
        largest = ops.max(ops.absolute(slope))
        images = advance(start, slope)
        steps = self.steps if steps is None else steps
        if not (isinstance(steps, int) and steps == 1):
            images = ops.fori_loop(
                1, steps, lambda _, images: advance(images, gradient(images)[0]), images
            )
        return Perturbed(images, largest, output)

    def advance(
        self, images: Tensor, slope: Tensor, x: Tensor, epsilon: Tensor, step_size: Tensor
    ) -> Tensor:
        """One step along a gradient, projected; `step_size` may differ from image to image."""
        sign = -1.0 if self.targeted else 1.0
        return self._project(images + sign * step_size * self._direction(slope), x, epsilon)

    def start(self, x: Tensor, epsilon: Tensor, seed_state: Tensor) -> Tensor:
        """Where the steps begin: at the clean images, or at random in the ball around them."""
        if not self.random_start:
            return x
        if self.norm == "linf":
            return self._project(x + epsilon * self.noise(x, seed_state), x, epsilon)
        # Uniform in the ball: a normal direction, and a radius with the ball's density.
        with self._seeded(seed_state):
            direction = keras.random.normal(ops.shape(x), dtype=x.dtype, seed=self._generator)
            radius = keras.random.uniform(
                ops.shape(_lengths(x)), dtype=x.dtype, seed=self._generator
            )
        radius = radius ** (1.0 / math.prod(x.shape[1:]))
        return self._project(x + epsilon * radius * self._direction(direction), x, epsilon)

    def noise(self, like: Tensor, seed_state: Tensor) -> Tensor:
        """Numbers uniform in [-1, 1), of the shape and dtype of a tensor."""
        with self._seeded(seed_state):
            return keras.random.uniform(
                ops.shape(like), -1.0, 1.0, dtype=like.dtype, seed=self._generator
            )

    def _seeded(self, seed_state: Tensor) -> keras.StatelessScope:
        """Where the generator's state is a tensor.

        Keras takes numbers and generators as seeds; so a number that depends on the training
        step is one, on every backend and inside compiled functions.
        """
        state = ops.cast(seed_state, self._generator.state.dtype)
        return keras.StatelessScope(state_mapping=[(self._generator.state, state)])

    def _direction(self, slope: Tensor) -> Tensor:
        if self.norm == "linf":
            return ops.sign(slope)
        return slope / ops.maximum(_lengths(slope), 1e-12)

    def _project(self, images: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
        low, high = self.value_range
        if self.norm == "linf":
            images = ops.minimum(ops.maximum(images, x - epsilon), x + epsilon)
        else:
            difference = images - x
            length = ops.maximum(_lengths(difference), 1e-12)
            images = x + difference * ops.minimum(1.0, epsilon / length)
        return ops.clip(images, low, high)


class FGSM(GradientAttack):
    """Fast gradient sign method: one step of length epsilon (Goodfellow et al. 2015).

    Args:
        epsilon: radius of the ball, in units of the pixel values.
        random_start: start at a random point of the ball, with a step of 1.25 * epsilon
            (Wong et al. 2020).
        step_size: length of the step; default epsilon, or 1.25 * epsilon from a random start.
        **settings: `norm`, `targeted`, `value_range` of `GradientAttack`.

    Example:

    >>> from keras_qusec.attacks import FGSM
    >>> FGSM(epsilon=0.3).steps
    1
    """

    def __init__(
        self,
        epsilon: float,
        *,
        random_start: bool = False,
        step_size: float | None = None,
        **settings: Any,
    ) -> None:
        if step_size is None and random_start:
            step_size = 1.25 * _check_number(epsilon, "epsilon", allow_zero=True)
        super().__init__(
            epsilon, steps=1, step_size=step_size, random_start=random_start, **settings
        )


class BIM(GradientAttack):
    """Basic iterative method: steps from the clean image (Kurakin et al. 2016).

    Args:
        epsilon: radius of the ball, in units of the pixel values.
        steps: number of steps.
        step_size: length of one step; default epsilon / steps.
        **settings: `norm`, `targeted`, `value_range` of `GradientAttack`.

    Example:

    >>> from keras_qusec.attacks import BIM
    >>> BIM(epsilon=0.25, steps=5).step_size
    0.05
    """

    def __init__(
        self, epsilon: float, *, steps: int = 10, step_size: float | None = None, **settings: Any
    ) -> None:
        if step_size is None and isinstance(steps, int) and steps >= 1:
            step_size = _check_number(epsilon, "epsilon", allow_zero=True) / steps
        super().__init__(epsilon, steps=steps, step_size=step_size, random_start=False, **settings)


class PGD(GradientAttack):
    """Projected gradient descent: steps from a random start (Madry et al. 2018).

    Args:
        epsilon: radius of the ball, in units of the pixel values.
        steps: number of steps.
        step_size: length of one step; default 2.5 * epsilon / steps.
        random_start: start at a random point of the ball.
        **settings: `norm`, `targeted`, `value_range` of `GradientAttack`.

    Example:

    >>> from keras_qusec.attacks import PGD
    >>> PGD(epsilon=0.2, steps=10).step_size
    0.05
    """

    def __init__(
        self,
        epsilon: float,
        *,
        steps: int = 10,
        step_size: float | None = None,
        random_start: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(
            epsilon, steps=steps, step_size=step_size, random_start=random_start, **settings
        )


_BY_NAME: dict[str, type[GradientAttack]] = {"fgsm": FGSM, "bim": BIM, "pgd": PGD}


def get(attack: str | GradientAttack, **settings: Any) -> GradientAttack:
    """An attack by name with its settings, or the object given.

    Args:
        attack: ``"fgsm"``, ``"bim"``, ``"pgd"`` or an attack of this package.
        **settings: arguments of the named attack.

    Raises:
        ValueError: for an unknown name, or settings beside an object or that do not fit.

    Example:

    >>> from keras_qusec import attacks
    >>> attacks.get("pgd", epsilon=0.3, steps=7).steps
    7
    """
    if isinstance(attack, GradientAttack):
        if settings:
            raise ValueError(
                f"Expected either an attack object or settings of a named one. Received: "
                f"{attack!r} and {sorted(settings)}. Set them where the object is made."
            )
        return attack
    if not isinstance(attack, str) or attack.lower() not in _BY_NAME:
        near = difflib.get_close_matches(str(attack).lower(), _BY_NAME, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Expected an attack: one of {sorted(_BY_NAME)}, or an object of "
            f"keras_qusec.attacks. Received: {attack!r}.{hint}"
        )
    kind = _BY_NAME[attack.lower()]
    if "epsilon" not in settings:
        raise ValueError(
            f"Expected epsilon for the attack {attack!r}. Received: none. "
            f'Example: AdversarialTraining("{attack.lower()}", epsilon=0.3)'
        )
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(
            f"Expected settings of {kind.__name__}. Received: {sorted(settings)}; {error}."
        ) from error


def outputs_probabilities(model: keras.Model) -> bool:
    """True if a model ends in a softmax or sigmoid, so that its outputs are no logits."""
    last = last_layer(model)
    if isinstance(last, keras.layers.Softmax):
        return True
    activation = getattr(last, "activation", None)
    return activation in (keras.activations.softmax, keras.activations.sigmoid)


def last_layer(model: keras.Model) -> keras.layers.Layer | None:
    """The layer that gives a model its outputs, also inside nested models."""
    layers = getattr(model, "layers", [])
    last = layers[-1] if layers else None
    outputs = getattr(model, "outputs", None)
    try:
        # An operation after the last layer, such as a sum of two, makes the output itself.
        if outputs and last is not None and last.output is not outputs[0]:
            return None
    except (AttributeError, ValueError):
        pass  # not a layer of a graph
    return last_layer(last) if isinstance(last, keras.Model) else last


def logits_of(outputs: Tensor, probabilities: bool) -> Tensor:
    """Outputs as float32 logits.

    The log of a softmax is its logits but for a constant, as far as they survive.
    """
    outputs = ops.cast(outputs, "float32")
    return ops.log(ops.maximum(outputs, 1e-30)) if probabilities else outputs


def cross_entropy(y: Tensor, outputs: Tensor, probabilities: bool) -> Tensor:
    """Sum over the batch of the cross-entropy, from logits whenever they can be had."""
    outputs = logits_of(outputs, probabilities)
    if len(y.shape) == len(outputs.shape):
        return ops.sum(ops.categorical_crossentropy(y, outputs, from_logits=True))
    return ops.sum(ops.sparse_categorical_crossentropy(y, outputs, from_logits=True))


def _compiled_attack(
    attack: GradientAttack, model: keras.Model, probabilities: bool
) -> Callable[..., Any]:
    """The compiled attack on a model, kept for the next call with the same structure."""
    quantizers = tuple(q.gradient_hardness for q in find_quantizers(model))
    key = (attack.norm, attack.random_start, attack.targeted, attack.value_range, quantizers)
    cache = _COMPILED.setdefault(model, {})
    if key not in cache:
        # A strong reference in the cache would keep its own weak key alive for ever.
        reference = weakref.ref(model)

        def run(mapping: Any, x: Any, y: Any, epsilon: Any, step_size: Any, steps: Any,
                seed_state: Any) -> Any:  # fmt: skip
            target: Any = reference()

            def objective(images: Tensor) -> tuple[Tensor, Any]:
                with keras.StatelessScope(state_mapping=mapping):
                    outputs = target(images, training=False)
                return cross_entropy(y, outputs, probabilities), ()

            return attack.perturb(
                lambda images: input_gradient(objective, images),
                x, seed_state, epsilon=epsilon, step_size=step_size, steps=steps,
            ).images  # fmt: skip

        variables = [*model.trainable_variables, *model.non_trainable_variables]
        cache[key] = compiled(run, variables, batches=2)
    return cache[key]


_COMPILED: weakref.WeakKeyDictionary[keras.Model, dict[Any, Any]] = weakref.WeakKeyDictionary()


def seed_state_of(seed: int, index: int) -> np.ndarray:
    """The state of a seed generator: a seed, and a count such as the batch's."""
    return np.array([seed % 2**31, index], dtype=keras.random.SeedGenerator(0).state.dtype)


def _lengths(x: Tensor) -> Tensor:
    """The L2 norm of each sample, with unit axes kept for broadcasting."""
    axes = list(range(1, len(x.shape)))
    # In float32: squares of small float16 numbers underflow.
    square = ops.sum(ops.square(ops.cast(x, "float32")), axis=axes, keepdims=True)
    return ops.cast(ops.sqrt(square), x.dtype)


def _check_number(value: Any, name: str, *, allow_zero: bool) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not allow_zero):
        least = "0 or more" if allow_zero else "above 0"
        raise ValueError(
            f"Expected {name} to be a number, {least}, in units of the pixel values. "
            f"Received: {name}={value!r}. For images in [0, 1], epsilon 0.3 is usual on "
            "MNIST and 8/255 on CIFAR-10."
        )
    return float(value)


def check_inside(x: np.ndarray, value_range: tuple[float, float]) -> None:
    """Raise a ValueError for images outside the value range."""
    low, high = value_range
    if x.size and not (x.min() >= low and x.max() <= high):
        raise ValueError(
            f"Expected images inside value_range={value_range}. Received: values from "
            f"{x.min():g} to {x.max():g}. Scale the images, or give their value_range."
        )
