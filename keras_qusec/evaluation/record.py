"""What an attack found on a batch under one threat model, and at what cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_qusec.attacks import Attack, Classifier, Goal
from keras_qusec.attacks.base import BatchSearch
from keras_qusec.datasets import spread_rows
from keras_qusec.digests import seed_from
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.results import Kept, Part, Result
from keras_qusec.verify import ClosestExamples

# Adversarial images that a result keeps of each batch, to be looked at.
_KEPT_EXAMPLES = 3


def in_words(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def searched_goal(goal: Goal, model: Classifier, attack: Attack) -> Goal:
    """What an attack looks for: the goal, or as for transfer the highest objective.

    Whole numbers near an adversarial image may lie outside a ball in L2 or L1, and those inside it
    be no longer adversarial; so such an image must not stop at the boundary.
    """
    in_a_ball = not attack.minimizes and attack.norm not in ("linf", "l0")
    return goal._replace(transfer=True) if model.takes_whole_numbers and in_a_ball else goal


def followed_by_name(followed: Sequence[Any], model: Classifier, continued: bool) -> dict[str, Any]:
    """The models that an attack follows, by names by which its random numbers are known.

    So they are the same for an attack alone and within an ensemble, whatever runs before it.

    Args:
        followed: the models, in their order.
        model: the model itself, which may be among them several times.
        continued: the model itself was followed before, under another threat model.
    """
    counts = {"own": int(continued), "surrogate": 0}
    named = {}
    for one in followed:
        kind = "own" if one is model else "surrogate"
        named[f"{kind} {counts[kind]}"] = one
        counts[kind] += 1
    return named


class Call(NamedTuple):
    """One call of an attack: at one radius, through one model's gradients, from one start."""

    place: int
    epsilon: float | None
    search: BatchSearch
    seed: int


