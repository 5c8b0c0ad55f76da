"""What an attack is: the facts it states of itself, and how it is run on a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_qusec.attacks.goal import Goal

# Adversarial images for some rows of a batch: a function of the rows, the radius (None for as
# close as can be) and a seed.
BatchSearch = Callable[[np.ndarray, float | None, int], np.ndarray]


# Classes of evidence, from weak to strong.
EVIDENCE = ("quick", "standard", "strong")


class Attack:
    """An attack on classifiers, and what `evaluate_robustness` must know of it.

    A subclass sets the attributes and writes `run`. What it returns need not be adversarial or
    inside the ball: the evaluation puts it into the ball and the value range, and checks it.

    Attributes:
        norm: name of the norm that it keeps small, such as ``"linf"``.
        minimizes: looks for the closest adversarial example; otherwise for any in a ball.
        uses_gradients: follows the model's gradient, so that surrogate gradients change it and
            its examples are worth transferring; otherwise it only asks for outputs.
        is_random: another seed gives another result.
        can_be_targeted: can be told which class to reach.
        restarts: how often it is run on each image.
        trial_radii: for an attack in a ball whose norm has no epsilons: the radii to try, as
            shares of the largest possible distance.
        attacks_defense: searches what a defence lets through. It belongs to the threat models
            that know the defence, follows no surrogate gradients, and is not transferred.
        evidence: class of the evidence that it gives alone, one of `EVIDENCE`.
        cost: what one run takes for each image, for people.

    Example:

    >>> from keras_qusec import attacks, evaluate_robustness
    >>> class Darken(attacks.Attack):
    ...     norm, uses_gradients, cost = "linf", False, "nothing"
    ...     def run(self, model, x, goal, *, epsilon, seed):
    ...         return x - epsilon
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 2]], "float32")])
    >>> x = np.array([[0.9, 0.4]], "float32")
    >>> report = evaluate_robustness(model, x, [0], attacks=[Darken()], epsilons=[0.1])
    >>> report.robust_accuracy()
    1.0
    """

    norm: str = "linf"
    minimizes: bool = False
    uses_gradients: bool = True
    is_random: bool = False
    can_be_targeted: bool = True
    restarts: int = 1
    trial_radii: tuple[float, ...] = ()
    attacks_defense: bool = False
    evidence: str = EVIDENCE[0]
    cost: str = ""

    def applies_to(self, model: Any, x: np.ndarray) -> bool:
        """Whether the attack can be made on a model; asked with some images."""
        return True

    def run(
        self, model: Any, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        """Images like `x` that should be adversarial.

        Args:
            model: the classifier: an `AttackedModel` with logits, predictions and gradients; or,
                of attacks that use no gradients, any `keras_qusec.attacks.Classifier`.
            x: clean images, float32 ``(n, ...)`` in ``model.value_range``.
            goal: the labels to leave or the targets to reach.
            epsilon: radius of the ball; None if the attack minimizes.
            seed: seed of all that is random.

        Returns:
            Images of the shape of `x`.
        """
        raise NotImplementedError(
            f"Expected {type(self).__name__} to have a method run(model, x, goal, *, epsilon, "
            "seed) that returns images like x. Received: a class without one."
        )

    def on_batch(self, model: Any, x: np.ndarray, goal: Goal) -> BatchSearch:
        """The attack on a batch, to be called with one radius after the other, rising or falling.

        It is called on the rows that are not broken.

        An attack that uses what it learned at one radius for the next one overrides this.
        """
        return lambda rows, epsilon, seed: self.run(
            model, x[rows], goal.take(rows), epsilon=epsilon, seed=seed
        )

    @property
    def name(self) -> str:
        """What a report calls it unless the user gives another name."""
        return type(self).__name__

    def check_for_evaluation(self) -> None:
        """Raise a ValueError for settings that an evaluation gives itself, such as epsilon."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments(self.settings())})"

    def settings(self) -> dict[str, Any]:
        """The settings by name, shown in reports and part of the identity of a run."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        own.pop("cost", None)
        return {**own, "restarts": self.restarts}


class FunctionAttack(Attack):
    """An attack from a function, made by `attack_from`."""

    def __init__(self, function: Callable[..., np.ndarray], facts: Mapping[str, Any]) -> None:
        self._function = function
        for name, value in facts.items():
            setattr(self, name, value)

    @property
    def name(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)

    def run(
        self, model: Any, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        return self._function(model, x, goal, epsilon=epsilon, seed=seed)

    def __repr__(self) -> str:
        return f"{self.name}({arguments(self.settings())})"


def attack_from(function: Callable[..., np.ndarray], **facts: Any) -> Attack:
    """An attack from a function ``f(model, x, goal, *, epsilon, seed)``; see `Attack.run`.

    Args:
        function: returns images like `x`.
        **facts: attributes of `Attack`: `norm`, `minimizes`, `uses_gradients`, ...

    Raises:
        ValueError: for something that is no function, or an unknown attribute.

    Example:

    >>> from keras_qusec import attacks
    >>> def invert(model, x, goal, *, epsilon, seed):
    ...     return sum(model.value_range) - x
    >>> attacks.attack_from(invert, norm="l2", minimizes=True, uses_gradients=False).norm
    'l2'
    """
    if not callable(function):
        raise ValueError(
            f"Expected a function f(model, x, goal, *, epsilon, seed). Received: {function!r}."
        )
    known = set(Attack.__annotations__)
    if unknown := sorted(set(facts) - known):
        raise ValueError(
            f"Expected facts of an attack: {', '.join(sorted(known))}. Received: "
            f"{', '.join(unknown)}."
        )
    return FunctionAttack(function, facts)


def arguments(settings: Mapping[str, Any]) -> str:
    """Settings as they are written in a call, without those that are None."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
