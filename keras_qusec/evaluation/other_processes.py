"""Units in other processes and on other machines: models as parcels, unpacked once."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import norms, parallel
from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.attacks.classifier import Counter
from keras_qusec.digests import digest
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.run import Models, Outcome, run_unit


class Parcel(NamedTuple):
    """A model on its way to another process.

    Attributes:
        content: the model as Keras saves it, an array, which joblib shares between units.
        settings: of the `AttackedModel`; None for a classifier that is no Keras model.
        images: a few images, to see that the model that arrives is the one that was sent.
        logits: of the images.
    """

    content: np.ndarray
    settings: dict[str, Any] | None
    images: np.ndarray
    logits: np.ndarray


def pack(model: Classifier, images: np.ndarray) -> Parcel:
    """Serialise a model as Keras saves it, or a classifier that is none as Python does.

    Args:
        model: the model.
        images: a few images.

    Raises:
        ValueError: for a model that cannot be saved.
    """
    if isinstance(model, AttackedModel):
        sent, settings = model.model, model.settings
    else:
        sent, settings = copy.copy(model), None
        sent.made, sent.counter = {}, Counter()
    try:
        content = pickle.dumps(sent)
    except Exception as error:
        remedy = (
            "Register its custom layers with keras.saving.register_keras_serializable"
            if isinstance(model, AttackedModel)
            else "Make it of functions of a module, which open their files in each process"
        )
        raise ValueError(
            f"Expected a model that can be saved, to send it to other processes. Received: "
            f"{model.name!r}, which fails with: {error}. {remedy}, or use n_jobs=1."
        ) from error
    return Parcel(np.frombuffer(content, dtype="uint8"), settings, images, model.logits(images))


def run_elsewhere(
    unit: Unit,
    plan: Plan,
    models: Mapping[str, Parcel],
    sources: Mapping[str, Parcel],
    backend: str,
    known_norms: Sequence[norms.Norm],
) -> tuple[Unit, Outcome]:
    """Run a unit in a worker process, which first learns the norms that a user registered."""
    for norm in known_norms:
        norms.register(norm)
    if keras.backend.backend() != backend:
        raise RuntimeError(
            f"Expected workers on the Keras backend {backend!r}. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND={backend} where they start."
        )
    attacked, origins = (
        {name: _unpack(name, parcel) for name, parcel in parcels.items()}
        for parcels in (models, sources)
    )
    return unit, run_unit(unit, plan, attacked, origins)


# Kept for the next unit; each thread has models of its own, since Keras models are not shared.
_worker = threading.local()


def _unpack(name: str, parcel: Parcel) -> Classifier:
    cache = vars(_worker).setdefault("models", {})
    content = parcel.content.tobytes()
    key = (digest(content), repr(parcel.settings))
    if key not in cache:
        try:
            # The bytes are the user's own model, sent by this package from the user's process.
            model = pickle.loads(content)
        except Exception as error:
            raise ValueError(
                f"Expected a model that another process can load. Received: {name!r}, which fails "
                f"with: {str(error)[:300]}. Put its custom layers into a module that the process "
                "can import, and not into the script itself, or use n_jobs=1."
            ) from error
        cache[key] = model
        if parcel.settings is not None:
            cache[key] = AttackedModel(model, **parcel.settings)
    logits = cache[key].logits(parcel.images)
    if not np.allclose(logits, parcel.logits, rtol=1e-2, atol=1e-2 * np.abs(parcel.logits).max()):
        raise RuntimeError(
            f"Expected the same model in each process. Received: {name!r}, which gives other "
            "outputs when it is saved and loaded. Let its get_config return all of its settings, "
            "or use n_jobs=1."
        )
    return cache[key]


def run_units_elsewhere(
    units: Sequence[Unit], plan: Plan, models: Models, sources: Models, n_jobs: int | None
) -> Iterator[tuple[Unit, Outcome]]:
    """Run units in other processes and give each outcome as it is ready.

    Args:
        units: what to run.
        plan: the plan for all images.
        models: attacked models by name.
        sources: source models by name.
        n_jobs: see `joblib.Parallel`; None for that of `joblib.parallel_config`.
    """
    packed = {name: pack(model, plan.x[:2]) for name, model in models.items()}
    packed_sources = {name: pack(model, plan.x[:2]) for name, model in sources.items()}
    backend, known = keras.backend.backend(), norms.registered()
    calls = (
        (
            unit,
            plan.batch(unit),
            {name: packed[name] for name in unit.models},
            {name: packed_sources[name] for name in [unit.source] if name is not None},
            backend,
            known,
        )
        for unit in units
    )
    yield from parallel.called(run_elsewhere, calls, n_jobs)
