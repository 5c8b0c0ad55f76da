"""Feature squeezing (Xu et al. 2018): a detector that compares predictions on squeezed images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import (
    Defense,
    current_choice,
    current_surrogate,
    surrogate_choices,
    surrogates_in_force,
)
from keras_qusec.logits import LOGITS, log_odds_against, logits_function

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_qusec")
class SqueezingDetector(keras.Model):
    """A classifier that rejects images on which squeezing changes its prediction.

    ``score(x) = max_s ||p(x) - p(s(x))||_1`` over the squeezers s, with p the probabilities; an
    image is rejected where the score is above a threshold, which `calibrate` sets on clean images.
    In an evaluation a rejected clean image counts as an error, and an adversarial example must be
    accepted to count. The adaptive threat model attacks classifier and detector together
    (He et al. 2017).

    Args:
        classifier: built Keras classifier with outputs ``(n, classes)``.
        squeezers: layers from images to images, such as `BitDepthReduction(1)`,
            `MedianSmoothing(2)`, `NonLocalMeans(13, 3, 2 / 255)`.
        threshold: limit of the score, between 0 and 2; `calibrate` sets it.
        **kwargs: `name` and the other arguments of every Keras model.

    Input shape: that of the classifier. Output shape: ``(n, classes)``, logits.

    Raises:
        ValueError: for unusable arguments.

    Source: Xu et al. 2018, Feature Squeezing, Section V. How it is broken: He et al. 2017,
    Adversarial Example Defenses: Ensembles of Weak Defenses are not Strong.

    Example:

    >>> from keras_qusec.defenses import BitDepthReduction, SqueezingDetector
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> detector = SqueezingDetector(model, [BitDepthReduction(1)])
    >>> x = np.random.rand(40, 4).astype("float32")
    >>> limit = detector.calibrate(x, false_positive_rate=0.05)
    >>> bool(np.mean(detector.scores(x) > limit) <= 0.05)
    True
    """

    def __init__(
        self,
        classifier: keras.Model,
        squeezers: Sequence[keras.layers.Layer],
        *,
        threshold: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(classifier, keras.Model) or not classifier.built:
            raise ValueError(
                f"Expected a built Keras classifier. Received: {classifier!r}. Train it first."
            )
        if not squeezers or not all(isinstance(s, keras.layers.Layer) for s in squeezers):
            raise ValueError(
                "Expected squeezers as Keras layers, at least one. Received: "
                f"{squeezers!r}. Example: [BitDepthReduction(1), MedianSmoothing(2)]."
            )
        self.classifier = classifier
        self.squeezers = list(squeezers)
        # What an evaluation asks of a model without a graph.
        self.output_kind = LOGITS
        self._threshold = self.add_weight(
            name="threshold", shape=(), initializer="zeros", trainable=False, dtype="float32"
        )
        self.threshold = threshold
        self._classify = (logits_function(classifier),)  # hidden from Keras, which tracks layers
        self.build(classifier.input_shape)

    def build(self, input_shape: Any) -> None:
        for squeezer in self.squeezers:
            if not squeezer.built:
                squeezer.build(input_shape)
        self.built = True

    @property
    def threshold(self) -> float:
        """The score above which an image is rejected."""
        return float(ops.convert_to_numpy(self._threshold))

    @threshold.setter
    def threshold(self, value: float) -> None:
        hint = "Two distributions differ by at most 2 in L1."
        self._threshold.assign(checks.number(value, "threshold", least=0, most=2, hint=hint))

    def surrogates(self, hardnesses: Sequence[float]) -> list[float]:
        """What an adaptive attacker differentiates: all predictions together.

        The mean of the logits on the image and on its squeezed versions, through what each squeezer
        offers for a hardness. Where they all go to the same wrong class, nothing is rejected.
        """
        return list(hardnesses)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        logits = self._classify[0](inputs)
        if current_surrogate(self) is None:
            return logits
        together = ops.mean(ops.stack([logits, *self._squeezed_logits(inputs)]), axis=0)
        return straight_through(logits, together)

    def _squeezed_logits(self, images: Tensor) -> list[Tensor]:
        hardness, choice = current_surrogate(self), dict(current_choice())
        if hardness is not None:
            choices = surrogate_choices(
                [s for s in self.squeezers if isinstance(s, Defense)], [hardness]
            )
            choice |= choices[0] if choices else {}
        with surrogates_in_force(choice):
            return [self._classify[0](squeezer(images)) for squeezer in self.squeezers]

    def traced_score(self, images: Tensor) -> Tensor:
        """The score of each image ``(n,)``, in `keras.ops`."""
        own = ops.softmax(self._classify[0](images))
        gaps = [
            ops.sum(ops.absolute(own - ops.softmax(logits)), axis=-1)
            for logits in self._squeezed_logits(images)
        ]
        return ops.max(ops.stack(gaps), axis=0)

    def rejection(self, images: Tensor) -> Tensor:
        """How far the score of each image ``(n,)`` is above the threshold.

        Differences of probabilities saturate where the predictions differ most. So an adaptive
        attacker follows the log-odds of all predictions against the class of the image itself.
        """
        images = ops.convert_to_tensor(images)
        excess = self.traced_score(images) - (self._threshold + 0.0)
        if current_surrogate(self) is None:
            return excess
        own = self._classify[0](images)
        classes = ops.argmax(ops.stop_gradient(own), axis=-1)
        all_logits = [own, *self._squeezed_logits(images)]
        odds = [log_odds_against(classes, logits) for logits in all_logits]
        return straight_through(excess, ops.mean(ops.stack(odds), axis=0))

    def scores(self, x: Any, batch_size: int = 256) -> np.ndarray:
        """The score of each image, ``(n,)`` float32, as NumPy."""
        x = np.asarray(x, "float32")
        parts = [
            ops.convert_to_numpy(
                ops.stop_gradient(self.traced_score(ops.convert_to_tensor(x[i : i + batch_size])))
            )
            for i in range(0, len(x), batch_size)
        ]
        return np.concatenate(parts)

    def calibrate(self, x: Any, *, false_positive_rate: float = 0.05) -> float:
        """Set the threshold so that at most a share of clean images is rejected; return it.

        Args:
            x: clean images that are in no test set.
            false_positive_rate: the share, in [0, 1); the authors take 0.05.

        Raises:
            ValueError: for unusable arguments.
        """
        rate = checks.number(false_positive_rate, "false_positive_rate", least=0, most=0.999)
        scores = np.sort(self.scores(x))
        allowed = int(np.floor(rate * len(scores)))
        self.threshold = float(scores[len(scores) - 1 - allowed])
        return self.threshold

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "squeezers": [keras.saving.serialize_keras_object(s) for s in self.squeezers],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SqueezingDetector:
        config = dict(config)
        classifier = keras.saving.deserialize_keras_object(config.pop("classifier"))
        squeezers = [keras.saving.deserialize_keras_object(s) for s in config.pop("squeezers")]
        return cls(classifier, squeezers, **config)


def roc_curve(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-positive and detection rates of a detector over all thresholds.

    Args:
        clean: scores of clean images, ``(n,)``.
        adversarial: scores of adversarial examples, ``(m,)``.

    Returns:
        Two rising arrays of shares from 0 to 1: of clean and of adversarial images whose score is
        at or above each threshold.

    Raises:
        ValueError: without scores of either.

    Example:

    >>> from keras_qusec.defenses import roc_curve
    >>> rates = roc_curve(np.array([0.1, 0.2]), np.array([0.15, 0.9]))
    >>> [rate.tolist() for rate in rates]
    [[0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0]]
    """
    clean, adversarial = np.asarray(clean), np.asarray(adversarial)
    if not clean.size or not adversarial.size:
        raise ValueError(
            "Expected scores of clean images and of adversarial examples. Received: "
            f"{clean.size} and {adversarial.size}."
        )
    limits = np.unique(np.concatenate([clean, adversarial]))[::-1]
    rates = [np.concatenate([[0.0], (s[None] >= limits[:, None]).mean(axis=1)])
             for s in (clean, adversarial)]  # fmt: skip
    return rates[0], rates[1]


def area_under_curve(clean: np.ndarray, adversarial: np.ndarray) -> float:
    """The chance that an adversarial example has a higher score than a clean image.

    0.5 for a detector that knows nothing, 1 for one that separates them. Equal scores count half.

    Args:
        clean: scores of clean images.
        adversarial: scores of adversarial examples.

    Example:

    >>> from keras_qusec.defenses import area_under_curve
    >>> area_under_curve(np.array([0.1, 0.2]), np.array([0.15, 0.9]))
    0.75
    """
    false_positives, detections = roc_curve(clean, adversarial)
    heights = (detections[1:] + detections[:-1]) / 2
    return float((heights * np.diff(false_positives)).sum())
