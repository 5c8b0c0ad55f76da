"""What the command line takes: no backend is loaded to say it."""

from __future__ import annotations

import argparse
import contextlib
import os
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from keras_qusec_cli import names

_PACKAGE = "keras-qusec"

_EXAMPLES = {
    "demo": """\
examples:
  keras-qusec demo --quick
  keras-qusec demo
  keras-qusec demo --data mnist.npz --epochs 6 --images 1000""",
    "evaluate": """\
examples:
  keras-qusec evaluate model.keras --data mnist5k --html report.html
  keras-qusec evaluate model.keras --attacks standard --epsilons 2/255 8/255
  keras-qusec evaluate a.keras --compare b.keras --images 1000""",
    "report": """\
examples:
  keras-qusec report a.json b.json --html both.html
  keras-qusec report report.json --images-csv images.csv""",
    "certify": """\
examples:
  keras-qusec certify model.keras --data mnist5k --epsilons 0.1 0.3
  keras-qusec certify model.keras --effort exact --images 1000 --html proof.html""",
    "audit": """\
examples:
  keras-qusec audit model.keras --data mnist5k --epsilon 0.3 --html audit.html
  keras-qusec audit model.keras --epsilon 8/255 --adaptive --full""",
    "deployed": """\
examples:
  keras-qusec deployed model.keras model.tflite --data mnist5k
  keras-qusec deployed model.keras model.onnx --epsilons 0.1 --html page.html""",
    "compare": """\
examples:
  keras-qusec compare --defenses undefended constant pgd-training
  keras-qusec compare --resume work --jobs 2 --html compare.html""",
    "reproduce": """\
examples:
  keras-qusec reproduce figure-7 --quick
  keras-qusec reproduce all --data mnist.npz --seeds 0 1 2
  keras-qusec reproduce best --data mnist.npz""",
}


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Names stay whole.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def parser() -> argparse.ArgumentParser:
    """The parser of ``keras-qusec``; its `command` names a function of `keras_qusec.commands`."""
    whole = argparse.ArgumentParser(
        prog="keras-qusec",
        description="Is a Keras classifier robust, and how does it become so? Each command has a "
        "--help of its own.",
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {version(_PACKAGE)}")
    commands = whole.add_subparsers(required=True, metavar="command", dest="command")
    _add_demo(commands)
    _add_evaluate(commands)
    _add_certify(commands)
    _add_report(commands)
    _add_audit(commands)
    _add_deployed(commands)
    _add_compare(commands)
    _add_reproduce(commands)
    commands.add_parser("attacks", help="list the attacks by name: norm, what it is, cost")
    return whole


def _file(*suffixes: str) -> Callable[[str], str]:
    """A file to be written, checked before hours of work."""

    def check(text: str) -> str:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(
                f"expected a file that ends in {' or '.join(suffixes)}; received {text!r}"
            )
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"expected a file; {text!r} is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise argparse.ArgumentTypeError(
                f"expected a file in a folder that can be written to; received {text!r}"
            )
        return text

    return check


