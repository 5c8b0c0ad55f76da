"""The demonstration: the paper's CNN with and without a quantizer, trained and attacked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import datasets
from keras_qusec.callbacks import AdversarialTraining
from keras_qusec.evaluation.bridge import foolbox_model, import_foolbox, to_tensor
from keras_qusec.layers import (
    QuSecQuantization,
    TrainableQuSecQuantization,
    find_quantizers,
    surrogate_gradients,
)
from keras_qusec.models import paper_cnn

EPSILON = 0.3
SEED = 0
# Gradient hardnesses of the adaptive attack; None is the quantizer's own, the white-box.
SURROGATES = (None, 3.0, 10.0)
COLUMNS = ("clean", "FGSM", "PGD", "PGD adaptive")

Progress = Callable[[str, float], None]


class Contender(NamedTuple):
    """A model of the demo, and the callback that trains it adversarially or None."""

    model: keras.Model
    training: AdversarialTraining | None = None


class Row(NamedTuple):
    """One model's accuracies in [0, 1], in the order of `COLUMNS`, and its pictures."""

    name: str
    accuracies: tuple[float, ...]
    model: keras.Model
    adversarial: np.ndarray
    # Accuracy under FGSM after each epoch, of the models trained on FGSM; else empty.
    curve: list[float]


class Result(NamedTuple):
    """What the demo measured."""

    rows: list[Row]
    data: datasets.Dataset
    images: np.ndarray
    labels: np.ndarray
    epochs: int
    steps: int
    seconds: float


def contenders(x: np.ndarray, y: np.ndarray) -> dict[str, Contender]:
    """The models that the demo compares, by the name shown in its table.

    Those trained on FGSM are the paper's Fig. 5; `x` and `y` are the images of its curve.
    """

    def fgsm() -> AdversarialTraining:
        return AdversarialTraining("fgsm", epsilon=EPSILON, ratio=0.5, validation_data=(x, y))

    # Against the adaptive attacker: through a softer quantizer's gradient.
    pgd = AdversarialTraining(
        "pgd", epsilon=EPSILON, steps=4, step_size=EPSILON / 2, gradient_hardness=10.0
    )
    return {
        "undefended": Contender(paper_cnn(seed=SEED)),
        "constant quantizer": Contender(paper_cnn(QuSecQuantization(2), seed=SEED)),
        "trainable quantizer": Contender(paper_cnn(TrainableQuSecQuantization(2), seed=SEED)),
        "FGSM training": Contender(paper_cnn(seed=SEED), fgsm()),
        "trainable + FGSM training": Contender(
            paper_cnn(TrainableQuSecQuantization(2), seed=SEED), fgsm()
        ),
        "constant + PGD training": Contender(paper_cnn(QuSecQuantization(2), seed=SEED), pgd),
    }


def run_demo(
    *,
    data: datasets.Dataset | None = None,
    epochs: int = 4,
    images: int = 200,
    steps: int = 40,
    progress: Progress = lambda text, done: None,
) -> Result:
    """Train the paper's CNN with and without quantizers and attacks, and attack each.

    FGSM and PGD are Foolbox's, L-infinity with epsilon 0.3, white-box. "PGD adaptive" is the
    worst case over both and over PGD with surrogate gradients of several hardnesses, each
    from a random start: an image counts as robust if it survives them all.

    Args:
        data: data set; default `datasets.mnist5k`.
        epochs: training epochs of each model.
        images: number of test images attacked.
        steps: PGD steps.
        progress: called with a text and the share done.

    Returns:
        `Result`.

    Raises:
        ValueError: for numbers below 1.
        ImportError: without the extras "evaluate" and "demo".
    """
    for name, value in {"epochs": epochs, "images": images, "steps": steps}.items():
        if value < 1:
            raise ValueError(
                f"Expected {name} to be 1 or more. Received: {name}={value}. "
                "Leave it out for the default."
            )
    start = time.monotonic()
    import_foolbox()
    data = datasets.mnist5k() if data is None else data
    keras.utils.set_random_seed(SEED)
    x, y = data.x_test[:images], data.y_test[:images]
    models = contenders(x, y)
    rows = []
    for index, (name, contender) in enumerate(models.items()):

        def report(text: str, share: float, index: int = index, name: str = name) -> None:
            progress(f"{name}: {text}", (index + share) / len(models))

        curve = _train(contender, data, epochs, lambda text, share: report(text, share / 2))
        row = _attack(
            name, contender.model, x, y, steps, lambda t, share: report(t, 0.5 + share / 2)
        )
        rows.append(row._replace(curve=curve))
    progress("done", 1.0)
    return Result(rows, data, x, y, epochs, steps, time.monotonic() - start)


