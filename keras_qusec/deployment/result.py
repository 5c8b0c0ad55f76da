"""DeploymentCheck: what was found of a deployed model, as a sentence, a table and files."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_qusec import files
from keras_qusec.norms import radius_text
from keras_qusec.report import RobustnessReport
from keras_qusec.report.page import heading, html_document, paragraph, report_body, table_html
from keras_qusec.report.tables import WIDTH, Table, text_table
from keras_qusec.statistics import share_interval

Array = np.ndarray


class Levels(NamedTuple):
    """Levels of the 256 byte values behind a hard quantizer.

    Attributes:
        different: how many levels they have in the Keras model.
        changed: byte values that have another level in the deployed model.
    """

    different: int
    changed: tuple[int, ...]


class AtRadius(NamedTuple):
    """What is known of the deployed model within one radius.

    Attributes:
        epsilon: the radius.
        examples: verified adversarial examples of the Keras model.
        stay: how many of them the deployed model gets wrong, too.
        pushed_stay: how many, once pushed away from the steps of the quantizer; None without one.
        new: images that the Keras model gets right at a random corner of the ball and the deployed
            model wrong.
        classes_differ: random corners at which the two models differ in the class.
        corners: how many were tried.
        broken: which images are wrong or were broken in the deployed model, ``(n,)`` bool.
    """

    epsilon: float
    examples: int
    stay: int
    pushed_stay: int | None
    new: int
    classes_differ: int
    corners: int
    broken: Array


class DeploymentCheck:
    """Whether a deployed model is what was measured. Made by `check_deployment`.

    Args:
        keras_name: name of the Keras model.
        deployed_name: name of the deployed model.
        runtime: what runs it.
        keras_right: which clean images the Keras model gets right.
        deployed_right: which the deployed model does.
        classes_differ: clean images on which they differ in the class.
        logit_difference: largest difference of logits of each clean image.
        levels: of byte values, or None without a hard quantizer in front.
        radii: what is known within each radius.
        report: evaluation of the Keras model.
        asked: attacks that asked the deployed model.
    """

    def __init__(
        self,
        *,
        keras_name: str,
        deployed_name: str,
        runtime: str,
        keras_right: Array,
        deployed_right: Array,
        classes_differ: Array,
        logit_difference: Array,
        levels: Levels | None,
        radii: Sequence[AtRadius],
        report: RobustnessReport,
        asked: Sequence[Any],
    ) -> None:
        self.keras_name, self.deployed_name, self.runtime = keras_name, deployed_name, runtime
        self._keras_right, self._deployed_right = keras_right, deployed_right
        self._classes_differ, self._logit_difference = classes_differ, logit_difference
        self.levels, self.radii, self.report = levels, tuple(radii), report
        self._asked = tuple(asked)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._keras_right)

    @property
    def clean_accuracy(self) -> tuple[float, float]:
        """Of the Keras model and of the deployed one, in [0, 1]."""
        return float(self._keras_right.mean()), float(self._deployed_right.mean())

    @property
    def classes_differ(self) -> int:
        """Clean images of which the two models say different classes."""
        return int(self._classes_differ.sum())

    @property
    def largest_logit_difference(self) -> float:
        """Over the clean images; of the logarithms of probabilities where the model gives those."""
        return float(self._logit_difference.max())

    def robust_accuracy(self, epsilon: float) -> tuple[float, float]:
        """What attacks leave of the Keras model and of the deployed one within a radius, in [0, 1].

        Raises:
            ValueError: for a radius that was not asked for.
        """
        for one in self.radii:
            if math.isclose(one.epsilon, epsilon, rel_tol=1e-6):
                return (
                    self.report.robust_accuracy(epsilon=one.epsilon),
                    float((~one.broken).mean()),
                )
        known = ", ".join(radius_text(one.epsilon) for one in self.radii)
        raise ValueError(f"Expected one of the radii {known}. Received: {epsilon:g}.")

    @property
    def proofs_hold(self) -> bool | None:
        """Whether proofs of the Keras model are about the deployed one, as far as was measured.

        They are if no level changed, and the logits of clean images differ by far less than the
        margin for rounding that proofs allow. None if nothing was proved.
        """
        if not self.report.certificates:
            return None
        margin = min(certificate.margin for certificate in self.report.certificates)
        same = self.levels is None or not self.levels.changed
        # A gap between two logits may change by the differences of both; and the margin is that of
        # the image with the largest one.
        return same and 2 * self.largest_logit_difference <= 0.1 * margin

    @property
    def differences(self) -> list[str]:
        """Why the deployed model is not what was measured, in words; empty if it is."""
        reasons = []
        if self.levels is not None and self.levels.changed:
            bytes_ = self.levels.changed
            shown = ", ".join(map(str, bytes_[:5])) + (", ..." if len(bytes_) > 5 else "")
            reasons.append(f"{len(bytes_)} of 256 byte values have another level ({shown})")
        if self.classes_differ:
            reasons.append(f"{self.classes_differ} of {self.images} clean images change class")
        stopped = sum(one.examples - one.stay for one in self.radii)
        if stopped:
            total = sum(one.examples for one in self.radii)
            reasons.append(f"{stopped} of {total} adversarial examples stop")
        new = max((one.new for one in self.radii), default=0)
        if new:
            what = "image is" if new == 1 else "images are"
            reasons.append(f"{new} {what} wrong at random corners where Keras is right")
        return reasons

    @property
    def is_what_was_measured(self) -> bool:
        """Whether no difference was found in levels, classes and examples."""
        return not self.differences

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        if self.is_what_was_measured:
            corners = sum(one.corners for one in self.radii)
            differ = sum(one.classes_differ for one in self.radii)
            return (
                f"the deployed model is what was measured: same classes on {self.images} clean "
                f"images and at {corners - differ} of {corners} random corners of the balls"
            )
        return "not what was measured: " + "; ".join(self.differences)

    def tables(self) -> list[Table]:
        """Both models side by side."""
        count = self.images
        ours, theirs = (_share(share, count) for share in self.clean_accuracy)
        rows = [["clean accuracy", ours, theirs]]
        for one in self.radii:
            shares = self.robust_accuracy(one.epsilon)
            text = radius_text(one.epsilon)
            rows.append([f"robust at {text}, at most", *(_share(s, count) for s in shares)])
        examples = []
        for one in self.radii:
            pushed = "-" if one.pushed_stay is None else f"{one.pushed_stay}"
            examples.append(
                [radius_text(one.epsilon), f"{one.examples}", f"{one.stay}", pushed, f"{one.new}",
                 f"{one.classes_differ} of {one.corners}"]
            )  # fmt: skip
        return [
            Table(
                f"Accuracy in %, of {count} images, with 95 % interval",
                ["", "Keras", "deployed"], rows,
            ),
            Table(
                "Adversarial examples of the Keras model in the deployed one",
                ["epsilon", "examples", "stay", "pushed", "new", "corners differ"], examples,
            ),
        ]  # fmt: skip

    def remarks(self) -> list[str]:
        """What the numbers mean."""
        levels = "No hard quantizer is in front, or one with too many levels to tell."
        if self.levels is not None:
            levels = (
                f"Of 256 byte values {len(self.levels.changed)} have another level than the "
                f"{self.levels.different} in Keras."
            )
        proofs = {
            None: "Nothing was proved.",
            True: "Proofs hold as far as was measured: levels are equal and logits closer than "
            "the margin for rounding.",
            False: "Proofs of the Keras model say nothing about the deployed one, whose logits or "
            "levels differ by more than rounding.",
        }[self.proofs_hold]
        asked = ", ".join(str(a) for a in self._asked) or "nothing"
        return [
            f"Deployed: {self.deployed_name}, {self.runtime}. Logits differ by up to "
            f"{self.largest_logit_difference:.3g}, the median image by "
            f"{np.median(self._logit_difference):.3g}. {levels} {proofs}",
            "Stay: the deployed model gets the example wrong, too. Examples that stop are no gain: "
            "an adversary aims at the deployed model. Pushed: the same ones pushed away from the "
            "quantizer's steps, so that rounding does not undo them. New: right in Keras at a "
            f"random corner of the ball, wrong where deployed. The deployed model was asked by: "
            f"{asked}; gradients it has none, so its robust accuracy is an upper bound from fewer "
            "attacks than that of Keras.",
        ]

    def __str__(self) -> str:
        blocks = [textwrap.fill(f"VERDICT: {self.verdict}", WIDTH)]
        blocks += [text_table(table) for table in self.tables()]
        blocks += [textwrap.fill(remark, WIDTH) for remark in self.remarks()]
        return "\n\n".join(blocks)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        largest = self.largest_logit_difference
        return {
            "verdict": self.verdict,
            "is what was measured": self.is_what_was_measured,
            "differences": self.differences,
            "model": self.keras_name,
            "deployed": self.deployed_name,
            "runtime": self.runtime,
            "images": self.images,
            "clean accuracy": list(self.clean_accuracy),
            "classes that differ": self.classes_differ,
            "largest logit difference": largest if math.isfinite(largest) else None,
            "levels": None if self.levels is None else {
                "different": self.levels.different, "changed": list(self.levels.changed)
            },
            "proofs hold": self.proofs_hold,
            "radii": [
                {
                    "epsilon": one.epsilon,
                    "robust accuracy": list(self.robust_accuracy(one.epsilon)),
                    **{name: getattr(one, name) for name in (
                        "examples", "stay", "pushed_stay", "new", "classes_differ", "corners"
                    )},
                }
                for one in self.radii
            ],
        }  # fmt: skip

    def save(self, path: str | os.PathLike) -> Path:
        """Write `to_dict` as JSON."""
        return files.write(self.to_dict(), path)

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one page: the verdict, the tables, and the evaluation of the Keras model.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        kind = "robust" if self.is_what_was_measured else "masked"
        body = [
            heading("Is the deployed model what was measured?", level=1),
            paragraph(f"{self.verdict}.", f"verdict {kind}"),
            *(table_html(table) for table in self.tables()),
            *(paragraph(remark) for remark in self.remarks()),
            heading("The evaluation of the Keras model"),
            report_body(self.report),
        ]
        return files.write_text(html_document("Deployed model", body), path)


def _share(share: float, count: int) -> str:
    low, high = share_interval(share, count)
    return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"
