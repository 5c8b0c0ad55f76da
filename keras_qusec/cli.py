"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``keras-qusec``; return the exit status (0, or 2 for bad input)."""
    options = _parser().parse_args(arguments)
    # TensorFlow greets with several lines about the processor unless told not to.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        options.run(options)
    except (ValueError, ImportError) as error:
        print(f"keras-qusec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keras-qusec: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-qusec",
        description="Quantization-based defence against adversarial examples, for Keras.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands)
    _add_evaluate(commands)
    _add_audit(commands)
    _add_compare(commands)
    _add_reproduce(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="train, attack and compare the paper's CNN with and without a quantizer",
        description="Train the paper's CNN undefended and behind quantizers, attack each "
        "with FGSM and PGD, print the report, and write figures and an HTML page.",
    )
    _add_data(demo)
    demo.add_argument("--epochs", type=int, default=4, help="training epochs (default: 4)")
    demo.add_argument("--images", type=int, default=200, help="test images attacked (default: 200)")
    demo.add_argument("--figure", default="demo.png", help="figure to write (default: demo.png)")
    demo.add_argument("--html", default="demo.html", help="page to write (default: demo.html)")
    demo.set_defaults(run=_demo)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="attack saved classifiers and report their robust accuracy",
        description="Attack saved Keras classifiers and report what is left of their accuracy, "
        "the worst case first.",
    )
    evaluate.add_argument("model", help="a .keras file: a classifier, logits or softmax")
    evaluate.add_argument(
        "--compare", nargs="+", default=[], metavar="MODEL", help="more classifiers, same report"
    )
    _add_data(evaluate)
    evaluate.add_argument(
        "--images", type=int, default=200,
        help="test images attacked, the first; 0 for all (default: 200)",
    )  # fmt: skip
    evaluate.add_argument(
        "--attacks", nargs="+", default=["quick"], metavar="ATTACK",
        help="quick, standard or strong evidence, or names of attacks (default: quick); a wrong "
        "one lists them all",
    )  # fmt: skip
    evaluate.add_argument(
        "--epsilons", nargs="+", type=_radius, metavar="EPS",
        help="L-infinity radii in rising order, in units of the pixel values, such as 0.1 or 8/255 "
        "(default: 0.1, 0.2 and 0.3 of the value range)",
    )  # fmt: skip
    evaluate.add_argument(
        "--l2-epsilons", nargs="+", type=_radius, metavar="EPS", help="L2 radii, for L2 attacks"
    )
    _add_models(evaluate)
    evaluate.add_argument(
        "--threat-models", nargs="+", metavar="THREAT",
        help="white-box, adaptive, black-box (default: the first two; all with --source)",
    )  # fmt: skip
    evaluate.add_argument("--targets", help="next, random, second or least-likely: targeted")
    evaluate.add_argument("--batch-size", type=int, help="images in a unit (default: up to 512)")
    _add_run(evaluate)
    evaluate.add_argument("--output", metavar="FILE", help="write the report as JSON")
    evaluate.add_argument("--markdown", metavar="FILE", help="write its tables in Markdown")
    evaluate.add_argument("--html", metavar="FILE", help="write one page with all of it")
    evaluate.add_argument("--plot", metavar="FILE", help="draw accuracy against epsilon")
    evaluate.add_argument("--gallery", metavar="FILE", help="draw adversarial examples")
    evaluate.set_defaults(run=_evaluate)


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit",
        help="tell whether a saved classifier's robustness is real",
        description="Check whether gradient attacks on a saved classifier can be trusted, and by "
        "how much they overstate its robustness.",
    )
    audit.add_argument("model", help="a .keras file: a classifier, logits or softmax")
    _add_data(audit)
    audit.add_argument(
        "--epsilon", type=_radius, metavar="EPS",
        help="L-infinity radius in units of the pixel values, such as 0.3 or 8/255 (default: 0.3 "
        "of the value range for grey images, 8/255 of it for colour images)",
    )  # fmt: skip
    audit.add_argument(
        "--images", type=int, default=100,
        help="test images attacked, the first; 0 for all (default: 100)",
    )  # fmt: skip
    level = audit.add_mutually_exclusive_group()
    level.add_argument(
        "--quick", dest="level", action="store_const", const="quick", default="quick",
        help="minutes (the default)",
    )  # fmt: skip
    level.add_argument(
        "--full", dest="level", action="store_const", const="full",
        help="more of everything, a substitute to transfer from, the standard evaluation",
    )  # fmt: skip
    audit.add_argument(
        "--adaptive", action="store_true",
        help="judge the adaptive evaluation, which knows the model's defences, and not white-box "
        "attacks alone",
    )  # fmt: skip
    _add_models(audit)
    _add_run(audit)
    audit.add_argument("--html", metavar="FILE", help="write one page with all of it")
    audit.add_argument("--plot", metavar="FILE", help="draw loss surface, gradients and budget")
    audit.add_argument("--json", metavar="FILE", help="write verdict and checks as JSON")
    audit.set_defaults(run=_audit)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="train defences on the same network and put them in one table",
        description="Train defences on the paper's network with the same data and seed, attack "
        "each white-box, adaptively and black-box, and print one table.",
    )
    _add_data(compare)
    compare.add_argument(
        "--defenses", nargs="+", metavar="NAME",
        help="names (default: all); a wrong one lists them",
    )  # fmt: skip
    compare.add_argument(
        "--epsilons", nargs="+", type=_radius, default=[0.1, 0.2, 0.3], metavar="EPS",
        help="L-infinity radii in rising order (default: 0.1 0.2 0.3); the largest in training",
    )  # fmt: skip
    compare.add_argument(
        "--images", type=int, default=100, help="test images attacked (default: 100)"
    )
    compare.add_argument("--epochs", type=int, default=4, help="training epochs (default: 4)")
    compare.add_argument(
        "--attacks", nargs="+", default=["fgsm", "standard"], metavar="ATTACK",
        help="names of attacks (default: fgsm standard); a wrong one lists them all",
    )  # fmt: skip
    compare.add_argument("--seed", type=int, default=0, help="default: 0")
    compare.add_argument("--jobs", type=int, help="processes (default: 1)")
    compare.add_argument(
        "--resume", metavar="FOLDER",
        help="keep trained models and finished evaluations here, and go on from them",
    )  # fmt: skip
    compare.add_argument("--markdown", metavar="FILE", help="write the tables in Markdown")
    compare.add_argument("--html", metavar="FILE", help="write one page with all of it")
    compare.set_defaults(run=_compare)


