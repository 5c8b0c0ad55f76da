"""Adversarial examples planted within reach, that the attack must find."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.attacks import PGD, Attack, AttackedModel, Goal, get
from keras_qusec.audit.check import NOT_RUN, Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import HARDNESSES, Evidence
from keras_qusec.graphs import has_graph, made_by
from keras_qusec.integer_inputs import integer_input, part_of
from keras_qusec.logits import logits_function

# Random points of each ball that the planted example is told apart from.
_POINTS = 200
_TRIES = 4


class PlantedExamples(Check):
    """Does the attack find adversarial examples that are known to be there?"""

    identifier = "planted-examples"
    title = "planted adversarial examples are found"
    rule = "Fails if the judged attack misses more than a fifth of them"
    explanation = (
        "For each image the last layer is replaced by a linear one of two classes that tells one "
        f"random corner of the ball from {_POINTS} other points. That corner is adversarial; an "
        "attack that cannot find it, or another, would not have found the model's own either."
    )
    source = "Zimmermann et al. 2022, Increasing confidence in adversarial robustness evaluations"
    remedy = "The attack is too weak for this model; its robust accuracy means nothing."

    def judge(self, evidence: Evidence) -> Finding:
        planted = Planted(evidence.model.model, evidence.model.settings, evidence.x[:1])
        rows = evidence.looked_at(evidence.budget.planted)
        attacked = AttackedModel(planted, **{**evidence.model.settings, "outputs": "logits"})
        attacked.counter = evidence.model.counter
        followed = [attacked]
        if evidence.follows_surrogates:
            followed += attacked.with_surrogates(HARDNESSES)
        rng = evidence.rng()
        # As the judged attack: PGD through each gradient, and the search behind a quantizer.
        attacks: list[tuple[Attack, AttackedModel]] = [(PGD(steps=40), m) for m in followed]
        attacks += [(get(name), attacked) for name in evidence.searches]
        missed, made = [], 0
        for row in rows:
            points = _points(evidence, row, rng)
            if not planted.plant(points):
                continue  # the features do not change within the ball
            made += 1
            x = np.repeat(evidence.x[row][None], _TRIES, axis=0)
            goal = Goal(np.zeros(_TRIES, "int64"))
            for attack, model in attacks:
                found = attack.on_batch(model, x, goal)(
                    np.arange(_TRIES), evidence.epsilon, evidence.seed
                )
                if attacked.is_adversarial(np.asarray(found), goal).any():
                    break
            else:
                missed.append(int(row))
        if made < 5:
            return Finding(
                NOT_RUN, f"only in {made} of {len(rows)} images could an example be planted"
            )
        share = len(missed) / made
        return passed_or_failed(
            share > 0.2,
            f"{' and '.join(['PGD', *evidence.searches])} missed {len(missed)} of {made} planted "
            "examples",
            numbers={"missed": share},
            images=tuple(missed),
        )


class Planted(keras.Model):
    """A classifier of two classes on the features of another one.

    Args:
        model: whose last layer is replaced.
        settings: of its `AttackedModel`.
        x: an image, by which the features are counted.
    """

    output_kind = "logits"

    def __init__(self, model: keras.Model, settings: dict[str, Any], x: np.ndarray) -> None:
        super().__init__()
        self.classifier, self.built = model, True
        self.takes_whole_numbers = integer_input(model) is not None
        self._features = _features(model, settings["outputs"])
        self._channels_first = settings["data_format"] == "channels_first"
        count = self._features_of(x).shape[1]
        # Made before anything is compiled, since JAX takes the variables that there are then.
        zeros = keras.initializers.Zeros()
        self.direction = self.add_weight((count,), zeros, "float32", trainable=False)
        self.threshold = self.add_weight((), zeros, "float32", trainable=False)

    def call(self, images: Any, training: bool = False) -> Any:
        scores = ops.sum(self.features(images) * self.direction, axis=-1) - self.threshold
        return ops.stack([ops.zeros_like(scores), scores], axis=-1)

    def features(self, images: Any) -> Any:
        """Features ``(n, values)`` float32."""
        features = ops.cast(self._features(images), "float32")
        return ops.reshape(features, (ops.shape(features)[0], -1))

    def _features_of(self, images: np.ndarray) -> np.ndarray:
        """Features of images with channels last, ``(n, values)`` float64."""
        given = np.moveaxis(images, -1, 1) if self._channels_first else images
        features = ops.stop_gradient(self.features(ops.convert_to_tensor(given)))
        return np.array(ops.convert_to_numpy(features), dtype="float64")

    def plant(self, points: np.ndarray) -> bool:
        """Choose the classifier that tells one of the points from the others, by a margin."""
        features = self._features_of(points)
        centre = features.mean(axis=0)
        spread = features - centre
        size = np.sqrt((spread**2).mean())
        if not np.isfinite(features).all() or size == 0:
            return False
        # The direction of the first point among the others, whitened (linear discriminant).
        left = spread / size
        dual = left @ left.T / len(left) + 0.1 * np.eye(len(left))
        direction = left.T @ np.linalg.solve(dual, np.eye(len(left))[0])
        scores = left @ direction
        second, first = np.sort(scores)[-2:]
        if first - second <= 1e-3 * scores.std():
            return False
        scale = 1 / (size * scores.std())
        threshold = ((first + second) / 2 + centre @ direction / size) / scores.std()
        self.direction.assign((direction * scale).astype("float32"))
        self.threshold.assign(np.float32(threshold))
        return True


def _features(model: keras.Model, outputs: str | None) -> Any:
    """What goes into a model's last layer with weights, or its logits."""
    if has_graph(model):
        call = made_by(model.outputs[0])
        plain = isinstance(call.operation, keras.layers.Dense) and len(call.parents) == 1
        if plain and call.operation is model.layers[-1]:
            return part_of(model.inputs, call.parents, through_casts=True)
    return logits_function(model, outputs, through_casts=True)


def _points(evidence: Evidence, row: int, rng: np.random.Generator) -> np.ndarray:
    """A corner of the ball around an image, and other points of it."""
    x, epsilon = evidence.x[row], evidence.epsilon
    change = rng.uniform(-1, 1, (_POINTS + 1, *x.shape))
    change[::2] = np.sign(change[::2])
    return np.clip(x + epsilon * change, *evidence.model.value_range).astype("float32")
