"""The units of a plan, run here or in other processes and on other machines."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import Attack, AttackedModel, Ensemble, Goal
from keras_qusec.attacks.attacked_model import Counter
from keras_qusec.attacks.base import BatchSearch
from keras_qusec.datasets import spread_rows
from keras_qusec.digests import digest
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.results import Failure, Part, Result
from keras_qusec.evaluation.threat_models import ThreatModel
from keras_qusec.evaluation.verify import ClosestExamples

Models = Mapping[str, AttackedModel]
Outcome = list[Result] | Failure

# How often at most a unit says that it moves.
_SECONDS_BETWEEN = 0.2

# Adversarial images that a result keeps of each batch, to be looked at.
_KEPT_EXAMPLES = 3


class Kept(Protocol):
    """Unfinished work of a unit on disk, so that an ensemble goes on in the middle."""

    def load(self, key: str) -> list[Result] | None:
        """What was saved under a key."""

    def save(self, key: str, results: list[Result]) -> None:
        """Save results under a key."""

    def remove(self, key: str) -> None:
        """Forget a key."""


# Told what runs within a unit, and the share of its attacks that are done.
Tell = Callable[[str, float], None]


def run_unit(
    unit: Unit,
    plan: Plan,
    models: Models,
    sources: Models,
    kept: Kept | None = None,
    tell: Tell = lambda text, share: None,
) -> Outcome:
    """Run a unit; an attack that fails is an outcome too, since the others' results stand.

    Args:
        unit: what to run.
        plan: the plan for the unit's batch.
        models: attacked models by name.
        sources: source models by name.
        kept: where an ensemble keeps what its first attacks found.
        tell: told which attack of an ensemble runs.
    """
    attack = plan.attacks[unit.attack]
    try:
        if plan.goal.targeted and not attack.can_be_targeted:
            raise ValueError(
                f"Expected an attack that can be targeted. Received: {attack.name}. Leave targets "
                'out, or use "pgd", "cw", "jsma" or a decision-based attack.'
            )
        if unit.source is not None:
            targets = {name: models[name] for name in unit.models}
            results = attack_by_transfer(unit, plan, sources[unit.source], targets)
        elif isinstance(attack, Ensemble):
            results = attack_in_turns(unit, plan, models[unit.models[0]], kept, tell)
        else:
            results = attack_itself(unit, plan, models[unit.models[0]])
    except Exception as error:  # noqa: BLE001  attacks raise anything
        return Failure(unit.attack, unit.models, unit.source, _in_words(error))
    return results


def _in_words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def attack_itself(unit: Unit, plan: Plan, model: AttackedModel) -> list[Result]:
    """Attack a model itself under each threat model; some go on where another one failed."""
    attack, name = plan.attacks[unit.attack], unit.models[0]
    runs: dict[str, _Run] = {}
    for threat in plan.threat_models_for(attack):
        before = runs.get(threat.continues or "")
        seed = plan.seed + (threat.continues is not None)
        run = runs[threat.name] = _Run(unit, plan, name, model, seed)
        followed = [model]
        if attack.uses_gradients and not attack.attacks_defense:
            followed = threat.models(model, attack, plan.hardnesses, before is not None)
        if before is not None:
            run.go_on_from(before)
        goal = _searched(plan.goal, model, attack)
        searches = [attack.on_batch(m, plan.x, goal) for m in followed]
        for turn in run.turns(searches):
            rows = run.closest.standing(turn.epsilon)
            if len(rows):
                with run.metered(turn, model):
                    candidates = run.tried(turn, rows, plan.x, model)
                    run.closest.offer(rows, candidates, turn.epsilon)
        run.check_that_it_acted()
    return [run.result(threat, None) for threat, run in runs.items()]


def attack_in_turns(
    unit: Unit, plan: Plan, model: AttackedModel, kept: Kept | None, tell: Tell
) -> list[Result]:
    """Play the parts of an ensemble under each threat model, each on what still stands.

    What is found is kept after each part. A part that fails is told in the result.
    """
    attack: Any = plan.attacks[unit.attack]
    key = f"{unit.key}-partial"
    earlier = {r.threat_model: r for r in (kept.load(key) if kept else None) or []}
    threats = plan.threat_models_for(attack)
    runs: dict[str, _Run] = {}
    for place, threat in enumerate(threats):
        run = _Run(unit, plan, unit.models[0], model, plan.seed)
        before = runs.get(threat.continues or "")
        if threat.name in earlier:
            run.restore(earlier[threat.name])
        elif before is not None:
            run.go_on_from(before)
        runs[threat.name] = run
        played_now = list(_parts_played(attack, threat, threats, model, plan))
        for turn, (name, followed) in enumerate(played_now):
            tell(name, (place + turn / len(played_now)) / len(threats))
            if name in [part.attack for part in run.parts]:
                continue
            part = attack.parts[name]
            run.play(name, part, followed, model, attack.skip_smaller or part.minimizes)
            if kept is not None:
                kept.save(key, [r.result(t, None, keep_all=True) for t, r in runs.items()])
    played = [part for run in runs.values() for part in run.parts]
    if played and all(part.failure for part in played):
        raise ValueError(f"{played[0].attack}: {played[0].failure}")
    if kept is not None:
        kept.remove(key)
    return [run.result(threat, None) for threat, run in runs.items()]


def _parts_played(
    attack: Ensemble,
    threat: ThreatModel,
    threats: Sequence[ThreatModel],
    model: AttackedModel,
    plan: Plan,
) -> Iterator[tuple[str, list[AttackedModel]]]:
    """The parts of an ensemble under a threat model, and the models whose gradients each follows.

    Where a defence hides the gradient, parts wait for the threat model that sees through it.
    """
    hidden = bool(model.with_surrogates(plan.hardnesses))
    waits = hidden and any(other.continues == threat.name for other in threats)
    continued = threat.continues in [other.name for other in threats]
    # The search behind a quantizer is stronger than its surrogate gradients; one is enough then.
    own = any(p.attacks_defense and p.applies_to(model, plan.x) for p in attack.parts.values())
    for name, part in attack.parts.items():
        if part.attacks_defense:
            if threat.follows_surrogates and part.applies_to(model, plan.x):
                yield name, [model]
            continue
        if waits and name not in attack.first:
            continue
        played = continued and (name in attack.first or not hidden)
        if not part.uses_gradients:
            followed = [] if played else [model]
        elif continued and not hidden:
            followed = []  # nothing to see through
        else:
            followed = threat.models(model, part, plan.hardnesses, played)
            if own and threat.follows_surrogates and attack.skip_smaller:
                followed = followed[-1:]
        if followed:
            yield name, followed


def attack_by_transfer(
    unit: Unit, plan: Plan, source: AttackedModel, models: Models
) -> list[Result]:
    """Make examples on a source model and try them on each attacked model."""
    attack, goal = plan.attacks[unit.attack], plan.goal._replace(transfer=True)
    if isinstance(attack, Ensemble):
        attack = attack.to_transfer
    results = []
    for threat in plan.threat_models:
        if not threat.uses_source:
            continue
        runs = {name: _Run(unit, plan, name, m, plan.seed) for name, m in models.items()}
        followed = threat.models(source, attack, plan.hardnesses, False)
        searches = [attack.on_batch(m, plan.x, goal) for m in followed]
        any_run = next(iter(runs.values()))
        for turn in any_run.turns(searches):
            standing = [run.closest.standing(turn.epsilon) for run in runs.values()]
            rows = np.unique(np.concatenate(standing))
            if not len(rows):
                continue
            with contextlib.ExitStack() as meters:
                for run in runs.values():
                    meters.enter_context(run.metered(turn, source))
                candidates = any_run.tried(turn, rows, plan.x, source)
            for name, run in runs.items():
                right = run.closest.correct[rows]  # other rows stand for another model only
                if right.any():
                    with run.metered(turn, models[name]):
                        run.closest.offer(rows[right], candidates[right], turn.epsilon)
        any_run.check_that_it_acted()
        results += [run.result(threat.name, unit.source) for run in runs.values()]
    return results


def _searched(goal: Goal, model: AttackedModel, attack: Attack) -> Goal:
    """What an attack looks for: the goal, or as for transfer the highest objective.

    Whole numbers near an adversarial image may lie outside a ball in L2 or L1, and those inside it
    be no longer adversarial; so such an image must not stop at the boundary.
    """
    in_a_ball = not attack.minimizes and attack.norm not in ("linf", "l0")
    return goal._replace(transfer=True) if model.takes_whole_numbers and in_a_ball else goal


class _Turn(NamedTuple):
    """One call of an attack: at one radius, through one model's gradients, from one start."""

    place: int
    epsilon: float | None
    search: BatchSearch
    seed: int