_page, _json, _markdown = _file(".html", ".htm"), _file(".json"), _file(".md")
_picture = _file(".png", ".svg", ".pdf", ".jpg")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["demo"],
        help="train, attack and compare the paper's CNN with and without a quantizer",
        description="Train the paper's CNN undefended, behind quantizers and on adversarial "
        "examples, attack each with FGSM and the standard evaluation, print the report, and write "
        "figures and an HTML page.",
    )
    _add_data(demo)
    demo.add_argument(
        "--quick", action="store_true",
        help="about a minute: three models, trained on 1,000 images, 20 images attacked",
    )  # fmt: skip
    demo.add_argument("--epochs", type=_whole(1), help="training epochs (default: 2)")
    demo.add_argument(
        "--images", type=_whole(1), help="test images attacked (default: 60; quick: 20)"
    )
    demo.add_argument("--seed", type=int, default=0, help="default: 0")
    demo.add_argument("--output", metavar="FILE", type=_json, help="write the report as JSON")
    demo.add_argument(
        "--figure", default="demo.png", type=_picture, help="figure to write (default: demo.png)"
    )
    demo.add_argument(
        "--html", default="demo.html", type=_page, help="page to write (default: demo.html)"
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["evaluate"],
        help="attack saved classifiers and report their robust accuracy",
        description="Attack saved Keras classifiers and report what is left of their accuracy, "
        "the worst case first.",
    )
    evaluate.add_argument(
        "model", help="a .keras file: a classifier, logits or softmax; or .onnx, .tflite, .xml, or "
        "the folder of a SavedModel, which are asked for outputs alone",
    )  # fmt: skip
    evaluate.add_argument(
        "--compare", nargs="+", default=[], metavar="MODEL", help="more classifiers, same report"
    )
    _add_inputs(evaluate)
    evaluate.add_argument(
        "--images", type=_whole(0), default=200,
        help="test images attacked, a stratified sample; 0 for all (default: 200)",
    )  # fmt: skip
    evaluate.add_argument(
        "--attacks", nargs="+", default=["quick"], metavar="ATTACK",
        help="quick, standard or strong evidence, or names of attacks (default: quick); "
        '"keras-qusec attacks" lists them',
    )  # fmt: skip
    _add_epsilons(evaluate)
    for norm, what in {"l2": "L2", "l1": "L1", "l0": "L0 (numbers of pixels)"}.items():
        evaluate.add_argument(
            f"--{norm}-epsilons", nargs="+", metavar="EPS",
            type=_number_of_pixels if norm == "l0" else _radius,
            help=f"{what} radii in rising order",
        )  # fmt: skip
    _add_models(evaluate)
    evaluate.add_argument(
        "--prove", choices=names.EFFORTS,
        help="prove images in L-infinity first, and attack the others",
    )  # fmt: skip
    evaluate.add_argument(
        "--threat-models", nargs="+", metavar="THREAT",
        help="white-box, adaptive, black-box (default: the first two; all with --source)",
    )  # fmt: skip
    evaluate.add_argument("--targets", help=f"{', '.join(names.TARGETS)}: targeted")
    evaluate.add_argument(
        "--batch-size", type=_whole(1), help="images in a unit (default: up to 512)"
    )
    evaluate.add_argument(
        "--time-limit", type=_seconds, metavar="SECONDS",
        help="for the attacks; images for which it does not suffice are left out, but the first "
        "batch is always finished",
    )  # fmt: skip
    _add_run(evaluate)
    _add_verbose(evaluate)
    evaluate.add_argument("--output", metavar="FILE", type=_json, help="write the report as JSON")
    _add_forms(evaluate)
    evaluate.add_argument(
        "--examples", metavar="FILE", type=_file(".npz"),
        help="write the closest adversarial example of every broken image",
    )  # fmt: skip
    _add_images_csv(evaluate)
    evaluate.add_argument(
        "--gallery", metavar="FILE", type=_picture, help="draw adversarial examples"
    )