def _add_reproduce(commands: Any) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="measure the paper's figures again, with the worst case beside each number",
        description="Train the paper's networks, make the attacks of a figure, and put the worst "
        "case under the standard evaluation beside each number.",
    )
    reproduce.add_argument("figure", help='a figure, or "all"; a wrong one lists them')
    _add_data(reproduce)
    reproduce.add_argument(
        "--quick", action="store_true",
        help="one epoch, few images, no strong evaluation, to see that all of it runs",
    )  # fmt: skip
    reproduce.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0"
    )
    reproduce.add_argument(
        "--folder", default="reproduction", metavar="FOLDER",
        help="trained models, finished attacks, results and pictures (default: reproduction)",
    )  # fmt: skip
    reproduce.set_defaults(run=_reproduce)


def _add_models(command: argparse.ArgumentParser) -> None:
    """What is known of the attacked models, and the sources of black-box examples."""
    command.add_argument(
        "--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="pixel values that the models expect, to which images are scaled (default: what "
        "their first layers say, else 0 1)",
    )  # fmt: skip
    command.add_argument(
        "--outputs", choices=["logits", "probabilities"],
        help="what the models' outputs are, where their graphs do not say",
    )  # fmt: skip
    command.add_argument(
        "--draws", type=int, default=1, help="draws averaged of random models (default: 1)"
    )
    command.add_argument(
        "--source", nargs="+", default=[], metavar="MODEL",
        help="classifiers on which black-box examples are made, such as undefended ones of the "
        "same task",
    )  # fmt: skip


def _add_run(command: argparse.ArgumentParser) -> None:
    """How attacks are run."""
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--jobs", type=int, help="processes (default: 1)")
    command.add_argument(
        "--resume", metavar="FOLDER", help="keep finished work here, and go on from it"
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        default="mnist5k",
        help="mnist5k, mnist, fashion_mnist, cifar10 or an .npz file (default: mnist5k)",
    )


def _demo(options: argparse.Namespace) -> None:
    from keras_qusec import datasets, demo
    from keras_qusec.progress import shown

    data = datasets.load(options.data)
    _greet()
    with shown(None, "starting") as progress:
        result = demo.run_demo(
            data=data,
            epochs=options.epochs,
            images=options.images,
            progress=progress,
        )
    print(result.report)
    print(result.text)
    print()
    print(demo.MEANING)
    print()
    figure = Path(options.figure)
    curves = figure.with_stem(figure.stem + "-training")
    print(f"Report: {result.report.to_html(options.html)}")
    print(f"Figures: {demo.save_figure(result, figure)} (images and quantizers),")
    print(f"{demo.save_curves(result, curves)} (accuracy under FGSM by epoch)")


def _evaluate(options: argparse.Namespace) -> None:
    from keras_qusec import evaluate_robustness

    given = _inputs(options, options.compare)
    low, high = given.value_range
    epsilons = None
    if options.epsilons or options.l2_epsilons:
        # Without L-infinity radii, attacks in that norm have the default ones.
        linf = options.epsilons or [share * (high - low) for share in (0.1, 0.2, 0.3)]
        epsilons = {"linf": linf}
        if options.l2_epsilons:
            epsilons["l2"] = options.l2_epsilons
    threat_models = options.threat_models or (
        ["white-box", "adaptive", *(["black-box"] if given.sources else [])]
    )
    _greet()
    report = evaluate_robustness(
        given.models,
        given.x,
        given.y,
        attacks=options.attacks[0] if len(options.attacks) == 1 else options.attacks,
        epsilons=epsilons,
        value_range=given.value_range,
        outputs=options.outputs,
        draws=options.draws,
        threat_models=threat_models,
        source_model=given.sources or None,
        targets=options.targets,
        batch_size=options.batch_size,
        seed=options.seed,
        n_jobs=options.jobs,
        resume_dir=options.resume,
    )
    print(report)
    # The report that can be read again first.
    writers: list[tuple[str | None, Callable[[Any, str], Any]]] = [
        (options.output, lambda report, path: report.save(path)),
        (options.markdown, lambda report, path: Path(path).write_text(report.to_markdown())),
        (options.html, lambda report, path: report.to_html(path)),
        (options.plot, lambda report, path: report.plot(path)),
        (options.gallery, lambda report, path: report.plot_gallery(path)),
    ]
    _write(report, writers)


class _Inputs(NamedTuple):
    """Models and sources by name, and test images scaled to what the models expect."""

    models: dict[str, Any]
    sources: dict[str, Any]
    x: Any
    y: Any
    value_range: tuple[float, float]


def _inputs(options: argparse.Namespace, more: Sequence[str] = ()) -> _Inputs:
    """What is to be attacked; `more` models beside the one of the command."""
    import numpy as np

    from keras_qusec import datasets

    if options.images < 0:
        raise ValueError(
            f"Expected images to be 1 or more, or 0 for all. Received: {options.images}."
        )
    models = _load_models([options.model, *more])
    sources = _load_models(options.source)
    data = datasets.load(options.data)
    count = options.images or len(data.x_test)
    low, high = _value_range(options.value_range, [*models.items(), *sources.items()])
    x = data.x_test[:count] * np.float32(high - low) + np.float32(low)
    return _Inputs(models, sources, x, data.y_test[:count], (low, high))


def _audit(options: argparse.Namespace) -> None:
    from keras_qusec import audit_robustness
    from keras_qusec.report import files

    given = _inputs(options)
    low, high = given.value_range
    epsilon = options.epsilon
    if epsilon is None:
        colour = given.x.shape[-1] == 3
        epsilon = (8 / 255 if colour else 0.3) * (high - low)
        print(f"Epsilon is {epsilon:.4g}, usual for such images; --epsilon says another.")
    _greet()
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
        (options.json, lambda audit, path: files.write(audit.to_dict(), path)),
        (options.html, lambda audit, path: audit.to_html(path)),
        (options.plot, lambda audit, path: audit.plot(path)),
    ]
    _write(audit, writers)