class _Run:
    """An attack on a batch for one model and threat model: what it found, and at what cost."""

    def __init__(self, unit: Unit, plan: Plan, name: str, model: AttackedModel, seed: int) -> None:
        attack = plan.attacks[unit.attack]
        self.name, self.attack, self.seed = name, unit.attack, seed
        self.norm = attack.norm
        self.radii, self.restarts = plan.radii[unit.attack], attack.restarts
        self.closest = ClosestExamples(model, plan.x, plan.goal, plan.correct[name], attack.norm)
        self.gradients = np.zeros(len(self.radii), "int64")
        self.queries = np.zeros(len(self.radii), "int64")
        self.seconds = np.zeros(len(self.radii))
        self.parts: list[Part] = []
        # Whether the attack was called, and whether it ever asked the model or changed an image.
        self.called = self.acted = False

    def tried(
        self, turn: _Turn, rows: np.ndarray, x: np.ndarray, model: AttackedModel
    ) -> np.ndarray:
        """What an attack returns for some images."""
        used, self.called = model.counter.queries, True
        epsilon = None if turn.epsilon is None else model.reach(self.norm, turn.epsilon)
        candidates = turn.search(rows, epsilon, turn.seed)
        self.acted |= model.counter.queries > used or not np.array_equal(candidates, x[rows])
        return candidates

    def check_that_it_acted(self) -> None:
        """Raise a ValueError for an attack that did nothing at all, which is no evidence."""
        if self.called and not self.acted:
            raise ValueError(
                "Expected an attack that asks the model or changes images. Received: one that did "
                "neither. Check its settings."
            )

    def play(
        self,
        name: str,
        part: Attack,
        followed: Sequence[AttackedModel],
        model: AttackedModel,
        skip_smaller: bool,
    ) -> None:
        """Make one attack of an ensemble on what stands, at the largest radius first.

        Args:
            name: name of the part.
            part: the attack.
            followed: models whose gradients it follows in turn.
            model: the attacked model.
            skip_smaller: what stood at a radius is not attacked at smaller ones.
        """
        closest, costs = self.closest, (self.gradients, self.queries, self.seconds)
        before = [cost.copy() for cost in costs]
        tried, broken = (np.zeros(len(self.radii), "int64") for _ in range(2))
        words = int.from_bytes(name.encode()[:8].ljust(8), "big")
        stood = np.zeros(len(closest.x), bool)
        self.called = self.acted = False
        failure = ""
        try:
            goal = _searched(closest.goal, model, part)
            searches = [part.on_batch(m, closest.x, goal) for m in followed]
            for place in reversed(range(len(self.radii))):
                epsilon = self.radii[place]
                rows = closest.standing(epsilon)
                rows = rows[~stood[rows]]
                tried[place] = len(rows)
                repeated = [search for search in searches for _ in range(part.restarts)]
                for number, search in enumerate(repeated):
                    left = rows[np.isin(rows, closest.standing(epsilon))]
                    if not len(left):
                        break
                    parts = np.random.SeedSequence((self.seed, words, place, number))
                    seed = int(parts.generate_state(1)[0] % 2**31)
                    turn = _Turn(place, epsilon, search, seed)
                    with self.metered(turn, model):
                        candidates = self.tried(turn, left, closest.x, model)
                        closest.offer(left, candidates, epsilon)
                left = rows[np.isin(rows, closest.standing(epsilon))]
                broken[place] = len(rows) - len(left)
                if skip_smaller:
                    stood[left] = True
            self.check_that_it_acted()
        except Exception as error:  # noqa: BLE001  attacks raise anything
            failure = _in_words(error)
        spent = (cost - earlier for cost, earlier in zip(costs, before, strict=True))
        self.parts.append(Part._make([name, tried, broken, *spent, failure]))

    def restore(self, result: Result) -> None:
        """Begin with what an interrupted run had kept."""
        self.closest.distances = {n: d.astype("float64") for n, d in result.distances.items()}
        for index, image in result.examples.items():
            self.closest.images[index] = image
        self.gradients, self.queries = result.gradients.copy(), result.queries.copy()
        self.seconds, self.parts = result.seconds.copy(), list(result.parts)
        self.closest.unusable = result.unusable

    def go_on_from(self, before: _Run) -> None:
        """Begin with all that another run found."""
        self.closest.images = before.closest.images.copy()
        self.closest.distances = {n: d.copy() for n, d in before.closest.distances.items()}

    def turns(self, searches: Sequence[BatchSearch]) -> Iterator[_Turn]:
        """Radius after radius, every search with all its restarts."""
        repeated = [search for search in searches for _ in range(self.restarts)]
        for place, epsilon in enumerate(self.radii):
            for number, search in enumerate(repeated):
                parts = np.random.SeedSequence((self.seed, place, number))
                yield _Turn(place, epsilon, search, int(parts.generate_state(1)[0] % 2**31))

    @contextlib.contextmanager
    def metered(self, turn: _Turn, model: AttackedModel) -> Iterator[None]:
        """Add a model's use and the time inside the block to the radius of a turn."""
        counter, start = model.counter, time.perf_counter()
        gradients, queries = counter.gradients, counter.queries
        yield
        self.gradients[turn.place] += counter.gradients - gradients
        self.queries[turn.place] += counter.queries - queries
        self.seconds[turn.place] += time.perf_counter() - start

    def result(self, threat_model: str, source: str | None, *, keep_all: bool = False) -> Result:
        """What was found; `keep_all` for all adversarial images and not a few to look at."""
        distances = self.closest.distances
        broken = np.flatnonzero(np.isfinite(next(iter(distances.values()))))
        return Result(
            model=self.name,
            source=source,
            threat_model=threat_model,
            attack=self.attack,
            radii=self.radii,
            distances={norm: values.astype("float32") for norm, values in distances.items()},
            gradients=self.gradients,
            queries=self.queries,
            seconds=self.seconds,
            examples={
                int(i): self.closest.images[i]
                for i in (broken if keep_all else broken[spread_rows(len(broken), _KEPT_EXAMPLES)])
            },
            parts=tuple(self.parts),
            unusable=self.closest.unusable,
        )


