"""The compiled training step of `AdversarialTraining`, and how it gets into a model and out."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.gradient_attack import GradientAttack, Perturbed
from keras_qusec.backends import backend, present_values
from keras_qusec.checks import float_images
from keras_qusec.defenses import find_defenses, surrogate_choices, surrogates_in_force
from keras_qusec.digests import settings_of
from keras_qusec.integer_inputs import casts_images, integer_input, part_of
from keras_qusec.logits import (
    PROBABILITIES,
    known_kind,
    log_probabilities,
    output_kind,
    said_kind,
)
from keras_qusec.sublayers import inside
from keras_qusec.tasks import loss_name
from keras_qusec.training.objectives import Batch, TrainingObjective, map_tensors, rows
from keras_qusec.training.one_step import Priors
from keras_qusec.training.priors import PriorStore

Tensor = Any

# What the step reports beside the model's own metrics, averaged over each epoch.
REPORTED = (
    "clean_loss",
    "clean_accuracy",
    "adversarial_loss",
    "adversarial_accuracy",
    "certified_loss",
    "certified_accuracy",
    "epsilon",
)
# What the step reports to the callback alone; `AdversarialFunction` takes it out of the logs.
LARGEST_GRADIENT = "_largest_input_gradient"
OUTSIDE_RANGE = "_outside_value_range"
RANGE_USED = "_share_of_value_range"
BAD_LABELS = "_labels_that_are_no_class"
CLEAN_COUNT = "_clean_count"
ADVERSARIAL_COUNT = "_adversarial_count"
KEPT = "_kept_for_the_next_epoch"
SAMPLE = "_images_and_labels"
# Which step of the fit a report is of; callbacks may see them in another order.
NUMBER = "_number"
# A distance that no image has; an infinite constant would stop TensorFlow's search for NaN.
UNUSABLE = 3e38
_COUNTS = {"clean": CLEAN_COUNT, "adversarial": ADVERSARIAL_COUNT}
_PRIVATE = (
    LARGEST_GRADIENT,
    OUTSIDE_RANGE,
    RANGE_USED,
    BAD_LABELS,
    CLEAN_COUNT,
    ADVERSARIAL_COUNT,
)


class StepSettings(NamedTuple):
    """How a training step attacks its batch and what it then trains on.

    Attributes:
        attack: the attack, with an epsilon.
        ratio: share of the batch that is replaced.
        objective: what is attacked and trained on.
        epsilon_factor: function of the training steps done, a factor for epsilon.
        gradient_hardness: hardness of the surrogate gradients, or None for own gradients.
        attacked_input: key or position of the images among several inputs, or None.
        outputs: what the user says the model's outputs are, or None.
        seed: seed of the random starts.
        sampled: report the images and labels of each batch, too.
    """

    attack: GradientAttack
    ratio: float
    objective: TrainingObjective
    epsilon_factor: Callable[[Tensor], Any]
    gradient_hardness: float | None
    attacked_input: str | int | None
    outputs: str | None
    seed: int
    sampled: bool = False


class WithPriors(NamedTuple):
    """A batch, and what is remembered of its images; see `PriorStore`."""

    data: Any
    priors: Priors


class AdversarialStep:
    """One adversarial training step, on any backend, around the model's own `train_step`."""

    def __init__(self, settings: StepSettings, model: keras.Model) -> None:
        self.settings = settings
        self.model = model
        hardness = settings.gradient_hardness
        choices = [] if hardness is None else surrogate_choices(find_defenses(model), [hardness])
        # The surrogate gradients that the attack follows, none for the defences' own.
        self.surrogates = choices[0] if choices else {}
        # None if neither the graph nor the user says it, where no probabilities are compared.
        read = output_kind if settings.objective.compares_probabilities else known_kind
        self.output_kind = read(model, settings.outputs)
        # Bound before the replacement: a custom train_step is used like Keras' own.
        self.train_step = model.train_step
        self.compute_loss = _flexible(model.compute_loss)
        self.compute_metrics = model.compute_metrics
        # Behind a cast to whole numbers there is no gradient, so the attack computes without it.
        self.through_casts = _without_casts(model)
        # A replica of a distribution strategy traces in a thread of its own.
        self.local = threading.local()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The model's step, loss and metrics replaced on the instance, for one call."""
        replaced = {
            "train_step": self.stateless_step if backend().passes_state else self.step,
            "compute_loss": self.objective_loss,
            "compute_metrics": self.observed_metrics,
        }
        before = {name: vars(self.model).get(name) for name in replaced}
        for name, function in replaced.items():
            object.__setattr__(self.model, name, function)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    object.__delattr__(self.model, name)
                else:
                    object.__setattr__(self.model, name, value)

    def step(self, data: Any) -> Any:
        """Training step of backends whose variables are assigned in it."""
        mapping = present_values(_variables(self.model))
        attacked, extra = self.attacked(data, mapping)
        logs = self.train_step(attacked)
        return {**logs, **extra(mapping)}

    def stateless_step(self, state: Any, data: Any) -> Any:
        """Training step of backends where the state comes in and goes out."""
        values = [value for part in state for value in part]
        mapping = list(zip(_variables(self.model), values, strict=True))
        attacked, extra = self.attacked(data, mapping)
        logs, state = self.train_step(state, attacked)
        return {**logs, **extra(mapping)}, state

    def attacked(self, data: Any, mapping: Any) -> tuple[Any, Callable[[Any], dict[str, Tensor]]]:
        """The batch with adversarial examples in it, and the logs to add after training."""
        settings, local = self.settings, self.local
        data, local.priors = data if isinstance(data, WithPriors) else (data, None)
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        given, put_back, index = _select(x, settings.attacked_input, self.model)
        images, takes_whole_numbers = given, integer_input(self.model, index) is not None
        # Other Inputs of integers, such as those of words, are left as they are.
        alone = len(getattr(self.model, "inputs", None) or []) == 1
        follows = takes_whole_numbers or alone
        local.called = self.through_casts if follows else None
        if takes_whole_numbers:
            images = ops.cast(given, "float32")
        float_images(images)
        size = ops.shape(images)[0]
        count = _part(size, settings.ratio)
        head = rows(None, count)
        part_x, part_y = map_tensors(head, x), map_tensors(head, y)
        factor, perturbed = self.perturb(part_x, part_y, images[:count], put_back, mapping)
        local.images, local.factor = images, factor
        adversarial = perturbed.images
        if takes_whole_numbers:
            radius = float(settings.attack.epsilon or 0.0)
            adversarial = _whole(
                adversarial, images[:count], norms.get(settings.attack.norm), radius * factor
            )
        adversarial = ops.cast(adversarial, given.dtype)
        images = given
        part = count if settings.ratio < 1 else None
        start = None if perturbed.start is None else ops.cast(perturbed.start, given.dtype)
        batch = Batch(x, y, weights, images, adversarial, part, put_back, start)
        labels = y
        x, y, weights, first_part = settings.objective.trained_on(batch)
        local.count = count if first_part is None else first_part
        local.size, local.outputs = size, None
        extra = {
            "epsilon": ops.cast(settings.attack.epsilon * factor, "float32"),
            LARGEST_GRADIENT: ops.cast(perturbed.largest_gradient, "float32"),
            **_range_of(images, settings.attack.value_range),
        }
        if perturbed.kept is not None:
            extra[KEPT] = perturbed.kept
        if settings.sampled and labels is not None:
            extra[SAMPLE] = (images, labels)
        first = None if settings.attack.random_start else perturbed.first_output

        def logs(mapping: Any) -> dict[str, Tensor]:
            seen = perturbed.first_output
            # What was trained on has the labels of the part that was attacked first.
            checked = (y, local.outputs) if seen is None else (part_y, seen)
            return {
                **extra,
                BAD_LABELS: self.bad_labels(*checked),
                **settings.objective.logs(self, x, y, mapping),
                **self.part_logs((x, y), (part_x, part_y), first, mapping),
            }

        return keras.utils.pack_x_y_sample_weight(x, y, weights), logs

    def perturb(
        self, x: Any, y: Any, images: Tensor, put_back: Callable[[Any, Tensor], Any], mapping: Any
    ) -> tuple[Any, Perturbed]:
        settings, attack = self.settings, self.settings.attack
        with keras.StatelessScope(state_mapping=mapping):
            steps_done = micro_steps(self.model.optimizer)
        factor = settings.epsilon_factor(steps_done)
        # What training lowers, and not the log-odds of an evaluation.
        raised = settings.objective.raised(self, x, y, mapping)

        def objective(moved: Tensor) -> tuple[Tensor, Any]:
            # A scope of its own for each differentiation: what it assigns must not leave it.
            with (
                keras.StatelessScope(state_mapping=mapping),
                surrogates_in_force(self.surrogates),
            ):
                inputs = put_back(x, moved)
                outputs = self.called(inputs)
                return raised(inputs, outputs), outputs

        state = ops.stack([ops.cast(settings.seed % 2**31, "int32"), ops.cast(steps_done, "int32")])
        start = None if attack.random_start else settings.objective.start(images, state)
        if self.local.priors is not None:
            start = tuple(part[: ops.shape(images)[0]] for part in self.local.priors)
        perturbed = attack.perturb(
            lambda moved: backend().input_gradient(objective, moved),
            images,
            state,
            epsilon=attack.epsilon * factor,
            step_size=attack.step_size * factor,
            start=start,
        )
        return factor, perturbed

    def called(self, inputs: Any) -> Any:
        """The model in inference mode, as the attack computes it."""
        function = self.local.called
        return self.model(inputs, training=False) if function is None else function(inputs)

    def forward(self, x: Any, mapping: Any) -> Any:
        with keras.StatelessScope(state_mapping=mapping):
            return self.called(x)

    def log_probabilities(self, outputs: Any) -> Tensor:
        if keras.tree.is_nested(outputs):
            raise ValueError(
                'Expected a model with one output for objective="trades". Received: '
                f"{self.model.name!r} with outputs {keras.tree.map_structure(np.shape, outputs)}. "
                'Use objective="loss", or a model of the classifier alone.'
            )
        if outputs.shape[-1] == 1 and self.threshold is None:
            raise ValueError(
                'Expected a classifier for objective="trades", which compares probabilities. '
                f"Received: {self.model.name!r} with one output and a loss that is not one of "
                'classes. Use objective="loss", or say outputs="logits" for a classifier of two '
                "classes."
            )
        return log_probabilities(outputs, str(self.output_kind))

    @property
    def threshold(self) -> float | None:
        """Where a single output changes from class 0 to class 1; None if it is no classifier's."""
        if self.output_kind is None:
            return None
        if self.output_kind == PROBABILITIES:
            return 0.5
        two_classes = any(word in loss_name(self.model) for word in ("binary", "hinge"))
        is_said = said_kind(self.model, self.settings.outputs) is not None
        return 0.0 if two_classes or is_said else None

    def accuracy(self, y: Any, outputs: Any) -> Tensor | None:
        """Share of the largest output at the label, or None where that has no meaning."""
        if keras.tree.is_nested(outputs) or keras.tree.is_nested(y) or y is None:
            return None
        if len(outputs.shape) != 2:
            return None
        if len(y.shape) == 2 and y.shape[-1] > 1:
            # Rows of numbers may be the targets of a regression,
            name, kind = loss_name(self.model), self.output_kind
            if name.startswith("binary") and y.shape[-1] == outputs.shape[-1]:
                # or several labels an image, each right or wrong, as Keras counts them.
                return self.label_accuracy(y, outputs)
            if kind != PROBABILITIES and not any(word in name for word in _CLASS_LOSSES):
                return None
            y = ops.argmax(y, axis=-1)
        elif len(y.shape) == 2:
            y = y[:, 0]
        if outputs.shape[-1] == 1:
            if self.threshold is None:
                return None
            # A hinge loss has labels -1 and 1.
            right = ops.equal(outputs[:, 0] > self.threshold, ops.cast(y, "float32") > 0.5)
        else:
            right = ops.equal(ops.cast(ops.argmax(outputs, axis=-1), "int32"), ops.cast(y, "int32"))
        return ops.mean(ops.cast(right, "float32"))

    def label_accuracy(self, y: Any, outputs: Any) -> Tensor:
        """Share of right labels where an image has several, or none."""
        limit = 0.5 if self.output_kind == PROBABILITIES else 0.0
        right = ops.equal(outputs > limit, ops.cast(y, "float32") > 0.5)
        return ops.mean(ops.cast(right, "float32"))

    def bad_labels(self, y: Any, outputs: Any) -> Tensor:
        """How many labels are no class of the outputs, for a loss that takes class numbers."""
        none = ops.zeros((), "float32")
        if outputs is None:
            return none
        if keras.tree.is_nested(y) or keras.tree.is_nested(outputs) or y is None:
            return none
        numbers = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)
        if not numbers or len(outputs.shape) != 2 or "sparse" not in loss_name(self.model):
            return none
        classes = ops.cast(y, "float32")
        whole = ops.equal(classes, ops.round(classes))
        inside = ops.logical_and(classes >= 0, classes <= outputs.shape[1] - 1)
        good = ops.logical_and(whole, inside)
        ignored = getattr(self.model.loss, "ignore_class", None)
        if ignored is not None:
            good = ops.logical_or(good, ops.equal(classes, float(ignored)))
        good = ops.cast(good, "float32")
        return ops.sum(1.0 - good)

    # The model's own methods, observed while its step runs.

    def objective_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """What is minimized, in place of the model's `compute_loss`."""
        objective, size = self.settings.objective, self.local.size
        return objective.loss(self, x, y, y_pred, sample_weight, training, size)

    def observed_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """`compute_metrics` of the model; keeps the predictions of the training pass."""
        self.local.outputs = y_pred
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def part_logs(
        self, data: tuple[Any, Any], clean: tuple[Any, Any], first: Any, mapping: Any
    ) -> dict[str, Tensor]:
        """Loss and accuracy of the clean and the adversarial part, from passes already made.

        Args:
            data: inputs and labels that were trained on.
            clean: inputs and labels of the part that was attacked, before it was.
            first: what the model gave for them, or None.
            mapping: pairs of variables and values.
        """
        outputs, count, size = self.local.outputs, self.local.count, self.local.size
        self.local.outputs = None
        parts: dict[str, tuple[Any, Any, Any]] = {}
        if outputs is not None:
            trained = (*data, map_tensors(ops.stop_gradient, outputs))
            ratio = self.settings.ratio
            parts = self.settings.objective.parts(trained, count, size, ratio)
        if "clean" not in parts and first is not None and self.settings.ratio == 1:
            parts["clean"] = (*clean, first)
        logs = {}
        for name, (inputs, labels, predictions) in parts.items():
            with keras.StatelessScope(state_mapping=mapping):
                loss = self.compute_loss(
                    x=inputs, y=labels, y_pred=predictions, sample_weight=None, training=False
                )
            logs[f"{name}_loss"] = ops.mean(ops.cast(ops.stop_gradient(loss), "float32"))
            accuracy = self.accuracy(labels, predictions)
            if accuracy is not None:
                logs[f"{name}_accuracy"] = accuracy
            number = ops.shape(keras.tree.flatten(predictions)[0])[0]
            logs[_COUNTS[name]] = ops.cast(number, "float32")
        return logs


