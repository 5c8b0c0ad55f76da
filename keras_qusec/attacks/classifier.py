"""What can be judged: a classifier that is asked for outputs, whatever computes them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_qusec.attacks.goal import NO_CLASS, REJECTED, Goal
from keras_qusec.checks import one_of, whole_number
from keras_qusec.checks import value_range as checked_range
from keras_qusec.digests import code_digest, digest
from keras_qusec.logits import LOGITS, PROBABILITIES

# What the outputs of a function may be, besides logits and probabilities: the class alone.
CLASSES = "classes"


class Counter:
    """How often a model was used: images passed forward, and backward.

    Attributes:
        listener: called whenever it counts, to show that an attack moves; or None.
    """

    def __init__(self) -> None:
        self._queries = 0
        self.gradients = 0
        self.listener: Callable[[], None] | None = None

    @property
    def queries(self) -> int:
        """Images passed forward."""
        return self._queries

    @queries.setter
    def queries(self, number: int) -> None:
        self._queries = number
        if self.listener is not None:
            self.listener()

    def count(self, images: int, steps: int = 1) -> None:
        """Count gradients, each of which takes a forward and a backward pass."""
        self.gradients += images * steps
        self.queries += images * steps


class Classifier(ABC):
    """What `evaluate_robustness` must know of a classifier to judge it.

    A subclass writes `logits` and `digest`. That is enough for attacks that ask for outputs, for
    examples transferred from Keras models, for the check of each example, and for the report.
    Attacks that follow gradients are made on `AttackedModel` alone, which wraps a Keras model.

    Args:
        name: name in the report.
        value_range: smallest and largest pixel value.

    Attributes:
        input_shape: of one image, channels last; None if images of any shape may come.
        has_gradients: whether attacks can follow its gradients.
        gives_scores: whether its outputs say more than the class.
        rejects: whether it may reject an image.
        draws: how many draws of a random model are averaged.
        defenses: layers that offer surrogate gradients.
        channels_first: whether it has the channels of images on axis 1; attacks, `logits` and
            `rejected` have them last all the same.
        counter: how often it was asked.

    Example:

    >>> from keras_qusec import evaluate_robustness
    >>> from keras_qusec.attacks import Classifier
    >>> class Brightness(Classifier):
    ...     digest = "brightness"
    ...     def logits(self, x):
    ...         self.counter.queries += len(x)
    ...         mean = x.mean(axis=1)
    ...         return np.stack([0.5 - mean, mean - 0.5], axis=1)
    >>> x, y = np.array([[0.9, 0.8], [0.2, 0.3]], "float32"), np.array([1, 0])
    >>> report = evaluate_robustness(Brightness("bright"), x, y, attacks=["square"])
    >>> report.robust_accuracy(epsilon=0.1)
    1.0
    """

    input_shape: tuple[int | None, ...] | None = None
    has_gradients: bool = False
    gives_scores: bool = True
    takes_whole_numbers: bool = False
    rejects: bool = False
    draws: int = 1
    channels_first: bool = False

    def __init__(
        self, name: str = "classifier", value_range: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.name = name
        self.value_range = checked_range(value_range)
        self.defenses: list[Any] = []
        self.counter = Counter()
        self.made: dict[Any, Any] = {}

    @property
    @abstractmethod
    def digest(self) -> str:
        """A text by which classifiers are told apart, the same in each process."""

    @abstractmethod
    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits ``(n, classes)`` of images, as NumPy; counted as queries."""

    def predictions(self, x: np.ndarray) -> np.ndarray:
        """Predicted classes ``(n,)``, REJECTED where the model rejects the image.

        An image with a NaN among its logits is NO_CLASS, which is as wrong as any other class.
        """
        logits = self.logits(x)
        classes = np.nan_to_num(logits, nan=-np.inf).argmax(axis=1)
        classes[np.isnan(logits).any(axis=1)] = NO_CLASS
        classes[self.rejected(x)] = REJECTED
        return classes

    def rejected(self, x: np.ndarray) -> np.ndarray:
        """Which images the model rejects, ``(n,)`` bool."""
        return np.zeros(len(x), bool)

    def is_adversarial(self, x: np.ndarray, goal: Goal) -> np.ndarray:
        """Which images reach the goal, ``(n,)`` bool; counted as queries."""
        return goal.reached(self.predictions(x))

    def margins(self, x: np.ndarray, goal: Goal) -> np.ndarray:
        """By how much the logits of images reach the goal, ``(n,)``; counted as queries.

        Above 0 where an image is adversarial; at most 0 where it is not, or is rejected.
        """
        logits = np.array(self.logits(x), "float32")
        rows = np.arange(len(x))
        own = logits[rows, goal.classes]
        logits[rows, goal.classes] = -np.inf
        gap = logits.max(axis=1) - own
        margins = -gap if goal.targeted else gap
        margins[np.isnan(margins)] = np.inf  # no class is a wrong class
        return np.where(self.rejected(x), np.minimum(margins, -1e-6), margins).astype("float32")

    def with_surrogates(self, hardnesses: Sequence[float]) -> list[Any]:
        """This model for each surrogate gradient that its defences offer; here none."""
        return []

    def reach(self, norm: str, epsilon: float) -> float:
        """How far images that the model can be given may go within epsilon."""
        return epsilon

    def deliverable(
        self, x: np.ndarray, images: np.ndarray, norm: str, epsilon: float | None
    ) -> list[np.ndarray]:
        """Adversarial images as the model can be given them, the nearest ones first.

        Args:
            x: clean images.
            images: adversarial images.
            norm: name of the norm of epsilon.
            epsilon: radius which the images must not leave, or None.
        """
        return [images]

    def repeated(self, x: np.ndarray, calls: int) -> list[np.ndarray]:
        """Logits from several calls, one after the other."""
        return [self.logits(x) for _ in range(calls)]

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for a key."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class FunctionClassifier(Classifier):
    """A classifier from a function of NumPy arrays, such as a model in another runtime.

    Args:
        function: from float32 images ``(n, ...)`` in `value_range` to logits or probabilities
            ``(n, classes)``, or to classes ``(n,)`` of whole numbers.
        classes: number of classes.
        outputs: ``"logits"``, ``"probabilities"`` or ``"classes"``.
        input_shape: of one image; None if the function takes any.
        name: name in the report; default that of the function.
        value_range: smallest and largest pixel value.
        data_format: ``"channels_first"`` if the function takes images ``(n, channels, height,
            width)``, which then are what an evaluation is given, too.
        batch_size: images in one call, for a runtime with a fixed batch size; the last batch is
            filled with copies of its last image. None for as many as there are.
        identity: a text that changes when the classifier does, such as a hash of its file, by
            which an interrupted evaluation knows its own; default the code of the function.

    Raises:
        ValueError: for unusable arguments; later for outputs of another shape or kind.

    Example:

    >>> from keras_qusec.attacks import FunctionClassifier
    >>> def brightness(images):
    ...     return (images.mean(axis=1) > 0.5).astype("int64")
    >>> classifier = FunctionClassifier(brightness, classes=2, outputs="classes")
    >>> classifier.predictions(np.array([[0.9, 0.8], [0.2, 0.3]], "float32")).tolist()
    [1, 0]
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        *,
        classes: int,
        outputs: str = LOGITS,
        input_shape: Sequence[int | None] | None = None,
        name: str | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        data_format: str = "channels_last",
        batch_size: int | None = None,
        identity: str | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"Expected a function from images (n, ...) to outputs. Received: {function!r}."
            )
        own = getattr(function, "__name__", type(function).__name__)
        super().__init__(own if name is None else name, value_range)
        self.function = function
        self.classes = whole_number(classes, "classes", least=2)
        self.outputs = one_of(outputs, "outputs", (LOGITS, PROBABILITIES, CLASSES))
        self.gives_scores = outputs != CLASSES
        self.input_shape = None if input_shape is None else tuple(input_shape)
        one_of(data_format, "data_format", ("channels_last", "channels_first"))
        self.channels_first = data_format == "channels_first"
        self.batch_size = None if batch_size is None else whole_number(batch_size, "batch_size")
        self.identity = identity

    @functools.cached_property
    def digest(self) -> str:
        identity = code_digest(self.function) if self.identity is None else self.identity
        return digest(identity.encode(), f"{self.classes} {self.outputs}".encode())

    def logits(self, x: np.ndarray) -> np.ndarray:
        self.counter.queries += len(x)
        x = np.asarray(x, "float32")
        size = self.batch_size or max(1, len(x))
        parts = [self._called(x[start : start + size]) for start in range(0, len(x), size)]
        return np.concatenate(parts) if parts else np.zeros((0, self.classes), "float32")

    def _called(self, x: np.ndarray) -> np.ndarray:
        given = x
        if self.batch_size is not None:
            given = np.concatenate([x, np.repeat(x[-1:], self.batch_size - len(x), axis=0)])
        if self.channels_first:
            given = np.moveaxis(given, -1, 1)
        # A copy, since a function may change what it is given.
        output = np.asarray(self.function(np.array(given, order="C")))
        wanted = (len(given),) if self.outputs == CLASSES else (len(given), self.classes)
        if output.shape != wanted:
            raise ValueError(
                f"Expected {self.name!r} to return {self.outputs} of shape {wanted}. Received: "
                f"shape {output.shape} for {len(given)} images. Check classes and outputs."
            )
        output = output[: len(x)]
        if self.outputs == CLASSES:
            return self._one_hot(output)
        output = output.astype("float32")
        if self.outputs == LOGITS:
            return output
        if (output < -1e-3).any() or (output > 1 + 1e-3).any():
            raise ValueError(
                f"Expected {self.name!r} to return probabilities from 0 to 1. Received: values "
                f'from {output.min():.3g} to {output.max():.3g}. Say outputs="logits".'
            )
        return np.log(np.clip(output, np.finfo("float32").tiny, None))

    def _one_hot(self, classes: np.ndarray) -> np.ndarray:
        whole = np.issubdtype(classes.dtype, np.integer) or (classes == np.round(classes)).all()
        if not whole or (classes < 0).any() or (classes >= self.classes).any():
            raise ValueError(
                f"Expected {self.name!r} to return classes from 0 to {self.classes - 1}. Received: "
                f"{classes[:5]}. Check classes and outputs."
            )
        return np.eye(self.classes, dtype="float32")[classes.astype("int64")]