def _add_certify(commands: Any) -> None:
    certify = commands.add_parser(
        "certify",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["certify"],
        help="prove which images of a saved classifier no attack can break",
        description="Prove image by image that nothing within L-infinity epsilon is misclassified, "
        "or find what is. Exact behind a hard quantizer, where the search ends in time.",
    )
    certify.add_argument("model", help="a .keras file: a classifier, logits or softmax")
    _add_inputs(certify)
    _add_sample(certify)
    certify.add_argument(
        "--effort", choices=names.EFFORTS, default="standard",
        help="bounds alone; a search of a second an image; or of a minute (default: standard)",
    )  # fmt: skip
    certify.add_argument(
        "--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="pixel values that the model expects (default: what its first layers say, else 0 1)",
    )  # fmt: skip
    certify.add_argument(
        "--outputs", choices=["logits", "probabilities"],
        help="what the model's outputs are, where its graph does not say",
    )  # fmt: skip
    certify.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    _add_resume(certify)
    _add_verbose(certify)
    certify.add_argument("--output", metavar="FILE", type=_json, help="write the report as JSON")
    certify.add_argument("--html", metavar="FILE", type=_page, help="write one page with all of it")
    certify.add_argument(
        "--examples", metavar="FILE", type=_file(".npz"),
        help="write the adversarial examples that the search found",
    )  # fmt: skip
    _add_images_csv(certify)
    certify.add_argument(
        "--export", metavar="FOLDER",
        help="write the part behind the quantizer as ONNX, and a VNN-LIB property for each image "
        "and epsilon, for other verifiers (needs onnx)",
    )  # fmt: skip
    certify.add_argument(
        "--vnnlib", choices=["1.0", "2.0"], default="1.0",
        help="version of VNN-LIB for --export (default 1.0)",
    )  # fmt: skip


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["report"],
        help="read saved reports again: join them, compare their models, draw them",
        description="Print reports that evaluate and certify wrote with --output; several of the "
        "same images and attacks become one.",
    )
    report.add_argument("reports", nargs="+", metavar="report", help="a .json file of a report")
    _add_verbose(report)
    report.add_argument("--output", metavar="FILE", type=_json, help="write the joined report")
    _add_forms(report)
    _add_images_csv(report)


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["audit"],
        help="tell whether a saved classifier's robustness is real",
        description="Check whether gradient attacks on a saved classifier can be trusted, and by "
        "how much they overstate its robustness.",
    )
    audit.add_argument("model", help="a .keras file: a classifier, logits or softmax")
    _add_inputs(audit)
    audit.add_argument(
        "--epsilon", nargs=1, type=_radius, metavar="EPS",
        help="L-infinity radius: a number such as 0.3 in units of the pixel values that the model "
        "expects, or a fraction such as 8/255 of the value range (default: 0.3 of it for grey "
        "images, 8/255 of it for colour images)",
    )  # fmt: skip
    audit.add_argument(
        "--images", type=_whole(0), default=100,
        help="test images attacked, a stratified sample; 0 for all (default: 100)",
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
    audit.add_argument("--html", metavar="FILE", type=_page, help="write one page with all of it")
    audit.add_argument(
        "--plot", metavar="FILE", type=_picture, help="draw loss surface, gradients and budget"
    )
    audit.add_argument(
        "--output", metavar="FILE", type=_json, help="write verdict and checks as JSON"
    )


def _add_deployed(commands: Any) -> None:
    deployed = commands.add_parser(
        "deployed",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["deployed"],
        help="tell whether a deployed model is the Keras model that was measured",
        description="Compare a deployed model with its Keras model: levels, classes, logits, "
        "adversarial examples of one in the other, and what attacks leave of both. Exit status 1 "
        "if it is not what was measured.",
    )
    deployed.add_argument("model", help="a .keras file: the classifier that was measured")
    deployed.add_argument(
        "deployed", help="a file .onnx, .tflite or .xml, or the folder of a SavedModel"
    )
    _add_inputs(deployed)
    _add_sample(deployed)
    deployed.add_argument(
        "--attacks", nargs="+", default=["standard"], metavar="ATTACK",
        help="on the Keras model (default: standard)",
    )  # fmt: skip
    deployed.add_argument(
        "--queries", nargs="*", default=["square"], metavar="ATTACK",
        help="attacks that ask the deployed model; none: leave it empty (default: square)",
    )  # fmt: skip
    deployed.add_argument(
        "--prove", choices=names.EFFORTS, help="prove images of the Keras model first"
    )
    deployed.add_argument(
        "--runtime", choices=["onnxruntime", "litert", "openvino", "tensorflow"],
        help="what runs the file (default: by its name)",
    )  # fmt: skip
    deployed.add_argument(
        "--precision", help="numbers that OpenVINO computes with, such as f32 (default: its choice)"
    )
    deployed.add_argument(
        "--data-format", choices=["channels_last", "channels_first"], default="channels_last",
        help="where the deployed model has the channels (default: channels_last)",
    )  # fmt: skip
    deployed.add_argument(
        "--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="pixel values that both expect (default: what the first layers say, else 0 1)",
    )  # fmt: skip
    deployed.add_argument(
        "--outputs", choices=["logits", "probabilities"],
        help="what the Keras model's outputs are, where its graph does not say",
    )  # fmt: skip
    deployed.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_resume(deployed)
    deployed.add_argument("--output", metavar="FILE", type=_json, help="write all of it as JSON")
    deployed.add_argument(
        "--html", metavar="FILE", type=_page, help="write one page with all of it"
    )


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["compare"],
        help="train defences on the same network and put them in one table",
        description="Train defences on the paper's network with the same data and seed, attack "
        "each white-box, adaptively and black-box, and print one table.",
    )
    _add_data(compare)
    compare.add_argument(
        "--defenses", nargs="+", metavar="NAME",
        help=f"some of {', '.join(names.DEFENSES)} (default: all)",
    )  # fmt: skip
    compare.add_argument(
        "--epsilons", nargs="+", type=_radius, metavar="EPS",
        help="L-infinity radii in rising order (default: 0.1 0.2 0.3); the largest in training",
    )  # fmt: skip
    compare.add_argument(
        "--images", type=_whole(1), default=100, help="test images attacked (default: 100)"
    )
    compare.add_argument(
        "--threat-models", nargs="+", metavar="THREAT",
        default=["white-box", "adaptive", "black-box"],
        help="some of white-box, adaptive, black-box (default: all three)",
    )  # fmt: skip
    compare.add_argument("--epochs", type=_whole(1), default=4, help="training epochs (default: 4)")
    compare.add_argument(
        "--attacks", nargs="+", default=["fgsm", "standard"], metavar="ATTACK",
        help="names of attacks (default: fgsm standard); \"keras-qusec attacks\" lists them",
    )  # fmt: skip
    compare.add_argument(
        "--prove", choices=names.EFFORTS, help="prove images first, behind hard quantizers"
    )
    compare.add_argument("--seed", type=int, default=0, help="default: 0")
    compare.add_argument("--jobs", type=_jobs, help="processes (default: 1)")
    compare.add_argument(
        "--resume", metavar="FOLDER",
        help="keep trained models and finished evaluations here, and go on from them",
    )  # fmt: skip
    compare.add_argument(
        "--output", metavar="FILE", type=_json,
        help="write the evaluations of all defences as one report in JSON",
    )  # fmt: skip
    compare.add_argument(
        "--markdown", metavar="FILE", type=_markdown, help="write the tables in Markdown"
    )
    compare.add_argument("--html", metavar="FILE", type=_page, help="write one page with all of it")


