"""Why the paper's numbers of constant quantization are so high: explanations, one by one."""

from __future__ import annotations

import keras

from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import QuSecQuantization
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import (
    Make,
    constant,
    explained,
    report,
    trained_on_fgsm,
    undefended,
)
from keras_qusec.reproduction.results import Row

# (MNIST, CIFAR-10): Fig. 9, of an unknown number of levels, and Fig. 1, which has three as well.
_PAPER = (0.9751, 0.2466)
_THREE_LEVELS = (0.9751, 0.196)
_UNDEFENDED = (0.0148, 0.0887)


class Explanations(Figure):
    """FGSM accuracy of constant quantization, with one thing changed at a time."""

    name = "explanations"
    title = "constant quantization under FGSM, one thing changed at a time"
    claim = (
        "1.48 to 97.51 % on MNIST, by constant quantization, white-box; 8.87 to 24.66 % on "
        "CIFAR-10, by two levels, without saying which attack."
    )
    remarks = (
        "Cross-entropy: its gradient is exactly zero where float32 rounds the softmax to 1, and "
        "FGSM then changes nothing; FGSM of this package follows the log-odds, which do not. The "
        "authors' later code has n thresholds at k/n, the last at 1, divides by n - 1 and clips. "
        "Half of epsilon: as if images went from -1 to 1. In the column of the paper stands the "
        "number to be explained, which on CIFAR-10 may be black-box (figure-1)."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        colour = experiment.data.is_colour
        paper = _PAPER[colour]
        networks: dict[str, tuple[str, Make]] = {
            "as we read the paper": ("n2", constant(2)),
            "three levels": ("n3", constant(3)),
            "four levels": ("n4", constant(4)),
            "steps, not sigmoids": ("n2-hard", _hard),
            "authors' code, n = 2": ("authors-2", authors(2)),
            "authors' code, n = 3": ("authors-3", authors(3)),
            "ten epochs": ("n2-ten-epochs", _longer),
            "trained on Eq. 2": ("n2-equation-2", _brier),
            "trained on FGSM": trained_on_fgsm()["CQ, FGSM training"],
        }
        if experiment.quick:
            networks = {s: networks[s] for s in ("as we read the paper", "authors' code, n = 2")}
        rows = []
        for series, (name, make) in networks.items():
            attacked = explained(experiment, name, make)
            for attack, measure in (("fgsm", "log-odds"), ("cross-entropy", "cross-entropy")):
                rows.append(experiment.row(
                    attacked, series, attack, measure=f"FGSM on the {measure}",
                    paper=_THREE_LEVELS[colour] if series == "three levels" else paper,
                ))  # fmt: skip
        # Epsilon 0.3 for images from -1 to 1 is 0.15 for images from 0 to 1.
        half = [
            ("half of epsilon", networks["as we read the paper"], paper),
            ("half of epsilon, undefended", ("noquantization", undefended), _UNDEFENDED[colour]),
        ]
        for series, (name, make), number in half[: 1 if experiment.quick else 2]:
            rows.append(experiment.row(
                explained(experiment, name, make, share=0.5), series, "fgsm",
                value=experiment.epsilon / 2, measure="FGSM on the log-odds", paper=number,
            ))  # fmt: skip
        seen = report(experiment, *networks["as we read the paper"])
        rows.append(experiment.row(
            seen, "examples of an undefended CNN", "fgsm", measure="FGSM on the log-odds",
            threat_model="black-box", paper=paper,
        ))  # fmt: skip
        clean = experiment.share(
            "no attack at all", experiment.epsilon, "FGSM on the log-odds", seen.clean_accuracy(),
            experiment.images,
        )  # fmt: skip
        return [*rows, clean._replace(paper=paper)]


def authors(levels: int) -> Make:
    """The CNN behind the quantizer of the authors' later code: n thresholds, and a clip."""

    def make(training: Training) -> keras.Model:
        # The last is a hair inside the range, as the layer wants it.
        thresholds = [min(k / levels, 1 - 1e-6) for k in range(1, levels + 1)]
        # n thresholds give n + 1 levels, whose outputs the code divides by n - 1.
        layer = keras.Sequential([
            keras.Input(training.data.x_train.shape[1:]),
            QuSecQuantization(levels + 1, thresholds=thresholds),
            keras.layers.Rescaling(levels / (levels - 1)),
            keras.layers.ReLU(max_value=1.0),
        ])  # fmt: skip
        return training.fitted(training.network(layer))

    return make


def _hard(training: Training) -> keras.Model:
    return training.fitted(training.network(QuSecQuantization(2, hard=True)))


def _longer(training: Training) -> keras.Model:
    return constant(2)(training._replace(epochs=training.epochs * 10 // 6))


def _brier(training: Training) -> keras.Model:
    """Eq. 2: the squared error of probabilities; the softmax is taken off again to be attacked."""
    model = training.network(QuSecQuantization(2))
    keras.utils.set_random_seed(training.seed)
    softmax = keras.Sequential([model, keras.layers.Softmax()])
    softmax.compile(keras.optimizers.Adam(0.001), "mean_squared_error")
    y = keras.utils.to_categorical(training.data.y_train, model.output_shape[-1])
    softmax.fit(training.data.x_train, y, batch_size=128, epochs=training.epochs, verbose=0)
    return model