class AdversarialFunction:
    """What stands in `model.train_function` during `fit`.

    It runs only directly after the callback's `on_train_batch_begin`, and in the same fit. Keras
    tells a callback nothing of an exception, so a later `fit` without the callback may find this
    function left over; it then gives the model a function of its own and steps aside.
    """

    def __init__(
        self,
        settings: StepSettings,
        model: keras.Model,
        fit: Any,
        priors: PriorStore | None = None,
        sample: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self.model = model
        self.signature = _signature(settings, model)
        # What each step reported, until the callback reads it.
        self.reports: deque[dict[str, Tensor]] = deque()
        if isinstance(model.train_function, AdversarialFunction):
            model.train_function.remove()
        self.step = AdversarialStep(settings, model)
        self.priors, self.sample = priors, sample
        # Places of the images of the batch that is trained on.
        self.places = np.zeros(0, "int64")
        with self.step.installed():
            if priors is None:
                model.make_train_function(force=True)
                self.function = model.train_function
            else:
                self.function = backend().train_function_of(model, self.with_priors)
        self.begin(fit)

    def serves(self, settings: StepSettings, model: keras.Model) -> bool:
        """Whether this compiled step is that of a fit to come."""
        return self.model is model and self.signature == _signature(settings, model)

    def begin(self, fit: Any) -> None:
        """Stand in for the model's own function during a fit.

        Args:
            fit: what tells one fit from another: the parameters that Keras gives to callbacks.
        """
        if isinstance(self.model.train_function, AdversarialFunction):
            self.model.train_function.remove()
        self.fit, self.armed = fit, False
        # Keras makes a new history for each fit, also for one without the callback.
        self.history = getattr(self.model, "history", None)
        self.reports.clear()
        self.count = 0
        self.model.train_function = self

    def arm(self) -> None:
        self.armed = True

    def __call__(self, *arguments: Any) -> Any:
        if not self.armed or getattr(self.model, "history", None) is not self.history:
            self.remove()
            self.model.make_train_function()
            return self.model.train_function(*arguments)
        self.armed = False
        with self.step.installed():
            result = self.function(*arguments)
        logs = result[0] if backend().passes_state else result
        self.count += 1
        if KEPT in logs and self.priors is not None:
            kept = (ops.convert_to_numpy(part) for part in logs.pop(KEPT))
            self.priors.keep(self.places, Priors(*kept))
        if SAMPLE in logs and self.sample is not None:
            self.sample(*logs.pop(SAMPLE))
        report = {name: logs.pop(name) for name in _PRIVATE if name in logs}
        report[NUMBER] = self.count
        self.reports.append(report | {name: logs[name] for name in REPORTED if name in logs})
        return result

    def with_priors(self, data: Any) -> WithPriors:
        """A batch beside the priors of its images."""
        assert self.priors is not None  # the function was made for them
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        images, _, _ = _select(x, self.step.settings.attacked_input, self.model)
        self.places, priors = self.priors.of(ops.convert_to_numpy(images))
        return WithPriors(data, Priors(*map(ops.convert_to_tensor, priors)))

    def remove(self) -> None:
        if self.model.train_function is self:
            self.model.train_function = None


# Words in the names of losses that compare classes.
_CLASS_LOSSES = ("crossentropy", "hinge", "focal", "divergence")


def _flexible(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `compute_loss`, called with those of its arguments that it takes."""
    parameters = inspect.signature(compute_loss).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return compute_loss

    def called(x: Any = None, y: Any = None, y_pred: Any = None, **others: Any) -> Any:
        given = {"x": x, "y": y, "y_pred": y_pred, **others}
        return compute_loss(**{name: value for name, value in given.items() if name in parameters})

    return called


def _signature(settings: StepSettings, model: keras.Model) -> Any:
    """What a compiled step was traced with; a step of another signature cannot be used."""
    return (
        settings,
        vars(settings.attack).copy(),
        # Keras makes the last two anew in each `compile`, and says it nowhere else.
        (model.optimizer, model.loss, type(model)),
        (model._compile_loss, model._compile_metrics),
        tuple(layer.trainable for layer in inside(model, keras.layers.Layer)),
        (model.run_eagerly, model.jit_compile, model.steps_per_execution),
        tuple((id(variable), variable.trainable) for variable in model.variables),
        tuple(settings_of(d, without="hardness") for d in find_defenses(model)),
    )


def _range_of(images: Tensor, value_range: tuple[float, float]) -> dict[str, Tensor]:
    """How far images lie outside a range, `UNUSABLE` if they hold NaN, and how much they use."""
    low, high = value_range
    brightest = ops.cast(ops.max(images), "float32")
    darkest = ops.cast(ops.min(images), "float32")
    outside = ops.maximum(brightest - high, low - darkest)
    # Not every backend's largest value is NaN if one is.
    total = ops.sum(ops.cast(images, "float32"))
    return {
        OUTSIDE_RANGE: ops.where(ops.isfinite(total), outside, UNUSABLE),
        RANGE_USED: (brightest - darkest) / (high - low),
    }


def _variables(model: keras.Model) -> list[Any]:
    """Everything a training step reads or assigns, in the order of JAX's state."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]


def micro_steps(optimizer: keras.optimizers.Optimizer) -> Tensor:
    """Training steps done, counting each one of an accumulated gradient."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer.iterations * (inner.gradient_accumulation_steps or 1)


def _part(size: Any, ratio: float) -> Any:
    """Number of rows to attack of a batch: at least one, and all of them for ratio 1."""
    if ratio == 1:
        return size
    if isinstance(size, int):
        return max(1, round(ratio * size))
    return ops.maximum(ops.cast(ops.round(ratio * ops.cast(size, "float32")), "int32"), 1)


def _select(
    x: Any, attacked: str | int | None, model: keras.Model
) -> tuple[Tensor, Callable[[Any, Tensor], Any], int]:
    """The attacked input of a structure, a function that puts another there, and its place."""
    if not isinstance(x, (dict, list, tuple)):
        return x, lambda _, images: images, 0
    if len(x) == 1 and attacked is None:
        attacked = next(iter(x)) if isinstance(x, dict) else 0
    if isinstance(x, dict):
        names: list[Any] = list(x)
    else:
        names = list(range(len(x)))
        input_names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
        if isinstance(attacked, str) and attacked in input_names:
            attacked = input_names.index(attacked)
    if attacked not in names:
        raise ValueError(
            f"Expected attacked_input to name the images among the model's inputs {names}. "
            f"Received: attacked_input={attacked!r}."
        )

    def put_back(inputs: Any, images: Tensor) -> Any:
        if isinstance(inputs, dict):
            return {**inputs, attacked: images}
        return type(x)([images if i == attacked else t for i, t in enumerate(inputs)])

    place = names.index(attacked)
    if isinstance(x, dict):
        symbols = getattr(model, "inputs", None) or []
        structure = getattr(model, "input", None)
        named = structure if isinstance(structure, dict) else {}
        same = [i for i, symbol in enumerate(symbols)
                if symbol is named.get(attacked) or symbol.name == attacked]  # fmt: skip
        place = same[0] if same else place
    return x[attacked], put_back, place


def _without_casts(model: keras.Model) -> Callable[[Any], Any] | None:
    """A model in inference mode, as a function of its inputs whose casts have a gradient.

    None for a model without such casts.
    """
    if not casts_images(model):
        return None
    part = part_of(model.inputs, model.outputs, through_casts=True)

    def called(inputs: Any) -> Any:
        structure = getattr(model, "input", None)
        if isinstance(inputs, dict):
            # By the keys of the model's own structure, or by the names of its tensors.
            named = structure if isinstance(structure, dict) else {}
            given = {id(named[key]): value for key, value in inputs.items() if key in named}
            inputs = [given.get(id(t), inputs.get(t.name)) for t in model.inputs]
        outputs = part(inputs)
        if isinstance(model, keras.Sequential):
            return outputs
        return keras.tree.pack_sequence_as(model.output, keras.tree.flatten(outputs))

    return called


# Shares of a change, of which the largest whose whole numbers are inside a ball is taken.
_SHARES = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 1.0)


def _whole(adversarial: Tensor, x: Tensor, norm: norms.Norm, epsilon: Tensor) -> Tensor:
    """Adversarial images in whole numbers, inside the ball around clean ones."""
    change, limit = adversarial - x, (1 + 1e-6) * epsilon
    if norm.name == "linf":
        reach = ops.floor(limit)
        return x + ops.minimum(ops.maximum(ops.round(change), -reach), reach)
    result = ops.zeros_like(change)
    shape = (-1, *([1] * (len(change.shape) - 1)))
    for share in _SHARES:
        whole = ops.round(share * change)
        inside = ops.cast(ops.reshape(norm.length(whole) <= limit, shape), change.dtype)
        result = inside * whole + (1.0 - inside) * result
    return x + result