def _write(result: Any, writers: Sequence[tuple[str | None, Callable[[Any, str], Any]]]) -> None:
    """Write the files asked for; one that cannot be written does not lose the others."""
    for path, write in writers:
        if not path:
            continue
        try:
            write(result, path)
            print(f"Written: {path}")
        except (OSError, ValueError, ImportError) as error:
            print(f"keras-qusec: {path} not written: {error}", file=sys.stderr)


def _compare(options: argparse.Namespace) -> None:
    from keras_qusec import comparison

    _greet()
    result = comparison.compare(
        options.data,
        options.defenses,
        epsilons=options.epsilons,
        attacks=options.attacks,
        images=options.images,
        epochs=options.epochs,
        seed=options.seed,
        folder=options.resume,
        n_jobs=options.jobs,
    )
    print(result)
    if options.markdown:
        Path(options.markdown).write_text(result.to_markdown(), encoding="utf-8")
        print(f"Written: {options.markdown}")
    if options.html:
        print(f"Written: {result.to_html(options.html)}")


def _reproduce(options: argparse.Namespace) -> None:
    from keras_qusec import reproduction

    names = list(reproduction.FIGURES) if options.figure == "all" else [options.figure]
    _greet()
    # Another data set, or quick results, never meet those of a full run.
    kind = Path(options.data).stem + ("-quick" if options.quick else "")
    folder = Path(options.folder) / kind
    for name in names:
        result = reproduction.reproduce(
            name, options.data, quick=options.quick, seeds=options.seeds, folder=folder / "work"
        )
        print(f"{result}\n\n{textwrap.fill(f'The paper: {result.claim}', 80)}\n")
        paths = [result.save(folder / f"{name}.json"), *reproduction.pictures(result, folder)]
        print("\n".join(f"Written: {path}" for path in paths) + "\n")


