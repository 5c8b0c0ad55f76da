"""The commands of the command line: call, print, write."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


def demo(options: argparse.Namespace) -> int:
    """The demonstration."""
    from keras_qusec import datasets
    from keras_qusec import demo as demonstration
    from keras_qusec.progress import shown

    data = datasets.load(options.data)
    with shown(None, "starting") as progress:
        result = demonstration.run_demo(
            data=data,
            epochs=options.epochs,
            images=options.images,
            quick=options.quick,
            seed=options.seed,
            progress=progress,
        )
    print(f"{demonstration.summary(result)}\n")
    figure = Path(options.figure)
    curves = str(figure.with_stem(figure.stem + "-training")) if result.curves else None
    return _write(result, [
        (options.output, lambda result, path: result.report.save(path)),
        (options.html, demonstration.save_page),
        (options.figure, demonstration.save_figure),
        (curves, demonstration.save_curves),
    ])  # fmt: skip


def evaluate(options: argparse.Namespace) -> int:
    """Attack saved classifiers and report what is left of their accuracy."""
    from keras_qusec import evaluate_robustness, files

    given = _inputs(options, options.compare)
    low, high = given.value_range
    # Without L-infinity radii, attacks in that norm have the default ones.
    linf = _radii(options.epsilons, given) or [share * (high - low) for share in (0.1, 0.2, 0.3)]
    others = {norm: _radii(getattr(options, f"{norm}_epsilons"), given) for norm in _OTHER_NORMS}
    epsilons = {"linf": linf, **{norm: radii for norm, radii in others.items() if radii}}
    given_epsilons = options.epsilons or len(epsilons) > 1
    without = {n for n, m in given.models.items() if not getattr(m, "has_gradients", True)}
    asked = len(without) == len(given.models)
    if without and not asked and not given.sources:
        # What follows gradients in the Keras models is tried on the others.
        sources = {name: model for name, model in given.models.items() if name not in without}
        given = given._replace(sources=sources)
    threat_models = options.threat_models or (
        [*([] if asked else ["white-box", "adaptive"]),
         *(["black-box"] if given.sources or asked else [])]
    )  # fmt: skip
    report = evaluate_robustness(
        given.models,
        given.x,
        given.y,
        attacks=options.attacks[0] if len(options.attacks) == 1 else options.attacks,
        epsilons=epsilons if given_epsilons else None,
        value_range=given.value_range,
        # A deployed model has been told already.
        outputs=None if asked else options.outputs,
        class_names=given.class_names,
        image_names=given.image_names,
        draws=options.draws,
        threat_models=threat_models,
        source_model=given.sources or None,
        targets=options.targets,
        batch_size=options.batch_size,
        seed=options.seed,
        n_jobs=options.jobs,
        resume_dir=options.resume,
        keep_examples=options.examples is not None,
        prove=options.prove,
        time_limit=options.time_limit,
    )
    print(report.to_text(verbose=options.verbose))
    # The report that can be read again first.
    writers: list[tuple[str | None, Callable[[Any, str], Any]]] = [
        (options.output, lambda report, path: report.save(path)),
        (options.examples, lambda report, path: report.save_examples(path)),
        (options.images_csv, lambda report, path: report.save_images(path)),
        (options.markdown, lambda report, path: files.write_text(report.to_markdown(), path)),
        (options.html, lambda report, path: report.to_html(path)),
        (options.plot, lambda report, path: report.plot(path)),
    ]
    if options.gallery and not report.gallery:
        # This is no failure: a script must not stop at a good model.
        print(f"No image was broken, so there is nothing to draw in {options.gallery}.")
    else:
        writers.append((options.gallery, lambda report, path: report.plot_gallery(path)))
    return _write(report, writers)


def report(options: argparse.Namespace) -> int:
    """Read reports again, join them, and write them in another form."""
    from keras_qusec import RobustnessReport, files

    reports = [RobustnessReport.load(path) for path in options.reports]
    named = [name for one in reports for name in one.models]
    for place, path in enumerate(options.reports):
        twice = [name for name in reports[place].models if named.count(name) > 1]
        # Models of the same name are told apart by their files.
        stem = Path(path).stem
        names = {name: stem if len(twice) == 1 else f"{stem} {name}" for name in twice}
        reports[place] = reports[place].renamed(names)
    joined = RobustnessReport.joined(reports)
    print(joined.to_text(verbose=options.verbose))
    return _write(joined, [
        (options.output, lambda report, path: report.save(path)),
        (options.markdown, lambda report, path: files.write_text(report.to_markdown(), path)),
        (options.html, lambda report, path: report.to_html(path)),
        (options.plot, lambda report, path: report.plot(path)),
        (options.images_csv, lambda report, path: report.save_images(path)),
    ])  # fmt: skip


_OTHER_NORMS = ("l2", "l1", "l0")


def _radii(typed: Sequence[Any] | None, given: _Inputs) -> list[float] | None:
    """Radii in units of the images, which are scaled to what the models expect; None for none."""
    if typed is None:
        return None
    radii = [radius.in_units(*given.value_range) for radius in typed]
    if given.value_range[1] - given.value_range[0] != 1 and any(r.below for r in typed):
        text = ", ".join(f"{radius:g}" for radius in radii)
        print(f"Radii in units of the images: {text}.")
    return radii


def certify(options: argparse.Namespace) -> int:
    """Prove what no attack can break, and report it with what the search broke."""
    from keras_qusec import evaluate_robustness

    options.source = []
    if options.export and importlib.util.find_spec("onnx") is None:
        # Said before the proofs, which may take long.
        raise ImportError("--export needs onnx. Install it with: pip install onnx")
    given = _inputs(options)
    report = evaluate_robustness(
        given.models,
        given.x,
        given.y,
        attacks=[],
        epsilons=_radii(options.epsilons, given),
        value_range=given.value_range,
        outputs=options.outputs,
        class_names=given.class_names,
        image_names=given.image_names,
        seed=options.seed,
        resume_dir=options.resume,
        keep_examples=options.examples is not None,
        prove=options.effort,
    )
    print(report.to_text(verbose=options.verbose))
    return _write(report, [
        (options.output, lambda report, path: report.save(path)),
        (options.examples, lambda report, path: report.save_examples(path)),
        (options.images_csv, lambda report, path: report.save_images(path)),
        (options.html, lambda report, path: report.to_html(path)),
        (options.export, lambda report, path: _export(given, report, path, options)),
    ])  # fmt: skip


def _export(given: _Inputs, report: Any, folder: str, options: argparse.Namespace) -> Path:
    """A folder for each epsilon, with what other verifiers need."""
    from keras_qusec.certification.exchange import export_problems
    from keras_qusec.norms import radius_text

    (model,) = given.models.values()
    for epsilon in report.epsilons["linf"]:
        name = f"epsilon-{radius_text(epsilon).replace('/', '-of-')}"
        export_problems(
            model, given.x, given.y, Path(folder) / name, epsilon=epsilon,
            value_range=given.value_range, outputs=options.outputs, version=options.vnnlib,
        )  # fmt: skip
    return Path(folder)


class _Inputs(NamedTuple):
    """Models and sources by name, and test images scaled to what the models expect."""

    models: dict[str, Any]
    sources: dict[str, Any]
    x: Any
    y: Any
    value_range: tuple[float, float]
    class_names: tuple[str, ...]
    image_names: list[str] | None


def _inputs(options: argparse.Namespace, more: Sequence[str] = ()) -> _Inputs:
    """What is to be attacked; `more` models beside the one of the command."""
    import keras
    import numpy as np

    from keras_qusec import datasets
    from keras_qusec.evaluation.inputs import check_class_names, class_names_of

    models = _load_models([options.model, *more], options)
    sources = _load_models(options.source, options)
    named = class_names_of(options.classes, None, models)
    data = datasets.load(options.data, train=False, class_names=named or None)
    for name, model in models.items():
        tensors = getattr(model, "outputs", None) if isinstance(model, keras.Model) else None
        shapes = [tensor.shape for tensor in tensors or []]
        if len(shapes) == 1 and shapes[0][-1] is not None:
            # A single output tells two classes apart.
            check_class_names(data.class_names, max(2, shapes[0][-1]), name)
    total = len(data.x_test)
    rows = datasets.stratified_sample(data.y_test, options.images or total, options.seed)
    if len(rows) < total:
        print(f"{len(rows)} of {total} test images, each class at its share, seed {options.seed}.")
    low, high = _value_range(options.value_range, models | sources)
    x = _fitting(data.x_test[rows], models, resize=options.resize)
    x = x * np.float32(high - low) + np.float32(low)
    files_of = [data.image_names[row] for row in rows] if data.image_names else None
    return _Inputs(models, sources, x, data.y_test[rows], (low, high), data.class_names, files_of)


def audit(options: argparse.Namespace) -> int:
    """Tell whether a saved classifier's robustness is real."""
    from keras_qusec import audit_robustness

    given = _inputs(options)
    low, high = given.value_range
    radii = _radii(options.epsilon, given)
    if radii:
        (epsilon,) = radii
    else:
        colour = given.x.shape[-1] == 3
        epsilon = (8 / 255 if colour else 0.3) * (high - low)
        print(f"Epsilon is {epsilon:.4g}, usual for such images; --epsilon says another.")
    audit = audit_robustness(
        given.models,
        given.x,
        given.y,
        epsilon=epsilon,
        level=options.level,
        threat_models=("white-box", "adaptive") if options.adaptive else ("white-box",),
        source_model=given.sources or None,
        value_range=given.value_range,
        outputs=options.outputs,
        draws=options.draws,
        seed=options.seed,
        n_jobs=options.jobs,
        resume_dir=options.resume,
    )
    print(audit)
    writers: list[tuple[str | None, Callable[[Any, str], Any]]] = [
        (options.output, lambda audit, path: audit.save(path)),
        (options.html, lambda audit, path: audit.to_html(path)),
        (options.plot, lambda audit, path: audit.plot(path)),
    ]
    return _write(audit, writers)


