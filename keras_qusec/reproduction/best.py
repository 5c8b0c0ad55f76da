"""The best honest model: PGD training of the paper's CNN, with and without a quantizer."""

from __future__ import annotations

from typing import Any

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import Make
from keras_qusec.reproduction.recipes import CIFAR10, MNIST, Recipe
from keras_qusec.reproduction.results import Row

_MNIST = (
    "published under AutoAttack at 0.3 are 96.34 % (WRN-28-10, Gowal et al. 2020) and 88.50 % "
    "(Madry et al. 2018); training on moved images was chosen among five recipes by 1,000 held-out "
    "training images"
)
_COLOUR = (
    "published under AutoAttack at 8/255, on the original images, are 73.71 % (WRN-94-16 with "
    "generated images, Bartoldson et al. 2024)"
)


class Best(Figure):
    """Robust accuracy at the radius of the field: 0.3 on MNIST, 8/255 on CIFAR-10."""

    name = "best"
    title = "adversarial training with and without quantization"
    claim = "nothing; it trains on FGSM only."
    evidence = "the standard evaluation"
    remarks = (
        "The strong evaluation, which contains AutoAttack, attacks the networks of the first seed "
        "on images spread evenly over the test set: it takes minutes for each hundred. The curves "
        "of training are of the first seed, too."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for recipe in recipes(experiment):
            images = experiment.images if experiment.quick else recipe.images
            images = min(images, len(experiment.data.x_test))
            model = experiment.model(recipe.name, making(recipe), **_settings(recipe, experiment))
            standard = experiment.attacked(
                recipe.name, model, {"standard": "standard"}, images=images, spread=True,
                epsilons=[recipe.epsilon],
            )  # fmt: skip
            rows.append(experiment.share(
                recipe.title, 0.0, "clean", standard.clean_accuracy(), images
            ))  # fmt: skip
            row = experiment.worst_case(standard, recipe.title, "linf", recipe.epsilon)
            rows.append(row._replace(measure="robust accuracy"))
            if experiment.first:
                rows += experiment.strong(
                    recipe.name, model, recipe.title, standard, epsilon=recipe.epsilon, spread=True
                )
        return rows

    def settings(self, experiment: Experiment) -> dict[str, Any]:
        listed = {recipe.title: recipe.settings() for recipe in recipes(experiment)}
        compare = _COLOUR if experiment.data.is_colour else _MNIST
        return {**listed, "to compare": compare}

    def logs(self, experiment: Experiment) -> dict[str, dict[str, list[float]]]:
        return {recipe.title: experiment.log(recipe.name) for recipe in recipes(experiment)}


def recipes(experiment: Experiment) -> tuple[Recipe, ...]:
    """The recipes for a data set; the last of them if quick."""
    listed = CIFAR10 if experiment.data.is_colour else MNIST
    return listed[-1:] if experiment.quick else listed


def making(recipe: Recipe) -> Make:
    """How a recipe's network is trained."""
    return lambda training: recipe.trained(training)


def _settings(recipe: Recipe, experiment: Experiment) -> dict[str, float]:
    epochs = 1 if experiment.quick else recipe.epochs
    return {"epsilon": recipe.epsilon, "epochs": epochs}
