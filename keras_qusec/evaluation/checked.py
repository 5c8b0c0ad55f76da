"""What users give to an evaluation, checked and put together: the plan and the models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks import Attack, Classifier, Goal, registry
from keras_qusec.attacks.presets import Asked
from keras_qusec.checks import class_labels, whole_number
from keras_qusec.datasets import images_and_labels, spread_rows
from keras_qusec.defenses import surrogates_in_force
from keras_qusec.evaluation.inputs import (
    attacked_model,
    check_class_names,
    check_epsilons,
    check_same_classes,
    check_sources,
    class_names_of,
    clean_logits,
    data_format_of,
    epsilons_of,
    hardnesses_of,
    has_gradients,
    keras_models,
    models_of,
    radii_of,
    targets_of,
    threat_models_of,
)
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.proofs import efforts_of
from keras_qusec.evaluation.run import Models
from keras_qusec.evaluation.threat_models import ThreatModel
from keras_qusec.expected_inputs import images_of, range_of
from keras_qusec.integer_inputs import check_reachable
from keras_qusec.stored_images import channels_last

# The default radii, as shares of the value range.
_SHARES = (0.1, 0.2, 0.3)


@dataclasses.dataclass(frozen=True)
class Checked:
    """Checked inputs of an evaluation.

    Attributes:
        plan: what will be done.
        models: attacked models by name.
        sources: source models by name.
        epsilons: radii by norm.
        logits: of each attacked model on the clean images.
        source_logits: of each source on some clean images.
        class_names: of the classes in their order, or none.
        target_rule: how targets were chosen, or None for untargeted attacks.
        notes: on the inputs, for the report.
    """

    plan: Plan
    models: Models
    sources: Models
    epsilons: Mapping[str, tuple[float, ...]]
    logits: Mapping[str, np.ndarray]
    source_logits: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    target_rule: str | None
    notes: Sequence[str]
    prove: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def clean_outputs(self) -> list[np.ndarray]:
        """Outputs of all models on clean images, by which an earlier run is known."""
        return [*self.logits.values(), *self.source_logits.values()]

    def units(self) -> list[Unit]:
        """The units of work.

        Raises:
            ValueError: if no attack can be made.
        """
        plan, models = self.plan, self.models
        transfers = _transfers(models, self.logits, self.sources, self.source_logits)
        units = [
            unit
            for unit in plan.units(transfers)
            if unit.source is not None
            or plan.can_be_made(plan.attacks[unit.attack], models[unit.models[0]])
        ]
        if not units and plan.attacks:
            raise ValueError(
                "Expected an attack that can be made on the models. Received: "
                f"{', '.join(plan.attacks)}, for quantizers that stand in front of a model or "
                "models that give gradients. Add another, such as 'pgd' or 'square'."
            )
        return units


def checked_inputs(
    model: Any,
    x: Any,
    y: Any,
    *,
    attacks: Any,
    epsilons: Any,
    threat_models: Any,
    source_model: Any,
    targets: Any,
    surrogate_hardnesses: Any,
    value_range: Any,
    outputs: str | None,
    data_format: str | None,
    class_names: Sequence[str] | None,
    draws: int | None,
    batch_size: int | None,
    seed: int,
    keep_examples: bool,
    prove: str | Mapping[str, str] | None,
    small_batches: bool = False,
) -> Checked:
    """What `evaluate_robustness` was given, which see, checked.

    Raises:
        ValueError: for unusable input.
    """
    named = models_of(model, "model")
    names = class_names_of(class_names, x, named)
    x, y = images_and_labels(x, y)
    named_sources = models_of(source_model, "source_model") if source_model is not None else {}
    both = [*named.items(), *named_sources.items()]
    threats = threat_models_of(threat_models, named)
    pixels = range_of(value_range, dict(both), x)
    width = pixels[1] - pixels[0]
    shares = tuple(share * width for share in _SHARES)
    by_norm = epsilons_of(shares if epsilons is None else epsilons)
    notes = check_epsilons(by_norm, pixels, np.shape(x)[1:], given=epsilons is not None)
    asked = None
    if outputs is not None and not keras_models(both):
        raise ValueError(
            f"Expected outputs to be of Keras models. Received: outputs={outputs!r} for "
            f"{', '.join(named)}. Say it where the classifier is made."
        )
    followed = any(has_gradients(one) for one in named.values())
    if not followed:
        asked = Asked(all(one.gives_scores for one in named.values()), bool(named_sources))
    chosen = {}
    if prove is None or attacks is None or len(attacks):
        chosen = registry.for_evaluation(attacks, by_norm, asked)
    check_sources(threats, chosen, named_sources, followed=followed)
    seed = whole_number(seed, "seed", least=0)
    shape = np.shape(x)[1:]
    radii = {name: radii_of(name, a, by_norm, shape, pixels) for name, a in chosen.items()}
    x = images_of(x, pixels, both)
    check_reachable(by_norm.get("linf", (1.0,))[0], [m for _, m in keras_models(both)])
    form = data_format_of(both, x.shape[1:], data_format)
    if form == "channels_first":
        x = channels_last(x)
    if batch_size is None:
        batch_size = min(64 if small_batches else 512, max(1, 2**22 // x[0].size))
    batch_size = whole_number(batch_size, "batch_size")

    if draws is None:
        draws = max((getattr(attack, "draws", 1) for attack in chosen.values()), default=1)
    draws = whole_number(draws, "draws")
    settings = {"outputs": outputs, "data_format": form, "draws": draws}
    models, sources = _attacked(named, named_sources, x, pixels, settings)
    own = _quantizers_own(chosen, by_norm, threats, models, x) if chosen else {}
    chosen |= own
    radii |= {name: radii_of(name, a, by_norm, shape, pixels) for name, a in own.items()}
    logits = {name: clean_logits(m, x, batch_size, name) for name, m in models.items()}
    few = spread_rows(len(x), 8)
    source_logits = {name: clean_logits(m, x[few], 8, name) for name, m in sources.items()}
    for name, values in source_logits.items():
        check_same_classes(logits, values, name)
    for name, values in logits.items():
        check_class_names(names, values.shape[1], name)
    first = next(iter(logits.values()))
    labels = class_labels(y, len(x), classes=first.shape[1])
    plan = Plan(
        attacks=chosen,
        radii=radii,
        threat_models=threats,
        hardnesses=hardnesses_of(surrogate_hardnesses),
        value_range=pixels,
        x=x,
        goal=Goal(labels, targets_of(targets, labels, first, seed)),
        correct={
            name: (logits[name].argmax(axis=1) == labels) & ~_rejected(m, x, batch_size)
            for name, m in models.items()
        },
        batch_size=batch_size,
        seed=seed,
        # The same model under another name, such as that of its file, has the same figures.
        alone=len(named) == 1,
        joined=tuple(own),
        without_gradients=tuple(name for name, m in models.items() if not m.has_gradients),
        kept_norms=tuple(by_norm) if keep_examples else (),
    )
    efforts = efforts_of(prove, models, by_norm, plan)
    rule = targets if isinstance(targets, str) or targets is None else "classes given"
    return Checked(
        plan, models, sources, by_norm, logits, source_logits, names, rule, notes, efforts
    )


def _attacked(
    named: Mapping[str, keras.Model | Classifier],
    named_sources: Mapping[str, keras.Model | Classifier],
    x: np.ndarray,
    value_range: tuple[float, float],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Classifier], dict[str, Classifier]]:
    """Attacked models and sources by name; a model that is both is compiled once."""
    with surrogates_in_force({}):  # the models' own gradients, also inside a user's block
        models = {
            name: attacked_model(model, name, x, value_range, settings)
            for name, model in named.items()
        }
        sources: dict[str, Classifier] = {}
        for name, source in named_sources.items():
            same = [
                m for m in [*models.values(), *sources.values()] if getattr(m, "model", m) is source
            ]
            made = same or [attacked_model(source, name, x, value_range, settings)]
            sources[name] = made[0]
    return models, sources


def _quantizers_own(
    chosen: Mapping[str, Attack],
    norms: Iterable[str],
    threats: Sequence[ThreatModel],
    models: Models,
    x: np.ndarray,
) -> dict[str, Attack]:
    """The attacks on reachable levels that join by themselves, in norms that have epsilons.

    They do so under threat models that know the defences, for any model with a quantizer in
    front, unless they were asked for or an ensemble has them.
    """
    if not any(threat.follows_surrogates and not threat.uses_source for threat in threats):
        return {}
    listed = [*chosen.values()]
    listed += [part for attack in listed for part in getattr(attack, "parts", {}).values()]
    there = {attack.norm for attack in listed if attack.attacks_defense}
    own = {}
    for norm in norms:
        name = registry.OWN_ATTACKS.get(norm)
        if name is None or norm in there or name in chosen:
            continue
        attack = registry.get(name)
        if any(m.has_gradients and attack.applies_to(m, x) for m in models.values()):
            own[name] = attack
    return own


def _rejected(model: Classifier, x: np.ndarray, batch_size: int) -> np.ndarray:
    parts = [model.rejected(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    return np.concatenate(parts)


def _transfers(
    models: Models,
    logits: Mapping[str, np.ndarray],
    sources: Models,
    source_logits: Mapping[str, np.ndarray],
) -> dict[str, tuple[str, ...]]:
    """For each source the models to try its examples on; the model itself is no black box."""

    def is_same(name: str, source: str) -> bool:
        # Two classes may have the same configuration and weights, and yet do something else.
        own = logits[name][spread_rows(len(logits[name]), len(source_logits[source]))]
        alike = models[name].digest == sources[source].digest
        return alike and np.allclose(own, source_logits[source], rtol=1e-3, atol=1e-5)

    transfers = {
        source: tuple(name for name in models if not is_same(name, source)) for source in sources
    }
    if sources and not any(transfers.values()):
        raise ValueError(
            "Expected a source_model other than the attacked one: examples made on a model "
            "itself are white-box. Received: the same weights. Train another model."
        )
    return transfers
