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
from keras_qusec.results import BROKEN, PROVED
from keras_qusec.statistics import share_interval

Array = np.ndarray

# Logits that differ by less are equal but for the rounding of float32.
_ROUNDING = 1e-3


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
        classes_differ: random corners of the ball at which the two models differ in the class.
        corners: how many were tried.
        new: which images the deployed model gets wrong at an image within the radius that the
            Keras model gets right, ``(n,)`` bool.
        broken: which images are wrong or were broken in the deployed model, ``(n,)`` bool.
        keras_broken: which what broke the deployed model breaks in the Keras model, too.
    """

    epsilon: float
    examples: int
    stay: int
    pushed_stay: int | None
    classes_differ: int
    corners: int
    new: Array
    broken: Array
    keras_broken: Array


def states_of(report: RobustnessReport, epsilon: float) -> Array:
    """What a report says of each image within a radius: proved, broken or open, ``(n,)``."""
    return np.array([image.state for image in report.images(epsilon=epsilon)])


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

        What broke the deployed model and breaks the Keras model, too, counts against both.

        Raises:
            ValueError: for a radius that was not asked for.
        """
        for one in self.radii:
            if math.isclose(one.epsilon, epsilon, rel_tol=1e-6):
                stands = states_of(self.report, one.epsilon) != BROKEN
                return float((stands & ~one.keras_broken).mean()), float((~one.broken).mean())
        known = ", ".join(radius_text(one.epsilon) for one in self.radii)
        raise ValueError(f"Expected one of the radii {known}. Received: {epsilon:g}.")

    @property
    def proofs_hold(self) -> bool | None:
        """Whether proofs of the Keras model are about the deployed one, as far as was measured.

        They are if no difference was found, and the logits of clean images differ by far less
        than the margin for rounding that proofs allow. None if nothing was proved.
        """
        if not self.report.certificates:
            return None
        if self.differences:
            return False
        margin = min(certificate.margin for certificate in self.report.certificates)
        # A gap between two logits may change by the differences of both; and the margin is that of
        # the image with the largest one.
        return 2 * self.largest_logit_difference <= 0.1 * margin

    @property
    def differences(self) -> list[str]:
        """Why the deployed model is not what was measured, in words; empty if it is."""
        reasons = []
        if self.levels is not None and self.levels.changed:
            bytes_ = self.levels.changed
            reasons.append(
                f"{len(bytes_)} of 256 byte values have another level ({_listed(bytes_)})"
            )
        if self.classes_differ:
            reasons.append(f"{self.classes_differ} of {self.images} clean images change class")
        stopped = sum(one.examples - one.stay for one in self.radii)
        if stopped:
            total = sum(one.examples for one in self.radii)
            reasons.append(f"{stopped} of {total} adversarial examples stop")
        differ, corners = (
            sum(getattr(one, name) for one in self.radii) for name in ("classes_differ", "corners")
        )
        if differ:
            reasons.append(f"{differ} of {corners} random corners of the balls change class")
        shown = [one.new for one in self.radii]
        new = np.flatnonzero(np.any(shown, axis=0)).tolist() if shown else []
        if len(new):
            what = "image is" if len(new) == 1 else "images are"
            reasons.append(f"{len(new)} {what} broken where Keras is right (number {_listed(new)})")
        proved = self.proved_and_broken
        if len(proved):
            what = "is one" if len(proved) == 1 else f"are {len(proved)}"
            reasons.append(f"among them {what} that was proved in Keras ({_listed(proved)})")
        return reasons

    @property
    def proved_and_broken(self) -> list[int]:
        """Numbers of the images that are proved in Keras and broken in the deployed model."""
        found = np.zeros(self.images, bool)
        for one in self.radii if self.report.certificates else ():
            found |= one.broken & (states_of(self.report, one.epsilon) == PROVED)
        return np.flatnonzero(found).tolist()

    @property
    def has_same_numbers(self) -> bool:
        """Whether logits are equal but for the rounding of float32."""
        return self.largest_logit_difference <= _ROUNDING

    @property
    def is_what_was_measured(self) -> bool:
        """Whether no difference was found in levels, classes and examples."""
        return not self.differences

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        if self.is_what_was_measured:
            corners = sum(one.corners for one in self.radii)
            other = ""
            if not self.has_same_numbers:
                largest = self.largest_logit_difference
                other = f", with other numbers (logits differ by up to {largest:.2g})"
            return (
                f"the deployed model is what was measured: same classes on {self.images} clean "
                f"images, at {corners} random corners of the balls and for all examples{other}"
            )
        return "the deployed model is not what was measured: " + "; ".join(self.differences)

    def tables(self) -> list[Table]:
        """Both models side by side."""
        count = self.images
        ours, theirs = (_share(share, count) for share in self.clean_accuracy)
        rows = [["clean accuracy", ours, theirs]]
        for one in self.radii:
            shares = self.robust_accuracy(one.epsilon)
            text = radius_text(one.epsilon)
            rows.append([f"robust at {text}, at most", *(_share(s, count) for s in shares)])
            for certificate in self.report.certificates:
                if math.isclose(certificate.epsilon, one.epsilon, rel_tol=1e-6):
                    proved = float((certificate.states == PROVED).mean())
                    held = _share(proved, count) if self.proofs_hold else "-"
                    rows.append([f"proved at {text}", _share(proved, count), held])
        examples = []
        for one in self.radii:
            pushed = "-" if one.pushed_stay is None else f"{one.pushed_stay}"
            examples.append(
                [radius_text(one.epsilon), f"{one.examples}", f"{one.stay}", pushed,
                 f"{int(one.new.sum())}",
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
            True: "Proofs hold as far as was measured: no difference was found, and logits are "
            "closer than the margin for rounding.",
            False: "Proofs of the Keras model say nothing about the deployed one, which differs by "
            "more than rounding.",
        }[self.proofs_hold]
        asked = ", ".join(str(a) for a in self._asked) or "nothing"
        return [
            f"Deployed: {self.deployed_name}, {self.runtime}. Logits differ by up to "
            f"{self.largest_logit_difference:.3g}, the median image by "
            f"{np.median(self._logit_difference):.3g}. {levels} {proofs}",
            "Stay: the deployed model gets the example wrong, too. Examples that stop are no gain: "
            "an adversary aims at the deployed model. Pushed: the same ones pushed away from the "
            "quantizer's steps, so that rounding does not undo them. New: images broken where "
            "deployed by one that Keras gets right. What broke the deployed model counts against "
            "the Keras model, too, where it breaks that. The deployed model was asked by: "
            f"{asked}. It has no gradients, so its robust accuracy is an upper bound from fewer "
            "attacks.",
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
                "count": self.levels.different, "changed bytes": list(self.levels.changed)
            },
            "proofs hold": self.proofs_hold,
            "proved and broken": self.proved_and_broken,
            "same numbers": self.has_same_numbers,
            "identity": self.report.provenance["identity"],
            "asked": [str(attack) for attack in self._asked],
            "radii": [
                {
                    "epsilon": one.epsilon,
                    "robust accuracy": list(self.robust_accuracy(one.epsilon)),
                    "examples": one.examples,
                    "stay": one.stay,
                    "pushed stay": one.pushed_stay,
                    "new": np.flatnonzero(one.new).tolist(),
                    "corners": one.corners,
                    "corners that differ": one.classes_differ,
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
        colour = "good" if self.is_what_was_measured else "bad"
        body = [
            heading("Is the deployed model what was measured?", level=1),
            paragraph(f"{self.verdict[0].upper()}{self.verdict[1:]}.", f"verdict {colour}"),
            *(table_html(table) for table in self.tables()),
            *(paragraph(remark) for remark in self.remarks()),
            heading("The evaluation of the Keras model"),
            report_body(self.report),
        ]
        return files.write_text(html_document("Deployed model", body), path)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _share(share: float, count: int) -> str:
    low, high = share_interval(share, count)
    return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"
