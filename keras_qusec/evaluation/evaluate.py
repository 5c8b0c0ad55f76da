"""Robust accuracy of classifiers: every attack, each threat model, checked and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import numbers
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks.gradient_attacks import check_inside
from keras_qusec.evaluation import gallery
from keras_qusec.evaluation.attacked import AttackedModel, Goal
from keras_qusec.evaluation.bridge import import_foolbox
from keras_qusec.evaluation.methods import Method, methods_of
from keras_qusec.evaluation.norms import NORMS
from keras_qusec.evaluation.report import Result, RobustnessReport
from keras_qusec.evaluation.store import Store
from keras_qusec.evaluation.threat_models import THREAT_MODELS, Batch, Record, Rules
from keras_qusec.evaluation.units import Outcome, Task, Unit, run_all
from keras_qusec.quantization import check_hardness, check_images_dtype, check_value_range
from keras_qusec.version import __version__

TARGET_RULES = ("next", "random", "second", "least-likely")
# Raised when the same inputs give other results, so that old resume folders are refused.
RESULTS_VERSION = 1

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
    named = _models(model, "model")
    sources = _models(source_model, "source_model") if source_model is not None else {}
    rules = _rules(threat_models, surrogate_hardnesses, value_range)
    methods = methods_of(attacks)
    grid = _grid(epsilons)
    radii = {name: _radii(name, method, grid, x, rules) for name, method in methods.items()}
    _check_threat_models(rules, methods, sources)
    x = _images(x, rules.value_range, {**named, **sources})
    if batch_size is None:
        batch_size = min(512, max(1, 2**22 // x[0].size))
    whole = _whole(batch_size=batch_size, seed=seed)

    attacked = _attacked(named, sources, rules.value_range)
    logits = {name: _logits(attacked[id(m)], x, whole["batch_size"], name)
              for name, m in named.items()}  # fmt: skip
    for name, source in sources.items():
        _check_classes(_logits(attacked[id(source)], x[:1], 1, name), logits, name)
    first = next(iter(logits.values()))
    labels = _labels(y, x, first.shape[1])
    goal = Goal(labels, _targets(targets, labels, first, whole["seed"]))
    correct = {name: found.argmax(axis=1) == labels for name, found in logits.items()}

    digests = {identity: _digest_of(a.model) for identity, a in attacked.items()}
    rule = targets if isinstance(targets, str) else "classes given"
    provenance = _provenance(named, sources, digests, x, goal, methods, radii, rules, whole)
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
        notes=_notes(named, attacked, rules, methods, failures),
        gallery=[
            example
            for name, m in named.items()
            for example in gallery.examples_of(name, attacked[id(m)], results, x, labels)
        ],
    )


def _models(model: Any, name: str) -> dict[str, keras.Model]:
    models = dict(model) if isinstance(model, Mapping) else {getattr(model, "name", ""): model}
    if not models:
        raise ValueError(f"Expected {name} to be a model or several. Received: none.")
    for key, value in models.items():
        if not isinstance(value, keras.Model):
            raise ValueError(
                f"Expected {name} to be a Keras model, or a dictionary of models by name. "
                f"Received: {value!r} for {key!r}. Load a file with "
                "keras.saving.load_model(path)."
            )
        if not value.built:
            raise ValueError(
                f"Expected {name} to be built. Received: {key!r}, which has no weights yet. "
                "Train it, or start it with keras.Input(shape)."
            )
    return {str(key): value for key, value in models.items()}


def _rules(threat_models: Any, hardnesses: Any, value_range: tuple[float, float]) -> Rules:
    listed = [threat_models] if isinstance(threat_models, str) else list(threat_models)
    unknown = [name for name in listed if name not in THREAT_MODELS]
    if unknown or not listed or len(set(listed)) < len(listed):
        raise ValueError(
            f"Expected threat_models to be some of {', '.join(THREAT_MODELS)}, each once. "
            f"Received: {threat_models!r}."
        )
    ordered = tuple(name for name in THREAT_MODELS if name in listed)
    softer = tuple(check_hardness(value, "surrogate_hardnesses") for value in hardnesses)
    if "adaptive" in ordered and not softer:
        raise ValueError(
            "Expected surrogate_hardnesses for the adaptive threat model. Received: none. "
            "The default is (3.0, 10.0)."
        )
    return Rules(ordered, softer, check_value_range(value_range))


def _grid(epsilons: Any) -> dict[str, tuple[float, ...]]:
    """Radii by norm."""
    grid = dict(epsilons) if isinstance(epsilons, Mapping) else {"linf": epsilons}
    if not grid:
        raise ValueError('Expected epsilons of at least one norm. Example: {"linf": [0.1, 0.3]}.')
    checked = {}
    for norm, values in grid.items():
        if norm not in NORMS:
            raise ValueError(f"Expected epsilons by norm, one of {NORMS}. Received: {norm!r}.")
        radii = [values] if isinstance(values, numbers.Real) else list(values)
        real = all(isinstance(value, numbers.Real) for value in radii)
        rising = [0.0, *map(float, radii)] if real else []
        if len(rising) < 2 or not all(a < b < math.inf for a, b in itertools.pairwise(rising)):
            raise ValueError(
                "Expected epsilons above 0 in rising order, each once. "
                f"Received: {values!r}. Accuracy on clean images is reported without asking."
            )
        checked[norm] = tuple(rising[1:])
    return checked


def _radii(
    name: str, method: Method, grid: Mapping[str, tuple[float, ...]], x: Any, rules: Rules
) -> tuple[float | None, ...]:
    """The radii at which an attack is run; None for as close as can be."""
    if method.minimizes:
        return (None,)
    if method.norm in grid:
        return grid[method.norm]
    if method.ladder:
        low, high = rules.value_range
        largest = (high - low) * math.sqrt(math.prod(np.shape(x)[1:]))
        return tuple(share * largest for share in method.ladder)
    raise ValueError(
        f"Expected epsilons for the norm {method.norm!r} of the attack {name!r}. Received: "
        f"epsilons for {', '.join(grid)}. Example: "
        f"epsilons={{{', '.join(f'{k!r}: {list(v)}' for k, v in grid.items())}, "
        f"{method.norm!r}: [0.5, 1.0, 2.0]}}"
    )


def _check_threat_models(
    rules: Rules, methods: Mapping[str, Method], sources: Mapping[str, keras.Model]
) -> None:
    with_gradients = [name for name, method in methods.items() if method.uses_gradients]
    if "black-box" in rules.threat_models and with_gradients and not sources:
        raise ValueError(
            f"Expected source_model for the black-box threat model: {with_gradients[0]!r} needs "
            "a model to make examples on. Received: none. Give an undefended model of the same "
            "task, or leave out that attack."
        )
    if sources and "black-box" not in rules.threat_models:
        raise ValueError(
            'Expected "black-box" among threat_models, since a source_model is given. Received: '
            f"{rules.threat_models}. Add it, or leave source_model out."
        )


def _images(
    x: Any, value_range: tuple[float, float], models: Mapping[str, keras.Model]
) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"Expected images (n, ...), at least one. Received: shape {x.shape}. A single image "
            "is image[None]."
        )
    check_images_dtype(x)
    x = np.ascontiguousarray(x, dtype="float32")
    if not np.isfinite(x).all():
        raise ValueError(
            f"Expected finite images. Received: {int((~np.isfinite(x)).sum())} values that are "
            "NaN or infinite. Clean the data first."
        )
    check_inside(x, value_range)
    for name, model in models.items():
        wanted = getattr(model, "input_shape", None)
        if not isinstance(wanted, tuple) or len(wanted) == 0 or isinstance(wanted[0], tuple):
            continue
        same = len(wanted) == x.ndim and all(
            w is None or w == h for w, h in zip(wanted[1:], x.shape[1:], strict=True)
        )
        if not same:
            raise ValueError(
                f"Expected images of shape {wanted} for the model {name!r}. Received: {x.shape}. "
                "Greyscale images need a channel axis: x[..., None]."
            )
    return x


def _labels(y: Any, x: np.ndarray, classes: int) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.shape[1] == classes and ((y == 0) | (y == 1)).all():
        if (y.sum(axis=1) != 1).any():
            raise ValueError("Expected one-hot labels with a single one in each row.")
        y = y.argmax(axis=1)
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"Expected {len(x)} labels as integers (n,) or one-hot (n, {classes}). Received: "
            f"shape {y.shape}, dtype {y.dtype}."
        )
    _check_range(y, classes, "labels")
    return y.astype("int64")


def _check_range(y: np.ndarray, classes: int, name: str) -> None:
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"Expected {name} from 0 to {classes - 1}, since the model has {classes} outputs. "
            f"Received: {y.min()} to {y.max()}."
        )


def _targets(targets: Any, labels: np.ndarray, logits: np.ndarray, seed: int) -> np.ndarray | None:
    if targets is None:
        return None
    classes = logits.shape[1]
    rows = np.arange(len(labels))
    if isinstance(targets, str):
        wrong = logits.astype("float64")
        if targets == "next":
            return (labels + 1) % classes
        if targets == "random":
            shift = np.random.default_rng(seed).integers(1, classes, len(labels))
            return (labels + shift) % classes
        if targets == "second":
            wrong[rows, labels] = -np.inf
            return wrong.argmax(axis=1)
        if targets == "least-likely":
            wrong[rows, labels] = np.inf
            return wrong.argmin(axis=1)
        raise ValueError(
            f"Expected targets to be one of {', '.join(TARGET_RULES)}, or an array of classes. "
            f"Received: {targets!r}."
        )
    targets = np.asarray(targets)
    if targets.shape != labels.shape or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"Expected {len(labels)} target classes as integers. Received: shape "
            f"{targets.shape}, dtype {targets.dtype}."
        )
    _check_range(targets, classes, "targets")
    if (targets == labels).any():
        raise ValueError(
            "Expected targets that differ from the labels. Received: "
            f"{int((targets == labels).sum())} that are the label itself."
        )
    return targets.astype("int64")


def _whole(**values: Any) -> dict[str, int]:
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"Expected {name} to be a whole number from {least} up. Received: {value!r}."
            )
    return {name: int(value) for name, value in values.items()}


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
    # Rows of logits that happen to be shares do exist; eight in a row do not.
    shares = (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4)
    if shares and len(logits) >= 8:
        raise ValueError(
            f"Expected logits, or a softmax as the last layer, which is left out. Received: "
            f"{name!r}, whose outputs are probabilities made in another way. Their gradients "
            "vanish; make a model that ends before them, and evaluate that."
        )
    return logits


def _check_classes(logits: np.ndarray, others: Mapping[str, np.ndarray], name: str) -> None:
    for other, found in others.items():
        if found.shape[1] != logits.shape[1]:
            raise ValueError(
                f"Expected models of the same classes. Received: {name!r} with "
                f"{logits.shape[1]} and {other!r} with {found.shape[1]}."
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
            tasks += [
                Task(unit, batch, method, radii[attack], rules, whole["seed"]) for unit in units
            ]
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
        start = unit.batch * len(tasks[0].batch.x)
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
    for failed in failures:
        origin = f" from {failed['source']}" if failed["source"] else ""
        notes.append(
            f"{failed['attack']}{origin} on {failed['models']} failed and does not count: "
            f"{failed['message']}"
        )
    return notes


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()[:16]


def _digest_of(model: keras.Model) -> str:
    """A hash of a model's class, configuration and weights."""
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model), sort_keys=True, default=str)
        config = json.dumps(json.loads(config).get("config"), sort_keys=True)
    except Exception:  # noqa: BLE001  a model without a configuration still has weights
        config = ""
    weights = [np.ascontiguousarray(weight) for weight in model.get_weights()]
    return _digest(
        type(model).__qualname__.encode(),
        config.encode(),
        *(f"{w.dtype}{w.shape}".encode() + w.tobytes() for w in weights),
    )