def _radius(text: str) -> float:
    """A radius as a number, or as a fraction such as 8/255."""
    above, _, below = text.partition("/")
    try:
        return float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a number such as 0.1, or a fraction such as 8/255; received {text!r}"
        ) from None


def _value_range(
    given: Sequence[float] | None, models: Sequence[tuple[str, Any]]
) -> tuple[float, float]:
    """The value range given, or the one that all models say they expect, or (0, 1)."""
    from keras_qusec.expected_inputs import expected_range

    if given is not None:
        return given[0], given[1]
    expected = {name: expected_range(model) for name, model in models}
    ranges = {found for found in expected.values() if found is not None}
    if len(ranges) > 1:
        raise ValueError(
            "Expected models of one value range. Received: "
            f"{', '.join(f'{name}: {found}' for name, found in expected.items())}. Evaluate them "
            "one by one."
        )
    if not ranges:
        return 0.0, 1.0
    (low, high) = ranges.pop()
    if (low, high) != (0.0, 1.0):
        print(f"Images are scaled to {low:g} ... {high:g}, which the models' first layers expect.")
    return low, high


def _load_models(paths: Sequence[str]) -> dict[str, Any]:
    """Models by the names of their files, or by their paths where those are the same."""
    import keras

    # The defences must be known to Keras before a model with them is loaded.
    import keras_qusec.defenses  # noqa: F401

    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if list(paths).count(path) > 1)
        raise ValueError(f"Expected each model once. Received: {twice} twice.")
    stems = [Path(path).stem for path in paths]
    models = {}
    for path, stem in zip(paths, stems, strict=True):
        if not Path(path).is_file():
            raise ValueError(f"Expected a .keras file. Received: {path}, which does not exist.")
        try:
            # Uncompiled: an optimizer saved on another backend, or an unknown loss, is no obstacle.
            model = keras.saving.load_model(path, compile=False)
            models[stem if stems.count(stem) == 1 else path] = model
        except Exception as error:
            raise ValueError(
                f"Expected a model saved by model.save({path!r}). Received: a file that Keras "
                f"cannot load: {error}"
            ) from error
    return models


def _greet() -> None:
    """Let backends print what they print when first used, before a progress bar is shown."""
    import keras

    from keras_qusec.attacks.foolbox import import_foolbox

    import_foolbox()
    keras.ops.zeros(1)
