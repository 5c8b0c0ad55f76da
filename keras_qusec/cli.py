"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


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
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-qusec",
        description="Quantization-based defence against adversarial examples, for Keras.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train, attack and compare the paper's CNN with and without a quantizer",
        description="Train the paper's CNN undefended and behind quantizers, attack each "
        "with FGSM and PGD, print one table and write one figure.",
    )
    demo.add_argument(
        "--data",
        default="mnist5k",
        help="mnist5k, mnist, fashion_mnist, cifar10 or an .npz file (default: mnist5k)",
    )
    demo.add_argument("--epochs", type=int, default=4, help="training epochs (default: 4)")
    demo.add_argument("--images", type=int, default=200, help="test images attacked (default: 200)")
    demo.add_argument("--steps", type=int, default=40, help="PGD steps (default: 40)")
    demo.add_argument("--figure", default="demo.png", help="figure to write (default: demo.png)")
    demo.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> None:
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise ImportError(
            'The demo needs two extras: pip install "keras-qusec[demo,evaluate]"'
        ) from error
    import keras

    from keras_qusec import datasets, demo
    from keras_qusec.evaluation.bridge import import_foolbox

    data = datasets.load(options.data)
    # What backends print when first used would tear the progress display apart.
    import_foolbox()
    keras.ops.zeros(1)
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("starting", total=1.0)
        result = demo.run_demo(
            data=data,
            epochs=options.epochs,
            images=options.images,
            steps=options.steps,
            progress=lambda text, done: bar.update(task, description=text, completed=done),
        )
    print(demo.render(result))
    print()
    print(demo.MEANING)
    print()
    figure = Path(options.figure)
    curves = figure.with_stem(figure.stem + "-training")
    print(f"Figures: {demo.save_figure(result, figure)} (images and quantizers),")
    print(f"{demo.save_curves(result, curves)} (accuracy under FGSM by epoch)")