def _provenance(
    models: Mapping[str, keras.Model],
    sources: Mapping[str, keras.Model],
    digests: Mapping[int, str],
    x: np.ndarray,
    goal: Goal,
    methods: Mapping[str, Method],
    radii: Mapping[str, tuple[float | None, ...]],
    rules: Rules,
    whole: Mapping[str, int],
) -> dict[str, Any]:
    backend = keras.backend.backend()
    packages = ("keras", backend, "foolbox", "numpy")
    aimed = goal.targets
    return {
        "identity": {
            "results version": RESULTS_VERSION,
            "models": {name: digests[id(model)] for name, model in models.items()},
            "sources": {name: digests[id(model)] for name, model in sources.items()},
            "data": _digest(str(x.shape).encode(), x.tobytes(), goal.labels.tobytes()),
            "images": len(x),
            "targets": "untargeted" if aimed is None else _digest(aimed.tobytes()),
            "attacks": {name: repr(method) for name, method in methods.items()},
            "radii": {name: list(values) for name, values in radii.items()},
            "threat models": list(rules.threat_models),
            "surrogate hardnesses": list(rules.hardnesses),
            "value range": list(rules.value_range),
            "batch size": whole["batch_size"],
            "seed": whole["seed"],
            "backend": backend,
            "versions": {
                "keras-qusec": __version__,
                **{package: metadata.version(package) for package in packages},
            },
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