def _train(
    contender: Contender, data: datasets.Dataset, epochs: int, progress: Progress
) -> list[float]:
    """Train a model; return its accuracy under FGSM by epoch, if it is trained on FGSM."""
    contender.model.compile(
        optimizer=keras.optimizers.Adam(0.001),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    steps = epochs * -(-len(data.x_train) // 128)
    seen = [0]

    def after_batch(*_: Any, **__: Any) -> None:
        seen[0] += 1
        progress("training", seen[0] / steps)

    clock = keras.callbacks.LambdaCallback(on_train_batch_end=after_batch)
    training = [] if contender.training is None else [contender.training]
    history = contender.model.fit(
        data.x_train,
        data.y_train,
        batch_size=128,
        epochs=epochs,
        verbose=0,
        callbacks=[*training, clock],
    )
    return list(history.history.get("val_adversarial_accuracy", []))


def _attack(
    name: str,
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    progress: Progress,
) -> Row:
    foolbox = import_foolbox()
    fgsm = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    pgd = foolbox.attacks.LinfProjectedGradientDescentAttack(steps=steps, rel_stepsize=2.5 / steps)
    clean = _correct(model, x, y)
    progress("FGSM", 0.0)
    fooled_fgsm = _adversarial(model, fgsm, x, y, None)
    # Surrogate gradients change nothing in a model without quantizers; it gets as many
    # random starts instead, so that all rows face as strong an attack.
    quantized = bool(find_quantizers(model))
    survived = clean
    worst = np.array(x)
    accuracies = []
    for index, hardness in enumerate(SURROGATES):
        label = "PGD" if hardness is None or not quantized else f"PGD, surrogate z={hardness:g}"
        progress(label, (index + 1) / (len(SURROGATES) + 1))
        keras.utils.set_random_seed(SEED + index)  # Foolbox's random starts
        fooled = _adversarial(model, pgd, x, y, hardness if quantized else None)
        still = survived & _correct(model, fooled, y)
        broken = survived & ~still
        worst[broken] = fooled[broken]
        survived = still
        accuracies.append(survived.mean())
    survived_fgsm = clean & _correct(model, fooled_fgsm, y)
    worst_case = survived & survived_fgsm
    # White-box is the first surrogate (None); adaptive is the worst case over all.
    figures = (clean.mean(), survived_fgsm.mean(), accuracies[0], worst_case.mean())
    return Row(name, tuple(float(figure) for figure in figures), model, worst, [])


def _adversarial(
    model: keras.Model, attack: Any, x: np.ndarray, y: np.ndarray, hardness: float | None
) -> np.ndarray:
    """An attack's images, put back inside the bounds and the L-infinity ball."""
    with surrogate_gradients(model, hardness):
        wrapped = foolbox_model(model)
        _, images, _ = attack(wrapped, to_tensor(x), to_tensor(y), epsilons=EPSILON)
    images = keras.ops.convert_to_numpy(images)
    return np.clip(np.clip(images, x - EPSILON, x + EPSILON), 0.0, 1.0).astype("float32")


def _correct(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(x, verbose=0).argmax(axis=1) == y)


def render(result: Result) -> str:
    """The demo's table and what its numbers mean, as text of at most 80 columns."""
    lines = [
        f"{'accuracy in %':<31}"
        + "".join(f"{column:>12}" for column in COLUMNS[:3])
        + f"{COLUMNS[3]:>13}",
        "-" * 80,
    ]
    for row in result.rows:
        cells = "".join(f"{100 * value:>12.1f}" for value in row.accuracies[:3])
        lines.append(f"{row.name:<31}{cells}{100 * row.accuracies[3]:>13.1f}")
    count = len(result.images)
    interval = 100 * 1.96 * np.sqrt(0.25 / count)
    lines += [
        "",
        f"{count} test images of {result.data.name}; 95 % interval at most +-{interval:.1f}.",
        f"Training: {result.epochs} epochs on {len(result.data.x_train)} images, seed {SEED}.",
        f"Attacks: Foolbox, L-infinity, epsilon {EPSILON}; PGD has {result.steps} steps and starts",
        "at random.",
        f"Keras {keras.version()} on {keras.backend.backend()}, {result.seconds:.0f} s.",
    ]
    return "\n".join(lines)


MEANING = """\
What the numbers mean
  Read the last column. FGSM and PGD see a quantizer's own gradient, nearly zero
  almost everywhere, so they overstate how robust it is. PGD adaptive replaces
  that gradient by softer ones and keeps the strongest attack on each image.
  Training on FGSM (the paper's Fig. 5) teaches a model FGSM, not robustness, as
  its last column shows. Training on PGD through softer gradients defends.
What they do not mean
  They are not a guarantee: a stronger attack can only lower them. They hold for
  this small training set, this network and this threat model, nothing else."""


def save_figure(result: Result, path: str | Path) -> Path:
    """Draw clean and adversarial images before and behind each quantizer, and its curve.

    Args:
        result: what `run_demo` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without the extra "evaluate".
    """
    from keras_qusec import plots

    defended = [row for row in result.rows if row.name.endswith("quantizer")]
    rows = [
        plots.QuantizerRow(
            row.name,
            find_quantizers(row.model)[0],
            result.images,
            row.adversarial,
            int(_example(row, result)),
        )
        for row in defended
    ]
    return plots.quantizer_figure(rows, path)


def save_curves(result: Result, path: str | Path) -> Path:
    """Draw the paper's Fig. 5: accuracy under FGSM by epoch of the models trained on FGSM.

    Args:
        result: what `run_demo` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without the extra "evaluate".
    """
    from keras_qusec import plots

    curves = {row.name: row.curve for row in result.rows if row.curve}
    return plots.epoch_curves(curves, "accuracy under FGSM, white-box", path)


def _example(row: Row, result: Result) -> int:
    """Index of the first image that the attack broke, else 0."""
    changed = np.abs(row.adversarial - result.images).max(axis=(1, 2, 3)) > 0
    return int(np.argmax(changed))