def _add_reproduce(commands: Any) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        formatter_class=_Formatter,
        epilog=_EXAMPLES["reproduce"],
        help="measure the paper's figures again, with the worst case beside each number",
        description="Train the paper's networks, make the attacks of a figure, and put the worst "
        "case under the standard evaluation beside each number.",
    )
    reproduce.add_argument("figure", help=f"all, or one of {', '.join(names.REPRODUCTIONS)}")
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
        "--draws", type=_whole(1), default=1, help="draws averaged of random models (default: 1)"
    )
    command.add_argument(
        "--source", nargs="+", default=[], metavar="MODEL",
        help="classifiers on which black-box examples are made, such as undefended ones of the "
        "same task",
    )  # fmt: skip


def _add_run(command: argparse.ArgumentParser) -> None:
    """How attacks are run."""
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--jobs", type=_jobs, help="processes (default: 1)")
    _add_resume(command)


def _add_resume(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resume", metavar="FOLDER", help="keep finished work here, and go on from it"
    )


def _add_forms(command: argparse.ArgumentParser) -> None:
    """The forms in which a report can be written for people."""
    command.add_argument(
        "--markdown", metavar="FILE", type=_markdown, help="write its tables in Markdown"
    )
    command.add_argument("--html", metavar="FILE", type=_page, help="write one page with all of it")
    command.add_argument(
        "--plot", metavar="FILE", type=_picture, help="draw accuracy against epsilon"
    )