def deployed(options: argparse.Namespace) -> int:
    """Tell whether a deployed model is what was measured."""
    from keras_qusec.deployment import DeployedModel, check_deployment

    options.source = []
    given = _inputs(options)
    ((_, model),) = given.models.items()
    there = DeployedModel(
        options.deployed, runtime=options.runtime, precision=options.precision,
        value_range=given.value_range, data_format=options.data_format,
    )  # fmt: skip
    check = check_deployment(
        model,
        there,
        given.x,
        given.y,
        epsilons=_radii(options.epsilons, given),
        attacks=options.attacks[0] if len(options.attacks) == 1 else options.attacks,
        queries=options.queries,
        prove=options.prove,
        value_range=given.value_range,
        outputs=options.outputs,
        seed=options.seed,
        resume_dir=options.resume,
    )
    print(check)
    status = _write(check, [
        (options.output, lambda check, path: check.save(path)),
        (options.html, lambda check, path: check.to_html(path)),
    ])  # fmt: skip
    return status or int(not check.is_what_was_measured)


def _write(result: Any, writers: Sequence[tuple[str | None, Callable[[Any, str], Any]]]) -> int:
    """Write the files asked for; one that cannot be written does not lose the others.

    Returns:
        The exit status: 1 if one could not be written, else 0.
    """
    status = 0
    for path, write in writers:
        if not path:
            continue
        try:
            write(result, path)
        except (OSError, ValueError, ImportError) as error:
            print(f"keras-qusec: {path} not written: {error}", file=sys.stderr)
            status = 1
            continue
        # Who reads the output, such as head, may have enough; the files are wanted all the same.
        with contextlib.suppress(BrokenPipeError):
            print(f"Written: {path}")
    return status


