"""Fig. 5: FGSM adversarial training by epoch, plain CNN against variable quantization."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import report, trained_on_fgsm
from keras_qusec.reproduction.results import Row


class Figure5(Figure):
    """Accuracy on FGSM examples after each epoch of training on them."""

    name = "figure-5"
    title = "accuracy on FGSM examples by epoch of adversarial training"
    claim = "variable quantization highly assists adversarial training."
    axis = "epoch"
    remarks = (
        "During training: the share of FGSM images with the right prediction. At the end, as in "
        "the other figures: the share of images that were right before FGSM and after it. Of ten "
        "classes 10 % are chance: on CIFAR-10, where epsilon is 0.1, six epochs hardly get beyond."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in trained_on_fgsm().items():
            attacked = report(experiment, name, make)
            images = min(1000, len(experiment.data.x_test))
            rows += [
                experiment.share(series, epoch, "accuracy on FGSM images", accuracy, images)
                for epoch, accuracy in enumerate(
                    experiment.log(name)["val_adversarial_accuracy"], start=1
                )
            ]
            clean = experiment.share(
                series, rows[-1].value, "clean", attacked.clean_accuracy(), experiment.images
            )
            last = experiment.row(attacked, series, "fgsm", measure="FGSM, white-box")
            rows += [clean, last._replace(value=clean.value)]
        return rows
