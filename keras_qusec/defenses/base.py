"""What a defence offers an adaptive attacker, and what a classifier is that may reject an image.

Evaluation and adversarial training ask these two protocols and never what kind of layer it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import keras

from keras_qusec.sublayers import inside

Tensor = Any
# For each defence of a model, the surrogate gradient that it shall have.
Choice = Mapping[Any, Any]


@runtime_checkable
class Defense(Protocol):
    """A layer or model whose own gradient misleads, and what an attacker uses instead (BPDA).

    A class becomes a defence by a method `surrogates`. In its `call` it asks `current_surrogate`
    for the one that is in force, and gives its output that gradient; the output itself must stay
    the same. `straight_through` does this for a stand-in of the output's shape.

    Example:

    >>> from keras_qusec.defenses import current_surrogate, straight_through
    >>> class Rounding(keras.layers.Layer):
    ...     def surrogates(self, hardnesses):
    ...         return ["identity"]
    ...     def call(self, x):
    ...         y = keras.ops.round(x)
    ...         return y if current_surrogate(self) is None else straight_through(y, x)
    >>> from keras_qusec.defenses import find_defenses
    >>> len(find_defenses(keras.Sequential([Rounding()])))
    1
    """

    def surrogates(self, hardnesses: Sequence[float]) -> Sequence[Any]:
        """The surrogate gradients to try in turn, as values that `current_surrogate` returns.

        Args:
            hardnesses: how steep the stand-in of a step function shall be, one surrogate for
                each; defences without steps need not look at them.
        """


@runtime_checkable
class ValueQuantizer(Protocol):
    """A layer whose output at each value of an image rises with that value and no other.

    An attacker who stands behind it searches the outputs that an image can reach. In its `call`
    it asks `given_output` for one that is to be used instead.
    """

    @property
    def output_grid(self) -> tuple[float, float] | None:
        """Smallest output and the step from one output to the next; None if it has no steps."""


@runtime_checkable
class RejectingClassifier(Protocol):
    """A Keras model that may reject an image, such as a classifier with a detector.

    An adversarial example must be misclassified and accepted; a clean image that is rejected
    counts as misclassified.
    """

    def rejection(self, images: Tensor) -> Tensor:
        """Numbers ``(n,)``: above 0 where an image is rejected, 0 or less where it is accepted.

        Written in `keras.ops`. The adaptive attacker lowers it by its gradient, so it should
        grow with the suspicion, and follow `current_surrogate` where it has steps.
        """


def find_layers(model: keras.layers.Layer, kind: Any) -> list[Any]:
    """All layers of a class or protocol in a model, also in nested models and custom layers.

    The model itself may be one. Layers inside one that is of the kind are not looked for.

    Example:

    >>> from keras_qusec.defenses import find_layers
    >>> inner = keras.Sequential([keras.layers.Dense(2)])
    >>> len(find_layers(keras.Sequential([inner]), keras.layers.Dense))
    1
    """
    return inside(model, kind, deeper=False)


def find_defenses(model: keras.layers.Layer) -> list[Any]:
    """The defences of a model that offer surrogate gradients, in the order of its layers.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.defenses import find_defenses
    >>> len(find_defenses(keras.Sequential([QuSecQuantization(2), keras.layers.Dense(2)])))
    1
    """
    return find_layers(model, Defense)


def surrogate_choices(defenses: Sequence[Any], hardnesses: Sequence[float]) -> list[Choice]:
    """What an adaptive attacker tries in turn: one surrogate gradient for each defence.

    A defence that offers fewer than another keeps its last one. Without defences there is
    nothing to try.
    """
    offers = {defense: list(defense.surrogates(hardnesses)) for defense in defenses}
    offers = {defense: offer for defense, offer in offers.items() if offer}
    count = max(map(len, offers.values()), default=0)
    return [
        {defense: offer[min(number, len(offer) - 1)] for defense, offer in offers.items()}
        for number in range(count)
    ]


# A variable of the context and not an attribute of the layer: threads do not see each other's.
_IN_FORCE: ContextVar[Choice | None] = ContextVar("surrogates", default=None)


@contextlib.contextmanager
def surrogates_in_force(choice: Choice) -> Iterator[None]:
    """Give defences the surrogate gradients of a choice inside the block.

    Compiled functions keep the gradient that was in force when they were traced.
    """
    token = _IN_FORCE.set(choice)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def current_choice() -> Choice:
    """The surrogate gradients that are in force; empty for own gradients."""
    return _IN_FORCE.get() or {}


def current_surrogate(defense: Any) -> Any | None:
    """The surrogate gradient that a defence shall have now; None for its own gradient."""
    return current_choice().get(defense)


@contextlib.contextmanager
def surrogate_gradients(model: keras.layers.Layer, hardness: float | None) -> Iterator[None]:
    """Give every defence of a model its surrogate gradient inside the block (BPDA).

    Outputs stay as they are. Compiled functions keep the gradient that was in force when they
    were traced, so build and first call them inside the block.

    Args:
        model: model or layer.
        hardness: hardness of the surrogate gradients; None for each defence's own gradient.

    Source: Athalye et al. 2018, backward pass differentiable approximation.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.defenses import current_surrogate, surrogate_gradients
    >>> layer = QuSecQuantization(2)
    >>> with surrogate_gradients(layer, 5.0):
    ...     current_surrogate(layer)
    5.0
    >>> current_surrogate(layer) is None
    True
    """
    choices = [] if hardness is None else surrogate_choices(find_defenses(model), [hardness])
    with surrogates_in_force(choices[0] if choices else {}):
        yield


# For layers whose outputs are given: a function from what the layer receives to its output.
_OUTPUTS: ContextVar[Mapping[Any, Callable[[Tensor], Tensor]] | None] = ContextVar(
    "outputs", default=None
)


@contextlib.contextmanager
def outputs_given(outputs: Mapping[Any, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let layers return other outputs inside the block: functions of what each receives."""
    token = _OUTPUTS.set(outputs)
    try:
        yield
    finally:
        _OUTPUTS.reset(token)


def given_output(layer: Any, inputs: Tensor) -> Tensor | None:
    """The output that a layer shall return now instead of its own; None for its own.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.defenses import outputs_given
    >>> layer = QuSecQuantization(2)
    >>> with outputs_given({layer: lambda x: 0.5 * x}):
    ...     np.asarray(layer(np.array([0.5], "float32"))).tolist()
    [0.25]
    """
    function = (_OUTPUTS.get() or {}).get(layer)
    return None if function is None else function(inputs)
