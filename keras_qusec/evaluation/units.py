"""The evaluation cut into units of work, run here or on other processes and machines."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_qusec.evaluation.attacked import AttackedModel
from keras_qusec.evaluation.threat_models import Job, Record, direct, transferred


class Unit(NamedTuple):
    """One attack on one batch: on a model itself, or made on a source for several models.

    Attributes:
        attack: name of the attack.
        models: names of the attacked models.
        source: name of the source model, or None.
        batch: index of the batch.
    """

    attack: str
    models: tuple[str, ...]
    source: str | None
    batch: int

    @property
    def key(self) -> str:
        """A file name that is this unit's alone."""
        whole = json.dumps([self.attack, self.models, self.source])
        maker = f"from-{self.source}" if self.source is not None else self.models[0]
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{maker}-{self.attack}")[:60]
        return f"{words}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}-{self.batch:05d}"


class Task(NamedTuple):
    """A unit with all that is needed to run it, but for the models."""

    unit: Unit
    job: Job


class Outcome(NamedTuple):
    """A finished unit: its records, or why there are none."""

    unit: Unit
    records: list[Record]
    failure: str | None


def run_task(
    task: Task, models: Mapping[str, AttackedModel], sources: Mapping[str, AttackedModel]
) -> Outcome:
    """Run a unit; an attack that fails is an outcome, since the others' results stand."""
    unit = task.unit
    # Each unit has a seed of its own, whichever process runs it and when.
    words = f"{task.job.seed} {unit.attack} {unit.models} {unit.source} {unit.batch}"
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") % 2**31
    job = task.job._replace(seed=seed)
    try:
        if unit.source is None:
            name = unit.models[0]
            return Outcome(unit, direct(name, models[name], job), None)
        targets = {name: models[name] for name in unit.models}
        return Outcome(unit, transferred(unit.source, sources[unit.source], targets, job), None)
    except Exception as error:  # noqa: BLE001  attacks raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        return Outcome(unit, [], f"{type(error).__name__}: {first}")


class Parcel(NamedTuple):
    """A model on its way to another process: an array, which joblib shares between tasks."""

    digest: str
    content: np.ndarray


def pack(model: keras.Model, digest: str) -> Parcel:
    """Serialise a model as Keras saves it.

    Raises:
        ValueError: for a model that cannot be saved.
    """
    try:
        content = pickle.dumps(model)
    except Exception as error:
        raise ValueError(
            f"Expected a model that Keras can save, to send it to other processes. Received: "
            f"{model.name!r}, which fails with: {error}. Register its custom layers with "
            "keras.saving.register_keras_serializable, or use n_jobs=1."
        ) from error
    return Parcel(digest, np.frombuffer(content, dtype="uint8"))


def run_elsewhere(
    task: Task, models: Mapping[str, Parcel], sources: Mapping[str, Parcel], backend: str
) -> Outcome:
    """Run a unit in a worker process."""
    if keras.backend.backend() != backend:
        raise RuntimeError(
            f"Expected workers on the Keras backend {backend!r}. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND={backend} where they start."
        )
    here, there = (
        {name: _unpack(parcel, task.job.rules.value_range) for name, parcel in parcels.items()}
        for parcels in (models, sources)
    )
    return run_task(task, here, there)


# A thread of its own has models of its own: surrogate gradients are set on the model.
_here = threading.local()


def _unpack(parcel: Parcel, value_range: tuple[float, float]) -> AttackedModel:
    cache = vars(_here).setdefault("models", {})
    key = (parcel.digest, value_range)
    if key not in cache:
        # The bytes are the user's own model, sent by this package from the user's process.
        cache[key] = AttackedModel(pickle.loads(parcel.content.tobytes()), value_range)
    return cache[key]


def run_all(
    tasks: Sequence[Task],
    models: Mapping[str, AttackedModel],
    sources: Mapping[str, AttackedModel],
    digests: Mapping[int, str],
    n_jobs: int | None,
) -> Iterator[Outcome]:
    """Run tasks and give each outcome as it is ready, over joblib if there are several jobs.

    Args:
        tasks: what to run.
        models: attacked models by name.
        sources: source models by name.
        digests: hashes of the Keras models by their `id`.
        n_jobs: see `joblib.Parallel`; None for that of `joblib.parallel_config`.
    """
    import joblib

    if not tasks:
        return
    if joblib.effective_n_jobs(n_jobs) == 1:
        for task in tasks:
            yield run_task(task, models, sources)
        return
    packed = {
        id(attacked): pack(attacked.model, digests[id(attacked.model)])
        for attacked in [*models.values(), *sources.values()]
    }
    backend = keras.backend.backend()
    os.environ.setdefault("KERAS_BACKEND", backend)  # for processes that start now
    calls = [
        joblib.delayed(run_elsewhere)(
            task,
            {name: packed[id(models[name])] for name in task.unit.models},
            {name: packed[id(sources[name])] for name in [task.unit.source] if name is not None},
            backend,
        )
        for task in tasks
    ]
    streams = joblib.parallel.get_active_backend()[0].supports_return_generator
    kind = "generator_unordered" if streams else "list"
    yield from joblib.Parallel(n_jobs=n_jobs, return_as=kind)(calls)
