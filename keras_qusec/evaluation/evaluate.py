"""Robust accuracy of classifiers: every attack, each threat model, checked and resumable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_qusec.evaluation import gallery
from keras_qusec.evaluation.attacked import AttackedModel, Goal
from keras_qusec.evaluation.bridge import import_foolbox
from keras_qusec.evaluation.inputs import (
    check_same_classes,
    check_sources,
    grid_of,
    images_of,
    labels_of,
    models_of,
    radii_of,
    rules_of,
    targets_of,
    whole_numbers,
)
from keras_qusec.evaluation.methods import Method, methods_of
from keras_qusec.evaluation.norms import SYMBOLS
from keras_qusec.evaluation.provenance import digest_of, provenance_of
from keras_qusec.evaluation.report import Result, RobustnessReport
from keras_qusec.evaluation.store import Store
from keras_qusec.evaluation.threat_models import Batch, Job, Record, Rules
from keras_qusec.evaluation.units import Outcome, Task, Unit, run_all

Progress = Callable[[str, float], None]


def evaluate_robustness(
    model: keras.Model | Mapping[str, keras.Model],
    x: Any,
    y: Any,
    *,
    attacks: Any = ("fgsm", "pgd"),
    epsilons: Sequence[float] | Mapping[str, Sequence[float]] = (0.1, 0.2, 0.3),
    threat_models: Sequence[str] = ("white-box", "adaptive"),
    source_model: keras.Model | Mapping[str, keras.Model] | None = None,
    targets: str | Any = None,
    surrogate_hardnesses: Sequence[float] = (3.0, 10.0),
    value_range: tuple[float, float] = (0.0, 1.0),
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
      quantizer (BPDA, Athalye et al. 2018) at each of several hardnesses.
    - ``"black-box"``: gradient attacks are made on `source_model` and transferred;
      attacks without gradients (pointwise, boundary, ...) query the model itself. If
      black-box is not asked for, the latter run under the first threat model that is.

    Args:
        model: built Keras classifier, images to logits or softmax probabilities
            ``(n, classes)``, or a dictionary of several by name. Logits are attacked.
        x: float images in `value_range`, ``(n, ...)``.
        y: true classes, integers ``(n,)`` or ``(n, 1)``, or one-hot ``(n, classes)``.
        attacks: names, pairs of a name and a dictionary of settings, Foolbox attack objects,
            or a dictionary of such by names of your own. The names are in
            `keras_qusec.evaluation.methods.NAMES`.
        epsilons: radii in rising order, in units of the pixel values: a sequence for
            L-infinity, or a dictionary ``{"linf": [...], "l2": [...], "l0": [...]}``.
        threat_models: any of ``"white-box"``, ``"adaptive"``, ``"black-box"``.
        source_model: model, or dictionary of models by name, to make transferred examples on.
        targets: None for untargeted attacks; target classes ``(n,)``, or a rule:
            ``"next"`` (label + 1), ``"random"`` (a wrong class), ``"second"`` (the first
            model's likeliest wrong class) or ``"least-likely"``.
        surrogate_hardnesses: hardnesses of the adaptive adversary's gradients.
        value_range: smallest and largest pixel value.
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
    sources = models_of(source_model, "source_model") if source_model is not None else {}
    rules = rules_of(threat_models, surrogate_hardnesses, value_range)
    methods = methods_of(attacks)
    grid = grid_of(epsilons)
    radii = {name: radii_of(name, method, grid, x, rules) for name, method in methods.items()}
    check_sources(rules, methods, sources)
    x = images_of(x, rules.value_range, {**named, **sources})
    if batch_size is None:
        batch_size = min(512, max(1, 2**22 // x[0].size))
    whole = whole_numbers(batch_size=batch_size, seed=seed)

    attacked = _attacked(named, sources, rules.value_range)
    logits = {name: _logits(attacked[id(m)], x, whole["batch_size"], name)
              for name, m in named.items()}  # fmt: skip
    for name, source in sources.items():
        check_same_classes(_logits(attacked[id(source)], x[:1], 1, name), logits, name)
    for name, m in {**named, **sources}.items():
        _check_outputs(attacked[id(m)], x, name)
    first = next(iter(logits.values()))
    labels = labels_of(y, x, first.shape[1])
    goal = Goal(labels, targets_of(targets, labels, first, whole["seed"]))
    correct = {name: found.argmax(axis=1) == labels for name, found in logits.items()}

    digests = {identity: digest_of(a.model) for identity, a in attacked.items()}
    rule = targets if isinstance(targets, str) else "classes given"
    provenance = provenance_of(named, sources, digests, x, goal, methods, radii, rules, whole)
    provenance["goal"] = "untargeted" if targets is None else f"targeted, {rule}"
    store = None if resume_dir is None else Store(resume_dir, provenance["identity"])
    # A source that is the attacked model itself is no black box.
    pairs = {
        source: tuple(n for n, m in named.items() if digests[id(m)] != digests[id(maker)])
        for source, maker in sources.items()
    }
    if sources and not any(pairs.values()):
        raise ValueError(
            "Expected a source_model other than the attacked one: examples made on a model "
            "itself are white-box. Received: the same weights. Train another model."
        )
    tasks = _tasks(named, pairs, methods, radii, rules, x, goal, correct, whole)
    outcomes = _outcomes(
        tasks,
        store,
        {name: attacked[id(m)] for name, m in named.items()},
        {name: attacked[id(m)] for name, m in sources.items()},
        digests,
        n_jobs,
        progress,
    )
    results, failures = _gather(tasks, outcomes, radii)
    if failures and not results:
        raise ValueError(
            f"Expected at least one attack to run. Received: {failures[0]['message']} from "
            f"{failures[0]['attack']!r}, and the others failed too. Check the attacks' settings."
        )
    return RobustnessReport(
        correct=correct,
        results=results,
        epsilons=grid,
        norms={name: method.norm for name, method in methods.items()},
        provenance=provenance,
        failures=failures,
        notes=_notes(named, attacked, rules, methods, grid, results, failures),
        gallery=[
            example
            for name, m in named.items()
            for example in gallery.examples_of(name, attacked[id(m)], results, x, labels)
        ],
    )


def _attacked(
    models: Mapping[str, keras.Model],
    sources: Mapping[str, keras.Model],
    value_range: tuple[float, float],
) -> dict[int, AttackedModel]:
    """Each model once, by its id, though it be attacked and a source."""
    every = {id(model): model for model in [*models.values(), *sources.values()]}
    return {key: AttackedModel(model, value_range) for key, model in every.items()}


def _logits(attacked: AttackedModel, x: np.ndarray, batch_size: int, name: str) -> np.ndarray:
    parts = [attacked.logits(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    if parts[0].ndim != 2 or parts[0].shape[1] < 2:
        raise ValueError(
            f"Expected a classifier with outputs (n, classes), two classes or more. Received: "
            f"{name!r} with outputs {parts[0].shape}. A single sigmoid output can be made two "
            "logits: [0, logit]."
        )
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise ValueError(
            f"Expected finite outputs. Received: {name!r}, which gives NaN or infinity on clean "
            "images. Check its training."
        )
    return logits


def _check_outputs(attacked: AttackedModel, x: np.ndarray, name: str) -> None:
    """Raise a ValueError if what is attacked is not the model's logits."""
    noise = np.random.default_rng(0).uniform(*attacked.value_range, (8, *x.shape[1:]))
    probe = np.concatenate([x[:8], noise.astype("float32")])
    logits = attacked.logits(probe).astype("float64")
    outputs = keras.ops.convert_to_numpy(attacked.outputs(probe)).astype("float64")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    sigmoid = 0.5 + 0.5 * np.tanh(logits / 2)
    same = any(np.allclose(outputs, e, atol=1e-2) for e in (logits, shares, sigmoid))
    # Rows of logits that happen to be shares do exist; as many as these do not.
    probabilities = (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4)
    if probabilities or not same:
        raise ValueError(
            f"Expected logits, or a softmax as the last layer, which is left out. Received: "
            f"{name!r}, whose outputs are probabilities made in another way. Their gradients "
            "vanish; make a model that ends before them, and evaluate that."
        )


