"""The pictures of these pages, drawn by the package from what it measures on 5,000 digits.

    python docs/pictures.py

Takes about five minutes; the pages name the settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qusec import (
    AdversarialTraining,
    QuSecQuantization,
    audit_robustness,
    datasets,
    evaluate_robustness,
    models,
)
from keras_qusec.defenses import (
    BitDepthReduction,
    MedianSmoothing,
    NonLocalMeans,
    ThermometerEncoding,
)
from keras_qusec.plots import epoch_curves, pyplot, save

_HERE = Path(__file__).parent


def trained(data: datasets.Dataset, front: Any = None, callbacks: tuple = ()) -> keras.Model:
    """The paper's CNN, alone or behind a quantizer."""
    keras.utils.set_random_seed(0)
    model = models.paper_cnn(front)
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    model.fit(
        data.x_train, data.y_train, batch_size=128, epochs=4, verbose=0, callbacks=list(callbacks)
    )
    return model


def draw_inputs(images: np.ndarray, path: Path) -> None:
    """What the network gets to see of an image and of its adversarial example."""
    fronts = {
        "the image": lambda x: x,
        "quantization, n = 2": QuSecQuantization(2, hard=True),
        "bit depth, 1 bit": BitDepthReduction(1),
        "median, 2 x 2": MedianSmoothing(2),
        "non-local means": NonLocalMeans(13, 3, 0.3),
        "thermometer, mean": lambda x: keras.ops.mean(
            ThermometerEncoding(16)(x), axis=-1, keepdims=True
        ),
    }
    figure, axes = pyplot().subplots(
        2, len(fronts), figsize=(1.7 * len(fronts), 3.9), layout="constrained"
    )
    for column, (name, front) in enumerate(fronts.items()):
        seen = keras.ops.convert_to_numpy(front(images))
        for row in range(2):
            axes[row][column].imshow(seen[row, ..., 0], cmap="gray", vmin=0, vmax=1)
            axes[row][column].set_xticks([])
            axes[row][column].set_yticks([])
        axes[0][column].set_title(name, fontsize=9)
    axes[0][0].set_ylabel("clean")
    axes[1][0].set_ylabel("adversarial")
    save(figure, path)


def draw_worst_case(table: Path, path: Path, *, dark: bool = False) -> None:
    """Accuracies of defences at the largest epsilon: white-box, in the worst case, and proved.

    Args:
        table: of the comparison, in Markdown.
        path: picture to write.
        dark: for pages whose background is dark.
    """
    style = {} if not dark else {
        "figure.facecolor": "#131416", "axes.facecolor": "#131416", "text.color": "#e6e6e6",
        "axes.edgecolor": "#9a9a9a", "axes.labelcolor": "#e6e6e6", "xtick.color": "#e6e6e6",
        "ytick.color": "#e6e6e6", "savefig.facecolor": "#131416",
    }  # fmt: skip
    with pyplot().rc_context(style):
        _draw_worst_case(table, path, "#3f9bd4" if dark else "#0b5f94")


def _draw_worst_case(table: Path, path: Path, worst: str) -> None:
    part = table.read_text().split("### Accuracy in % at epsilon 0.3")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    columns, rows = lines[0], lines[2:]
    shown = ("undefended", "distillation", "dqa", "thermometer", "defense-gan", "squeezing",
             "constant", "pgd-training", "constant-pgd", "hard-certified")  # fmt: skip
    found = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    names = [name for name in shown if name in found]
    figure, axis = pyplot().subplots(figsize=(9.4, 3.9), layout="constrained")
    kinds = {
        "white": ("under a white-box attack", "#b8c4d6"),
        "worst": ("in the worst case, all attacks", worst),
        "proved": ("proved: no attack can break it", "#009e73"),
    }
    for place, (column, (_, colour)) in enumerate(kinds.items()):
        for row, name in enumerate(names):
            value = found[name].get(column, "-").strip("*")
            if value in ("-", ""):
                continue
            at = row + 0.27 * (place - 1)
            axis.bar(at, float(value), 0.27, color=colour)
            axis.annotate(f"{float(value):.0f}", (at, float(value)), ha="center", va="bottom",
                          fontsize=7.5)  # fmt: skip
    handles = [pyplot().Rectangle((0, 0), 1, 1, color=colour) for _, colour in kinds.values()]
    axis.legend(handles, [label for label, _ in kinds.values()], fontsize=8.5, loc="upper left",
                ncols=3, frameon=False)  # fmt: skip
    axis.set_xticks(range(len(names)), [name.replace("-", "\n", 1) for name in names], fontsize=8.5)
    axis.set_ylim(0, 118)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("accuracy in % within 0.3")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    save(figure, path)


def main() -> None:
    table = _HERE / "defenses" / "comparison_table.md"
    draw_worst_case(table, _HERE / "defenses" / "worst_case.png")
    draw_worst_case(table, _HERE / "defenses" / "worst_case_dark.png", dark=True)
    data = datasets.mnist5k()
    x, y = data.x_test[:200], data.y_test[:200]
    undefended = trained(data)
    defended = trained(data, QuSecQuantization(2))
    named = {"undefended": undefended, "constant": defended}
    report = evaluate_robustness(
        named, x, y, attacks=["fgsm", "pgd", "reachable-levels"], epsilons=[0.1, 0.2, 0.3]
    )
    report.plot(_HERE / "evaluation.png")
    example = max(
        (one for one in report.gallery if one.model == "undefended"),
        key=lambda one: one.distances["linf"],
    )
    draw_inputs(example.images[:2], _HERE / "defenses" / "inputs.png")
    audit = audit_robustness(trained(data, QuSecQuantization(2, hard=True)), x[:100], y[:100],
                             epsilon=0.3)  # fmt: skip
    audit.plot(_HERE / "audit.png")
    print(audit.verdict)
    curves = {}
    for name, front in {"undefended": None, "constant": QuSecQuantization(2)}.items():
        attack = AdversarialTraining(
            "pgd", epsilon=0.3, steps=10, gradient_hardness=5 if front else None,
            validation_data=(x, y),
        )  # fmt: skip
        model = trained(data, front, callbacks=(attack,))
        curves[name] = model.history.history["val_adversarial_accuracy"]
    label = "accuracy under the training attack in %"
    save(epoch_curves(curves, label), _HERE / "adversarial_training.png")


if __name__ == "__main__":
    main()
