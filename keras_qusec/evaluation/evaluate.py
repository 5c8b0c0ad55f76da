"""evaluate_robustness: from what users give over plan, run and results to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_qusec import checks, parallel
from keras_qusec.attacks import Classifier
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.backends import with_gradients
from keras_qusec.evaluation.checked import Checked, checked_inputs
from keras_qusec.evaluation.gallery import FewExamples, examples_of
from keras_qusec.evaluation.notes import notes_of, observations_of
from keras_qusec.evaluation.other_processes import run_units_elsewhere
from keras_qusec.evaluation.plan import Unit
from keras_qusec.evaluation.proofs import SEARCH, Proofs, notes_on, proofs_of
from keras_qusec.evaluation.provenance import provenance_of
from keras_qusec.evaluation.run import Outcome, run_units
from keras_qusec.evaluation.store import Store
from keras_qusec.evaluation.time_limit import TimeLimit, finished_part
from keras_qusec.evaluation.unit_progress import Costs, forecast
from keras_qusec.progress import Progress, announced, duration, share_of, shown
from keras_qusec.report import RobustnessReport
from keras_qusec.results import Failure, Result, closest_examples, joined

# Seconds from which on a run is announced.
_LONG = 60


@with_gradients
def evaluate_robustness(
    model: keras.Model | Classifier | Mapping[str, keras.Model | Classifier],
    x: Any,
    y: Any = None,
    *,
    attacks: Any = "quick",
    epsilons: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    threat_models: Sequence[str] | None = None,
    source_model: keras.Model | Mapping[str, keras.Model] | None = None,
    targets: str | Any = None,
    surrogate_hardnesses: Sequence[float] = (3.0, 10.0),
    value_range: tuple[float, float] | None = None,
    outputs: str | None = None,
    data_format: str | None = None,
    class_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    draws: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    resume_dir: str | os.PathLike | None = None,
    keep_examples: bool = False,
    prove: str | Mapping[str, str] | None = None,
    time_limit: float | None = None,
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
            Or a `keras_qusec.attacks.Classifier`, such as a `FunctionClassifier` around a model
            in another runtime, which is asked for outputs alone.
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
        threat_models: any of ``"white-box"``, ``"adaptive"``, ``"black-box"``, or of your own.
            Default: the first two; ``"black-box"`` for a classifier that gives no gradients.
        source_model: model, or dictionary of models by name, to make transferred examples on.
        targets: None for untargeted attacks; target classes ``(n,)``, or a rule:
            ``"next"`` (label + 1), ``"random"`` (a wrong class), ``"second"`` (the first
            model's likeliest wrong class) or ``"least-likely"``.
        surrogate_hardnesses: how steep the surrogate gradients of step functions are.
        value_range: smallest and largest pixel value; default what the models' first layers say,
            such as (0, 255), else (0, 1). A model whose first layers say that they
            expect another range is an error.
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say what
            their outputs are, such as subclassed ones.
        data_format: ``"channels_last"`` or ``"channels_first"``, for models none of whose layers
            says where the images have their channels.
        class_names: of the classes in the order of their numbers, shown beside broken images.
            Default: those of a data set from folders, or of a model that has `class_names`.
        image_names: a name for each image, such as that of its file, which `report.images` and
            `report.save_images` tell.
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
        keep_examples: keep the closest adversarial example of every broken image in each norm of
            `epsilons`, for `RobustnessReport.examples`. With `resume_dir` they are on disk as
            soon as they are found.
        prove: prove images first, as `certify_robustness` does, with effort ``"bounds"``,
            ``"standard"`` or ``"exact"``; proved images are not attacked in L-infinity, and the
            report says between which shares robust accuracy lies (`RobustnessReport.bracket`).
            With ``attacks=[]`` nothing else is done. A dictionary proves of some models alone:
            ``{"name": "standard"}``.
        time_limit: seconds for the attacks, or None. Images that would take longer are left out
            of the report, which says how many; the first unit of work is always finished. Not
            with `prove`, whose search has a limit for each image.
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
    if time_limit is not None:
        time_limit = checks.number(time_limit, "time_limit", above=0, hint="In seconds.")
        if prove is not None:
            raise ValueError(
                f"Expected time_limit or prove. Received: time_limit={time_limit:g} and "
                f"prove={prove!r}, whose images would have to be left out, too. Prove fewer "
                "images, or give certify_robustness a time_limit for each of them."
            )
    inputs = checked_inputs(
        model, x, y, attacks=attacks, epsilons=epsilons, threat_models=threat_models,
        source_model=source_model, targets=targets, surrogate_hardnesses=surrogate_hardnesses,
        value_range=value_range, outputs=outputs, data_format=data_format,
        class_names=class_names, draws=draws, batch_size=batch_size, seed=seed,
        keep_examples=keep_examples, prove=prove, small_batches=time_limit is not None,
    )  # fmt: skip
    plan = inputs.plan
    if image_names is not None:
        image_names = checks.names_of(image_names, len(plan.x), "image_names")
    provenance = _provenance(inputs, image_names)
    units = inputs.units()
    with contextlib.ExitStack() as kept:
        store = None
        if resume_dir is not None:
            stored = Store(resume_dir, provenance["identity"], inputs.clean_outputs)
            store = kept.enter_context(stored)
        first, second = _halves(progress) if inputs.prove else (None, progress)
        proofs = _proofs(inputs, store, first)
        plan = dataclasses.replace(plan, proved=proofs.proved())
        inputs = dataclasses.replace(inputs, plan=plan)
        outcomes = _outcomes(units, inputs, store, n_jobs, second, time_limit)
    if len(outcomes) < len(units):
        inputs, units, outcomes, rows = finished_part(inputs, units, outcomes)
        names = None if image_names is None else [image_names[row] for row in rows]
        provenance = _provenance(inputs, names)
    results, failures = _gather(units, outcomes, plan.batch_size)
    results += proofs.results
    if failures and not results:
        raise ValueError(
            f"Expected at least one attack to run. Received: {failures[0].message} from "
            f"{failures[0].attack!r}, and the others failed too. Check the attacks' settings."
        )
    return _report(inputs, provenance, results, failures, proofs)


def _provenance(inputs: Checked, image_names: Sequence[str] | None) -> dict[str, Any]:
    """What the report is made of, with the names and labels of its images."""
    found = provenance_of(
        inputs.plan, inputs.models, inputs.sources, inputs.target_rule, inputs.prove
    )
    if inputs.class_names:
        found["class names"] = list(inputs.class_names)
    found["labels"] = inputs.plan.goal.labels.tolist()
    if image_names is not None:
        found["image names"] = list(image_names)
    return found


def _halves(progress: bool | Progress | None) -> tuple[Any, Any]:
    """The progress of the proofs and of the attacks; a function sees one share that rises."""
    if not callable(progress):
        return progress, progress
    return share_of(progress, 0.0, 0.5), share_of(progress, 0.5, 1.0)


def _proofs(inputs: Checked, store: Store | None, progress: bool | Progress | None) -> Proofs:
    """What is proved of each model: from disk, or now and written at once."""
    if not inputs.prove:
        return Proofs()
    found: list[Proofs] = []
    radii = inputs.epsilons["linf"]
    with shown(progress, "proofs") as tell:
        for name, effort in inputs.prove.items():
            known = None if store is None else store.load_proofs(name)
            if known is None:
                known = proofs_of(effort, name, inputs.models[name], radii, inputs.plan, tell)
                if store is not None:
                    store.save_proofs(name, known)
            found.append(known)
    return Proofs(
        [certificate for one in found for certificate in one.certificates],
        [result for one in found for result in one.results],
    )


def _report(
    inputs: Checked,
    provenance: Mapping[str, Any],
    results: Sequence[Result],
    failures: Sequence[Failure],
    proofs: Proofs,
) -> RobustnessReport:
    """The report of what was found."""
    plan, models = inputs.plan, inputs.models
    attacked = {name: [r for r in results if r.model == name] for name in models}
    return RobustnessReport(
        correct=plan.correct,
        results=[result._replace(kept={}) for result in results],
        epsilons=inputs.epsilons,
        norms={
            **{name: attack.norm for name, attack in plan.attacks.items()},
            **({SEARCH: "linf"} if proofs.results else {}),
        },
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
            *inputs.notes,
            *(notes_on(proofs, inputs.epsilons.get("linf", ())) if plan.attacks else []),
            *notes_of(plan, models, inputs.epsilons, results, failures),
            *observations_of(plan, models, inputs.logits, inputs.class_names),
        ],
        gallery=[
            example
            for name, m in models.items()
            for example in examples_of(name, m, results, plan, inputs.class_names)
        ],
        certificates=proofs.certificates,
        examples={
            name: {norm: closest_examples(own, norm) for norm in plan.kept_norms}
            for name, own in attacked.items()
            if own and plan.kept_norms
        },
    )


def _outcomes(
    units: Sequence[Unit],
    inputs: Checked,
    store: Store | None,
    n_jobs: int | None,
    progress: bool | Progress | None,
    time_limit: float | None,
) -> dict[Unit, Outcome]:
    """The outcome of each unit: from disk, or computed now and written at once."""
    outcomes: dict[Unit, Outcome] = {}
    shown_images, limit = FewExamples(), TimeLimit(time_limit, units)
    for unit in units:
        stored = None if store is None else store.load(unit.key)
        if stored is not None:
            outcomes[unit] = stored
            limit.known(unit)
            shown_images.thin(stored, unit.batch)
    missing = [unit for unit in units if unit not in outcomes]
    if not units:
        return outcomes
    costs = Costs(units, inputs.plan, outcomes)
    _tell_forecast(missing, inputs, progress, time_limit)
    with shown(progress, "attacks") as report:
        report("attacks", costs.share())

        def tell(text: str, share: float) -> None:
            report(text, costs.share(share))

        began = time.monotonic()
        needed = (missing, inputs.plan, inputs.models, inputs.sources)
        if parallel.is_parallel(n_jobs):
            found = run_units_elsewhere(*needed, n_jobs)
        else:
            found = run_units(*needed, store, tell)
        for unit, outcome in found:
            if store is not None and not isinstance(outcome, Failure):
                store.save(unit.key, outcome)
            if not isinstance(outcome, Failure):
                shown_images.thin(outcome, unit.batch)
            outcomes[unit] = outcome
            now = time.monotonic()
            costs.measured(unit, now - began)
            began = now
            report(f"{unit.maker}: {unit.attack}", costs.share())
            if limit.reached(unit):
                break
    return outcomes


def _tell_forecast(
    units: Sequence[Unit],
    inputs: Checked,
    progress: bool | Progress | None,
    limit: float | None,
) -> None:
    """Say how long attacks will take, if that is long; only where somebody reads it."""
    if progress is False:
        return
    seconds = forecast(units, inputs.plan, inputs.models)
    if seconds is not None and seconds >= _LONG:
        announced(
            progress,
            f"Attacks on {len(inputs.plan.x):,} images: about {duration(seconds)} in one process "
            "if few are broken, less if many are"
            + ("." if limit is None else f"; the limit is {duration(limit)}."),
        )


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