def compare(options: argparse.Namespace) -> int:
    """Train defences and put them in one table."""
    from keras_qusec import comparison, files

    result = comparison.compare(
        options.data,
        options.defenses,
        epsilons=[radius.in_units(0.0, 1.0) for radius in options.epsilons or ()]
        or (0.1, 0.2, 0.3),
        attacks=options.attacks,
        images=options.images,
        epochs=options.epochs,
        threat_models=options.threat_models,
        prove=options.prove,
        seed=options.seed,
        folder=options.resume,
        n_jobs=options.jobs,
    )
    print(result)
    return _write(result, [
        (options.output, lambda result, path: result.report().save(path)),
        (options.markdown, lambda result, path: files.write_text(result.to_markdown(), path)),
        (options.html, lambda result, path: result.to_html(path)),
    ])  # fmt: skip


def reproduce(options: argparse.Namespace) -> int:
    """The paper's figures, measured again."""
    from keras_qusec import reproduction

    names = list(reproduction.FIGURES) if options.figure == "all" else [options.figure]
    # Another data set, or quick results, never meet those of a full run.
    kind = Path(options.data).stem + ("-quick" if options.quick else "")
    folder, status = Path(options.folder) / kind, 0
    for name in names:
        result = reproduction.reproduce(
            name, options.data, quick=options.quick, seeds=options.seeds, folder=folder / "work"
        )
        print(f"{result}\n\n{textwrap.fill(f'The paper: {result.claim}', 80)}\n")
        status |= _write(result, [
            (str(folder / f"{name}.json"), lambda result, path: result.save(path)),
            (str(folder / f"{name}.png"), lambda result, _: reproduction.pictures(result, folder)),
        ])  # fmt: skip
        print()
    return status


def attacks(_: argparse.Namespace) -> int:
    """The attacks by name: norm, what each is, and its cost an image."""
    from keras_qusec.attacks import registry

    print(f"{'name':<20} {'norm':<5} what it is (cost for each image)\n{'-' * 80}")
    for name in registry.names():
        attack = registry.get(name)
        text = f"{registry.summary(name)} ({attack.cost})"
        print(textwrap.fill(
            text, 80, initial_indent=f"{name:<20} {attack.norm:<5} ", subsequent_indent=" " * 27
        ))  # fmt: skip
    return 0


