"""An ensemble's attacks, one after the other, each on the images that no other one broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from keras_qusec.attacks import Classifier, Ensemble
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.record import Record, followed_by_name
from keras_qusec.evaluation.threat_models import ThreatModel
from keras_qusec.results import Result

# Told what runs within a unit, and the share of its attacks that are done.
Tell = Callable[[str, float], None]


class Unfinished(Protocol):
    """Unfinished work of a unit on disk, so that an ensemble goes on in the middle."""

    def load(self, key: str) -> list[Result] | None:
        """What was saved under a key."""

    def save(self, key: str, results: list[Result]) -> None:
        """Save results under a key."""

    def remove(self, key: str) -> None:
        """Forget a key."""


def attack_with_parts(
    unit: Unit, plan: Plan, model: Classifier, kept: Unfinished | None, tell: Tell
) -> list[Result]:
    """Run the parts of an ensemble under each threat model, each on the images left.

    What is found is kept after each part. A part that fails is told in the result.
    """
    attack: Any = plan.attacks[unit.attack]
    key = f"{unit.key}-partial"
    earlier = {r.threat_model: r for r in (kept.load(key) if kept else None) or []}
    threats = plan.threat_models_for(attack, unit.models[0])
    runs: dict[str, Record] = {}
    for place, threat in enumerate(threats):
        run = Record(unit, plan, unit.models[0], model, plan.seed)
        before = runs.get(threat.continues or "")
        if threat.name in earlier:
            run.restore(earlier[threat.name])
        elif before is not None:
            run.go_on_from(before)
        runs[threat.name] = run
        parts = list(_parts_run(attack, threat, threats, model, plan))
        for number, (name, followed) in enumerate(parts):
            tell(name, (place + number / len(parts)) / len(threats))
            if name in [part.attack for part in run.parts]:
                continue
            part = attack.parts[name]
            ran_before = before is not None and name in [one.attack for one in before.parts]
            run.run_part(
                name, part, followed_by_name(followed, model, ran_before), model,
                attack.skip_smaller or part.minimizes,
                attack.sampled.get(name),
            )  # fmt: skip
            if kept is not None:
                kept.save(key, [r.result(t, None, keep_all=True) for t, r in runs.items()])
    finished = [part for run in runs.values() for part in run.parts]
    if finished and all(part.failure for part in finished):
        raise ValueError(f"{finished[0].attack}: {finished[0].failure}")
    if kept is not None:
        kept.remove(key)
    return [run.result(threat, None) for threat, run in runs.items()]


def _parts_run(
    attack: Ensemble,
    threat: ThreatModel,
    threats: Sequence[ThreatModel],
    model: Any,
    plan: Plan,
) -> Iterator[tuple[str, Sequence[Any]]]:
    """The parts of an ensemble under a threat model, and the models whose gradients each follows.

    Where a defence hides the gradient, parts wait for the threat model that sees through it.
    """
    hidden = bool(model.with_surrogates(plan.hardnesses))
    waits = hidden and any(other.continues == threat.name for other in threats)
    continued = threat.continues in [other.name for other in threats]
    # The search behind a quantizer is stronger than its surrogate gradients; one is enough then.
    own = any(p.attacks_defense and plan.can_be_made(p, model) for p in attack.parts.values())
    for name, part in attack.parts.items():
        if not plan.can_be_made(part, model):
            continue
        if part.attacks_defense:
            if threat.follows_surrogates:
                yield name, [model]
            continue
        if waits and name not in attack.first:
            continue
        ran_before = continued and (name in attack.first or not hidden)
        if not part.uses_gradients:
            followed = [] if ran_before else [model]
        elif continued and not hidden:
            followed = []  # nothing to see through
        else:
            followed = threat.models(model, part, plan.hardnesses, ran_before)
            if own and threat.follows_surrogates and attack.skip_smaller:
                followed = followed[-1:]
        if followed:
            yield name, followed
