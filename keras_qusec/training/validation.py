"""Robust accuracy after each epoch, on the weights that Keras validates and saves."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.attacks import AttackedModel, GradientAttack
from keras_qusec.datasets import arrays_of
from keras_qusec.integer_inputs import whole_images

AT_A_TIME = 256

# Weights are the same if they differ by less than this share: callbacks that swap weights by
# additions leave rounding behind.
_ROUNDING = 1e-5


class AdversarialValidation:
    """Measures accuracy under an attack on validation data, once an epoch.

    Keras may validate and save other weights than those of the last step, such as the averages of
    `SwapEMAWeights`. So this measures inside Keras' validation, if there is one, and at the end of
    the epoch otherwise, and remembers a mark of the weights it was given.

    Args:
        data: ``(x, y)``, or a data set of batches.
        attack: attack of the measurement.
        outputs: ``"logits"``, ``"probabilities"`` or None.
        gradient_hardness: of the surrogate gradients of defences, or None for own gradients.
        seed: of the attack.
    """

    # What is logged, and the callback that logs it.
    name, callback = "val_adversarial_accuracy", "AdversarialTraining"

    def __init__(
        self,
        data: Any,
        attack: GradientAttack,
        outputs: str | None,
        gradient_hardness: float | None,
        seed: int,
    ) -> None:
        self.x, self.y = arrays_of(data, name="validation_data")
        if len(self.x) != len(self.y):
            raise ValueError(
                "Expected validation_data with as many labels as images. Received: "
                f"{len(self.x)} images and {len(self.y)} labels."
            )
        self.attack, self.outputs, self.seed = attack, outputs, seed
        self.hardnesses = [] if gradient_hardness is None else [gradient_hardness]
        self._model: AttackedModel | None = None
        self.labels = np.zeros(0, "int64")
        self._accuracy: float | None = None
        # Marks of weights: all that were measured, and those seen since the last epoch ended.
        self._measured: list[np.ndarray] = []
        self._between: list[np.ndarray] = []
        self._warned = False

    def begin(self, model: keras.Model) -> None:
        """Compile the attack for a fit, and check the data before the first epoch."""
        self.x = whole_images(self.x, [model])
        checks.float_images(self.x)
        checks.images_inside(self.x, self.attack.value_range)
        attacked = AttackedModel(model, self.attack.value_range, outputs=self.outputs)
        classes = attacked.logits(np.asarray(self.x[:1])).shape[1]
        self.labels = checks.class_labels(
            self.y, len(self.x), classes=classes, name="labels of validation_data"
        )
        self._warn_of_one_class()
        self._model = [*attacked.with_surrogates(self.hardnesses), attacked][0]
        self._accuracy, self._warned = None, False
        self._measured, self._between = [], []

    def end(self) -> None:
        """Free the compiled attack."""
        self._model = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: not the attack that was compiled for a fit."""
        return {**vars(self), "_model": None}

    def measure(self, model: keras.Model) -> float:
        """The accuracy of this epoch, measured with the weights of now if it is not known yet."""
        if self._accuracy is None:
            assert self._model is not None  # made when training began
            self._accuracy = float(self.robust(self._model).mean())
            self._measured.append(_mark(model))
        return self._accuracy

    def robust(self, model: AttackedModel) -> np.ndarray:
        """Which images the model classifies correctly under the attack, ``(n,)``."""
        adversarial = self.attack(model, self.x, self.y, seed=self.seed)
        starts = range(0, len(adversarial), AT_A_TIME)
        parts = [model.predictions(adversarial[i : i + AT_A_TIME]) for i in starts]
        return np.concatenate(parts) == self.labels

    def end_epoch(self, model: keras.Model) -> float:
        """The accuracy of the epoch that ends."""
        accuracy = self.measure(model)
        self._between = [_mark(model)]
        return accuracy

    def begin_epoch(self, model: keras.Model) -> None:
        """Forget the figure of the epoch before."""
        self._accuracy = None
        if self._between:
            self._between.append(_mark(model))

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch has ended and the next one has not trained yet."""
        return bool(self._between)

    def resume(self, model: keras.Model) -> None:
        """Compare what an epoch measured with what was saved after it, as training goes on.

        Weights that are put into the model between epochs and taken out again are those that
        callbacks save; they were there at the end of the epoch, at the beginning of the next one,
        or at both, as the order of the callbacks has it.
        """
        trained = _mark(model)
        put_there = [mark for mark in self._between if not _same(mark, trained)]
        self._between = []
        self._check(put_there[0] if put_there else trained)

    def end_training(self, model: keras.Model) -> None:
        """Compare the weights that a fit leaves behind with those that were measured."""
        if self._measured:
            self._check(_mark(model))

    def _check(self, saved: np.ndarray) -> None:
        """Warn once of weights after an epoch that no epoch measured."""
        if self._warned or any(_same(saved, measured) for measured in self._measured):
            return
        self._warned = True
        warnings.warn(
            f"{self.callback}: {self.name} was measured on other weights than "
            "those that the model has after an epoch, which ModelCheckpoint saves. A callback, or "
            "an optimizer with use_ema=True, put others there. For averaged weights use "
            f"SwapEMAWeights(swap_on_epoch=True), then {self.callback}, then ModelCheckpoint.",
            stacklevel=3,
        )

    def _warn_of_one_class(self) -> None:
        if len(self.labels) > 1 and len(set(self.labels.tolist())) == 1:
            warnings.warn(
                f"{self.callback}: all {len(self.labels)} images of validation_data are of "
                f"class {self.labels[0]}. The end of a data set whose images come class by class "
                "is no fair part of it: use keras_qusec.datasets.split(x, y).",
                stacklevel=2,
            )


def _mark(model: keras.Model) -> np.ndarray:
    """A few numbers that tell weights apart: of each variable its norm and a projection."""
    numbers = []
    for variable in model.trainable_variables:
        values = np.ravel(ops.convert_to_numpy(ops.cast(variable.value, "float32")))
        values = values.astype("float64")
        # Another factor for each value, so that no two changes cancel.
        factors = np.cos(np.arange(1, len(values) + 1))
        numbers.append((np.linalg.norm(values), values @ factors))
    return np.array(numbers).reshape(-1, 2)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    return bool((np.abs(one - other) <= _ROUNDING * np.maximum(one[:, :1], 1e-30)).all())
