"""How strong each evaluation is for its time: robust accuracy and seconds, in one run.

    python benchmarks/attacks.py                       # TensorFlow and PyTorch, hours
    python benchmarks/attacks.py torch --images 200 --models FOLDER

Three models, the paper's CNN or a small one: undefended, PGD-trained, and PGD-trained behind a hard
two-level quantizer; trained once and kept in the folder. Each is attacked by the quick, standard
and strong evaluations, by AutoAttack in its published order and budgets (ours, whole: white-box
and, for the quantizer, through its surrogate gradient), and by others' code: PGD of 40 steps from
plain Foolbox, and AutoAttack of ART on PyTorch. For the quantizer these follow the surrogate
gradient too, since its own leads nowhere: a rounding layer with the gradient of a softer quantizer,
which is our work and their best case. The images, labels and epsilon are the same; every example
counts only if the model itself is wrong on it. Each figure is from one run, in processor time, one
thread on PyTorch: the long ones take minutes. Strong and AutoAttack can be made on the first images
only, where the others' robust accuracy is then given as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Epsilon in the attack, by model.
EPSILONS = {"undefended": 0.1, "PGD-trained": 0.2, "hard quantizer, PGD-trained": 0.3}
SURROGATE = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=["tensorflow", "torch"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--data", default="mnist5k", help="data set or .npz file")
    parser.add_argument("--models", default="benchmark-models", help="folder of trained models")
    parser.add_argument("--network", default="paper", choices=["paper", "small"])
    parser.add_argument("--only", nargs="+", help="names of evaluations")
    parser.add_argument("--few", type=int, help="strong and AutoAttack on the first so many images")
    parser.add_argument("--json", help="file to add the rows to")
    parser.add_argument("--page", help="write this page, and a figure beside it, from --json")
    options = parser.parse_args()
    if options.page:
        write_page(json.loads(Path(options.json).read_text()), Path(options.page))
        return
    options.models = os.path.abspath(options.models)
    for backend in options.backends:
        child = subprocess.run(
            [sys.executable, "-c", f"import attacks; attacks.measure({vars(options)!r})"],
            env={"OMP_NUM_THREADS": "1", **os.environ, "KERAS_BACKEND": backend,
                 "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=os.path.dirname(os.path.abspath(__file__)), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if child.returncode:
            sys.exit(f"{backend} failed")
        rows = json.loads(child.stdout.strip().splitlines()[-1])
        if options.json:
            path = Path(options.json)
            earlier = json.loads(path.read_text()) if path.exists() else []
            path.write_text(json.dumps(earlier + rows, indent=1) + "\n")
        print(table(rows))


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = [
        "| backend | model | evaluation | images | robust, % | of the first, % | s "
        "| AutoAttack / it |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    # For as many images as a row has.
    whole = {
        (r["backend"], r["model"]): r["seconds"] / r["images"]
        for r in rows
        if r["name"] == "autoattack"
    }
    for row in rows:
        base = whole.get((row["backend"], row["model"]))
        ratio = f"{base * row['images'] / row['seconds']:.1f}" if base else "-"
        lines.append(
            f"| {row['backend']} | {row['model']} | {row['name']} | {row['images']} "
            f"| {100 * row['robust']:.1f} | {100 * row['first']:.1f} | {row['seconds']:.0f} "
            f"| {ratio} |"
        )
    return "\n".join(lines)


def write_page(rows: list[dict], path: Path) -> None:
    """The figures as a table in Markdown and as a picture of accuracy against time."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    backends = list(dict.fromkeys(row["backend"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = plt.subplots(
        len(backends), len(EPSILONS), figsize=(11, 3.2 * len(backends)), squeeze=False
    )
    seconds = [row["seconds"] / row["images"] for row in rows]
    marks = dict(zip(names, "osDv^PX", strict=False))
    for line, backend in zip(axes, backends, strict=True):
        for panel, (model, epsilon) in zip(line, EPSILONS.items(), strict=True):
            for row in rows:
                if (row["backend"], row["model"]) == (backend, model):
                    panel.scatter(
                        row["seconds"] / row["images"], 100 * row["first"],
                        marker=marks[row["name"]], s=60,
                        label=row["name"], alpha=0.85, color=f"C{names.index(row['name'])}",
                    )  # fmt: skip
            panel.set(xscale="log", title=f"{model}\n{backend}, epsilon {epsilon:g}")
            panel.set(xlim=(min(seconds) / 2, 2 * max(seconds)), xlabel="seconds an image, one run")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
        line[0].set_ylabel("robust accuracy in %")
    handles = {}
    for panel in axes.flat:
        handles.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0.08 / len(backends) + 0.04, 1, 1))
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    path.write_text(
        "<!-- Written by benchmarks/attacks.py; do not edit. -->\n\n"
        f"![Robust accuracy against time]({path.with_suffix('.svg').name})\n\n{table(rows)}\n\n"
        "Low is strong, left is fast. *Of the first* is the robust accuracy on the images that "
        "every evaluation was made\non, as in the figure. The last column is the time of "
        "AutoAttack whole, in its published order and budgets,\nover that of the row, for the "
        "same number of images.\n"
    )


def measure(options: dict) -> None:
    """Measure on this process's backend and print the rows as JSON."""
    import keras

    from keras_qusec import datasets

    data = datasets.load(options["data"])
    x, y = data.x_test[: options["images"]], data.y_test[: options["images"]]
    few, rows = options["few"] or len(x), []
    for name, epsilon in EPSILONS.items():
        model = _trained(name, data, Path(options["models"]), options["network"])
        model.get_config()  # the first one imports TensorFlow, on every backend
        for evaluation, run in EVALUATIONS.items():
            if options["only"] and evaluation not in options["only"]:
                continue
            count = few if evaluation in LONG else len(x)
            start = time.process_time()
            robust = run(model, x[:count], y[:count], epsilon)
            if robust is None:
                continue
            rows.append({
                "backend": keras.backend.backend(), "model": name, "epsilon": epsilon,
                "images": len(robust), "name": evaluation, "robust": float(robust.mean()),
                "first": float(robust[:few].mean()), "seconds": time.process_time() - start,
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows))