def _add_images_csv(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images-csv", metavar="FILE", type=_file(".csv"),
        help="write a row for each image: file, class, proved, broken (by what) or open",
    )  # fmt: skip


def _add_verbose(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--verbose", action="store_true",
        help="print the settings of all attacks, hashes and versions, too",
    )  # fmt: skip


def _add_sample(command: argparse.ArgumentParser) -> None:
    """Which images and radii are looked at, in L-infinity."""
    command.add_argument(
        "--images", type=_whole(0), default=200,
        help="test images, a stratified sample; 0 for all (default: 200)",
    )  # fmt: skip
    _add_epsilons(command)


def _add_epsilons(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--epsilons", nargs="+", type=_radius, metavar="EPS",
        help="L-infinity radii in rising order: numbers such as 0.1 in units of the pixel values "
        "that the model expects, fractions such as 8/255 of the value range (default: 0.1, 0.2 "
        "and 0.3 of it)",
    )  # fmt: skip


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        default="mnist5k",
        help=f"{', '.join(names.DATA_SETS)}, an .npz file, or a folder of images by class "
        "(default: mnist5k)",
    )


def _add_inputs(command: argparse.ArgumentParser) -> None:
    """Images, and what must be known to give them to the models."""
    _add_data(command)
    command.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="names of a folder's classes in the order of the model's outputs (default: the "
        "folders of train beside test, else those of --data)",
    )  # fmt: skip
    command.add_argument(
        "--resize", action="store_true",
        help="resize images that have another size than the model's input",
    )  # fmt: skip
    command.add_argument(
        "--import", dest="imports", nargs="+", default=[], metavar="FILE",
        help="Python files with layers or models of your own that a saved model needs",
    )  # fmt: skip


class Radius(NamedTuple):
    """A radius as typed: a number in units of the pixel values, or a fraction of their range.

    Attributes:
        above: the number, or what stands above the stroke of a fraction.
        below: what stands below it; None for a number.
    """

    above: float
    below: float | None = None

    def in_units(self, low: float, high: float) -> float:
        """The radius for images with values from `low` to `high`; exact for 8/255 and 0 to 255."""
        return self.above if self.below is None else self.above * (high - low) / self.below


def _radius(text: str) -> Radius:
    """A radius as a number, or as a fraction such as 8/255."""
    above, _, below = text.partition("/")
    try:
        radius = Radius(float(above), float(below) if below else None)
        radius.in_units(0.0, 1.0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a number such as 0.1, or a fraction such as 8/255; received {text!r}"
        ) from None
    return radius


def _number(
    convert: Callable[[str], Any], allowed: Callable[[Any], bool], expected: str
) -> Callable[[str], Any]:
    """What reads a number of which only some are allowed."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if allowed(number := convert(text)):
                return number
        raise argparse.ArgumentTypeError(f"expected {expected}; received {text!r}")

    return read


def _whole(least: int) -> Callable[[str], Any]:
    """What reads a whole number from `least` up."""
    return _number(int, lambda number: number >= least, f"a whole number of {least} or more")


# Below 0 it is how many cores to leave, as joblib has it.
_jobs = _number(int, bool, "a number of processes, or -1 for as many as there are cores")
_seconds = _number(float, lambda seconds: 0 < seconds < float("inf"), "seconds above 0")


def _number_of_pixels(text: str) -> Radius:
    """A radius in L0, which is no share of the value range."""
    if "/" in text:
        raise argparse.ArgumentTypeError(f"expected a number of pixels; received {text!r}")
    return _radius(text)
