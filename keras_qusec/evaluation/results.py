"""What an evaluation found out, as plain data: for a batch, and put together for all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Numbers of a part that add up over batches.
COUNTS = ("tried", "broken", "gradients", "queries", "seconds")


class Part(NamedTuple):
    """What one attack of an ensemble did; arrays with a number for each radius.

    Attributes:
        attack: name of the part.
        tried: images that it was made on.
        broken: those that it broke.
        gradients: images passed backward.
        queries: images passed forward.
        seconds: time.
        failure: why it could not be run, or nothing.
    """

    attack: str
    tried: np.ndarray
    broken: np.ndarray
    gradients: np.ndarray
    queries: np.ndarray
    seconds: np.ndarray
    failure: str = ""


class Result(NamedTuple):
    """One attack on one model under one threat model.

    Attributes:
        model: name of the attacked model.
        source: name of the model the examples were made on, or None for the same.
        threat_model: name of the threat model.
        attack: name of the attack.
        radii: at which the attack was run; ``(None,)``: as close as it could.
        distances: by norm, the distance ``(n,)`` float32 of each image's closest adversarial
            example in that norm; infinite where none was found.
        gradients: images passed backward at each radius.
        queries: images passed forward at each radius.
        seconds: time at each radius.
        examples: some adversarial images, by the image's index.
        parts: of an ensemble, what each attack found, in their order.
        unusable: how often the attack returned an image with NaN or infinity, a failure.
    """

    model: str
    source: str | None
    threat_model: str
    attack: str
    radii: tuple[float | None, ...]
    distances: dict[str, np.ndarray]
    gradients: np.ndarray
    queries: np.ndarray
    seconds: np.ndarray
    examples: dict[int, np.ndarray]
    parts: tuple[Part, ...] = ()
    unusable: int = 0


class Failure(NamedTuple):
    """An attack that could not be run; none of its results count."""

    attack: str
    models: tuple[str, ...]
    source: str | None
    message: str


class Example(NamedTuple):
    """An image that an attack broke, to be shown.

    Attributes:
        model: name of the model.
        attack: name of the attack.
        threat_model: name of the threat model.
        number: which image of the data.
        label: its true class.
        prediction: what the model takes the adversarial example for.
        distances: by norm.
        images: clean and adversarial image; behind a defence also both as it leaves them.
            ``(2 or 4, ...)`` float32.
        names: of the label and of the prediction; empty where classes have numbers alone.
    """

    model: str
    attack: str
    threat_model: str
    number: int
    label: int
    prediction: int
    distances: dict[str, float]
    images: np.ndarray
    names: Sequence[str] = ()

    @property
    def shown_classes(self) -> tuple[str, str]:
        """Label and prediction as a reader sees them."""
        if self.names:
            return self.names[0], self.names[1]
        return str(self.label), "no class (NaN)" if self.prediction < 0 else str(self.prediction)


def joined(batches: Sequence[tuple[int, Result]]) -> Result:
    """The results of one attack on several batches as one.

    Args:
        batches: the index of each batch's first image, and its result.
    """
    results = [result for _, result in batches]
    first = results[0]
    return first._replace(
        distances={
            norm: np.concatenate([result.distances[norm] for result in results])
            for norm in first.distances
        },
        gradients=np.sum([result.gradients for result in results], axis=0),
        queries=np.sum([result.queries for result in results], axis=0),
        seconds=np.sum([result.seconds for result in results], axis=0),
        examples={
            start + index: image
            for start, result in batches
            for index, image in result.examples.items()
        },
        parts=_joined_parts([part for result in results for part in result.parts]),
        unusable=sum(result.unusable for result in results),
    )


def _joined_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts of several batches added up, by name."""
    named: dict[str, list[Part]] = {}
    for part in parts:
        named.setdefault(part.attack, []).append(part)
    joined_parts = []
    for name, same in named.items():
        sums = [np.sum([getattr(part, count) for part in same], axis=0) for count in COUNTS]
        failure = next((part.failure for part in same if part.failure), "")
        joined_parts.append(Part._make([name, *sums, failure]))
    return tuple(joined_parts)
