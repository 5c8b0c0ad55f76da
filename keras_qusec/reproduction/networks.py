"""The networks of the paper's figures: the same CNN behind each defence, trained or not on FGSM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.comparison import contenders
from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.report import RobustnessReport
from keras_qusec.reproduction.experiment import FGSM, Experiment
from keras_qusec.results import Example

Make = Callable[[Training], keras.Model]


# The CNN alone, and with the activation of DQA.
undefended: Make = contenders.get("undefended").make
dqa: Make = contenders.get("dqa").make


def constant(levels: int) -> Make:
    """The CNN behind constant quantization, z = 50."""
    return lambda training: training.fitted(training.network(QuSecQuantization(levels)))


def trainable(levels: int = 2, hardness: float = 5.0) -> Make:
    """The CNN behind variable quantization, thresholds for each pixel."""

    def make(training: Training) -> keras.Model:
        layer = TrainableQuSecQuantization(levels, hardness=hardness)
        return training.fitted(training.network(layer))

    return make


def defended() -> dict[str, tuple[str, Make]]:
    """No defence, constant and variable quantization: by name, the file of the model and how."""
    return {
        "none": ("noquantization", undefended),
        "CQ": ("n2", constant(2)),
        "VQ": ("vq", trainable()),
    }


def on_fgsm(layer: Callable[[], Any] | None) -> Make:
    """The CNN behind a layer, trained on FGSM examples; its log has the accuracy by epoch."""

    def make(training: Training) -> keras.Model:
        made = None if layer is None else layer()
        test = training.data.x_test[:1000], training.data.y_test[:1000]
        callback = contenders.fgsm_callback(training, validation_data=test)
        return training.fitted(training.network(made), callback)

    return make


def trained_on_fgsm() -> dict[str, tuple[str, Make]]:
    """No defence, constant and variable quantization, trained on FGSM examples."""
    return {
        "none, FGSM training": ("fgsm-none", on_fgsm(None)),
        "CQ, FGSM training": ("fgsm-cq", on_fgsm(lambda: QuSecQuantization(2))),
        "VQ, FGSM training": ("fgsm-vq", on_fgsm(lambda: TrainableQuSecQuantization(2))),
    }


def of_the_paper() -> dict[str, tuple[str, Make]]:
    """The paper's own networks, plain and trained on FGSM examples."""
    return {**defended(), **trained_on_fgsm()}


# Defense-GAN would train for days on all of MNIST; it is compared on 4,000 images elsewhere.
_OTHERS = {
    "feature squeezing": "squeezing", "BReLU + GDA": "brelu-gda", "distillation": "distillation",
    "DQA": "dqa", "APE-GAN": "ape-gan", "thermometer": "thermometer",
}  # fmt: skip


def every_defense(experiment: Experiment) -> dict[str, tuple[str, Make]]:
    """The paper's networks and the other defences of the comparison; one of them if quick."""
    others = ["BReLU + GDA"] if experiment.quick else list(_OTHERS)
    return {
        **of_the_paper(),
        **{name: (f"other-{_OTHERS[name]}", contenders.get(_OTHERS[name]).make) for name in others},
    }


def trained_as(experiment: Experiment) -> dict[str, str]:
    """How the networks of `every_defence` are trained, for the reader."""
    others = {
        name: contenders.get(_OTHERS[name]).settings
        for name in every_defense(experiment)
        if name in _OTHERS
    }
    return {"epochs": f"{experiment.epochs} of each network", **others}


def input_gradients(model: keras.Model, experiment: Experiment) -> np.ndarray:
    """The gradients that attacks climb at the test images, ``(n, ...)``."""
    x, y = experiment.test()
    return AttackedModel(model).ascent(x, Goal(y))


def report(experiment: Experiment, name: str, make: Make) -> RobustnessReport:
    """FGSM and the standard evaluation of a network, white-box, adaptive and black-box.

    Args:
        experiment: that keeps it; figures share it.
        name: file of the network.
        make: how it is trained.
    """
    return experiment.attacked(
        name, experiment.model(name, make), threat_models=["white-box", "adaptive", "black-box"],
        source_model={"undefended": source(experiment)},
    )  # fmt: skip


def explained(
    experiment: Experiment, name: str, make: Make, *, share: float = 1.0
) -> RobustnessReport:
    """FGSM on the log-odds and on the cross-entropy, and the standard evaluation.

    Args:
        experiment: that keeps it.
        name: file of the network.
        make: how it is trained.
        share: of the paper's epsilon.
    """
    import foolbox

    attacks = {**FGSM, "cross-entropy": foolbox.attacks.FGSM()}
    return experiment.attacked(
        f"explained-{name}" if share == 1 else f"explained-{name}-{share:g}",
        experiment.model(name, make), attacks, epsilons=[share * experiment.epsilon],
        # Enough to tell 84 from 97 %.
        images=min(500, experiment.images),
    )  # fmt: skip


def closest(experiment: Experiment, name: str, make: Make) -> RobustnessReport:
    """The closest adversarial examples of a network in L2.

    Args:
        experiment: that keeps it.
        name: file of the network.
        make: how it is trained.
    """
    return experiment.attacked(
        f"{name}-closest", experiment.model(name, make), {"fmn-l2": "fmn-l2"},
        epsilons={"l2": [1.0]}, images=min(200, experiment.images),
    )  # fmt: skip


def shown(reports: Mapping[str, RobustnessReport]) -> list[Example]:
    """One adversarial example of each report that has any, of the same image where they can be.

    Args:
        reports: by what the network is called in the picture.
    """
    galleries = {name: report.gallery for name, report in reports.items() if report.gallery}
    numbers = Counter(
        number for gallery in galleries.values()
        for number in {example.number for example in gallery}
    )  # fmt: skip
    # The closest example of an image is shown.
    return [
        max(gallery, key=lambda one: (numbers[one.number], -one.distances["l2"]))._replace(
            model=name
        )
        for name, gallery in galleries.items()
    ]


def source(experiment: Experiment) -> keras.Model:
    """The network that black-box examples are made on: undefended, of another seed."""
    return experiment.model("source", undefended, seed=experiment.seed + 1000)