class Record:
    """An attack on a batch for one model and threat model: what it found, and at what cost."""

    def __init__(self, unit: Unit, plan: Plan, name: str, model: Classifier, seed: int) -> None:
        attack = plan.attacks[unit.attack]
        self.name, self.attack, self.seed = name, unit.attack, seed
        self.norm = attack.norm
        self.radii, self.restarts = plan.radii[unit.attack], attack.restarts
        self.kept_norms = plan.kept_norms
        self.closest = ClosestExamples(
            model, plan.x, plan.goal, plan.correct[name], attack.norm, plan.kept_norms,
            plan.proved.get(name) if attack.norm == "linf" else None,
        )  # fmt: skip
        self.gradients = np.zeros(len(self.radii), "int64")
        self.queries = np.zeros(len(self.radii), "int64")
        self.seconds = np.zeros(len(self.radii))
        self.parts: list[Part] = []
        # Whether the attack was called, and whether it ever asked the model or changed an image.
        self.called = self.acted = False

    def tried(self, call: Call, rows: np.ndarray, x: np.ndarray, model: Classifier) -> np.ndarray:
        """What an attack returns for some images."""
        used, self.called = model.counter.queries, True
        epsilon = None if call.epsilon is None else model.reach(self.norm, call.epsilon)
        candidates = call.search(rows, epsilon, call.seed)
        self.acted |= model.counter.queries > used or not np.array_equal(candidates, x[rows])
        return candidates

    def check_that_it_acted(self) -> None:
        """Raise a ValueError for an attack that did nothing at all, which is no evidence."""
        if self.called and not self.acted:
            raise ValueError(
                "Expected an attack that asks the model or changes images. Received: one that did "
                "neither. Check its settings."
            )

    def run_part(
        self,
        name: str,
        part: Attack,
        followed: Mapping[str, Classifier],
        model: Classifier,
        skip_smaller: bool,
        sample: int | None = None,
    ) -> None:
        """Make one attack of an ensemble on what is not broken.

        From the smallest radius on, as the attack alone: then it has seen the same of an image
        that is left. Where smaller radii can be skipped, the largest comes first.

        Args:
            name: name of the part.
            part: the attack.
            followed: models whose gradients it follows, see `followed_by_name`.
            model: the attacked model.
            skip_smaller: what withstood it at a radius is not attacked at smaller ones.
            sample: so many images are attacked first, at all radii together, and the others
                only if one of these falls.
        """
        closest, costs = self.closest, (self.gradients, self.queries, self.seconds)
        before = [cost.copy() for cost in costs]
        tried, broken = (np.zeros(len(self.radii), "int64") for _ in range(2))
        survived = np.zeros(len(closest.x), bool)
        self.called = self.acted = False
        failure = ""
        try:
            goal = searched_goal(closest.goal, model, part)
            searches = {n: part.on_batch(m, closest.x, goal) for n, m in followed.items()}
            places = range(len(self.radii))
            downwards = skip_smaller or sample is not None
            for place in reversed(places) if downwards else places:
                epsilon = self.radii[place]
                rows = closest.left(epsilon)
                rows = rows[~survived[rows]]
                calls = list(self.calls_at(name, place, searches, part.restarts))
                groups = [rows]
                if sample is not None:
                    chosen = np.isin(np.arange(len(rows)), spread_rows(len(rows), sample))
                    groups = [rows[chosen], rows[~chosen]]
                    sample -= int(chosen.sum())
                for group in groups:
                    tried[place] += len(group)
                    fell = self.call_all(calls, group, model)
                    broken[place] += fell
                    if fell:
                        # From now on each image counts.
                        sample = None
                    if sample is not None:
                        break
                if skip_smaller:
                    survived[rows[np.isin(rows, closest.left(epsilon))]] = True
            self.check_that_it_acted()
        except Exception as error:  # noqa: BLE001  attacks raise anything
            failure = in_words(error)
        spent = (cost - earlier for cost, earlier in zip(costs, before, strict=True))
        self.parts.append(Part._make([name, tried, broken, *spent, failure]))

    def call_all(self, calls: Sequence[Call], rows: np.ndarray, model: Classifier) -> int:
        """Make calls of one radius, each on the images that are left; how many fell."""
        closest = self.closest
        for call in calls:
            left = rows[np.isin(rows, closest.left(call.epsilon))]
            if not len(left):
                break
            with self.metered(call, model):
                candidates = self.tried(call, left, closest.x, model)
                closest.offer(left, candidates, call.epsilon)
        return len(rows) - int(np.isin(rows, closest.left(calls[0].epsilon)).sum())

    def restore(self, result: Result) -> None:
        """Begin with what an interrupted run had kept."""
        self.closest.distances = {n: d.astype("float64") for n, d in result.distances.items()}
        for index, image in result.examples.items():
            self.closest.images[index] = image
        for norm, kept in result.kept.items():
            self.closest.closest[norm][kept.numbers] = kept.images
        self.gradients, self.queries = result.gradients.copy(), result.queries.copy()
        self.seconds, self.parts = result.seconds.copy(), list(result.parts)
        self.closest.unusable = result.unusable

    def go_on_from(self, before: Record) -> None:
        """Begin with all that another run found."""
        self.closest.closest = {n: images.copy() for n, images in before.closest.closest.items()}
        self.closest.distances = {n: d.copy() for n, d in before.closest.distances.items()}

    def calls(self, searches: Mapping[str, BatchSearch]) -> Iterator[Call]:
        """Radius after radius, every search with all its restarts."""
        for place in range(len(self.radii)):
            yield from self.calls_at(self.attack, place, searches, self.restarts)

    def calls_at(
        self, attack: str, place: int, searches: Mapping[str, BatchSearch], restarts: int
    ) -> Iterator[Call]:
        """The calls of an attack at one radius, with the same seeds alone and within an ensemble.

        Args:
            attack: name of the attack.
            place: of the radius among all.
            searches: by the name of the model that is followed.
            restarts: of each.
        """
        for followed, search in searches.items():
            for restart in range(restarts):
                seed = seed_from(f"{self.seed} {attack} {place} {followed} {restart}")
                yield Call(place, self.radii[place], search, seed)

    @contextlib.contextmanager
    def metered(self, call: Call, model: Classifier) -> Iterator[None]:
        """Add a model's use and the time inside the block to the radius of a call."""
        counter, start = model.counter, time.perf_counter()
        gradients, queries = counter.gradients, counter.queries
        yield
        self.gradients[call.place] += counter.gradients - gradients
        self.queries[call.place] += counter.queries - queries
        self.seconds[call.place] += time.perf_counter() - start

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
                # Copies: a view would keep all images of the batch in memory.
                int(i): self.closest.images[i].copy()
                for i in (broken if keep_all else broken[spread_rows(len(broken), _KEPT_EXAMPLES)])
            },
            parts=tuple(self.parts),
            unusable=self.closest.unusable,
            kept={norm: self._kept(norm) for norm in self.kept_norms},
        )

    def _kept(self, norm: str) -> Kept:
        """The closest example of every broken image in a norm."""
        numbers = np.flatnonzero(np.isfinite(self.closest.distances[norm]))
        return Kept(numbers, self.closest.closest[norm][numbers])
