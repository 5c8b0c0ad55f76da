"""What an evaluation found out, as plain data: for a batch, for all images, and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from keras_qusec.files import packed, unpacked

# The name that stands for all attacks and threat models; no attack may be called so.
WORST_CASE = "worst case"

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


class Kept(NamedTuple):
    """Adversarial examples of some images, each the closest of its image in one norm.

    Attributes:
        numbers: which images of the data, ``(k,)`` int64 in rising order.
        images: the examples, ``(k, ...)`` float32.
    """

    numbers: np.ndarray
    images: np.ndarray


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
        kept: by norm, the closest example of every broken image, where these are asked for.
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
    kept: Mapping[str, Kept] = MappingProxyType({})


class Examples(NamedTuple):
    """Adversarial examples of a model, for each broken image the closest one that was verified.

    Attributes:
        numbers: which images of the data, ``(k,)`` int64 in rising order.
        images: the examples, ``(k, ...)`` float32, channels last.
        distances: from the clean images, ``(k,)`` float32.
        attacks: names of the attacks that found them, ``(k,)``.
        threat_models: under which they did, ``(k,)``.
        sources: names of the models on which they were made, ``(k,)``; empty for the model itself.
    """

    numbers: np.ndarray
    images: np.ndarray
    distances: np.ndarray
    attacks: np.ndarray
    threat_models: np.ndarray
    sources: np.ndarray

    def take(self, rows: np.ndarray) -> Examples:
        """Some of the examples."""
        return Examples(*(part[rows] for part in self))


def closest_examples(results: Sequence[Result], norm: str) -> Examples:
    """Of several attacks on one model the closest example of each broken image in one norm.

    Args:
        results: of the model, with `kept` examples in this norm.
        norm: name of the norm.
    """
    distances = np.stack([result.distances[norm] for result in results])
    best = distances.argmin(axis=0)
    numbers = np.flatnonzero(np.isfinite(distances.min(axis=0)))
    found = [results[best[number]] for number in numbers]
    rows = [
        result.kept[norm].images[np.searchsorted(result.kept[norm].numbers, number)]
        for result, number in zip(found, numbers, strict=True)
    ]
    empty = next(iter(results)).kept[norm].images[:0]
    return Examples(
        numbers,
        np.stack(rows) if rows else empty,
        distances.min(axis=0)[numbers],
        np.array([result.attack for result in found], str),
        np.array([result.threat_model for result in found], str),
        np.array([result.source or "" for result in found], str),
    )


# What is known of an image within a radius.
PROVED, BROKEN, OPEN = "proved", "broken", "open"


class Certificate(NamedTuple):
    """For each image what is proved within a radius, which no attack can take back.

    Attributes:
        model: name of the model.
        norm: norm of the radius.
        epsilon: radius.
        states: ``(n,)`` of ``"proved"``, ``"broken"`` and ``"open"``; an image that is
            misclassified when clean is broken.
        method: how it was proved.
        seconds: time of each image, ``(n,)``.
        margin: by how much rounding may change a difference of logits; proofs cover it.
    """

    model: str
    norm: str
    epsilon: float
    states: np.ndarray
    method: str
    seconds: np.ndarray
    margin: float


class ImageState(NamedTuple):
    """What is known of one image within a radius.

    Attributes:
        number: which image of the data.
        state: ``"proved"``, ``"broken"`` or ``"open"``: neither proved nor broken.
        distance: of the closest adversarial example; 0 of an image that is misclassified when
            clean, infinite without one.
        attack: name of the attack that found it, or how it was proved or broken by a proof; empty
            if open or misclassified when clean.
        threat_model: under which the attack was made, or empty.
        source: name of the model on which the example was made; empty for the model itself.
        label: its true class; None in a report of an older version.
        class_name: the name of that class, where classes have names.
        name: of the image, such as that of its file, where images have names.
    """

    number: int
    state: str
    distance: float
    attack: str = ""
    threat_model: str = ""
    source: str = ""
    label: int | None = None
    class_name: str = ""
    name: str = ""


class ClassAccuracy(NamedTuple):
    """Accuracies of the images of one class.

    Attributes:
        label: number of the class.
        name: its name, or empty.
        images: how many there are.
        clean: share that is classified correctly when clean, in [0, 1].
        robust: share that no attack broke within a radius, in [0, 1].
    """

    label: int
    name: str
    images: int
    clean: float
    robust: float


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
        kept={
            norm: Kept(
                np.concatenate([start + result.kept[norm].numbers for start, result in batches]),
                np.concatenate([result.kept[norm].images for result in results]),
            )
            for norm in first.kept
        },
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


# As JSON values, arrays as compressed text.

# Reports of version 1 had distances in columns, always in these norms.
_NORMS_OF_VERSION_1 = ("l0", "l2", "linf")
_COSTS = ("gradients", "queries", "seconds")


def content_of_result(result: Result) -> dict[str, Any]:
    """A result as JSON values."""
    return {
        **result._asdict(),
        "radii": list(result.radii),
        "distances": {norm: packed(values) for norm, values in result.distances.items()},
        **{name: getattr(result, name).tolist() for name in _COSTS},
        "examples": {str(number): packed(image) for number, image in result.examples.items()},
        "kept": {norm: list(map(packed, kept)) for norm, kept in result.kept.items()},
        "parts": [
            {**part._asdict(), **{name: getattr(part, name).tolist() for name in COUNTS}}
            for part in result.parts
        ],
    }


def result_of(content: dict[str, Any]) -> Result:
    """A result from the values of `content_of_result`, of this or an older version."""
    distances = content["distances"]
    if isinstance(distances, str):
        columns = unpacked(distances).T
        measured = dict(zip(_NORMS_OF_VERSION_1, columns, strict=True))
    else:
        measured = {norm: unpacked(text) for norm, text in distances.items()}
    parts = tuple(
        Part(**{**part, **{name: np.array(part[name]) for name in COUNTS}})
        for part in content.get("parts", [])
    )
    arrays = {name: np.array(content[name]) for name in _COSTS}
    examples = {int(number): unpacked(text) for number, text in content["examples"].items()}
    radii = tuple(content["radii"])
    kept = {norm: Kept(*map(unpacked, texts)) for norm, texts in content.get("kept", {}).items()}
    read = {
        "radii": radii, "distances": measured, "examples": examples, "parts": parts, "kept": kept,
    }  # fmt: skip
    return Result(**{**content, **arrays, **read})


def content_of_certificate(certificate: Certificate) -> dict[str, Any]:
    """A certificate as JSON values."""
    arrays = {"states": certificate.states.tolist(), "seconds": packed(certificate.seconds)}
    return {**certificate._asdict(), **arrays}


def certificate_of(content: dict[str, Any]) -> Certificate:
    """A certificate from the values of `content_of_certificate`."""
    arrays = {"states": np.array(content["states"], str), "seconds": unpacked(content["seconds"])}
    return Certificate(**{**content, **arrays})


def content_of_example(example: Example) -> dict[str, Any]:
    """An adversarial example as JSON values."""
    changed = {"images": packed(example.images), "names": list(example.names)}
    return {**example._asdict(), **changed}


def example_of(content: dict[str, Any]) -> Example:
    """An adversarial example from the values of `content_of_example`."""
    distances = content["distances"]
    if not isinstance(distances, dict):
        distances = dict(zip(_NORMS_OF_VERSION_1, distances, strict=True))
    parts = {"images": unpacked(content["images"]), "names": tuple(content.get("names", ()))}
    return Example(**{**content, "distances": distances, **parts})
