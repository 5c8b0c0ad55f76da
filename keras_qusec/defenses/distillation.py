"""Defensive distillation (Papernot et al. 2016)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.logits import LOGITS, PROBABILITIES, output_kind


def distill(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    temperature: float = 20.0,
    optimizer: Any = "adam",
    callbacks: Any = (),
    **fit: Any,
) -> keras.Model:
    """Train a classifier by defensive distillation, and return the student.

    A teacher learns the labels with its logits divided by a temperature T in the softmax; a student
    of the same structure learns the teacher's probabilities at T in the same way. At test time the
    logits are not divided, T = 1: they are about T times as large as usual, and the softmax
    saturates. That hides the gradient of the probabilities and nothing more. Attacks of this
    package leave the softmax out and follow the logits.

    Args:
        model: classifier ``(n, classes)`` that ends in logits; its weights are where teacher and
            student begin, and stay as they are.
        x: images.
        y: labels, integers ``(n,)`` or one-hot.
        temperature: T, 1 or more; the authors take 20 to 100.
        optimizer: name or configuration of an optimizer, one for each of the two.
        callbacks: of the student's training, such as `BackupAndRestore`; the teacher has none.
        **fit: `epochs`, `batch_size`, `verbose` and other arguments of `fit`, for both.

    Returns:
        The student, which ends in a softmax, as published.

    Raises:
        ValueError: for unusable arguments.

    Source: Papernot et al. 2016, Distillation as a Defense. How it is broken: Carlini and Wagner
    2016, Defensive Distillation is Not Robust to Adversarial Examples.

    Example:

    >>> from keras_qusec.defenses import distill
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(8, 4).astype("float32"), np.arange(8) % 2
    >>> student = distill(model, x, y, temperature=20, epochs=1, verbose=0)
    >>> bool(np.allclose(student.predict(x, verbose=0).sum(axis=1), 1))
    True
    """
    hint = "The authors take 20 to 100; 1 is plain training on soft labels."
    temperature = checks.number(temperature, "temperature", least=1, hint=hint)
    if output_kind(model) != LOGITS or len(model.outputs) != 1 or model.output_shape[-1] < 2:
        raise ValueError(
            "Expected a classifier that ends in logits (n, classes), which are divided by the "
            f"temperature. Received: {model.name!r} with outputs {model.output_shape}, "
            f"{output_kind(model)}. Leave its softmax out."
        )
    labels = checks.class_labels(y, len(x), classes=model.output_shape[-1])
    soft = np.eye(model.output_shape[-1], dtype="float32")[labels]
    given = keras.optimizers.serialize(keras.optimizers.get(optimizer))
    student = model
    for role, own in (("teacher", []), ("student", list(callbacks))):
        student = _copy(model, role)
        heated = keras.Model(student.inputs[0], student.outputs[0] / temperature, name=role)
        heated.compile(
            keras.optimizers.deserialize(given),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        heated.fit(x, soft, callbacks=own, **fit)
        logits = heated.predict(x, batch_size=fit.get("batch_size"), verbose=0)
        soft = ops.convert_to_numpy(ops.softmax(logits))
    outputs = keras.layers.Softmax(name=PROBABILITIES)(student.outputs[0])
    return keras.Model(student.inputs[0], outputs, name="distilled")


def _copy(model: keras.Model, name: str) -> Any:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.name = f"{name}_network"
    return copy