def _small(quantizer):
    import keras
    from keras import layers

    convolutions = [
        layers.Conv2D(filters, 4, strides=2, padding="same", activation="relu")
        for filters in (16, 32)
    ]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *([quantizer] if quantizer else []), *convolutions,
         layers.Flatten(), layers.Dense(100, activation="relu"), layers.Dense(10)]
    )  # fmt: skip


def _trained(name: str, data, folder: Path, network: str):
    """The model, trained the first time; the same weights serve all backends."""
    import keras

    from keras_qusec import AdversarialTraining, QuSecQuantization
    from keras_qusec.models import paper_cnn

    kind = "" if network == "paper" else f"{network}-"
    path = folder / f"{kind}{name.replace(', ', '-').replace(' ', '-')}.keras"
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    epochs = max(2, 24000 // len(data.x_train))
    quantizer = QuSecQuantization(2, hard=True) if "quantizer" in name else None
    model, callbacks = paper_cnn(quantizer, seed=0) if network == "paper" else _small(quantizer), []
    if name != "undefended":
        epsilon = EPSILONS[name]
        callbacks = [AdversarialTraining(
            "pgd", epsilon=epsilon, steps=5, step_size=epsilon / 3, ramp_epochs=epochs / 2,
            gradient_hardness=SURROGATE if quantizer else None,
        )]  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss)
    model.fit(
        data.x_train, data.y_train, batch_size=128, epochs=epochs, verbose=0, callbacks=callbacks
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return model


def _ours(attacks):
    def run(model, x, y, epsilon: float):
        from keras_qusec import evaluate_robustness

        report = evaluate_robustness(
            model, x, y, attacks=attacks, epsilons=[epsilon], progress=False,
            surrogate_hardnesses=(3.0, SURROGATE),
        )  # fmt: skip
        return report.robust_images()

    return run


def _autoattack(model, x, y, epsilon: float):
    """The published ensemble whole: through the surrogate gradient of a quantizer."""
    import numpy as np

    from keras_qusec.attacks import AttackedModel, Goal, get
    from keras_qusec.defenses import find_defenses

    attacked = AttackedModel(model)
    goal = Goal(y.astype("int64"))
    right = ~attacked.is_adversarial(x, goal)
    followed = attacked
    if find_defenses(model):
        followed = attacked.with_surrogates((SURROGATE,))[0]
    rows = np.flatnonzero(right)
    found = get("autoattack").run(followed, x[rows], goal.take(rows), epsilon=epsilon, seed=0)
    images = x.copy()
    images[rows] = found
    return _right(model, images, x, y, epsilon)


def _foolbox(model, x, y, epsilon: float):
    import foolbox
    import keras
    import numpy as np

    attack = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=2.5 / 40)
    if keras.backend.backend() == "torch":
        wrapped = foolbox.PyTorchModel(_Followed(model).module(), bounds=(0, 1))
    elif keras.backend.backend() == "tensorflow":
        wrapped = foolbox.TensorFlowModel(_Followed(model), bounds=(0, 1))
    else:
        return None
    images, labels = map(keras.ops.convert_to_tensor, (x, y.astype("int64")))
    _, found, _ = attack(wrapped, images, labels, epsilons=epsilon)
    return _right(model, np.array(keras.ops.convert_to_numpy(found)), x, y, epsilon)


def _art(model, x, y, epsilon: float):
    import keras
    import numpy as np

    if keras.backend.backend() != "torch":
        return None
    import torch
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        _Followed(model).module(), torch.nn.CrossEntropyLoss(), x.shape[1:], 10,
        clip_values=(0.0, 1.0), channels_first=False,
    )  # fmt: skip
    # Needs the package multiprocess, though it starts no processes.
    attack = AutoAttack(classifier, eps=epsilon, eps_step=epsilon / 4, batch_size=len(x))
    labels = np.eye(10, dtype="float32")[y]
    return _right(model, attack.generate(x, labels), x, y, epsilon)


class _Followed:
    """A model that others' code calls, with the surrogate gradient of its quantizer."""

    def __init__(self, model) -> None:
        self.model = model

    def __call__(self, images):
        from keras_qusec.defenses import surrogate_gradients

        with surrogate_gradients(self.model, SURROGATE):
            return self.model(images, training=False)

    def module(self):
        import torch

        followed = self

        class Module(torch.nn.Module):
            def forward(self, images):
                return followed(images)

        return Module().eval()


def _right(model, found, x, y, epsilon: float):
    """Which images are right when clean and with the perturbation, kept in bounds."""
    import numpy as np

    from keras_qusec.attacks import AttackedModel

    attacked = AttackedModel(model)
    images = np.clip(np.clip(found, x - epsilon, x + epsilon), 0, 1).astype("float32")
    return (attacked.predictions(images) == y) & (attacked.predictions(x) == y)


EVALUATIONS = {
    "quick": _ours("quick"),
    "standard": _ours("standard"),
    "Foolbox PGD-40": _foolbox,
    "autoattack": _autoattack,
    "ART AutoAttack": _art,
    "strong": _ours("strong"),
}
LONG = ("autoattack", "ART AutoAttack", "strong")


if __name__ == "__main__":
    main()
