"""HardnessSchedule: quantizers that become harder while a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_qusec import checks
from keras_qusec.backends import backend
from keras_qusec.defenses import find_quantizers
from keras_qusec.quantization import check_hardness


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
        hint = 'Use "epoch" unless epochs are very few.'
        self.update = checks.one_of(update, "update", ("epoch", "batch"), hint=hint)
        if epochs is not None:
            hint = "None means all epochs of fit."
            epochs = checks.whole_number(epochs, "epochs", hint=hint)
        self.schedule = schedule
        self.epochs = epochs
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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes over: the settings, not the model and its layers."""
        return {**vars(self), "_model": None, "_quantizers": []}

    def _set(self, epoch: float) -> None:
        backend().sync_variables(self.model)
        last = max((self.epochs or self.params["epochs"]) - 1, 1)
        hardness = self.hardness_at(min(epoch / last, 1.0))
        for quantizer in self._quantizers:
            quantizer.hardness = hardness
