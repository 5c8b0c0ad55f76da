"""What each adversary knows, played out on one batch; and the check of what attacks return."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_qusec.evaluation.attacked import AttackedModel, Goal
from keras_qusec.evaluation.methods import Attempt, Method
from keras_qusec.evaluation.norms import NORMS, distances_of, within

THREAT_MODELS = ("white-box", "adaptive", "black-box")
# Adversarial images that a record keeps to be looked at.
KEPT_EXAMPLES = 3


class Record(NamedTuple):
    """What one attack under one threat model did to a batch.

    Attributes:
        model: name of the attacked model.
        source: name of the model the examples were made on, or None for the same.
        threat_model: ``"white-box"``, ``"adaptive"`` or ``"black-box"``.
        attack: name of the attack.
        distances: L0 (pixels), L2 and L-infinity of the closest adversarial example of each
            image in that norm, ``(n, 3)`` float32; infinite where none was found.
        gradients: images passed backward at each epsilon tried.
        queries: images passed forward at each epsilon tried.
        seconds: time at each epsilon tried.
        example_rows: rows of the batch of which `examples` are kept.
        examples: their adversarial images.
    """

    model: str
    source: str | None
    threat_model: str
    attack: str
    distances: np.ndarray
    gradients: np.ndarray
    queries: np.ndarray
    seconds: np.ndarray
    example_rows: np.ndarray
    examples: np.ndarray


class Batch(NamedTuple):
    """Images, what is to be reached, and which images each model gets right when clean."""

    x: np.ndarray
    goal: Goal
    correct: Mapping[str, np.ndarray]


class Rules(NamedTuple):
    """What all units of an evaluation share.

    Attributes:
        threat_models: those asked for.
        hardnesses: hardnesses of the surrogate gradients.
        value_range: smallest and largest pixel value.
    """

    threat_models: tuple[str, ...]
    hardnesses: tuple[float, ...]
    value_range: tuple[float, float]


class Job(NamedTuple):
    """An attack on a batch: all but the models.

    Attributes:
        attack: name of the attack.
        method: the attack.
        batch: what is attacked.
        epsilons: radii in rising order, or (None,): as close as can be.
        rules: what all jobs share.
        seed: seed of all that is random.
    """

    attack: str
    method: Method
    batch: Batch
    epsilons: tuple[float | None, ...]
    rules: Rules
    seed: int


class _Found:
    """The closest adversarial example of each image of a batch so far, for one record."""

    def __init__(self, name: str, attacked: AttackedModel, job: Job) -> None:
        batch, radii = job.batch, len(job.epsilons)
        self.batch, self.attacked, self.method = batch, attacked, job.method
        self.correct = batch.correct[name]
        self.images = batch.x.copy()
        self.distances = np.full((len(batch.x), 3), np.inf)
        self.gradients, self.queries = np.zeros(radii, "int64"), np.zeros(radii, "int64")
        self.seconds = np.zeros(radii)

    def standing(self, epsilon: float | None) -> np.ndarray:
        """Rows that are worth attacking: right when clean and, in a ball, not yet broken."""
        if epsilon is None:
            return np.flatnonzero(self.correct)
        order = NORMS.index(self.method.norm)
        return np.flatnonzero(self.correct & ~within(self.distances[:, order], epsilon))

    def offer(self, rows: np.ndarray, candidates: np.ndarray, epsilon: float | None) -> None:
        """Check an attack's images and keep those that are closer than what there was."""
        goal = self.batch.goal.take(rows)
        images, distances = verified(
            self.attacked, self.batch.x[rows], candidates, goal, self.method.norm, epsilon
        )
        order = NORMS.index(self.method.norm)
        closer = distances[:, order] < self.distances[rows, order]
        self.images[rows[closer]] = images[closer]
        # In each norm the closest: an example that is farther in the attack's own norm may
        # be the one that lies within an epsilon of another.
        self.distances[rows] = np.minimum(self.distances[rows], distances)

    def record(self, names: tuple[str, str | None, str, str]) -> Record:
        kept = np.flatnonzero(np.isfinite(self.distances[:, 0]))[:KEPT_EXAMPLES]
        return Record(
            *names,
            self.distances.astype("float32"),
            self.gradients,
            self.queries,
            self.seconds,
            kept,
            self.images[kept],
        )


class _Meter:
    """Adds a model's use and the time while it is open to one epsilon of a record."""

    def __init__(self, found: _Found, index: int, attacked: AttackedModel) -> None:
        self.found, self.index, self.counter = found, index, attacked.counter

    def __enter__(self) -> None:
        self.before = (self.counter.gradients, self.counter.queries, time.perf_counter())

    def __exit__(self, *_: object) -> None:
        gradients, queries, start = self.before
        self.found.gradients[self.index] += self.counter.gradients - gradients
        self.found.queries[self.index] += self.counter.queries - queries
        self.found.seconds[self.index] += time.perf_counter() - start


def direct(name: str, attacked: AttackedModel, job: Job) -> list[Record]:
    """Attack a model itself: white-box, adaptive, or with nothing but queries.

    The adaptive adversary has all that the white-box one found, and goes on where that one
    failed, through the surrogate gradients of each hardness. A model without quantizers has
    none; it gets as many more random starts instead.
    """
    method, rules = job.method, job.rules
    if not method.uses_gradients:
        black = "black-box" in rules.threat_models
        kind = "black-box" if black else rules.threat_models[0]
        return [_run(name, attacked, job, [None]).record((name, None, kind, job.attack))]
    records = []
    white = None
    if "white-box" in rules.threat_models:
        white = _run(name, attacked, job, [None])
        records.append(white.record((name, None, "white-box", job.attack)))
    if "adaptive" in rules.threat_models:
        softer: list[float | None] = [*rules.hardnesses]
        if not attacked.quantized:
            softer = [None] * len(softer) if method.is_random else []
        if white is None:
            softer = [None, *softer]
        adaptive = _run(name, attacked, job._replace(seed=job.seed + 1), softer, white)
        records.append(adaptive.record((name, None, "adaptive", job.attack)))
    return records


