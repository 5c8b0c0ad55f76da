"""A classifier under attack: outputs, gradients, and a count of how often it is asked."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.classifier import Classifier
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.objective import Objective
from keras_qusec.backends import backend
from keras_qusec.checks import one_of, whole_number
from keras_qusec.defenses import (
    RejectingClassifier,
    current_choice,
    find_defenses,
    outputs_given,
    surrogate_choices,
    surrogates_in_force,
)
from keras_qusec.digests import model_digest, settings_of
from keras_qusec.integer_inputs import (
    casts_images,
    integer_input,
    rounded,
    whole,
    whole_inside,
)
from keras_qusec.logits import log_odds_against, logits_function
from keras_qusec.sublayers import inside

Tensor = Any

# The other defences of a model that is attacked behind one have surrogates this hard.
_SURROGATE_HARDNESS = 10.0


class Ascent(NamedTuple):
    """What an attack sees of a model at some images.

    Attributes:
        gradient: of the objective, ``(n, ...)``.
        value: of the objective, ``(n,)``.
        unbroken: ``(n,)`` floats, 0 where the image is adversarial, else 1.
    """

    gradient: Tensor
    value: Tensor
    unbroken: Tensor


class AttackedModel(Classifier):
    """A Keras classifier compiled for attacks, also for those that follow its gradients.

    Its gradients are the model's own, or those in force when this is made
    (`keras_qusec.defenses.surrogate_gradients`). The models of `with_surrogates` are the same
    model with the surrogate gradients of its defences instead.

    Args:
        model: built Keras classifier with outputs ``(n, classes)``, logits or probabilities, or
            one for two classes; its weights and its defences' settings may change between
            calls, its structure may not.
        value_range: smallest and largest pixel value.
        outputs: ``"logits"`` or ``"probabilities"``, for a model whose graph does not say.
        data_format: ``"channels_first"`` if the model's images have their channels on axis 1.
            Attacks work on images with channels last; the model gets them as it wants.
        draws: for a model that is random, how many of its draws are averaged: the classifier
            attacked is the mean of their probabilities (expectation over transformation,
            Athalye et al. 2018). Gradients and predictions have draws of their own.

    Raises:
        ValueError: if it is not known what the model's outputs are, or for draws of a model
            without a `keras.random.SeedGenerator`.

    Example:

    >>> from keras_qusec.attacks import AttackedModel
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, use_bias=False)])
    >>> attacked = AttackedModel(model)
    >>> attacked.logits(np.zeros((4, 2), "float32")).shape
    (4, 3)
    """

    has_gradients = True

    def __init__(
        self,
        model: keras.Model,
        value_range: tuple[float, float] = (0.0, 1.0),
        *,
        outputs: str | None = None,
        data_format: str = "channels_last",
        draws: int = 1,
    ) -> None:
        super().__init__(model.name, value_range)
        self.model = model
        # How this was made, to make it again in another process.
        self.settings: dict[str, Any] = {
            "value_range": value_range,
            "outputs": outputs,
            "data_format": data_format,
            "draws": draws,
        }
        one_of(data_format, "data_format", ("channels_last", "channels_first"))
        self.channels_first = data_format == "channels_first"
        self.draws = whole_number(draws, "draws")
        # The model can be given whole numbers alone, whatever attacks try in between.
        self.takes_whole_numbers = integer_input(model) is not None or bool(
            getattr(model, "takes_whole_numbers", False)
        )
        self._seeds = [generator.state for generator in inside(model, keras.random.SeedGenerator)]
        if self.draws > 1 and not self._seeds:
            raise ValueError(
                f"Expected a model whose random numbers come from a keras.random.SeedGenerator, to "
                f"average {draws} draws. Received: {model.name!r}, which has none. Give its random "
                "layers one, as Keras' own have."
            )
        self.defenses = find_defenses(model)
        # A layer that is called so is no method.
        own = getattr(model, "rejection", None)
        self.rejects = isinstance(model, RejectingClassifier) and inspect.ismethod(own)
        self.variables = [*model.trainable_variables, *model.non_trainable_variables]
        # Attacks follow the first; the second is the model itself, which judges.
        self._logits = logits_function(model, outputs, through_casts=True)
        self._own_logits = self._logits
        if casts_images(model):
            self._own_logits = logits_function(model, outputs)
        # All models of `with_surrogates` share what is made for one of them, which is kept under
        # its number, 0 for the model's own gradient.
        self._number = 0
        self._surrogates = current_choice()
        self._surrogate_models: dict[Any, list[AttackedModel]] = {}
        self._behind: Any = None

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the model's classes, configurations and weights."""
        return model_digest(self.model)

    # What attacks ask.

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits ``(n, classes)`` of images, as NumPy; counted as queries."""
        self.counter.queries += len(x)
        return self._call(self._judged_logits, x)

    def rejected(self, x: np.ndarray) -> np.ndarray:
        """Which images the model rejects, ``(n,)`` bool."""
        if not self.rejects:
            return np.zeros(len(x), bool)
        suspicion = self._call(self._traced_rejection, x)
        if suspicion.shape != (len(x),):
            raise ValueError(
                f"Expected {self.model.name!r}.rejection(images) to return numbers (n,). Received: "
                f"shape {suspicion.shape} for {len(x)} images. Sum or squeeze them."
            )
        return suspicion > 0

    def gradient(
        self,
        x: np.ndarray,
        classes: np.ndarray,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The gradient of a loss for the images, and the logits, as NumPy; counted.

        Args:
            x: images ``(n, ...)``.
            classes: ``(n,)`` integers.
            loss: function of the classes and the logits ``(n, classes)``, in `keras.ops`, that
                returns ``(n,)``; default `log_odds_against`. The same function object is
                compiled once.
        """
        loss = log_odds_against if loss is None else loss

        def run(mapping: Any, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            def objective(images: Tensor) -> tuple[Tensor, Tensor]:
                logits = self.traced_logits(mapping, images)
                return ops.sum(loss(classes, logits)), logits

            return backend().input_gradient(objective, images)

        self.counter.count(len(x))
        compiled = self.compiled(("gradient", loss), run, batches=2)
        gradient, logits = compiled(*padded_tensors(x, classes))
        return ops.convert_to_numpy(gradient)[: len(x)], ops.convert_to_numpy(logits)[: len(x)]

    def ascent(self, x: np.ndarray, goal: Goal, loss: str = "log-odds") -> np.ndarray:
        """The gradient that attacks climb at some images, as NumPy; counted.

        Args:
            x: images ``(n, ...)``.
            goal: what to reach.
            loss: one of `keras_qusec.attacks.objective.LOSSES`.
        """
        objective = goal.objective(loss)

        def run(mapping: Any, x: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
            return self.traced_ascent(mapping, x, labels, aims, objective).gradient

        self.counter.count(len(x))
        compiled = self.compiled(("ascent", objective), run, batches=3)
        return self.on_rows(compiled, x, goal.labels, goal.classes)

    def with_surrogates(self, hardnesses: Sequence[float]) -> list[AttackedModel]:
        """This model for each surrogate gradient that its defences offer, in turn.

        A model that may reject images also lets an attacker follow the gradient of its
        `rejection`. Without either there is none.
        """
        key = tuple(hardnesses)
        if key not in self._surrogate_models:
            choices = surrogate_choices(self.defenses, hardnesses)
            if self.rejects and not choices:
                choices = [{}]
            models: list[AttackedModel] = []
            for choice in choices:
                other = copy.copy(self)
                other._surrogates = choice
                other._number = 1 + sum(map(len, self._surrogate_models.values())) + len(models)
                models.append(other)
            self._surrogate_models[key] = models
        return self._surrogate_models[key]

    def behind(self, quantizer: Any) -> AttackedModel:
        """The classifier of the outputs of one of its quantizers, in place of images.

        Other defences have surrogate gradients.
        """
        key = ("behind", id(quantizer))
        if key not in self._surrogate_models:
            others = [defense for defense in self.defenses if defense is not quantizer]
            other = copy.copy(self)
            other._surrogates = next(iter(surrogate_choices(others, [_SURROGATE_HARDNESS])), {})
            other._number = 1 + sum(map(len, self._surrogate_models.values()))
            other._behind = quantizer
            self._surrogate_models[key] = [other]
        return self._surrogate_models[key][0]

    # What compiled attacks are made of.

    def compiled(self, key: Any, function: Callable[..., Any], *, batches: int) -> Any:
        """`function(mapping, *tensors)` compiled; made once for a key. See `Backend.compiled`."""
        return self.kept(key, lambda: backend().compiled(function, self.variables, batches=batches))

    def on_rows(
        self,
        compiled: Callable[..., Any],
        *arrays: np.ndarray,
        scalars: Sequence[np.generic | np.ndarray] = (),
    ) -> Any:
        """A compiled function of batches of images, called on NumPy arrays.

        Args:
            compiled: from `compiled`, with as many `batches` as there are arrays.
            *arrays: each with a row for each image.
            scalars: arguments that are the same for all images.

        Returns:
            What it returns, each part a NumPy array with the rows of the images.
        """
        numbers = [ops.convert_to_tensor(scalar) for scalar in scalars]
        parts = keras.tree.flatten(compiled(*padded_tensors(*arrays), *numbers))
        rows = [np.array(ops.convert_to_numpy(part)[: len(arrays[0])]) for part in parts]
        return rows[0] if len(rows) == 1 else rows

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for a key and this model's gradient."""
        # What a trace reads and cannot see change: the surrogate, and settings of the defences.
        # Hardness is a variable, whose value each call reads anew.
        settings = [settings_of(defense, without="hardness") for defense in self.defenses]
        return super().kept((self._number, tuple(settings), key), make)

    def traced_logits(
        self, mapping: Any, images: Tensor, first_draw: int = 0, *, judged: bool = False
    ) -> Tensor:
        """Logits inside a compiled function, from the values of the variables in `mapping`.

        Args:
            mapping: pairs of variables and values.
            images: with channels last.
            first_draw: number of the first of a random model's draws.
            judged: by the model itself, whose casts have no gradient.
        """
        images = self._entering(images)
        if self.draws == 1:
            return self._logits_of_draw(mapping, images, judged)
        values = {id(variable): value for variable, value in mapping}
        drawn = {id(seed) for seed in self._seeds}
        rest = [(variable, value) for variable, value in mapping if id(variable) not in drawn]
        shares = []
        for draw in range(first_draw, first_draw + self.draws):
            seeds = [
                (s, values.get(id(s), s.value) + ops.cast([1 + draw, 0], s.dtype))
                for s in self._seeds
            ]
            logits = self._logits_of_draw([*rest, *seeds], images, judged)
            shares.append(ops.log_softmax(logits, axis=-1))
        return ops.logsumexp(ops.stack(shares), axis=0) - math.log(self.draws)

    def _logits_of_draw(self, mapping: Any, images: Tensor, judged: bool) -> Tensor:
        with keras.StatelessScope(state_mapping=mapping), self._as_followed(images) as entry:
            return self._own_logits(entry) if judged else self._logits(entry)

    @contextlib.contextmanager
    def _as_followed(self, images: Tensor) -> Iterator[Tensor]:
        """The model as this attacker follows it inside the block, and what to give it."""
        with surrogates_in_force(self._surrogates):
            if self._behind is None:
                yield images
                return
            with outputs_given({self._behind: lambda _: images}):
                yield ops.zeros_like(images) + self.value_range[0]

    def _judged_logits(self, mapping: Any, images: Tensor) -> Tensor:
        """Logits by draws that no gradient has seen."""
        return self.traced_logits(mapping, images, first_draw=self.draws, judged=True)

    def as_given(self, images: Tensor) -> Tensor:
        """Images with channels last, or a layer's outputs, with channels as the model has them."""
        return ops.moveaxis(images, -1, 1) if self.channels_first else images

    def as_pixels(self, images: Tensor) -> Tensor:
        """Images with channels last, as the model is given them: in whole numbers, for some."""
        return self.as_given(rounded(images) if self.takes_whole_numbers else images)

    def _entering(self, images: Tensor) -> Tensor:
        """What attacks give, as the model takes it: pixels, or outputs of a layer."""
        return self.as_pixels(images) if self._behind is None else self.as_given(images)

    def reach(self, norm: str, epsilon: float) -> float:
        """How far images that the model can be given may go within epsilon.

        In whole numbers that is a whole number in L-infinity: an attack that goes farther would
        believe in images that it cannot deliver.
        """
        if self.takes_whole_numbers and norm == "linf":
            return float(math.floor(epsilon * (1 + 1e-6)))
        return epsilon

    def deliverable(
        self, x: np.ndarray, images: np.ndarray, norm: str, epsilon: float | None
    ) -> list[np.ndarray]:
        """Adversarial images as the model can be given them: in whole numbers, for some models.

        Without a radius there are several, the nearest to the clean images first.

        Args:
            x: clean images.
            images: adversarial images.
            norm: name of the norm of epsilon.
            epsilon: radius which the images must not leave, or None.
        """
        if not self.takes_whole_numbers:
            return [images]
        nearest, inner = whole(images, x)
        if epsilon is None:
            return [inner, nearest]
        # Where the nearest whole numbers leave the ball, those towards the clean image do not.
        measure = norms.get(norm)
        if isinstance(measure, norms.LInfinity):
            return [np.where(np.abs(nearest - x) > self.reach(norm, epsilon), inner, nearest)]
        if isinstance(measure, (norms.L1, norms.L2)):
            power = 2 if norm == "l2" else 1
            return [whole_inside(images, x, epsilon, power, self.value_range)]
        inside = norms.within(measure.distance(x, nearest), epsilon)
        return [np.where(norms.column(inside, x), nearest, inner)]

    def traced_ascent(
        self, mapping: Any, images: Tensor, labels: Tensor, aims: Tensor, objective: Objective
    ) -> Ascent:
        """The gradient to climb inside a compiled function, and which images go on climbing.

        With surrogate gradients, images that fool a classifier which may reject them climb away
        from its rejection instead (selective gradients, Bryniarski et al. 2022).

        Args:
            mapping: pairs of variables and values.
            images: with channels last.
            labels: ``(n,)`` integers.
            aims: ``(n,)`` integers, the targets; labels where there are none.
            objective: what to raise.
        """

        def raised(images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self.traced_logits(mapping, images)
            value = objective.value(labels, aims, logits)
            fooled = objective.reached(labels, aims, logits)
            if self.rejects:
                rejection = self._traced_rejection(mapping, images)
                if self._number:
                    share = ops.stop_gradient(ops.cast(fooled, value.dtype))
                    value = (1.0 - share) * value - share * ops.cast(rejection, value.dtype)
                fooled = ops.logical_and(fooled, rejection <= 0)
            unbroken = 1.0 - ops.cast(fooled, images.dtype)
            return ops.sum(value), (value, unbroken)

        gradient, (value, unbroken) = backend().input_gradient(raised, images)
        return Ascent(gradient, ops.cast(value, images.dtype), unbroken)

    def traced_unbroken(
        self, mapping: Any, images: Tensor, labels: Tensor, aims: Tensor, objective: Objective
    ) -> Tensor:
        """Which images are not adversarial, ``(n,)`` floats, by a forward pass alone."""
        logits = self.traced_logits(mapping, images)
        fooled = objective.reached(labels, aims, logits)
        if self.rejects:
            fooled = ops.logical_and(fooled, self._traced_rejection(mapping, images) <= 0)
        return 1.0 - ops.cast(fooled, images.dtype)

    def _traced_rejection(self, mapping: Any, images: Tensor) -> Tensor:
        model: Any = self.model
        images = self._entering(images)
        with keras.StatelessScope(state_mapping=mapping), self._as_followed(images) as entry:
            return model.rejection(entry)

    def _call(self, function: Callable[..., Any], x: np.ndarray) -> np.ndarray:
        """A function of a batch, compiled once, as NumPy."""
        compiled = self.kept(
            ("forward", function.__name__),
            lambda: backend().compiled_forward(function, self.variables),
        )
        return np.array(ops.convert_to_numpy(compiled(*padded_tensors(x)))[: len(x)])

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What the model itself gives, softmax and all; not counted."""
        return self._called(lambda images: self.model(images, training=False), x, 1)[0]

    def repeated(self, x: np.ndarray, calls: int) -> list[np.ndarray]:
        """Logits from several calls, one after the other; not counted.

        A model that draws random numbers gives others at each call, though a saturated softmax
        may hide it.
        """
        return self._called(self._own_logits, x, calls)

    def _called(self, function: Callable[..., Any], x: np.ndarray, calls: int) -> list[np.ndarray]:
        """A function of images called as it is; random generators are put back afterwards."""
        images, outputs = self.as_pixels(ops.convert_to_tensor(x)), []
        before = [np.array(ops.convert_to_numpy(seed)) for seed in self._seeds]
        try:
            for _ in range(calls):
                output = keras.tree.flatten(function(images))[0]
                outputs.append(ops.convert_to_numpy(ops.cast(ops.stop_gradient(output), "float32")))
        finally:
            for seed, state in zip(self._seeds, before, strict=True):
                seed.assign(state)
        return outputs


def padded_tensors(*arrays: np.ndarray) -> list[Tensor]:
    """Batches as tensors, with as many rows as the backend likes."""
    return [ops.convert_to_tensor(backend().padded(array)) for array in arrays]
