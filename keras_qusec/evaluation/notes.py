"""What a reader of a report must know before the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.attacks.foolbox import FoolboxAttack
from keras_qusec.datasets import spread_rows
from keras_qusec.evaluation.plan import Plan
from keras_qusec.results import Failure, Result


def notes_of(
    plan: Plan,
    models: Mapping[str, Classifier],
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
    asked = ", ".join(plan.without_gradients)
    if asked:
        notes.append(
            f"{asked} gives no gradients: it was attacked by queries, and by examples of other "
            "models if there are any. An attack that knows its gradients is likely to find more."
        )
    elif plan.attacks and not any(attack.uses_gradients for attack in plan.attacks.values()):
        notes.append("No attack used gradients. Stronger attacks are likely to find more.")
    attacked = {attack.norm for attack in plan.attacks.values()}
    for norm in epsilons if attacked else ():
        if norm not in attacked:
            notes.append(
                f"No attack was made in {norms.symbol(norm)}: its figures count examples of "
                "attacks in other norms that happen to lie within epsilon, and overstate "
                "robustness."
            )
    for result in results:
        if result.unusable:
            notes.append(
                f"{result.attack} on {result.model} ({result.threat_model}) returned images with "
                f"NaN or infinity {result.unusable} times. These count as failures of the attack "
                "and are no evidence of robustness."
            )
        for part in result.parts:
            if part.failure:
                notes.append(
                    f"{part.attack}, part of {result.attack}, failed on {result.model} and found "
                    f"nothing more: {part.failure}"
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


# What Foolbox divides a shorter gradient by (version 3.3.4).
_LEAST_OF_FOOLBOX = 1e-12

# Clean images whose gradients are looked at.
_LOOKED_AT = 256


def observations_of(
    plan: Plan,
    models: Mapping[str, Classifier],
    logits: Mapping[str, np.ndarray],
    class_names: Sequence[str] = (),
) -> list[str]:
    """Notes on what clean images show of each model, before any attack.

    Args:
        plan: the plan.
        models: attacked models by name.
        logits: on the clean images, by model.
        class_names: of the classes in the order of their numbers, if they have any.
    """
    follow = any(attack.uses_gradients for attack in plan.attacks.values())
    classes = max(values.shape[1] for values in logits.values())
    notes = _numbered_from_one(plan.goal.labels, classes)
    for name, model in models.items():
        notes += _near_chance(name, plan.correct[name], logits[name].shape[1], class_names)
        if model.draws > 1:
            notes.append(
                f"{name} is random: the mean of the probabilities of {model.draws} draws was "
                "attacked and judged, which is not what a single call gives."
            )
        elif len(plan.x) > 1:
            notes += _depends_on_batch(name, logits[name], model.logits(plan.x[:1]))
        if follow and isinstance(model, AttackedModel):
            notes += _without_gradient(name, model, plan)
    return notes


def _numbered_from_one(labels: np.ndarray, classes: int) -> list[str]:
    """A note on labels that have every class but the first."""
    if set(labels.tolist()) != set(range(1, classes)) or classes < 3:
        return []
    return [
        f"The labels go from 1 to {classes - 1}, and no image is of class 0 of {classes}. If the "
        "classes are numbered from 1, all figures are of wrong labels: give y - 1."
    ]


def _near_chance(
    name: str, correct: np.ndarray, classes: int, class_names: Sequence[str]
) -> list[str]:
    chance, count = 1 / classes, len(correct)
    limit = chance + 2 * np.sqrt(chance * (1 - chance) / count)
    if count < 20 or correct.mean() > limit:
        return []
    order = f" and the order of the classes ({', '.join(class_names[:12])})" if class_names else ""
    return [
        f"{name} classifies {100 * correct.mean():.1f} % of the clean images correctly, which "
        f"{count} images cannot tell from chance ({100 * chance:.1f} %). Check the images' "
        f"value range and the labels{order}; its robust accuracy says nothing."
    ]


def _depends_on_batch(name: str, together: np.ndarray, alone: np.ndarray) -> list[str]:
    scale = np.abs(together[:1]).max()
    if np.allclose(together[:1], alone, rtol=1e-2, atol=1e-2 * scale):
        return []
    return [
        f"{name} gives an image other outputs in a batch than alone, so its figures depend on the "
        "batch size. Batch statistics must not be computed in inference."
    ]


def _without_gradient(name: str, model: AttackedModel, plan: Plan) -> list[str]:
    """Notes on clean images where no gradient that an attack follows says anything."""
    right = np.flatnonzero(plan.correct[name])
    rows = right[spread_rows(len(right), _LOOKED_AT)]
    if not len(rows):
        return []
    own = _ascents(model, plan, rows)
    notes = _too_small_for_foolbox(name, own, plan)
    zero = (own == 0).all(axis=1)
    broken = ~np.isfinite(own).all(axis=1)
    if zero.any() and any(threat.follows_surrogates for threat in plan.threat_models):
        for other in model.with_surrogates(plan.hardnesses):
            zero[zero] = (_ascents(other, plan, rows[zero]) == 0).all(axis=1)
            if not zero.any():
                break
    if zero.any():
        notes.append(
            f"{name} has an input gradient of exactly zero on {zero.sum()} of {len(rows)} clean "
            "images. Attacks that follow it find nothing there, which is no evidence of robustness."
        )
    if broken.any():
        notes.append(
            f"{name} has NaN or infinity in its input gradient on {broken.sum()} of {len(rows)} "
            "clean images. Attacks that follow it fail there, which is no evidence of robustness."
        )
    return notes


def _too_small_for_foolbox(name: str, own: np.ndarray, plan: Plan) -> list[str]:
    """A note on gradients along which Foolbox's attacks in L2 do not move."""
    theirs = [
        key
        for key, attack in plan.attacks.items()
        if isinstance(attack, FoolboxAttack) and attack.uses_gradients and attack.norm == "l2"
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt(np.square(own.astype("float64")).sum(axis=1))
    small = (length > 0) & (length < _LEAST_OF_FOOLBOX)
    if not theirs or not small.any():
        return []
    return [
        f"{name} has an input gradient shorter than {_LEAST_OF_FOOLBOX:g} on {small.sum()} of "
        f"{len(own)} clean images, along which Foolbox's attacks in L2 ({', '.join(theirs)}) "
        "hardly move. Attacks of this package, such as pgd-l2 and fmn-l2, follow it."
    ]


def _ascents(model: AttackedModel, plan: Plan, rows: np.ndarray) -> np.ndarray:
    """What attacks climb at some clean images, as rows ``(n, values)``."""
    parts = [rows[i : i + plan.batch_size] for i in range(0, len(rows), plan.batch_size)]
    found = [model.ascent(plan.x[part], plan.goal.take(part)) for part in parts]
    return np.concatenate(found).reshape(len(rows), -1) if found else np.zeros((0, 1))
