"""A few broken images of each model, with what stands behind its quantizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec.evaluation.attacked import AttackedModel
from keras_qusec.evaluation.norms import distances_of
from keras_qusec.evaluation.report import Result
from keras_qusec.layers import find_quantizers

# Broken images of each model that are shown.
SHOWN = 4


class Example(NamedTuple):
    """An image that an attack broke.

    Attributes:
        model: name of the model.
        attack: name of the attack.
        threat_model: what the adversary knew.
        number: which image of the data.
        label: its true class.
        prediction: what the model takes the adversarial example for.
        distances: L0, L2 and L-infinity.
        images: clean and adversarial image; behind a quantizer also both as it leaves them.
            ``(2 or 4, ...)`` float32.
    """

    model: str
    attack: str
    threat_model: str
    number: int
    label: int
    prediction: int
    distances: tuple[float, float, float]
    images: np.ndarray


def examples_of(
    name: str, attacked: AttackedModel, results: list[Result], x: np.ndarray, labels: np.ndarray
) -> list[Example]:
    """Broken images of one model, one of each attack in turn.

    Args:
        name: name of the model.
        attacked: the model.
        results: all results; those of other models are passed over.
        x: clean images.
        labels: true classes.
    """
    own = [result for result in results if result.model == name]
    # In turn over the attacks, so that a few images show many attacks.
    found = [
        (rank, place, index)
        for place, result in enumerate(own)
        for rank, index in enumerate(sorted(result.examples))
    ]
    examples: list[Example] = []
    seen: set[int] = set()
    for _, place, index in sorted(found):
        if index in seen or len(examples) == SHOWN:
            continue
        seen.add(index)
        result = own[place]
        pair = np.stack([x[index], result.examples[index]])
        behind = behind_quantizer(attacked.model, pair)
        l0, l2, linf = (float(value) for value in distances_of(pair[:1], pair[1:])[0])
        examples.append(
            Example(
                name,
                result.attack,
                result.threat_model,
                index,
                int(labels[index]),
                int(attacked.predictions(pair[1:])[0]),
                (l0, l2, linf),
                pair if behind is None else np.concatenate([pair, behind]),
            )
        )
    return examples


def behind_quantizer(model: keras.Model, images: np.ndarray) -> np.ndarray | None:
    """Images as a model's first quantizer leaves them, or None without one to be shown."""
    quantizers = find_quantizers(model)
    if not quantizers:
        return None
    try:
        part: Any = keras.Model(model.inputs, quantizers[0].output)
        seen = part(ops.convert_to_tensor(images), training=False)
    except (AttributeError, ValueError):
        # Inside another model or a class of the user's: shown if it can take the images.
        try:
            seen = quantizers[0](ops.convert_to_tensor(images))
        except ValueError:
            return None
    seen = ops.convert_to_numpy(seen).astype("float32")
    return seen if seen.shape == images.shape else None
