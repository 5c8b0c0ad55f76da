"""A few broken images of each model, with what its defence makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.evaluation.plan import Plan
from keras_qusec.results import Example, Result

# Broken images of each model that are shown.
_SHOWN = 4
# Batches whose examples are kept until then, of each attack.
_KEPT_BATCHES = 8


class FewExamples:
    """Keeps examples of a few batches for each attack, so that memory does not grow with them.

    Which ones does not depend on the order in which batches are ready.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], dict[int, dict[int, np.ndarray]]] = {}

    def thin(self, results: Sequence[Result], batch: int) -> None:
        """Take the examples of a batch's results; those of the last batches go.

        Args:
            results: of one unit.
            batch: number of its batch.
        """
        for result in results:
            if not result.examples:
                continue
            key = (result.model, result.source, result.threat_model, result.attack)
            kept = self._kept.setdefault(key, {})
            kept[batch] = result.examples
            if len(kept) > _KEPT_BATCHES:
                kept.pop(max(kept)).clear()


def examples_of(
    name: str,
    model: Classifier,
    results: Sequence[Result],
    plan: Plan,
    class_names: Sequence[str] = (),
) -> list[Example]:
    """Broken images of one model, one of each attack in turn.

    Args:
        name: name of the model.
        model: the model.
        results: all results; those of other models are passed over.
        plan: the plan for all images.
        class_names: of the classes in their order; empty for their numbers.
    """
    own = [result for result in results if result.model == name]
    # In turn over the attacks, so that a few images show many attacks.
    broken = [
        (rank, place, index)
        for place, result in enumerate(own)
        for rank, index in enumerate(sorted(result.examples))
    ]
    examples: list[Example] = []
    shown: set[int] = set()
    for _, place, index in sorted(broken):
        if index in shown or len(examples) == _SHOWN:
            continue
        shown.add(index)
        result = own[place]
        pair = np.stack([plan.x[index], result.examples[index]])
        behind = behind_defense(model, pair)
        sizes = norms.distances(pair[:1], pair[1:])
        label, prediction = int(plan.goal.labels[index]), int(model.predictions(pair[1:])[0])
        # A prediction below 0 is no class.
        named = class_names and prediction >= 0
        examples.append(
            Example(
                name,
                result.attack,
                result.threat_model,
                index,
                label,
                prediction,
                {norm: float(size[0]) for norm, size in sizes.items()},
                pair if behind is None else np.concatenate([pair, behind]),
                (class_names[label], class_names[prediction]) if named else (),
            )
        )
    return examples


def behind_defense(model: Classifier, images: np.ndarray) -> np.ndarray | None:
    """Images as a model's first defence leaves them, or None without one to be shown."""
    if not isinstance(model, AttackedModel) or not model.defenses:
        return None
    layer: Any = model.defenses[0]
    given = model.as_given(ops.convert_to_tensor(images))
    try:
        part: Any = keras.Model(model.model.inputs, layer.output)
        output = part(given, training=False)
    except (AttributeError, ValueError):
        # Inside another model or a class of the user's: shown if it can take the images.
        try:
            output = layer(given)
        except ValueError:
            return None
    output = ops.convert_to_numpy(output).astype("float32")
    if model.channels_first and output.ndim == 4:
        output = np.moveaxis(output, 1, -1)
    return output if output.shape == images.shape else None
