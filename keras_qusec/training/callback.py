"""AdversarialTraining: adversarial examples for each batch, inside the training step of `fit`."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_qusec import attacks, checks
from keras_qusec.attacks import GradientAttack
from keras_qusec.backends import backend
from keras_qusec.defenses import find_defenses
from keras_qusec.expected_inputs import check_expected_range
from keras_qusec.integer_inputs import check_reachable
from keras_qusec.logits import LOGITS, PROBABILITIES, known_kind
from keras_qusec.quantization import check_hardness
from keras_qusec.training.collapse import REACTIONS, CollapseProbe, Reaction
from keras_qusec.training.objectives import PriorGuidedLoss, TrainingObjective, objective_of
from keras_qusec.training.one_step import FGSMMEP, ONE_STEP_ATTACKS, ForTrainingAlone
from keras_qusec.training.priors import PriorStore
from keras_qusec.training.step import (
    ADVERSARIAL_COUNT,
    BAD_LABELS,
    CLEAN_COUNT,
    LARGEST_GRADIENT,
    NUMBER,
    OUTSIDE_RANGE,
    RANGE_USED,
    REPORTED,
    UNUSABLE,
    AdversarialFunction,
    StepSettings,
    micro_steps,
)
from keras_qusec.training.validation import AdversarialValidation

Tensor = Any

# Training runs the attack at every step and cannot afford the many steps of an evaluation.
_TRAINING_SETTINGS: dict[str, dict[str, Any]] = {"pgd": {"steps": 10}, "pgd-l2": {"steps": 10}}


class AdversarialTraining(keras.callbacks.Callback):
    """Train on adversarial examples made for each batch, inside the compiled training step.

    ``model.fit(x, y, callbacks=[AdversarialTraining("pgd", epsilon=0.3, steps=10)])``

    Each step makes adversarial examples for the batch with the model as it then is (white-box,
    in inference mode, against the loss the model was compiled with), and trains on them with
    the model's own ``train_step``. Nothing else changes: validation and `evaluate` see clean
    images, batch statistics and metrics do not see the attack, and after `fit` the model has
    the training step it had before.

    The model's metrics are measured on what was trained on. Beside them the logs hold, from
    passes that are made anyway, ``adversarial_loss`` and ``adversarial_accuracy`` (of the
    adversarial part of the batches), ``clean_loss`` and ``clean_accuracy`` (of the clean part;
    with ``ratio=1`` from the attack's first pass, if that starts at the clean image), and
    ``epsilon``. Losses of parts include regularization, as Keras' own do.

    Args:
        attack: ``"fgsm"``, ``"bim"``, ``"pgd"`` (here of 10 steps), the name of another attack
            that follows gradients in a ball, or an object of `keras_qusec.attacks`. For training
            alone there are two of one step, at two to three times the cost of plain training:
            ``"n-fgsm"`` (de Jorge et al. 2022) and ``"fgsm-mep"`` (Jia et al. 2022), which keeps
            two float16 numbers for each pixel value of each training image.
        epsilon: radius of the ball, in units of the pixel values; needed for a named attack. The
            following ones are settings of a named attack too, None for its own.
        steps: number of gradient steps; here 10 for PGD.
        step_size: length of one step, in units of the pixel values.
        norm: ``"linf"`` or ``"l2"``.
        random_start: start at a random point of the ball and not at the clean image.
        value_range: smallest and largest pixel value.
        ratio: share of each batch that is replaced by adversarial examples, in (0, 1]; 1 is
            Madry's training, 0.5 a mixture as Goodfellow's. The first rows of a batch are
            replaced, so the data must be shuffled, as `fit` does with arrays.
        objective: ``"loss"`` trains on the loss of the model (with ``"fgsm-mep"`` on its
            `PriorGuidedLoss` of weight 10); ``"trades"`` on the loss of the
            clean images plus `beta` times the divergence of the adversarial predictions from
            the clean ones (Zhang et al. 2019), against examples that maximise that divergence.
            Or an object of a subclass of `keras_qusec.training.TrainingObjective`.
        beta: weight of the divergence in TRADES, above 0.
        warmup_epochs: epochs of plain training first.
        ramp_epochs: epochs over which epsilon then rises from 0 to its value.
        epsilon_schedule: function of the epoch, a float tensor such as 2.5 in the middle of
            the third, written in `keras.ops`, that returns a factor for epsilon and the step
            size. Applied beside warm-up and ramp.
        gradient_hardness: hardness of the surrogate gradient that the attack gets from each
            defence, such as a quantizer; None means its own gradient. A small value trains
            against the adaptive attacker (BPDA).
        validation_data: ``(x, y)``, or a data set of batches ``(x, y)`` as `evaluate_robustness`
            takes, on which ``val_adversarial_accuracy`` is measured after each epoch, with the
            weights that Keras validates if `fit` has validation data. Put this callback before
            `ModelCheckpoint` or `EarlyStopping` that watch it, and behind a `SwapEMAWeights`. One
            warning if the model has other weights after an epoch than were measured.
        validation_attack: attack of that measurement; default the training attack, or PGD of 10
            steps for ``"n-fgsm"`` and ``"fgsm-mep"``.
        collapse: what to do about catastrophic overfitting, which training on a single step may
            end in. After each epoch 256 images are attacked by one step and by PGD of ten, and
            ``catastrophic_overfitting`` is logged, 0 or 1, beside ``probe_fgsm_accuracy`` and
            ``probe_pgd_accuracy``. ``"warn"`` once, ``"stop"`` the training, or ``"restore"`` the
            weights of the last good epoch after it; None for no probe. Only for attacks of one
            step and classifiers with one input.
        priors_file: ``.npz`` file in which ``"fgsm-mep"`` keeps what it remembers after each
            epoch, and finds it when training goes on, beside Keras' `BackupAndRestore`.
        attacked_input: key or position of the images for models with several inputs.
        outputs: ``"logits"`` or ``"probabilities"``, where the model's graph does not say what
            its outputs are, as of subclassed models; TRADES and `validation_data` must know.
        seed: seed of random starts; the same seed gives the same training.
        **settings: other settings of a named attack, such as `relative_step_size`.

    Raises:
        ValueError: for unusable arguments; in `fit` for a model without a loss, integer images
            or images outside the attack's value range, a schedule without a known number of
            steps, JAX in NNX mode, or two of these callbacks.

    Source: Goodfellow et al. 2015; Madry et al. 2018; the paper's Fig. 5 and 9.

    Example:

    >>> from keras_qusec import AdversarialTraining
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.rand(8, 4).astype("float32"), np.arange(8) % 2
    >>> training = AdversarialTraining("fgsm", epsilon=0.1)
    >>> sorted(model.fit(x, y, verbose=0, callbacks=[training]).history)[:2]
    ['adversarial_accuracy', 'adversarial_loss']
    """

    # Its batch hooks only store numbers, so Keras may call them beside the training.
    async_safe = True

    def __init__(
        self,
        attack: str | GradientAttack = "pgd",
        *,
        epsilon: float | None = None,
        steps: int | None = None,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] | None = None,
        random_start: bool | None = None,
        value_range: tuple[float, float] | None = None,
        ratio: float = 1.0,
        objective: Literal["loss", "trades"] | TrainingObjective = "loss",
        beta: float = 6.0,
        warmup_epochs: float = 0,
        ramp_epochs: float = 0,
        epsilon_schedule: Callable[[Tensor], Tensor] | None = None,
        gradient_hardness: float | None = None,
        validation_data: Any = None,
        validation_attack: GradientAttack | None = None,
        collapse: Reaction | None = "warn",
        priors_file: str | os.PathLike | None = None,
        attacked_input: str | int | None = None,
        outputs: Literal["logits", "probabilities"] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        named = {
            "epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm,
            "random_start": random_start, "value_range": value_range,
        }  # fmt: skip
        settings |= {name: value for name, value in named.items() if value is not None}
        self.attack = _training_attack(attack, settings)
        hint = "Use 1 to train on all images attacked."
        self.ratio = checks.number(ratio, "ratio", above=0, most=1, hint=hint)
        self.objective = objective_of(objective, beta)
        remembers = isinstance(self.attack, FGSMMEP)
        if remembers and objective == "loss":
            self.objective = PriorGuidedLoss()
        self.objective.check(self.ratio)
        self.warmup_epochs = checks.number(warmup_epochs, "warmup_epochs", least=0)
        self.ramp_epochs = checks.number(ramp_epochs, "ramp_epochs", least=0)
        if epsilon_schedule is not None and not callable(epsilon_schedule):
            raise ValueError(
                "Expected epsilon_schedule to be a function of the epoch. Received: "
                f"{epsilon_schedule!r}. Example: lambda epoch: keras.ops.minimum(epoch / 5, 1)"
            )
        self.epsilon_schedule = epsilon_schedule
        self.gradient_hardness = (
            None
            if gradient_hardness is None
            else check_hardness(gradient_hardness, "gradient_hardness")
        )
        self.validation_attack = self.attack
        if isinstance(self.attack, ForTrainingAlone):
            self.validation_attack = attacks.PGD(
                self.attack.epsilon, steps=10, value_range=self.attack.value_range
            )
        if validation_attack is not None:
            self.validation_attack = _ball_attack(validation_attack, {}, "validation_attack")
        self.attacked_input = attacked_input
        if outputs is not None:
            checks.one_of(outputs, "outputs", (LOGITS, PROBABILITIES))
        self.outputs = outputs
        self.seed = checks.whole_number(seed, "seed", least=0)
        self._validation: AdversarialValidation | None = None
        if validation_data is not None:
            self._validation = AdversarialValidation(
                validation_data,
                self.validation_attack,
                self.outputs,
                self.gradient_hardness,
                self.seed,
            )
        checks.one_of(collapse, "collapse", REACTIONS)
        self._probe: CollapseProbe | None = None
        if collapse is not None and self.attack.steps == 1 and self.attack.epsilon:
            hardnesses = [] if self.gradient_hardness is None else [self.gradient_hardness]
            self._probe = CollapseProbe(self.attack, self.outputs, hardnesses, collapse, self.seed)
        self._priors = PriorStore(self.seed) if remembers else None
        if priors_file is not None and not remembers:
            raise ValueError(
                'Expected priors_file with "fgsm-mep", which alone has priors. Received: '
                f"priors_file={os.fspath(priors_file)!r} with {self.attack!r}. Leave it out."
            )
        self.priors_file = None if priors_file is None else Path(priors_file)
        self._function: AdversarialFunction | None = None
        # A compiled step, kept for the next fit of the same model with this callback.
        self._compiled: AdversarialFunction | None = None
        self._reports: list[dict[str, float]] = []
        self._iterations_offset = 0.0
        self._offset_known = False
        self._warned = False

    # What Keras calls, in order.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._check_model()
        self._offset_known = False
        self._warned = False
        if self._priors is not None and self.priors_file and self.priors_file.exists():
            self._priors.load(self.priors_file)
        if self._probe is not None:
            self._probe.begin(self.model)
        self._put_step_in()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._reports = []
        if self._validation is not None:
            self._validation.begin_epoch(self.model)
        if self._priors is not None:
            self._priors.begin_epoch()
        if self._probe is not None:
            self._probe.begin_epoch()
        if not self._offset_known and self._scheduled:
            # Counted from the optimizer's iterations, which are state on every backend and are
            # restored with the model; a number of this callback would be frozen on JAX.
            done = float(ops.convert_to_numpy(micro_steps(self.model.optimizer)))
            self._iterations_offset = done - epoch * self._steps_per_epoch()
        self._offset_known = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._function is not None:
            self._function.arm()
        if self._validation is not None and self._validation.is_between_epochs:
            self._validation.resume(self.model)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras may call this from several threads, in any order, so each takes one whole report.
        if self._function is None or not self._function.reports:
            return
        tensors = self._function.reports.popleft()
        report = {name: float(ops.convert_to_numpy(value)) for name, value in tensors.items()}
        self._check_images(report)
        self._warn_of_masked_gradients(report)
        self._reports.append(report)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        reports = sorted(self._reports, key=lambda report: report[NUMBER])
        for name in REPORTED:
            chosen = [report for report in reports if name in report]
            if not chosen:
                continue
            if name == "epsilon":
                logs[name] = chosen[-1][name]
                continue
            # Weighed by the images of each batch, as Keras' own metrics are.
            count = ADVERSARIAL_COUNT if name.startswith("adversarial") else CLEAN_COUNT
            # Bounds are of all images, whichever of the two parts these make up.
            weights = [report.get(count, report.get(ADVERSARIAL_COUNT, 1.0)) for report in chosen]
            logs[name] = float(np.average([report[name] for report in chosen], weights=weights))
        if self._validation is not None:
            logs[self._validation.name] = self._validation.end_epoch(self.model)
        if self._priors is not None and self.priors_file:
            self._priors.save(self.priors_file)
        # While epsilon rises, a large gap between one step and many is no collapse yet.
        radius = self.attack.epsilon or 0.0
        if self._probe is not None and logs.get("epsilon", radius) >= 0.999 * radius:
            logs.update(self._probe.measure(self.model))

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras' validation within `fit`: only now the weights are certain to be those that it
        # validates, whichever the order of the callbacks.
        if self._validation is not None and self._function is not None:
            self._validation.measure(self.model)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._validation is not None:
            self._validation.end_training(self.model)
        if self._probe is not None:
            self._probe.end(self.model)
        self.restore()

    def restore(self) -> None:
        """Give the model its own training step back; `fit` does this, also after an error.

        After an exception or Ctrl-C the model may still hold the compiled adversarial step, but
        recognises at its next `fit` that it is stale. Calling this frees it at once.
        """
        if self._validation is not None:
            self._validation.end()
        if self._function is not None:
            self._function.remove()
            self._function = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes over: the settings, not the model and its compiled step."""
        left_out: dict[str, Any] = {"_model": None, "_function": None, "_compiled": None}
        return {**vars(self), **left_out, "_reports": []}

    def _put_step_in(self) -> None:
        """Give the model the training step of the settings as they are."""
        settings = StepSettings(
            attack=self.attack,
            ratio=self.ratio,
            objective=self.objective,
            epsilon_factor=self.epsilon_factor,
            gradient_hardness=self.gradient_hardness,
            attacked_input=self.attacked_input,
            outputs=self.outputs,
            seed=self.seed,
            sampled=self._probe is not None,
        )
        compiled = self._compiled
        # A schedule's beginning is part of what was traced.
        if compiled and not self._scheduled and compiled.serves(settings, self.model):
            compiled.begin(self.params)
        else:
            take = None if self._probe is None else self._probe.take
            compiled = AdversarialFunction(settings, self.model, self.params, self._priors, take)
        self._function = self._compiled = compiled

    # Checks.

    def _check_model(self) -> None:
        model = self.model
        backend().check_training()
        if self._priors is not None:
            self._check_batches()
        own_loss = type(model).compute_loss is not keras.Model.compute_loss
        if getattr(model, "loss", None) is None and not own_loss:
            raise ValueError(
                "Expected a model compiled with a loss, which the attack increases. Received: "
                f"{model.name} without one. Pass loss=... to model.compile."
            )
        current = model.train_function
        if isinstance(current, AdversarialFunction) and current.fit is self.params:
            raise ValueError(
                "Expected one AdversarialTraining callback. Received: two in one fit. "
                "Put the attacks you want into separate calls of fit."
            )
        if self._scheduled:
            self._steps_per_epoch()
        check_expected_range(model, self.attack.value_range, model.name)
        if self.attack.norm == "linf" and self.attack.epsilon:
            attacked = [model] if len(getattr(model, "inputs", None) or []) == 1 else []
            check_reachable(self.attack.epsilon, attacked)
        if self._validation is not None:
            self._validation.begin(model)

    def _check_images(self, report: dict[str, float]) -> None:
        """Raise a ValueError for what the compiled step saw of a batch and could not refuse."""
        low, high = self.attack.value_range
        outside = report.get(OUTSIDE_RANGE, 0.0)
        if not outside <= 1e-6:
            seen = (
                f"images up to {outside:g} outside it"
                if outside < UNUSABLE / 2
                else "NaN or infinity"
            )
            raise ValueError(
                f"Expected images inside value_range=({low:g}, {high:g}) of the attack. Received: "
                f"{seen}. Scale the images, or give the attack their value_range."
            )
        if 0 < report.get(RANGE_USED, 1.0) <= 0.01:
            raise ValueError(
                f"Expected images that use value_range=({low:g}, {high:g}) of the attack. "
                "Received: a batch that uses less than a hundredth of it. Scale the images, or "
                "give the attack the range that they have, such as (0.0, 1.0)."
            )
        if report.get(BAD_LABELS, 0.0) > 0:
            raise ValueError(
                "Expected labels from 0 to the number of classes less 1, as whole numbers. "
                f"Received: a batch with {report[BAD_LABELS]:.0f} others. Check the labels; -1 for "
                "unknown classes must be left out."
            )

    def _check_batches(self) -> None:
        """Raise a ValueError where nobody can say which images the next batch has."""
        strategy = getattr(self.model, "distribute_strategy", None)
        replicas = getattr(strategy, "num_replicas_in_sync", 1)
        if self.model.steps_per_execution > 1 or replicas > 1:
            raise ValueError(
                'Expected one batch at a time for "fgsm-mep", which remembers its images. '
                f"Received: steps_per_execution={self.model.steps_per_execution} and {replicas} "
                'replicas. Use "n-fgsm", or compile the model without them.'
            )

    @property
    def _scheduled(self) -> bool:
        return bool(self.warmup_epochs or self.ramp_epochs or self.epsilon_schedule)

    def _steps_per_epoch(self) -> int:
        steps = self.params.get("steps")
        if not steps:
            raise ValueError(
                "Expected a known number of steps per epoch, because epsilon follows a schedule. "
                "Received: data of unknown length. Pass steps_per_epoch=... to fit."
            )
        return int(steps)

    def _warn_of_masked_gradients(self, report: dict[str, float]) -> None:
        if report.get(LARGEST_GRADIENT, 1.0) > 0 or report.get("epsilon") == 0:
            return
        if self._warned or self._function is None:
            return
        self._warned = True
        # Not self.model: on JAX Keras then writes the state of training into the model, and here,
        # in a thread beside the training, that state may be consumed by the next step already.
        model = self._function.model
        causes = []
        if find_defenses(model):
            causes.append(
                "a defence such as a hard quantizer passes no gradient on: pass gradient_hardness=5"
            )
        if known_kind(model, self.outputs) == PROBABILITIES:
            causes.append(
                "a softmax is saturated: return logits and use a loss with from_logits=True"
            )
        if not causes:
            causes.append("some layer stops the gradient, or all units are saturated")
        warnings.warn(
            "AdversarialTraining: all input gradients of a batch are zero, so its images were "
            f"not attacked. Likely causes: {'; '.join(causes)}.",
            stacklevel=2,
        )

    # What the step asks for, and what comes after an epoch.

    def epsilon_factor(self, steps_done: Tensor) -> Any:
        """The factor for epsilon after so many steps: 0 in warm-up, rising in the ramp."""
        if not self._scheduled:
            return 1.0
        done = ops.cast(steps_done, "float32") - self._iterations_offset
        epoch = done / self._steps_per_epoch()
        factor = ops.cast(epoch >= self.warmup_epochs, "float32")
        if self.ramp_epochs:
            factor = ops.clip((epoch - self.warmup_epochs) / self.ramp_epochs, 0.0, 1.0)
        if self.epsilon_schedule is not None:
            factor = factor * ops.cast(self.epsilon_schedule(epoch), "float32")
        return factor


def _training_attack(attack: Any, settings: dict[str, Any]) -> GradientAttack:
    """The attack of a training step: in a ball with an epsilon, along gradients."""
    if isinstance(attack, str) and attack.lower() in ONE_STEP_ATTACKS:
        attack = _one_step_attack(attack.lower(), settings)
        settings = {}
    if isinstance(attack, str):
        settings = {**_TRAINING_SETTINGS.get(attack.lower(), {}), **settings}
    made = _ball_attack(attack, settings, "attack")
    if made.restarts != 1:
        raise ValueError(
            f"Expected an attack without restarts, since a training step runs it once. Received: "
            f"{made!r}. Use more steps instead."
        )
    return made


def _one_step_attack(name: str, settings: dict[str, Any]) -> GradientAttack:
    """An attack for training alone, by its name."""
    kind = ONE_STEP_ATTACKS[name]
    known = list(inspect.signature(kind).parameters)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"Expected settings of {name!r}: {', '.join(known)}. Received: "
            f"{', '.join(unknown)}. It is one step in L-infinity."
        )
    return kind(**settings)


def _ball_attack(attack: Any, settings: dict[str, Any], name: str) -> GradientAttack:
    """An untargeted attack that follows gradients in a ball with an epsilon."""
    made = attacks.get(attack, **settings)
    if not isinstance(made, GradientAttack):
        raise ValueError(
            f"Expected {name} to be one that follows gradients inside a ball, for it is compiled: "
            "one of 'fgsm', 'bim', 'pgd', 'n-fgsm', 'fgsm-mep', or an object of a subclass of "
            f"keras_qusec.attacks.GradientAttack. Received: {attack!r}."
        )
    if made.epsilon is None:
        raise ValueError(
            f"Expected epsilon for the {name} {attack!r}. Received: none. "
            'Example: AdversarialTraining("pgd", epsilon=0.3)'
        )
    if made.targeted:
        raise ValueError(
            f"Expected an untargeted {name}, since the labels are those to leave and there are no "
            f"target labels. Received: {made!r}. Leave targeted out."
        )
    return made
