"""Keras callbacks: what happens to a quantizer, or to the images, during `fit`."""

from __future__ import annotations

import contextlib
import numbers
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import attacks
from keras_qusec.attacks import GradientAttack
from keras_qusec.attacks.gradient_attacks import Perturbed, outputs_probabilities
from keras_qusec.gradients import input_gradient, present_values
from keras_qusec.layers import find_quantizers, gradient_hardness
from keras_qusec.quantization import check_hardness, check_images_dtype

Tensor = Any


class HardnessSchedule(keras.callbacks.Callback):
    """Raise the hardness z of every quantizer in a model while it trains.

    A small z lets thresholds and images receive gradients; a large z quantizes. The paper
    trains thresholds with z from 5 to 40 and uses 50 for constant thresholds; this
    callback goes from one to the other. Compiled training steps are not traced again:
    the hardness is a weight of the layer.

    The hardness reached stays after `fit`, is saved with the model, and is logged after
    each epoch as ``hardness``.

    Args:
        start: hardness at the beginning, above 0.
        end: hardness at the end, above 0.
        schedule: ``"linear"``, ``"geometric"`` (a constant factor from epoch to epoch), or
            a function of the progress p in [0, 1] that returns the hardness; `start` and
            `end` are not used with a function.
        epochs: epochs until `end` is reached; default all epochs of `fit`.
        update: ``"epoch"`` sets the hardness at the start of each epoch; ``"batch"`` before
            each batch, which costs JAX a synchronisation per batch.

    Raises:
        ValueError: for unusable arguments, and in `fit` for a model without quantizers,
            or if a function returns something that is no hardness.

    Source: "Effect of z", Section IV.A and Eq. 9.

    Example:
    >>> from keras_qusec import HardnessSchedule, TrainableQuSecQuantization
    >>> model = keras.Sequential([TrainableQuSecQuantization(), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.rand(8, 4).astype("float32"), np.zeros((8, 2), "float32")
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[HardnessSchedule(5, 25)])
    >>> history.history["hardness"]
    [5.0, 15.0, 25.0]
    """

    def __init__(
        self,
        start: float = 5.0,
        end: float = 50.0,
        *,
        schedule: str | Callable[[float], float] = "linear",
        epochs: int | None = None,
        update: str = "epoch",
    ) -> None:
        super().__init__()
        self.start = check_hardness(start, "start")
        self.end = check_hardness(end, "end")
        if not callable(schedule) and schedule not in ("linear", "geometric"):
            raise ValueError(
                'Expected schedule to be "linear", "geometric" or a function of the '
                f"progress from 0 to 1. Received: schedule={schedule!r}. Example: "
                "schedule=lambda p: 5 + 45 * p**2"
            )
        if update not in ("epoch", "batch"):
            raise ValueError(
                'Expected update to be "epoch" or "batch". '
                f'Received: update={update!r}. Use "epoch" unless epochs are very few.'
            )
        if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
            raise ValueError(
                "Expected epochs to be a whole number from 1 up, or None for all epochs "
                f"of fit. Received: epochs={epochs!r}."
            )
        self.schedule = schedule
        self.epochs = epochs
        self.update = update
        self._epoch = 0
        self._quantizers: list[Any] = []

    def hardness_at(self, progress: float) -> float:
        """The hardness at a progress from 0 (first epoch) to 1 (last epoch)."""
        if callable(self.schedule):
            return check_hardness(self.schedule(progress), "the schedule's hardness")
        if self.schedule == "geometric":
            return float(self.start * (self.end / self.start) ** progress)
        return self.start + (self.end - self.start) * progress

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._quantizers = find_quantizers(self.model)
        if not self._quantizers:
            raise ValueError(
                "Expected a model with a QuSecQuantization or TrainableQuSecQuantization "
                f"layer. Received: {self.model.name} without one. Add a quantizer, or "
                "remove HardnessSchedule from the callbacks."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._set(float(epoch))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        steps = self.params.get("steps")
        # A data set of unknown length gives no progress inside its first epoch.
        if self.update == "batch" and steps:
            self._set(self._epoch + batch / steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["hardness"] = self._quantizers[0].hardness

    def _set(self, epoch: float) -> None:
        if keras.backend.backend() == "jax":
            # Variables are stale copies while a JAX epoch runs; this brings them back.
            self.model.jax_state_sync()
        last = max((self.epochs or self.params["epochs"]) - 1, 1)
        hardness = self.hardness_at(min(epoch / last, 1.0))
        for quantizer in self._quantizers:
            quantizer.hardness = hardness


# --- Adversarial training ---------------------------------------------------------------

# What the step reports beside the model's own metrics, averaged over each epoch.
_REPORTED = (
    "clean_loss",
    "clean_accuracy",
    "adversarial_loss",
    "adversarial_accuracy",
    "epsilon",
)
# What the step reports to the callback alone.
_LARGEST_GRADIENT = "_largest_input_gradient"
_OUTSIDE = "_outside_value_range"


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
        attack: ``"fgsm"``, ``"bim"``, ``"pgd"``, or an object of `keras_qusec.attacks`.
        ratio: share of each batch that is replaced by adversarial examples, in (0, 1]; 1 is
            Madry's training, 0.5 a mixture as Goodfellow's. The first rows of a batch are
            replaced, so the data must be shuffled, as `fit` does with arrays.
        objective: ``"loss"`` trains on the loss of the model; ``"trades"`` on the loss of the
            clean images plus `beta` times the divergence of the adversarial predictions from
            the clean ones (Zhang et al. 2019), against examples that maximise that divergence.
        beta: weight of the divergence in TRADES, above 0.
        warmup_epochs: epochs of plain training first.
        ramp_epochs: epochs over which epsilon then rises from 0 to its value.
        epsilon_schedule: function of the epoch, a float tensor such as 2.5 in the middle of
            the third, written in `keras.ops`, that returns a factor for epsilon and the step
            size. Applied beside warm-up and ramp.
        gradient_hardness: hardness of the gradient that the attack gets from each quantizer;
            None means its own. A small value trains against the adaptive attacker (BPDA).
        validation_data: ``(x, y)`` on which ``val_adversarial_accuracy`` is measured after
            each epoch. Put this callback before `ModelCheckpoint` or `EarlyStopping` that
            watch it.
        validation_attack: attack of that measurement; default the training attack.
        attacked_input: key or position of the images for models with several inputs.
        seed: seed of random starts; the same seed gives the same training.
        **settings: `epsilon` and the other settings of a named attack.

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
        ratio: float = 1.0,
        objective: str = "loss",
        beta: float = 6.0,
        warmup_epochs: float = 0,
        ramp_epochs: float = 0,
        epsilon_schedule: Callable[[Tensor], Tensor] | None = None,
        gradient_hardness: float | None = None,
        validation_data: tuple[Any, Any] | None = None,
        validation_attack: GradientAttack | None = None,
        attacked_input: str | int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.attack = attacks.get(attack, **settings)
        self.ratio = _check_between(ratio, "ratio", 0, 1, "Use 1 to train on all images attacked.")
        if objective not in ("loss", "trades"):
            raise ValueError(
                f'Expected objective to be "loss" or "trades". Received: objective={objective!r}.'
            )
        if objective == "trades" and self.ratio != 1:
            raise ValueError(
                'Expected ratio=1 with objective="trades", which uses every image clean and '
                f"adversarial. Received: ratio={ratio!r}. Weigh the two with beta."
            )
        if objective == "trades" and self.attack.targeted:
            raise ValueError(
                'Expected an untargeted attack with objective="trades", which has no target '
                f"labels. Received: {self.attack!r}."
            )
        self.objective = objective
        self.beta = _check_between(beta, "beta", 0, np.inf, "Zhang et al. use 1 to 6.")
        for name, value in {"warmup_epochs": warmup_epochs, "ramp_epochs": ramp_epochs}.items():
            if not isinstance(value, numbers.Real) or not 0 <= value < np.inf:
                raise ValueError(
                    f"Expected {name} to be a number of epochs, 0 or more. "
                    f"Received: {name}={value!r}."
                )
        if epsilon_schedule is not None and not callable(epsilon_schedule):
            raise ValueError(
                "Expected epsilon_schedule to be a function of the epoch. Received: "
                f"{epsilon_schedule!r}. Example: lambda epoch: keras.ops.minimum(epoch / 5, 1)"
            )
        self.warmup_epochs = float(warmup_epochs)
        self.ramp_epochs = float(ramp_epochs)
        self.epsilon_schedule = epsilon_schedule
        self.gradient_hardness = (
            None
            if gradient_hardness is None
            else check_hardness(gradient_hardness, "gradient_hardness")
        )
        self.validation_data = validation_data
        self.validation_attack = validation_attack or self.attack
        self.attacked_input = attacked_input
        self.seed = int(seed)
        self._function: _AdversarialFunction | None = None
        self._batches: dict[int, dict[str, float]] = {}
        self._iterations_offset = 0.0
        self._offset_known = False
        self._warned = False

    # What Keras calls, in order.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._check_model()
        self._offset_known = False
        self._warned = False
        self._function = _AdversarialFunction(self, self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches = {}
        if not self._offset_known and self._scheduled:
            # Counted from the optimizer's iterations, which are state on every backend and are
            # restored with the model; a number of this callback would be frozen on JAX.
            done = float(ops.convert_to_numpy(_micro_steps(self.model.optimizer)))
            self._iterations_offset = done - epoch * self._steps_per_epoch()
        self._offset_known = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._function is not None:
            self._function.arm()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        outside = logs.pop(_OUTSIDE, 0.0)
        if outside > 1e-6:
            low, high = self.attack.value_range
            raise ValueError(
                f"Expected images inside value_range=({low:g}, {high:g}) of the attack. Received: "
                f"images up to {outside:g} outside it. Scale the images, or give the attack their "
                "value_range."
            )
        self._warn_of_masked_gradients(logs.pop(_LARGEST_GRADIENT, 1.0), logs)
        # By number: Keras may call this from several threads, in any order.
        self._batches[batch] = {name: logs[name] for name in _REPORTED if name in logs}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        for name in (_OUTSIDE, _LARGEST_GRADIENT):
            logs.pop(name, None)
        for name in _REPORTED:
            values = [values[name] for _, values in sorted(self._batches.items()) if name in values]
            if values:
                logs[name] = values[-1] if name == "epsilon" else float(np.mean(values))
        if self.validation_data is not None:
            logs["val_adversarial_accuracy"] = self._validate()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the model its own training step back; `fit` does this, also after an error.

        After an exception or Ctrl-C the model may still hold the compiled adversarial step, but
        recognises at its next `fit` that it is stale. Calling this frees it at once.
        """
        if self._function is not None:
            self._function.remove()
            self._function = None

    # Checks.

    def _check_model(self) -> None:
        model = self.model
        if keras.backend.backend() == "jax" and keras.config.is_nnx_enabled():
            raise ValueError(
                "Expected Keras on JAX without NNX, whose training step cannot be replaced. "
                "Received: NNX mode. Unset KERAS_NNX_ENABLED."
            )
        own_loss = type(model).compute_loss is not keras.Model.compute_loss
        if getattr(model, "loss", None) is None and not own_loss:
            raise ValueError(
                "Expected a model compiled with a loss, which the attack increases. Received: "
                f"{model.name} without one. Pass loss=... to model.compile."
            )
        current = model.train_function
        if isinstance(current, _AdversarialFunction) and current.callback.params is self.params:
            raise ValueError(
                "Expected one AdversarialTraining callback. Received: two in one fit. "
                "Put the attacks you want into separate calls of fit."
            )
        if self._scheduled:
            self._steps_per_epoch()

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

    def _warn_of_masked_gradients(self, largest: float, logs: dict[str, Any]) -> None:
        if largest > 0 or self._warned or logs.get("epsilon") == 0:
            return
        self._warned = True
        causes = []
        if find_quantizers(self.model):
            causes.append(
                "a quantizer passes no gradient on at this hardness: pass gradient_hardness=5"
            )
        if outputs_probabilities(self.model):
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

    # The step.

    def _validate(self) -> float:
        x, y = self.validation_data  # type: ignore[misc]
        with gradient_hardness(find_quantizers(self.model), self.gradient_hardness):
            adversarial = self.validation_attack(self.model, x, y, seed=self.seed)
        outputs = self.model.predict(adversarial, verbose=0)
        y = np.asarray(y)
        labels = y.reshape(len(y), -1)
        labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
        return float((outputs.argmax(axis=-1) == labels).mean())

    def _epsilon_factor(self, steps_done: Tensor) -> Any:
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


class _Step:
    """One adversarial training step, on any backend, around the model's own `train_step`."""

    def __init__(self, callback: AdversarialTraining, model: keras.Model) -> None:
        self.callback = callback
        self.model = model
        self.quantizers = find_quantizers(model)
        # Bound before the replacement: a custom train_step is used like Keras' own.
        self.train_step = model.train_step
        self.compute_loss = model.compute_loss
        self.compute_metrics = model.compute_metrics
        # A replica of a distribution strategy traces in a thread of its own.
        self.local = threading.local()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The model's step, loss and metrics replaced on the instance, for one call."""
        replaced = {
            "train_step": self.jax_step if _jax() else self.step,
            "compute_loss": self.trades_loss,
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
        """Training step of TensorFlow and PyTorch."""
        mapping = present_values(_variables(self.model))
        attacked, extra = self.attacked(data, mapping)
        logs = self.train_step(attacked)
        return {**logs, **extra(mapping)}

    def jax_step(self, state: Any, data: Any) -> Any:
        """Training step of JAX: the state comes in and goes out."""
        values = [value for part in state for value in part]
        mapping = list(zip(_variables(self.model), values, strict=True))
        attacked, extra = self.attacked(data, mapping)
        logs, state = self.train_step(state, attacked)
        return {**logs, **extra(mapping)}, state

    def attacked(self, data: Any, mapping: Any) -> tuple[Any, Callable[[Any], dict[str, Tensor]]]:
        """The batch with adversarial examples in it, and the logs to add after training."""
        callback, local = self.callback, self.local
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        images, put_back = _select(x, callback.attacked_input, self.model)
        check_images_dtype(images)
        size = ops.shape(images)[0]
        count = _part(size, callback.ratio)
        head = _rows(None, count)
        part_x, part_y = _map(head, x), _map(head, y)
        factor, perturbed = self.perturb(part_x, part_y, images[:count], put_back, mapping)
        adversarial = ops.cast(perturbed.images, images.dtype)
        local.count, local.size, local.outputs = count, size, None
        if callback.objective == "trades":
            both = ops.concatenate([images, adversarial])
            x = put_back(_map(_twice, x), both)
            y, weights = _map(_twice, y), _map(_twice, weights)
            local.count = size
        elif callback.ratio < 1:
            x = put_back(x, ops.concatenate([adversarial, images[count:]]))
        else:
            x = put_back(x, adversarial)
        low, high = callback.attack.value_range
        outside = ops.maximum(ops.max(images) - high, low - ops.min(images))
        extra = {
            "epsilon": ops.cast(callback.attack.epsilon * factor, "float32"),
            _LARGEST_GRADIENT: ops.cast(perturbed.largest_gradient, "float32"),
            _OUTSIDE: ops.cast(outside, "float32"),
        }
        first = None if callback.attack.random_start else perturbed.first_output

        def logs(mapping: Any) -> dict[str, Tensor]:
            return {**extra, **self.part_logs(y, part_y, first, mapping)}

        return keras.utils.pack_x_y_sample_weight(x, y, weights), logs

    def perturb(
        self, x: Any, y: Any, images: Tensor, put_back: Callable[[Any, Tensor], Any], mapping: Any
    ) -> tuple[Any, Perturbed]:
        callback = self.callback
        with keras.StatelessScope(state_mapping=mapping):
            steps_done = _micro_steps(self.model.optimizer)
        factor = callback._epsilon_factor(steps_done)
        size = ops.cast(ops.shape(images)[0], "float32")
        reference = None
        if callback.objective == "trades":
            reference = ops.stop_gradient(self.log_probabilities(self.forward(x, mapping)))

        def objective(moved: Tensor) -> tuple[Tensor, Any]:
            # A scope of its own for each differentiation: what it assigns must not leave it.
            with (
                keras.StatelessScope(state_mapping=mapping),
                gradient_hardness(self.quantizers, callback.gradient_hardness),
            ):
                inputs = put_back(x, moved)
                outputs = self.model(inputs, training=False)
                if reference is not None:
                    return ops.sum(_divergence(reference, self.log_probabilities(outputs))), outputs
                loss = self.compute_loss(
                    x=inputs, y=y, y_pred=outputs, sample_weight=None, training=False
                )
                # The sum over the batch: gradients of the mean underflow in float16.
                return ops.cast(loss, "float32") * size, outputs

        attack = callback.attack
        seed_state = ops.stack(
            [ops.cast(callback.seed % 2**31, "int32"), ops.cast(steps_done, "int32")]
        )
        # TRADES starts beside the clean image: on it the divergence has no gradient.
        start = images
        if reference is not None and not attack.random_start:
            start = images + 1e-3 * attack.noise(images, seed_state)
        perturbed = attack.perturb(
            lambda moved: input_gradient(objective, moved),
            start,
            seed_state,
            epsilon=attack.epsilon * factor,
            step_size=attack.step_size * factor,
        )
        return factor, perturbed

    def forward(self, x: Any, mapping: Any) -> Any:
        with keras.StatelessScope(state_mapping=mapping):
            return self.model(x, training=False)

    def log_probabilities(self, outputs: Any) -> Tensor:
        outputs = ops.cast(outputs, "float32")
        if outputs_probabilities(self.model):
            return ops.log(ops.maximum(outputs, 1e-30))
        return ops.log_softmax(outputs, axis=-1)

    # The model's own methods, observed while its step runs.

    def trades_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """`compute_loss` of the model, or TRADES on the clean and the adversarial half."""
        if self.callback.objective != "trades":
            return self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        half = self.local.size
        clean, attacked = _rows(None, half), _rows(half, None)
        loss = self.compute_loss(
            x=_map(clean, x),
            y=_map(clean, y),
            y_pred=_map(clean, y_pred),
            sample_weight=_map(clean, sample_weight),
            training=training,
        )
        divergence = _divergence(
            self.log_probabilities(clean(y_pred)), self.log_probabilities(attacked(y_pred))
        )
        if sample_weight is not None:
            divergence = divergence * ops.cast(clean(sample_weight), divergence.dtype)
        return loss + self.callback.beta * ops.cast(ops.mean(divergence), loss.dtype)

    def observed_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """`compute_metrics` of the model; keeps the predictions of the training pass."""
        self.local.outputs = y_pred
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def part_logs(self, y: Any, part_y: Any, first: Any, mapping: Any) -> dict[str, Tensor]:
        """Loss and accuracy of the clean and the adversarial part, from passes already made."""
        outputs, count, size = self.local.outputs, self.local.count, self.local.size
        self.local.outputs = None
        parts: dict[str, tuple[Any, Any]] = {}
        if outputs is not None:
            outputs = _map(ops.stop_gradient, outputs)
            head, tail = _rows(None, count), _rows(count, None)
            if self.callback.objective == "trades":
                parts["clean"] = _map(head, y), _map(head, outputs)
                parts["adversarial"] = _map(tail, y), _map(tail, outputs)
            else:
                parts["adversarial"] = part_y, _map(head, outputs)
                # A last batch of a single image has no clean part.
                if self.callback.ratio < 1 and not (isinstance(size, int) and count == size):
                    parts["clean"] = _map(tail, y), _map(tail, outputs)
        if "clean" not in parts and first is not None and self.callback.ratio == 1:
            parts["clean"] = part_y, first
        logs = {}
        for name, (labels, predictions) in parts.items():
            with keras.StatelessScope(state_mapping=mapping):
                loss = self.compute_loss(y=labels, y_pred=predictions, training=False)
            logs[f"{name}_loss"] = ops.cast(ops.stop_gradient(loss), "float32")
            accuracy = _accuracy(labels, predictions)
            if accuracy is not None:
                logs[f"{name}_accuracy"] = accuracy
        return logs


class _AdversarialFunction:
    """What stands in `model.train_function` during `fit`.

    It runs only directly after this callback's `on_train_batch_begin`. Keras tells a callback
    nothing of an exception, so a later `fit` without the callback may find this function left
    over; it then gives the model a function of its own and steps aside.
    """

    def __init__(self, callback: AdversarialTraining, model: keras.Model) -> None:
        self.callback = callback
        self.model = model
        self.armed = False
        if isinstance(model.train_function, _AdversarialFunction):
            model.train_function.remove()
        self.step = _Step(callback, model)
        with self.step.installed():
            model.make_train_function(force=True)
        self.function = model.train_function
        model.train_function = self

    def arm(self) -> None:
        self.armed = True

    def __call__(self, *arguments: Any) -> Any:
        if not self.armed:
            self.remove()
            self.model.make_train_function()
            return self.model.train_function(*arguments)
        self.armed = False
        with self.step.installed():
            return self.function(*arguments)

    def remove(self) -> None:
        if self.model.train_function is self:
            self.model.train_function = None


def _jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _variables(model: keras.Model) -> list[Any]:
    """Everything a training step reads or assigns, in the order of JAX's state."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]


def _micro_steps(optimizer: keras.optimizers.Optimizer) -> Tensor:
    """Training steps done, counting each one of an accumulated gradient."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer.iterations * (inner.gradient_accumulation_steps or 1)


def _map(function: Callable[[Tensor], Tensor], structure: Any) -> Any:
    if structure is None:
        return None
    return keras.tree.map_structure(lambda t: None if t is None else function(t), structure)


def _rows(start: Any, stop: Any) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[start:stop]


def _twice(tensor: Tensor) -> Tensor:
    return ops.concatenate([tensor, tensor])


def _part(size: Any, ratio: float) -> Any:
    """Number of rows to attack of a batch: at least one, and all of them for ratio 1."""
    if ratio == 1:
        return size
    if isinstance(size, int):
        return max(1, round(ratio * size))
    return ops.maximum(ops.cast(ops.round(ratio * ops.cast(size, "float32")), "int32"), 1)


def _select(
    x: Any, attacked: str | int | None, model: keras.Model
) -> tuple[Tensor, Callable[[Any, Tensor], Any]]:
    """The attacked input of a structure of inputs, and a function that puts another there."""
    if not isinstance(x, (dict, list, tuple)):
        return x, lambda _, images: images
    if len(x) == 1 and attacked is None:
        attacked = next(iter(x)) if isinstance(x, dict) else 0
    if isinstance(x, dict):
        names: list[Any] = list(x)
    else:
        names = list(range(len(x)))
        input_names = getattr(model, "input_names", None) or []
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

    return x[attacked], put_back


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p, one number a sample."""
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _accuracy(y: Any, outputs: Any) -> Tensor | None:
    """Share of the largest output at the label, or None where that has no meaning."""
    if keras.tree.is_nested(outputs) or keras.tree.is_nested(y) or len(outputs.shape) != 2:
        return None
    if outputs.shape[-1] < 2:
        return None
    if len(y.shape) == 2:
        y = ops.argmax(y, axis=-1) if y.shape[-1] > 1 else y[:, 0]
    right = ops.equal(ops.cast(ops.argmax(outputs, axis=-1), "int32"), ops.cast(y, "int32"))
    return ops.mean(ops.cast(right, "float32"))


def _check_between(value: Any, name: str, low: float, high: float, hint: str) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low < value <= high:
        raise ValueError(
            f"Expected {name} to be a number above {low} and at most {high}. "
            f"Received: {name}={value!r}. {hint}"
        )
    return float(value)