class Parcel(NamedTuple):
    """A model on its way to another process.

    Attributes:
        content: the model as Keras saves it, an array, which joblib shares between units.
        settings: of the `AttackedModel`.
        images: a few images, to see that the model that arrives is the one that was sent.
        logits: of the images.
    """

    content: np.ndarray
    settings: dict[str, Any]
    images: np.ndarray
    logits: np.ndarray


def pack(model: AttackedModel, images: np.ndarray) -> Parcel:
    """Serialise a model as Keras saves it.

    Args:
        model: the model.
        images: a few images.

    Raises:
        ValueError: for a model that cannot be saved.
    """
    try:
        content = pickle.dumps(model.model)
    except Exception as error:
        raise ValueError(
            f"Expected a model that Keras can save, to send it to other processes. Received: "
            f"{model.model.name!r}, which fails with: {error}. Register its custom layers with "
            "keras.saving.register_keras_serializable, or use n_jobs=1."
        ) from error
    bytes_of_model = np.frombuffer(content, dtype="uint8")
    return Parcel(bytes_of_model, model.settings, images, model.logits(images))


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


def _unpack(name: str, parcel: Parcel) -> AttackedModel:
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
        cache[key] = AttackedModel(model, **parcel.settings)
    logits = cache[key].logits(parcel.images)
    if not np.allclose(logits, parcel.logits, rtol=1e-2, atol=1e-2 * np.abs(parcel.logits).max()):
        raise RuntimeError(
            f"Expected the same model in each process. Received: {name!r}, which gives other "
            "outputs when it is saved and loaded. Let its get_config return all of its settings, "
            "or use n_jobs=1."
        )
    return cache[key]


