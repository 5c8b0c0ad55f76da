"""Where figures are measured: networks trained once, attacks made once, all of it kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qusec.comparison.compare import description_of, trained
from keras_qusec.comparison.contenders import Training
from keras_qusec.datasets import Dataset
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.progress import Progress
from keras_qusec.report import RobustnessReport
from keras_qusec.reproduction.results import Row
from keras_qusec.statistics import share_interval

# Images under the strong evaluation: it takes minutes for each hundred.
_STRONG = 100
# The paper's attack, and the worst case beside it.
FGSM = {"fgsm": "fgsm", "standard": "standard"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of a reproduction, and what is finished.

    Attributes:
        data: the data set.
        folder: where trained models and finished attacks are kept.
        seed: of training and attacks.
        quick: one epoch, few images and settings, no strong evaluation, to see that all runs.
        tell: told what is running.
        first: whether this is the first of several seeds, which alone is evaluated strongly.
        backends: of Keras that the networks used so far were trained with.
    """

    data: Dataset
    folder: str
    seed: int
    quick: bool
    tell: Progress
    first: bool = True
    backends: set[str] = dataclasses.field(default_factory=set)

    @property
    def epochs(self) -> int:
        """The paper trains 6 to 10."""
        return 1 if self.quick else 6

    @property
    def images(self) -> int:
        """Test images that are attacked."""
        return min(20 if self.quick else 1000, len(self.data.x_test))

    @property
    def epsilon(self) -> float:
        """The paper's: 0.3 for MNIST and 0.1 for CIFAR-10."""
        return 0.1 if self.data.is_colour else 0.3

    def test(
        self, images: int | None = None, *, spread: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Test images and their labels.

        Args:
            images: how many; default `Experiment.images`.
            spread: evenly over the test set, not the first ones.
        """
        count = images or self.images
        x, y = (_some(part, count, spread) for part in (self.data.x_test, self.data.y_test))
        return x, y

    def training(self, **settings: Any) -> Training:
        """What networks are trained with."""
        both = {"epsilon": self.epsilon, "epochs": self.epochs, "seed": self.seed, **settings}
        return Training(self.data, **both)

    def model(
        self, name: str, make: Callable[[Training], keras.Model], **settings: Any
    ) -> keras.Model:
        """A network trained now, or read from the folder.

        Args:
            name: file name, one for each way to make it.
            make: function of `Training`.
            **settings: of the training, such as `seed`.
        """
        self.tell(f"training {name}", None)
        training = self.training(**settings)
        folder = Path(self.folder) / f"seed-{training.seed}"
        training = training._replace(backup=str(folder / f"{name}-backup"))
        model, _ = trained(name, str(folder), training, make)
        self.backends.add(str(description_of(folder / f"{name}.json").get("backend", "unknown")))
        return model

    def log(self, name: str) -> dict[str, list[float]]:
        """What `fit` measured after each epoch of a network of `model`."""
        path = Path(self.folder) / f"seed-{self.seed}" / f"{name}.json"
        return dict(description_of(path)["log"])

    def attacked(
        self,
        name: str,
        model: keras.Model,
        attacks: Mapping[str, Any] = FGSM,
        *,
        epsilons: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        images: int | None = None,
        spread: bool = False,
        **settings: Any,
    ) -> RobustnessReport:
        """The report of some attacks, made now or read from the folder.

        Args:
            name: folder name, one for each set of attacks.
            model: the classifier.
            attacks: by name, as for `evaluate_robustness`; default FGSM and the standard
                evaluation.
            epsilons: default the paper's.
            images: default `Experiment.images`.
            spread: as in `test`.
            **settings: of `evaluate_robustness`.
        """
        x, y = self.test(images, spread=spread)
        report = evaluate_robustness(
            {name: model}, x, y, attacks=dict(attacks), epsilons=epsilons or [self.epsilon],
            seed=self.seed, batch_size=min(len(x), 1000),
            progress=lambda _, share: self.tell(f"attacking {name}", share),
            resume_dir=Path(self.folder) / f"seed-{self.seed}" / f"{name}-attacked", **settings,
        )  # fmt: skip
        if report.failures:
            raise RuntimeError(
                f"Expected all attacks on {name} to run, for one that does not looks like "
                f"robustness. Received: {report.failures}."
            )
        return report

    def strong(
        self,
        name: str,
        model: keras.Model,
        series: str,
        standard: RobustnessReport,
        *,
        epsilon: float | None = None,
        spread: bool = False,
    ) -> list[Row]:
        """The strong evaluation, and the worst case under it and the standard one; none if quick.

        Args:
            name: file of the network.
            model: the network.
            series: line of the figure.
            standard: the report of at least these images in the same order.
            epsilon: default the paper's.
            spread: whether the images are spread over those of the other report, not the first.
        """
        if self.quick:
            return []
        radius = self.epsilon if epsilon is None else epsilon
        strong = self.attacked(
            f"{name}-strong", model, {"strong": "strong"}, epsilons=[radius], images=_STRONG,
            spread=spread,
        )  # fmt: skip
        robust = {
            "standard": _some(standard.robust_images(epsilon=radius, norm="linf"), _STRONG, spread),
            "strong": strong.robust_images(epsilon=radius, norm="linf"),
        }
        worst = float((robust["standard"] & robust["strong"]).mean())
        images = f"{_STRONG} {'spread' if spread else 'first'} images"
        return [
            self.share(
                series, radius, f"{evaluation} evaluation, {images}", float(mask.mean()), _STRONG
            )._replace(worst=worst)
            for evaluation, mask in robust.items()
        ]

    def share(self, series: str, value: float, measure: str, share: float, images: int) -> Row:
        """A share of some images, with its interval."""
        low, high = share_interval(share, images)
        return Row(series, value, measure, share, images, self.seed, low, high)

    def number(self, series: str, value: float, measure: str, number: float) -> Row:
        """A number that is no share of images."""
        return Row(series, value, measure, number, self.images, self.seed)

    def row(
        self,
        report: RobustnessReport,
        series: str,
        attack: str,
        *,
        value: float | None = None,
        measure: str | None = None,
        threat_model: str = "white-box",
        paper: float | None = None,
        norm: str = "linf",
    ) -> Row:
        """The accuracy under an attack within epsilon, the worst case beside it.

        Args:
            report: of one model.
            series: line of the figure.
            attack: name of the attack.
            value: epsilon; default the paper's.
            measure: what it is; default the attack.
            threat_model: whose figure it is.
            paper: the paper's number in [0, 1].
            norm: of epsilon.
        """
        epsilon = self.epsilon if value is None else value
        found = _found(report, attack, threat_model, epsilon)
        return Row(
            series, epsilon, measure or attack, found.robust_accuracy, found.images, self.seed,
            found.low, found.high, paper, report.robust_accuracy(epsilon=epsilon, norm=norm),
        )  # fmt: skip

    def at_any_distance(
        self,
        report: RobustnessReport,
        series: str,
        attack: str,
        measure: str,
        threat_model: str = "white-box",
        paper: float | None = None,
    ) -> Row:
        """The accuracy under an attack that minimizes, however far its examples are.

        Without a worst case, which at any distance is 0 of every network.
        """
        share = report.robust_accuracy(attack, math.inf, threat_model)
        images = report.worst_case(report.models[0], report.main_norm, None).images
        return self.share(series, math.inf, measure, share, images)._replace(paper=paper)

    def worst_case(self, report: RobustnessReport, series: str, norm: str, radius: float) -> Row:
        """The worst case over all attacks within a radius."""
        found = report.worst_case(report.models[0], norm, radius)
        share = found.robust_accuracy
        return Row(
            series, radius, "worst case", share, found.images, self.seed, found.low, found.high
        )


def _some(rows: np.ndarray, count: int, spread: bool) -> np.ndarray:
    """The first rows, or as many spread evenly."""
    step = max(1, len(rows) // count) if spread else 1
    return rows[::step][:count]


def _found(report: RobustnessReport, attack: str, threat: str, epsilon: float) -> Any:
    """The row of a report for an attack under a threat model."""
    (row,) = [
        row for row in report.rows
        if (row.attack, row.threat_model, row.epsilon) == (attack, threat, epsilon)
    ]  # fmt: skip
    return row