def _run(
    name: str,
    attacked: AttackedModel,
    job: Job,
    hardnesses: Sequence[float | None],
    known: _Found | None = None,
) -> _Found:
    """Run an attack through the gradients of each hardness, on what still stands."""
    found = _Found(name, attacked, job)
    if known is not None:
        found.distances, found.images = known.distances.copy(), known.images.copy()
    attempts = [job.method.on(attacked, job.batch.x, job.batch.goal, h, True) for h in hardnesses]
    for index, epsilon in enumerate(job.epsilons):
        for turn, attempt in enumerate(_restarted(attempts, job.method)):
            rows = found.standing(epsilon)
            if len(rows):
                with _Meter(found, index, attacked):
                    candidates = attempt(rows, epsilon, _seed(job.seed, index, turn))
                    found.offer(rows, candidates, epsilon)
    return found


def transferred(
    source_name: str, source: AttackedModel, targets: Mapping[str, AttackedModel], job: Job
) -> list[Record]:
    """Make examples on a source model and try them on each target.

    The adversary owns the source, so behind its quantizers surrogate gradients are used too.
    """
    batch = job.batch
    hardnesses: list[float | None] = [None, *(job.rules.hardnesses if source.quantized else ())]
    by_target = {name: _Found(name, target, job) for name, target in targets.items()}
    attempts = [job.method.on(source, batch.x, batch.goal, h, False) for h in hardnesses]
    for index, epsilon in enumerate(job.epsilons):
        for turn, attempt in enumerate(_restarted(attempts, job.method)):
            standing = [found.standing(epsilon) for found in by_target.values()]
            rows = np.unique(np.concatenate(standing))
            if not len(rows):
                continue
            with contextlib.ExitStack() as meters:
                for found in by_target.values():
                    meters.enter_context(_Meter(found, index, source))
                candidates = attempt(rows, epsilon, _seed(job.seed, index, turn))
            for found in by_target.values():
                own = found.correct[rows]  # some rows are here for another target
                if own.any():
                    with _Meter(found, index, found.attacked):
                        found.offer(rows[own], candidates[own], epsilon)
    return [
        found.record((name, source_name, "black-box", job.attack))
        for name, found in by_target.items()
    ]


def _restarted(attempts: list[Attempt], method: Method) -> list[Attempt]:
    return [attempt for attempt in attempts for _ in range(method.restarts)]


def verified(
    attacked: AttackedModel,
    x: np.ndarray,
    candidates: np.ndarray,
    goal: Goal,
    norm: str,
    epsilon: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """What an attack returned, put back inside the bounds and the ball, and judged.

    Args:
        attacked: the model to fool.
        x: clean images, ``(n, ...)``.
        candidates: what the attack returned, of the same shape.
        goal: what the images must reach.
        norm: ``"l0"``, ``"l2"`` or ``"linf"``.
        epsilon: radius of the ball, or None for any distance.

    Returns:
        The images, and their distances ``(n, 3)``, infinite where they are not adversarial or
        not finite. Nor does an image of zeros count that a minimizing attack returned, which
        is how Foolbox's say that they failed.
    """
    low, high = attacked.value_range
    axes = tuple(range(1, x.ndim))
    finite = np.isfinite(candidates).all(axis=axes)
    images = np.where(_column(finite, x), candidates, x).astype("float32")
    images = np.clip(images, low, high)
    failed = ~finite
    if epsilon is None:
        failed |= (candidates == 0).all(axis=axes) & (x != 0).any(axis=axes)
    else:
        images = _into_ball(x, images, norm, epsilon, low, high)
    distances = np.full((len(x), 3), np.inf)
    tried = np.flatnonzero(~failed & (images != x).any(axis=axes))
    if len(tried):
        reached = goal.take(tried).reached(attacked.predictions(images[tried]))
        won = tried[reached]
        if len(won):
            distances[won] = distances_of(x[won], images[won])
        if epsilon is not None:
            outside = ~within(distances[:, NORMS.index(norm)], epsilon)
            distances[outside] = np.inf
    return images, distances


def _into_ball(
    x: np.ndarray, images: np.ndarray, norm: str, epsilon: float, low: float, high: float
) -> np.ndarray:
    if norm == "linf":
        radius = np.float32(epsilon)
        images = np.clip(np.clip(images, x - radius, x + radius), low, high)
        # Rounding of large pixel values may leave the ball; the next float32 is inside.
        for _ in range(2):
            outside = np.abs(images.astype("float64") - x) > epsilon
            images = np.where(outside, np.nextafter(images, x), images)
        return images
    if norm == "l2":
        axes = tuple(range(1, x.ndim))
        for shrink in (1.0, 1 - 1e-5, 1 - 1e-4, 1 - 1e-3):  # rounding again
            gap = images.astype("float64") - x
            length = np.sqrt(np.square(gap).sum(axis=axes, keepdims=True))
            scale = np.minimum(1.0, shrink * epsilon / np.maximum(length, 1e-12))
            inside = (x + gap * scale).astype("float32")
            images = np.where(length > epsilon, inside, images)
        return images
    return images  # a pixel count cannot be projected: too many simply does not count


def _column(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, *([1] * (x.ndim - 1)))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0] % 2**31)
