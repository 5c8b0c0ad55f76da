"""evaluate_robustness: from what users give over plan, run and results to a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks import Attack, AttackedModel, Goal, registry
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.backends import with_gradients
from keras_qusec.checks import class_labels, whole_number
from keras_qusec.checks import value_range as checked_range
from keras_qusec.datasets import arrays_of, spread_rows
from keras_qusec.defenses import surrogates_in_force
from keras_qusec.evaluation.gallery import examples_of
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
    images_of,
    models_of,
    radii_of,
    targets_of,
    threat_models_of,
)
from keras_qusec.evaluation.notes import notes_of, observations_of
from keras_qusec.evaluation.plan import Plan, Unit
from keras_qusec.evaluation.provenance import provenance_of
from keras_qusec.evaluation.results import Failure, Result, joined
from keras_qusec.evaluation.run import Models, Outcome, run_units
from keras_qusec.evaluation.store import Store
from keras_qusec.evaluation.threat_models import ThreatModel
from keras_qusec.integer_inputs import check_reachable
from keras_qusec.progress import Progress, shown
from keras_qusec.report import RobustnessReport

# Of the value range: the default radii.
_SHARES = (0.1, 0.2, 0.3)


@with_gradients
def evaluate_robustness(
    model: keras.Model | Mapping[str, keras.Model],
    x: Any,
    y: Any = None,
    *,
    attacks: Any = "quick",
    epsilons: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    threat_models: Sequence[str] = ("white-box", "adaptive"),
    source_model: keras.Model | Mapping[str, keras.Model] | None = None,
    targets: str | Any = None,
    surrogate_hardnesses: Sequence[float] = (3.0, 10.0),
    value_range: tuple[float, float] = (0.0, 1.0),
    outputs: str | None = None,
    data_format: str | None = None,
    class_names: Sequence[str] | None = None,
    draws: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    resume_dir: str | os.PathLike | None = None,
    progress: bool | Progress | None = None,
) -> RobustnessReport:
    """Attack classifiers and report what is left of their accuracy.

    An image counts as robust if it is classified correctly and no attack found an adversarial
    example within epsilon. Every example is checked before it counts: inside the value range,
    within epsilon, really misclassified. The report's headline is the worst case over all
    attacks and threat models.

    Threat models:

    - ``"white-box"``: the adversary follows the model's own gradient. A quantizer makes that
      nearly zero, so this alone overstates robustness.
    - ``"adaptive"``: goes on where white-box failed, through surrogate gradients of every
      quantizer (BPDA, Athalye et al. 2018) at each of several hardnesses; and searches the
      levels in reach where a quantizer stands in front (`ReachableLevels`).
    - ``"black-box"``: gradient attacks are made on `source_model` and transferred;
      attacks without gradients (pointwise, boundary, ...) query the model itself. If
      black-box is not asked for, the latter run under the first threat model that is.

    Args:
        model: built Keras classifier, images to logits or probabilities ``(n, classes)``, or to
            one output for two classes; or a dictionary of several by name. Logits are attacked.
        x: float images in `value_range`, ``(n, ...)``; or images and labels in one: a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch data loader or another iterable
            of batches ``(x, y)``, all of which are attacked.
        y: true classes, integers ``(n,)`` or ``(n, 1)``, or one-hot ``(n, classes)``; None if `x`
            has them.
        attacks: how strong the evidence shall be, in all norms of `epsilons`: ``"quick"`` (FGSM
            and PGD), ``"standard"`` (our best for its cost) or ``"strong"`` (AutoAttack and all
            of ours). Or names, pairs of a name and a dictionary of settings, objects of
            `keras_qusec.attacks` or of Foolbox, or a dictionary of such by names of your own.
            The names are those of `keras_qusec.attacks.names()`.
        epsilons: radii in rising order, in units of the pixel values: a sequence for
            L-infinity, or a dictionary ``{"linf": [...], "l2": [...], "l0": [...]}``; default
            0.1, 0.2 and 0.3 of the value range, L-infinity.
        threat_models: any of ``"white-box"``, ``"adaptive"``, ``"black-box"``.
        source_model: model, or dictionary of models by name, to make transferred examples on.
        targets: None for untargeted attacks; target classes ``(n,)``, or a rule:
            ``"next"`` (label + 1), ``"random"`` (a wrong class), ``"second"`` (the first
            model's likeliest wrong class) or ``"least-likely"``.
        surrogate_hardnesses: how steep the surrogate gradients of step functions are.
        value_range: smallest and largest pixel value. A model whose first layers say that they
            expect another range is an error.
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say what
            their outputs are, such as subclassed ones.
        data_format: ``"channels_last"`` or ``"channels_first"``, for models none of whose layers
            says where the images have their channels.
        class_names: of the classes in the order of their numbers, shown beside broken images.
            Default: those of a data set from folders, or of a model that has `class_names`.
        draws: for random models, how many draws are averaged: the mean of their probabilities
            is attacked and judged (expectation over transformation). Default 1, and 20 for
            "autoattack-rand".
        batch_size: images in a unit of work; default 512, fewer if they are large (four
            million pixel values in all).
        seed: seed of all that is random. The same seed gives the same report.
        n_jobs: processes, over joblib; None for one, or for what `joblib.parallel_config`
            says, as in ``with joblib.parallel_config("dask"): evaluate_robustness(...)``.
        resume_dir: folder for finished work. Called again with the same arguments after a
            crash, the evaluation goes on from there.
        progress: True or False to show a progress bar on the terminal (default: if there is
            one), or a function called with a text and the share done.

    Returns:
        `RobustnessReport`.

    Raises:
        ValueError: for unusable input, or if every attack failed.
        ImportError: without the extra ``keras-qusec[evaluate]``.

    Example:

    >>> from keras_qusec import evaluate_robustness
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> x, y = np.array([[0.9, 0.2], [0.4, 0.7]], "float32"), np.array([0, 1])
    >>> report = evaluate_robustness(model, x, y, epsilons=[0.05, 0.2])
    >>> report.robust_accuracy(epsilon=0.2)
    0.5
    """
    import_foolbox()
    named = models_of(model, "model")
    class_names = class_names_of(class_names, x, named)
    x, y = arrays_of(x, y)
    named_sources = models_of(source_model, "source_model") if source_model is not None else {}
    threats = threat_models_of(threat_models)
    pixels = checked_range(value_range)
    width = pixels[1] - pixels[0]
    shares = tuple(share * width for share in _SHARES)
    by_norm = epsilons_of(shares if epsilons is None else epsilons)
    unit_notes = check_epsilons(by_norm, pixels, given=epsilons is not None)
    chosen = registry.for_evaluation(attacks, by_norm)
    check_sources(threats, chosen, named_sources)
    seed = whole_number(seed, "seed", least=0)
    shape = np.shape(x)[1:]
    radii = {name: radii_of(name, a, by_norm, shape, pixels) for name, a in chosen.items()}
    both = [*named.items(), *named_sources.items()]
    x = images_of(x, pixels, both)
    check_reachable(by_norm.get("linf", (1.0,))[0], [each for _, each in both])
    form = data_format_of(both, x.shape[1:], data_format)
    if form == "channels_first":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    if batch_size is None:
        batch_size = min(512, max(1, 2**22 // x[0].size))
    batch_size = whole_number(batch_size, "batch_size")

    if draws is None:
        draws = max(getattr(attack, "draws", 1) for attack in chosen.values())
    draws = whole_number(draws, "draws")
    settings = {"outputs": outputs, "data_format": form, "draws": draws}
    models, sources = _attacked(named, named_sources, x, pixels, settings)
    own = _quantizers_own(chosen, by_norm, threats, models, x)
    chosen |= own
    radii |= {name: radii_of(name, a, by_norm, shape, pixels) for name, a in own.items()}
    logits = {name: clean_logits(m, x, batch_size, name) for name, m in models.items()}
    few = spread_rows(len(x), 8)
    source_logits = {name: clean_logits(m, x[few], 8, name) for name, m in sources.items()}
    for name, values in source_logits.items():
        check_same_classes(logits, values, name)
    for name, values in logits.items():
        check_class_names(class_names, values.shape[1], name)
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
        # Keras numbers the names of models without one; no seed may hang on that.
        unnamed=not isinstance(model, Mapping),
        joined=tuple(own),
    )
    rule = targets if isinstance(targets, str) or targets is None else "classes given"
    provenance = provenance_of(plan, models, sources, rule)
    if class_names:
        provenance["class names"] = list(class_names)
    units = [
        unit
        for unit in plan.units(_transfers(models, logits, sources, source_logits))
        if unit.source is not None or chosen[unit.attack].applies_to(models[unit.models[0]], x)
    ]
    if not units:
        raise ValueError(
            f"Expected an attack that can be made on the models. Received: {', '.join(chosen)}, "
            "for quantizers that stand in front of a model. Add another, such as 'pgd'."
        )
    if resume_dir is None:
        outcomes = _outcomes(units, plan, models, sources, None, n_jobs, progress)
    else:
        clean = [*logits.values(), *source_logits.values()]
        with Store(resume_dir, provenance["identity"], clean) as store:
            outcomes = _outcomes(units, plan, models, sources, store, n_jobs, progress)
    results, failures = _gather(units, outcomes, batch_size)
    if failures and not results:
        raise ValueError(
            f"Expected at least one attack to run. Received: {failures[0].message} from "
            f"{failures[0].attack!r}, and the others failed too. Check the attacks' settings."
        )
    return RobustnessReport(
        correct=plan.correct,
        results=results,
        epsilons=by_norm,
        norms={name: attack.norm for name, attack in chosen.items()},
        provenance=provenance,
        failures=[
            {
                "attack": failure.attack,
                "models": ", ".join(failure.models),
                "source": failure.source or "",
                "message": failure.message,
            }
            for failure in failures
        ],
        notes=[
            *unit_notes,
            *notes_of(plan, models, by_norm, results, failures),
            *observations_of(plan, models, logits, class_names),
        ],
        gallery=[
            example
            for name, m in models.items()
            for example in examples_of(name, m, results, plan, class_names)
        ],
    )


def _attacked(
    named: Mapping[str, keras.Model],
    named_sources: Mapping[str, keras.Model],
    x: np.ndarray,
    value_range: tuple[float, float],
    settings: Mapping[str, Any],
) -> tuple[dict[str, AttackedModel], dict[str, AttackedModel]]:
    """Attacked models and sources by name; a model that is both is compiled once."""
    with surrogates_in_force({}):  # the models' own gradients, also inside a user's block
        models = {
            name: attacked_model(model, name, x, value_range, settings)
            for name, model in named.items()
        }
        sources: dict[str, AttackedModel] = {}
        for name, source in named_sources.items():
            same = [m for m in [*models.values(), *sources.values()] if m.model is source]
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
        if any(attack.applies_to(model, x) for model in models.values()):
            own[name] = attack
    return own


def _rejected(model: AttackedModel, x: np.ndarray, batch_size: int) -> np.ndarray:
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


def _outcomes(
    units: Sequence[Unit],
    plan: Plan,
    models: Models,
    sources: Models,
    store: Store | None,
    n_jobs: int | None,
    progress: bool | Progress | None,
) -> dict[Unit, Outcome]:
    """The outcome of each unit: from disk, or computed now and written at once."""
    outcomes: dict[Unit, Outcome] = {}
    for unit in units:
        stored = None if store is None else store.load(unit.key)
        if stored is not None:
            outcomes[unit] = stored
    missing = [unit for unit in units if unit not in outcomes]
    with shown(progress, "attacks") as report:
        report("attacks", len(outcomes) / len(units))

        def tell(text: str, share: float) -> None:
            report(text, (len(outcomes) + share) / len(units))

        for unit, outcome in run_units(missing, plan, models, sources, n_jobs, store, tell):
            if store is not None and not isinstance(outcome, Failure):
                store.save(unit.key, outcome)
            outcomes[unit] = outcome
            report(f"{unit.maker}: {unit.attack}", len(outcomes) / len(units))
    return outcomes


def _gather(
    units: Sequence[Unit], outcomes: Mapping[Unit, Outcome], batch_size: int
) -> tuple[list[Result], list[Failure]]:
    """Batches put together, and the attacks that failed on any batch, which do not count."""
    failures: dict[tuple[str, str | None, str], Failure] = {}
    batches: dict[tuple[str, str | None, str, str], list[tuple[int, Result]]] = {}
    for unit in units:
        outcome = outcomes[unit]
        if isinstance(outcome, Failure):
            failures.update({(unit.attack, unit.source, name): outcome for name in unit.models})
            continue
        for result in outcome:
            key = (result.model, result.source, result.threat_model, result.attack)
            batches.setdefault(key, []).append((unit.batch * batch_size, result))
    results = [
        joined(parts)
        for (model, source, _, attack), parts in batches.items()
        if (attack, source, model) not in failures
    ]
    return results, list(dict.fromkeys(failures.values()))
