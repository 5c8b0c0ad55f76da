"""The units of a plan, run one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_qusec.attacks import Classifier, Ensemble
from keras_qusec.evaluation.ensemble_parts import Tell, Unfinished, attack_with_parts
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.record import Record, followed_by_name, in_words, searched_goal
from keras_qusec.evaluation.unit_progress import UnitProgress
from keras_qusec.results import Failure, Result

Models = Mapping[str, Classifier]
Outcome = list[Result] | Failure


def run_unit(
    unit: Unit,
    plan: Plan,
    models: Models,
    sources: Models,
    kept: Unfinished | None = None,
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
            results = attack_with_parts(unit, plan, models[unit.models[0]], kept, tell)
        else:
            results = attack_itself(unit, plan, models[unit.models[0]])
    except Exception as error:  # noqa: BLE001  attacks raise anything
        return Failure(unit.attack, unit.models, unit.source, in_words(error))
    return results


def attack_itself(unit: Unit, plan: Plan, model: Any) -> list[Result]:
    """Attack a model itself under each threat model; some go on where another one failed."""
    attack, name = plan.attacks[unit.attack], unit.models[0]
    runs: dict[str, Record] = {}
    for threat in plan.threat_models_for(attack, unit.models[0]):
        before = runs.get(threat.continues or "")
        run = runs[threat.name] = Record(unit, plan, name, model, plan.seed)
        followed = [model]
        if attack.uses_gradients and not attack.attacks_defense:
            followed = threat.models(model, attack, plan.hardnesses, before is not None)
        if before is not None:
            run.go_on_from(before)
        goal = searched_goal(plan.goal, model, attack)
        named = followed_by_name(followed, model, before is not None)
        searches = {n: attack.on_batch(m, plan.x, goal) for n, m in named.items()}
        for call in run.calls(searches):
            rows = run.closest.left(call.epsilon)
            if len(rows):
                with run.metered(call, model):
                    candidates = run.tried(call, rows, plan.x, model)
                    run.closest.offer(rows, candidates, call.epsilon)
        run.check_that_it_acted()
    return [run.result(threat, None) for threat, run in runs.items()]


def attack_by_transfer(unit: Unit, plan: Plan, source: Any, models: Models) -> list[Result]:
    """Make examples on a source model and try them on each attacked model."""
    attack, goal = plan.attacks[unit.attack], plan.goal._replace(transfer=True)
    if isinstance(attack, Ensemble):
        attack = attack.to_transfer
    results = []
    for threat in plan.threat_models:
        if not threat.uses_source:
            continue
        runs = {name: Record(unit, plan, name, m, plan.seed) for name, m in models.items()}
        followed = threat.models(source, attack, plan.hardnesses, False)
        named = followed_by_name(followed, source, False)
        searches = {n: attack.on_batch(m, plan.x, goal) for n, m in named.items()}
        any_run = next(iter(runs.values()))
        for call in any_run.calls(searches):
            left = [run.closest.left(call.epsilon) for run in runs.values()]
            rows = np.unique(np.concatenate(left))
            if not len(rows):
                continue
            with contextlib.ExitStack() as meters:
                for run in runs.values():
                    meters.enter_context(run.metered(call, source))
                candidates = any_run.tried(call, rows, plan.x, source)
            for name, run in runs.items():
                right = run.closest.correct[rows]  # other rows stand for another model only
                if right.any():
                    with run.metered(call, models[name]):
                        run.closest.offer(rows[right], candidates[right], call.epsilon)
        any_run.check_that_it_acted()
        results += [run.result(threat.name, unit.source) for run in runs.values()]
    return results


def run_units(
    units: Sequence[Unit],
    plan: Plan,
    models: Models,
    sources: Models,
    kept: Unfinished | None = None,
    tell: Tell = lambda text, share: None,
) -> Iterator[tuple[Unit, Outcome]]:
    """Run units here, one after the other, and give each outcome as it is ready.

    Args:
        units: what to run.
        plan: the plan for all images.
        models: attacked models by name.
        sources: source models by name.
        kept: where unfinished units keep what they found.
        tell: told what is running, and the share of its unit that is done.
    """
    for unit in units:
        used = [models[name] for name in unit.models]
        used += [] if unit.source is None else [sources[unit.source]]
        counters = list({id(model.counter): model.counter for model in used}.values())
        with UnitProgress(unit, counters, tell) as progress:
            outcome = run_unit(unit, plan.batch(unit), models, sources, kept, progress.on)
        yield unit, outcome
