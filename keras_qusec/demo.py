"""The demonstration: the paper's CNN with and without a quantizer, trained and attacked."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import datasets, files, plots
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.certification import certify_robustness
from keras_qusec.checks import whole_number
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization, find_quantizers
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.models import paper_cnn
from keras_qusec.progress import Progress, share_of
from keras_qusec.report import RobustnessReport, page
from keras_qusec.report.tables import headline, text_table
from keras_qusec.training import AdversarialTraining

EPSILON = 0.3
EPSILONS = (0.1, 0.2, EPSILON)
# The model of which images are proved, within the smallest epsilon.
PROVED = "constant + PGD training"
# The models of the quick one.
_QUICK = ("undefended", "constant quantizer", PROVED)
# Small batches, for many steps in few epochs.
_BATCH = 32
# The share of the time that training takes.
_TRAINING = 0.3


class DemoModel(NamedTuple):
    """A model of the demo, and the callback that trains it adversarially or None."""

    model: keras.Model
    training: AdversarialTraining | None = None


class DemoResult(NamedTuple):
    """What the demo measured.

    Attributes:
        report: robust accuracies of all models.
        models: the trained models by name.
        curves: accuracy under FGSM by epoch, of the models trained on FGSM.
        images: the clean images attacked.
        text: how the models were trained, for the reader.
    """

    report: RobustnessReport
    models: dict[str, keras.Model]
    curves: dict[str, list[float]]
    images: np.ndarray
    text: str


def contenders(x: np.ndarray, y: np.ndarray, seed: int = 0) -> dict[str, DemoModel]:
    """The models that the demo compares, by the name shown in its table.

    Those trained on FGSM are the paper's Fig. 5; `x` and `y` are the images of its curve.
    """

    def fgsm() -> AdversarialTraining:
        # That it collapses is what the attacks on it show.
        return AdversarialTraining(
            "fgsm", epsilon=EPSILON, ratio=0.5, validation_data=(x, y), collapse=None
        )

    # Against the adaptive attacker: through a softer quantizer's gradient. Hard steps, so that
    # images can be proved.
    pgd = AdversarialTraining(
        "pgd", epsilon=EPSILON, steps=2, step_size=0.2, gradient_hardness=10.0
    )
    return {
        "undefended": DemoModel(paper_cnn(seed=seed)),
        "constant quantizer": DemoModel(paper_cnn(QuSecQuantization(2), seed=seed)),
        "trainable quantizer": DemoModel(paper_cnn(TrainableQuSecQuantization(2), seed=seed)),
        "FGSM training": DemoModel(paper_cnn(seed=seed), fgsm()),
        "trainable + FGSM training": DemoModel(
            paper_cnn(TrainableQuSecQuantization(2), seed=seed), fgsm()
        ),
        PROVED: DemoModel(paper_cnn(QuSecQuantization(2, hard=True), seed=seed), pgd),
    }


def run_demo(
    *,
    data: datasets.Dataset | None = None,
    epochs: int | None = None,
    images: int | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda text, done: None,
) -> DemoResult:
    """Train the paper's CNN with and without quantizers and attacks, and attack each.

    FGSM and the standard evaluation, L-infinity, against each model: white-box, adaptive, and
    transferred from the undefended one (`evaluate_robustness`).

    Args:
        data: data set; default `datasets.mnist5k`.
        epochs: training epochs of each model; default 2.
        images: number of test images attacked; default 60, or 20 for `quick`.
        quick: under a minute: three of the models, trained on 1,000 images, one threat model less.
        seed: of the weights, the samples and all that is random.
        progress: called with a text and the share done.

    Returns:
        `DemoResult`.

    Raises:
        ValueError: for numbers below 1.
        ImportError: without the extras "evaluate" and "demo".
    """
    epochs = 2 if epochs is None else epochs
    images = (20 if quick else 60) if images is None else images
    for name, value in {"epochs": epochs, "images": images}.items():
        whole_number(value, name, hint="Leave it out for the default.")
    began = time.monotonic()
    import_foolbox()
    data = datasets.mnist5k() if data is None else data
    keras.utils.set_random_seed(seed)
    x, y = data.sample(images, seed=seed)
    contestants = contenders(x, y, seed)
    if quick:
        contestants = {name: contestants[name] for name in _QUICK}
        few = datasets.stratified_sample(data.y_train, 1000, seed)
        data = data._replace(x_train=data.x_train[few], y_train=data.y_train[few])
    curves = {}
    # What training costs, in plain epochs; an attack step costs about as much as a plain one.
    costs = [
        1 + (0 if c.training is None else c.training.attack.steps) for c in contestants.values()
    ]
    for index, (name, contender) in enumerate(contestants.items()):
        start, end = (_TRAINING * sum(costs[:n]) / sum(costs) for n in (index, index + 1))

        def report(text: str, share: float | None, name: str = name) -> None:
            progress(f"{name}: {text}", share)

        curve = _train(contender, data, epochs, share_of(report, start, end))
        if curve:
            curves[name] = curve
    models = {name: contender.model for name, contender in contestants.items()}
    measured = evaluate_robustness(
        models,
        x,
        y,
        attacks=["fgsm", "standard"],
        epsilons=EPSILONS,
        threat_models=["white-box", "adaptive", *([] if quick else ["black-box"])],
        source_model=None if quick else {"undefended": models["undefended"]},
        seed=seed,
        progress=share_of(progress, _TRAINING, 0.95),
    )
    proof = certify_robustness(
        models[PROVED], x, y, epsilons=EPSILONS[:1], effort="bounds",
        progress=share_of(progress, 0.95, 1.0),
    )  # fmt: skip
    measured.add_certificates([c._replace(model=PROVED) for c in proof.certificates])
    text = (
        f"Training: {epochs} epoch{'' if epochs == 1 else 's'} on {len(data.x_train)} images of "
        f"{data.name}, seed {seed}; "
        f"{time.monotonic() - began:.0f} s in all."
    )
    return DemoResult(measured, models, curves, x, text)


def _train(
    contender: DemoModel, data: datasets.Dataset, epochs: int, progress: Progress
) -> list[float]:
    """Train a model; return its accuracy under FGSM by epoch, if it is trained on FGSM."""
    contender.model.compile(
        optimizer=keras.optimizers.Adam(0.001),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    steps = epochs * -(-len(data.x_train) // _BATCH)
    seen = [0]

    def after_batch(*_: Any, **__: Any) -> None:
        seen[0] += 1
        progress("training", seen[0] / steps)

    clock = keras.callbacks.LambdaCallback(on_train_batch_end=after_batch)
    training = [] if contender.training is None else [contender.training]
    history = contender.model.fit(
        data.x_train,
        data.y_train,
        batch_size=_BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[*training, clock],
    )
    return list(history.history.get("val_adversarial_accuracy", []))


def meaning(result: DemoResult) -> dict[str, str]:
    """What the numbers mean and what they do not, by heading."""
    trained_on_fgsm = (
        "Training on FGSM (the paper's Fig. 5) teaches a model FGSM, not robustness, as the rows "
        "of the standard evaluation show. "
    )
    return {
        "What the numbers mean": (
            "Read the first table. White-box attacks follow a quantizer's own gradient, nearly "
            "zero almost everywhere, and can overstate how robust it is. Adaptive attacks search "
            "the levels that each pixel can reach, replace the gradient by softer ones, and keep "
            "the strongest attack on each image. "
            + (trained_on_fgsm if result.curves else "")
            + "Training on PGD through softer gradients defends. Its steps are hard, so that "
            "images can be proved, here within 0.1: no attack can break those."
        ),
        "What they do not mean": (
            "Where nothing is proved they are no guarantee: a stronger attack can lower them. They "
            "hold for this small training set, this network and these threat models, nothing else."
        ),
    }


def summary(result: DemoResult) -> str:
    """The answer for a terminal: the table of the worst case, and what it means last."""
    tables = [text_table(table) for table in headline(result.report)]
    explained = [
        f"{title}\n{textwrap.fill(text, 78, initial_indent='  ', subsequent_indent='  ')}"
        for title, text in meaning(result).items()
    ]
    return "\n\n".join([*tables, result.text, "\n".join(explained)])


def save_page(result: DemoResult, path: str | Path) -> Path:
    """Write one page with all of it: report, training curves, quantizers, what it means.

    Args:
        result: what `run_demo` returned.
        path: file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without the extra "evaluate".
    """
    title = "The demonstration of keras-qusec"
    body = [
        page.heading(title, level=1),
        page.paragraph(result.text, "small"),
        page.report_body(result.report),
    ]
    for heading, text in meaning(result).items():
        body += [page.heading(heading), page.paragraph(text)]
    if result.curves:
        caption = f"{_CURVE_LABEL}, by epoch (the paper's Fig. 5)."
        body += [page.heading("Training"), page.embedded_figure(_curves(result), caption)]
    body += [
        page.heading("Quantizers"),
        page.embedded_figure(
            _quantizers(result),
            "Images before and behind each quantizer, and its curve.",
            wide=True,
        ),
    ]
    return files.write_text(page.html_document(title, body), path)


_CURVE_LABEL = "accuracy under FGSM in %, white-box"


def _curves(result: DemoResult) -> Any:
    return plots.epoch_curves(result.curves, _CURVE_LABEL)


def _quantizers(result: DemoResult) -> Any:
    rows = []
    for name in ("constant quantizer", "trainable quantizer"):
        if name not in result.models:
            continue
        broken = {
            index: image
            for measured in result.report.results
            if measured.model == name
            for index, image in measured.examples.items()
        }
        # Without a broken image, the first clean one.
        index = min(broken, default=0)
        pair = (result.images[index], broken.get(index, result.images[0]))
        rows.append(plots.QuantizerRow(name, find_quantizers(result.models[name])[0], *pair))
    return plots.quantizer_figure(rows)


def save_figure(result: DemoResult, path: str | Path) -> Path:
    """Draw clean and adversarial images before and behind each quantizer, and its curve.

    Args:
        result: what `run_demo` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without the extra "evaluate".
    """
    return plots.save(_quantizers(result), path)


def save_curves(result: DemoResult, path: str | Path) -> Path:
    """Draw the paper's Fig. 5: accuracy under FGSM by epoch of the models trained on FGSM.

    Args:
        result: what `run_demo` returned.
        path: image file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ImportError: without the extra "evaluate".
    """
    return plots.save(_curves(result), path)