class _Moving:
    """Tells what a unit is doing, as often as its models are used, but not too often.

    Args:
        unit: what runs.
        counters: of the models that it uses.
        tell: is told.
    """

    def __init__(self, unit: Unit, counters: Sequence[Counter], tell: Tell) -> None:
        self.unit, self.counters, self.tell = unit, counters, tell
        self.part, self.share, self.last = "", 0.0, -math.inf
        self.start = self._passes()

    def _passes(self) -> int:
        return sum(counter.queries for counter in self.counters)

    def on(self, part: str, share: float) -> None:
        """Go on to a part of an ensemble."""
        self.part, self.share = part, share
        self._say()

    def _say(self) -> None:
        passes = self._passes() - self.start
        part = f" {self.part}" if self.part else ""
        self.tell(f"{self.unit.maker}: {self.unit.attack}{part}, {passes:,} passes", self.share)
        self.last = time.monotonic()

    def _counted(self) -> None:
        if time.monotonic() - self.last > _SECONDS_BETWEEN:
            self._say()

    def __enter__(self) -> _Moving:
        self._say()
        for counter in self.counters:
            counter.listener = self._counted
        return self

    def __exit__(self, *_: Any) -> None:
        for counter in self.counters:
            counter.listener = None


def run_units(
    units: Sequence[Unit],
    plan: Plan,
    models: Models,
    sources: Models,
    n_jobs: int | None,
    kept: Kept | None = None,
    tell: Tell = lambda text, share: None,
) -> Iterator[tuple[Unit, Outcome]]:
    """Run units and give each outcome as it is ready, over joblib if there are several jobs.

    Args:
        units: what to run.
        plan: the plan for all images.
        models: attacked models by name.
        sources: source models by name.
        n_jobs: see `joblib.Parallel`; None for that of `joblib.parallel_config`.
        kept: where unfinished units keep what they found, in one process.
        tell: told what is running, and the share of its unit that is done, in one process.
    """
    import joblib

    if not units:
        return
    if joblib.effective_n_jobs(n_jobs) == 1:
        for unit in units:
            used = [models[name] for name in unit.models]
            used += [] if unit.source is None else [sources[unit.source]]
            counters = list({id(model.counter): model.counter for model in used}.values())
            with _Moving(unit, counters, tell) as moving:
                outcome = run_unit(unit, plan.batch(unit), models, sources, kept, moving.on)
            yield unit, outcome
        return
    packed = {name: pack(model, plan.x[:2]) for name, model in models.items()}
    packed_sources = {name: pack(model, plan.x[:2]) for name, model in sources.items()}
    backend = keras.backend.backend()
    os.environ.setdefault("KERAS_BACKEND", backend)  # for processes that start now
    calls = [
        joblib.delayed(run_elsewhere)(
            unit,
            plan.batch(unit),
            {name: packed[name] for name in unit.models},
            {name: packed_sources[name] for name in [unit.source] if name is not None},
            backend,
            norms.registered(),
        )
        for unit in units
    ]
    streams = joblib.parallel.get_active_backend()[0].supports_return_generator
    kind = "generator_unordered" if streams else "list"
    yield from joblib.Parallel(n_jobs=n_jobs, return_as=kind)(calls)
