"""What a reader of a report must know before the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel
from keras_qusec.evaluation.plan import Plan
from keras_qusec.evaluation.results import Failure, Result


def notes_of(
    plan: Plan,
    models: Mapping[str, AttackedModel],
    epsilons: Iterable[str],
    results: Sequence[Result],
    failures: Sequence[Failure],
) -> list[str]:
    """Notes on attacks that were not made, and on those that failed.

    Args:
        plan: the plan.
        models: attacked models by name.
        epsilons: the norms for which epsilons were given.
        results: what was found.
        failures: attacks that could not be run.
    """
    notes = []
    defended = [name for name, model in models.items() if model.defenses]
    if defended and not any(threat.follows_surrogates for threat in plan.threat_models):
        notes.append(
            f"No adaptive attack was made. The defence of {', '.join(defended)} hides "
            "gradients, so these figures overstate its robustness."
        )
    if not any(attack.uses_gradients for attack in plan.attacks.values()):
        notes.append("No attack used gradients. Stronger attacks are likely to find more.")
    attacked = {attack.norm for attack in plan.attacks.values()}
    for norm in epsilons:
        if norm not in attacked:
            notes.append(
                f"No attack was made in {norms.symbol(norm)}: its figures count examples of "
                "attacks in other norms that happen to lie within epsilon, and overstate "
                "robustness."
            )
    with_results = {result.model for result in results}
    notes += [f"{name} was not attacked." for name in models if name not in with_results]
    for failure in failures:
        origin = f" from {failure.source}" if failure.source else ""
        notes.append(
            f"{failure.attack}{origin} on {', '.join(failure.models)} failed and does not count: "
            f"{failure.message}"
        )
    return notes