def _tasks(
    models: Mapping[str, keras.Model],
    pairs: Mapping[str, tuple[str, ...]],
    methods: Mapping[str, Method],
    radii: Mapping[str, tuple[float | None, ...]],
    rules: Rules,
    x: np.ndarray,
    goal: Goal,
    correct: Mapping[str, np.ndarray],
    whole: Mapping[str, int],
) -> list[Task]:
    size = whole["batch_size"]
    direct = any(name in rules.threat_models for name in ("white-box", "adaptive"))
    tasks = []
    for start in range(0, len(x), size):
        rows = np.arange(start, min(start + size, len(x)))
        batch = Batch(x[rows], goal.take(rows), {n: right[rows] for n, right in correct.items()})
        for attack, method in methods.items():
            units = []
            if direct or not method.uses_gradients:
                units += [Unit(attack, (name,), None, start // size) for name in models]
            if method.uses_gradients:
                units += [
                    Unit(attack, others, source, start // size)
                    for source, others in pairs.items()
                    if others
                ]
            job = Job(attack, method, batch, radii[attack], rules, whole["seed"])
            tasks += [Task(unit, job) for unit in units]
    return tasks


def _outcomes(
    tasks: list[Task],
    store: Store | None,
    models: Mapping[str, AttackedModel],
    sources: Mapping[str, AttackedModel],
    digests: Mapping[int, str],
    n_jobs: int | None,
    progress: bool | Progress | None,
) -> dict[Unit, Outcome]:
    """Every unit's outcome: from disk, or computed now and written at once."""
    outcomes: dict[Unit, Outcome] = {}
    missing = []
    for task in tasks:
        records = None if store is None else store.load(task.unit.key)
        if records is None:
            missing.append(task)
        else:
            outcomes[task.unit] = Outcome(task.unit, records, None)
    total = len(tasks)
    with _reporting(progress) as report:
        report("attacks", len(outcomes) / total)
        for outcome in run_all(missing, models, sources, digests, n_jobs):
            if store is not None and outcome.failure is None:
                store.save(outcome.unit.key, outcome.records)
            outcomes[outcome.unit] = outcome
            maker = outcome.unit.source or outcome.unit.models[0]
            report(f"{outcome.unit.attack}, {maker}", len(outcomes) / total)
    return outcomes


@contextlib.contextmanager
def _reporting(progress: bool | Progress | None) -> Iterator[Progress]:
    """Where progress goes: a function, a bar with the time left, or nowhere."""
    if callable(progress):
        yield progress
        return
    from rich.console import Console

    console = Console(stderr=True)
    if progress is False or (progress is None and not console.is_terminal):
        yield lambda text, share: None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<28.28}"),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("attacks", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)


def _gather(
    tasks: list[Task],
    outcomes: Mapping[Unit, Outcome],
    radii: Mapping[str, tuple[float | None, ...]],
) -> tuple[list[Result], list[dict[str, str]]]:
    """Batches put together, and the attacks that failed on any batch, which do not count."""
    failures: dict[tuple[str, str | None, tuple[str, ...]], dict[str, str]] = {}
    parts: dict[tuple[str, str | None, str, str], list[tuple[int, Record]]] = {}
    for task in tasks:
        unit, records, failure = outcomes[task.unit]
        about = (unit.attack, unit.source, unit.models)
        if failure is not None:
            failures[about] = {
                "attack": unit.attack,
                "models": ", ".join(unit.models),
                "source": unit.source or "",
                "message": failure,
            }
        start = unit.batch * len(tasks[0].job.batch.x)
        for record in records:
            key = (record.model, record.source, record.threat_model, record.attack)
            parts.setdefault(key, []).append((start, record))
    results = []
    for (model, source, threat_model, attack), batches in parts.items():
        if any(
            attack == failed[0] and source == failed[1] and model in failed[2]
            for failed in failures
        ):
            continue
        records = [record for _, record in batches]
        examples = {
            start + int(row): image
            for start, record in batches
            for row, image in zip(record.example_rows, record.examples, strict=True)
        }
        results.append(
            Result(
                model=model,
                source=source,
                threat_model=threat_model,
                attack=attack,
                radii=radii[attack],
                distances=np.concatenate([record.distances for record in records]),
                gradients=np.sum([record.gradients for record in records], axis=0),
                queries=np.sum([record.queries for record in records], axis=0),
                seconds=np.sum([record.seconds for record in records], axis=0),
                examples=examples,
            )
        )
    return results, list(failures.values())


def _notes(
    models: Mapping[str, keras.Model],
    attacked: Mapping[int, AttackedModel],
    rules: Rules,
    methods: Mapping[str, Method],
    grid: Mapping[str, Sequence[float]],
    results: Sequence[Result],
    failures: list[dict[str, str]],
) -> list[str]:
    notes = []
    quantized = [name for name, model in models.items() if attacked[id(model)].quantized]
    if quantized and "adaptive" not in rules.threat_models:
        notes.append(
            f"No adaptive attack was made. The quantizer of {', '.join(quantized)} hides "
            "gradients, so these figures overstate its robustness."
        )
    if not any(method.uses_gradients for method in methods.values()):
        notes.append("No attack used gradients. Stronger attacks are likely to find more.")
    asked = {method.norm for method in methods.values()}
    for norm in grid:
        if norm not in asked:
            notes.append(
                f"No attack was made in {SYMBOLS[norm]}: its figures count examples of attacks "
                "in other norms that happen to lie within epsilon, and overstate robustness."
            )
    for name in models:
        if name not in {result.model for result in results}:
            notes.append(f"{name} was not attacked.")
    for failed in failures:
        origin = f" from {failed['source']}" if failed["source"] else ""
        notes.append(
            f"{failed['attack']}{origin} on {failed['models']} failed and does not count: "
            f"{failed['message']}"
        )
    return notes