def _value_range(given: Sequence[float] | None, models: Mapping[str, Any]) -> tuple[float, float]:
    """The value range given, or the one that all models say they expect, or (0, 1)."""
    from keras_qusec.expected_inputs import range_of

    low, high = range_of(given, models)
    if given is None and (low, high) != (0.0, 1.0):
        print(f"Images are scaled to {low:g} ... {high:g}, which the models' first layers expect.")
    return low, high


def _deployed_model(path: str, options: argparse.Namespace) -> Any:
    from keras_qusec.deployment import DeployedModel

    low, high = options.value_range or (0.0, 1.0)
    model = DeployedModel(path, value_range=(low, high), outputs=options.outputs)
    print(
        f"{path}: {model.runtime_name}. It gives no gradients, so it is asked for outputs alone; "
        'an adversary with the weights finds more. "keras-qusec deployed" compares it with its '
        "Keras model."
    )
    return model


def _own_classes(paths: Sequence[str]) -> dict[str, Any]:
    """The classes and functions that Python files define, by name."""
    found: dict[str, Any] = {}
    for path in paths:
        name = Path(path).stem
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"Expected a file that ends in .py to import. Received: {path}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found |= {
            key: value
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == name
        }
    return found


def _fitting(x: Any, models: Mapping[str, Any], *, resize: bool) -> Any:
    """Images of the size that the models take, in [0, 1].

    Raises:
        ValueError: for images of another size, if they are not to be resized.
    """
    import keras
    import numpy as np

    for name, model in models.items():
        wanted = getattr(model, "input_shape", None)
        if not isinstance(model, keras.Model) or not isinstance(wanted, tuple) or len(wanted) != 4:
            continue
        # With channels first the sizes are elsewhere; Keras then says what does not fit.
        size, own = wanted[1:3], x.shape[1:3]
        if None in size or wanted[3] != x.shape[3] or size == own:
            continue
        if not resize:
            raise ValueError(
                f"Expected images of {size[0]} x {size[1]} for the model {name!r}. Received: "
                f"{own[0]} x {own[1]}. Give --resize to have them resized."
            )
        resized = keras.ops.image.resize(x, size, antialias=True, data_format="channels_last")
        x = np.clip(keras.ops.convert_to_numpy(resized), 0.0, 1.0).astype("float32")
        print(f"Images of {own[0]} x {own[1]} are resized to {size[0]} x {size[1]}.")
    return x


def _load_models(paths: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Models by the names of their files, or by their paths where those are the same."""
    import keras

    # The defences must be known to Keras before a model with them is loaded.
    import keras_qusec.defenses  # noqa: F401
    from keras_qusec.tasks import check_classifier, saved_loss_name

    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if list(paths).count(path) > 1)
        raise ValueError(f"Expected each model once. Received: {twice} twice.")
    stems = [Path(path).stem for path in paths]
    own = _own_classes(options.imports)
    models = {}
    for path, stem in zip(paths, stems, strict=True):
        if Path(path).suffix.lower() in (".onnx", ".tflite", ".xml") or Path(path).is_dir():
            models[stem if stems.count(stem) == 1 else path] = _deployed_model(path, options)
            continue
        try:
            # Uncompiled: an optimizer saved on another backend, or an unknown loss, is no obstacle.
            model = keras.saving.load_model(path, custom_objects=own, compile=False)
        except Exception as error:
            unknown = re.search(r"Could not locate (class|function) '(\w+)'", str(error))
            if unknown:
                raise ValueError(
                    f"Expected a model of layers that are known. Received: {path}, with the "
                    f"{unknown[1]} {unknown[2]!r}. Give the Python file that defines it: --import "
                    "FILE.py"
                ) from error
            raise ValueError(
                f"Expected a model saved by model.save({path!r}). Received: a file that Keras "
                f"cannot load: {str(error)[:400]}"
            ) from error
        name = stem if stems.count(stem) == 1 else path
        check_classifier(model, name, saved_loss_name(path))
        models[name] = model
    return models


def start_backend(command: str) -> None:
    """Load the backend and Foolbox, which print when they are first used.

    TensorFlow too where it is installed: Keras loads it with the first data set on any backend.

    Args:
        command: that will run; the list of attacks needs no data set.
    """
    import keras

    from keras_qusec.attacks.foolbox import import_foolbox
    from keras_qusec.backends import backend

    import_foolbox()
    keras.ops.zeros(1)
    backend().leave_busy_cores()
    if command != "attacks":
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorflow")
