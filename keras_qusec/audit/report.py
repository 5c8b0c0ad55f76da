"""AuditReport: the verdict, a line for each check, and one page with the evidence."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_qusec import files
from keras_qusec.audit import page, plots
from keras_qusec.audit.check import FAILED, NOT_RUN, Check, Finding
from keras_qusec.audit.evidence import Evidence
from keras_qusec.audit.registry import CHECKS
from keras_qusec.audit.summary import Summary, content_of, summary_from
from keras_qusec.norms import radius_text
from keras_qusec.plots import save
from keras_qusec.report import RobustnessReport
from keras_qusec.report.tables import WIDTH, Table, as_markdown, data_frame
from keras_qusec.statistics import share_interval

BELIEVABLE, OVERSTATED, MASKED, CONTRADICTED = (
    "believable", "overstated", "masked", "contradicted"
)  # fmt: skip
# The check that finds this package at fault, and not the model or the evaluation.
_CONTRADICTION = "proofs"
# Below this, with 95 % confidence, other attacks find no more than the judged one.
_TOLERANCE = 0.02
_FORMAT = "keras-qusec audit"
_EXPECTED = "an audit saved by AuditReport.save"
# With fewer images most limits cannot be passed.
_FEW = 30


class Cost(NamedTuple):
    """What a check took: images passed backward, images passed forward, seconds."""

    gradients: int
    queries: int
    seconds: float


class CheckResult(NamedTuple):
    """A check, what it found, and what it took, its attacks included.

    Attributes:
        check: the check, with its rule, explanation, source and remedy.
        finding: status, evidence, numbers and images.
        cost: attacks that several checks share count for each of them.
    """

    check: Check
    finding: Finding
    cost: Cost

    @property
    def identifier(self) -> str:
        """Identifier of the check."""
        return self.check.identifier

    @property
    def status(self) -> str:
        """``"passed"``, ``"FAILED"`` or ``"not run"``."""
        return self.finding.status


class AuditReport:
    """Whether a model's robustness is real, check by check. Made by `audit_robustness`.

    Args:
        summary: the numbers behind the verdict.
        results: of all checks, in their order.
        evidence: what the checks looked at, for pictures; None for an audit from a file.
    """

    def __init__(
        self, summary: Summary, results: Sequence[CheckResult], evidence: Evidence | None = None
    ) -> None:
        self._summary, self._evidence = summary, evidence
        self._results = tuple(results)

    @property
    def checks(self) -> tuple[CheckResult, ...]:
        """All checks, each with its finding and its cost."""
        return self._results

    @property
    def failed(self) -> tuple[str, ...]:
        """Identifiers of the checks that failed, in their order."""
        return tuple(r.identifier for r in self._results if r.status == FAILED)

    @property
    def evaluation(self) -> RobustnessReport | None:
        """What the judged attack and those of the checks found; None for a random model."""
        return self._summary.evaluation

    @property
    def notes(self) -> list[str]:
        """What a reader must know before the findings."""
        notes: list[str] = []
        if self.evaluation is not None:
            notes += [f"Judged evaluation: {n}" for n in self.evaluation.notes]
        count = self._summary.correct
        if count < _FEW:
            notes.append(
                f"Only {count} images are classified correctly, too few for checks that compare "
                "shares of them. Give 100 or more."
            )
        return notes

    @property
    def images(self) -> int:
        """Number of images."""
        return self._summary.images

    @property
    def epsilon(self) -> float:
        """The radius in L-infinity, in units of the pixel values."""
        return self._summary.epsilon

    @property
    def threat_models(self) -> tuple[str, ...]:
        """Names of the threat models under which the robustness was judged."""
        return self._summary.threat_models

    @property
    def judged_accuracy(self) -> float | None:
        """The robust accuracy that the judged attack leaves, in [0, 1]."""
        return self._summary.judged

    @property
    def worst_accuracy(self) -> float | None:
        """The robust accuracy that is left by everything that the audit tried, in [0, 1]."""
        return self._summary.worst

    @property
    def proved_accuracy(self) -> float | None:
        """The share of images that is proved, in [0, 1]; None if no proof was tried."""
        return self._summary.proved

    @property
    def overstated_by(self) -> tuple[float, float, float]:
        """By how much the judged accuracy is too high, in [0, 1], and its 95 % interval."""
        return self._summary.overstated

    @property
    def kind(self) -> str:
        """``"believable"``, ``"overstated"``, ``"masked"``, or, by a proof, ``"contradicted"``."""
        if _CONTRADICTION in self.failed:
            return CONTRADICTED
        by_kind = [r.check.shows_masking for r in self._results if r.status == FAILED]
        if any(by_kind):
            return MASKED
        return OVERSTATED if by_kind or self.overstated_by[1] > _TOLERANCE else BELIEVABLE

    @property
    def evidence(self) -> str:
        """How strong the evidence is: ``"quick"``, ``"standard"``, or ``"exact"``.

        Exact where all images that no attack broke are proved.
        """
        if self.proved_accuracy is not None and self.proved_accuracy == self.worst_accuracy:
            return "exact"
        return "standard" if self._summary.standard else "quick"

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        judged, worst = self.judged_accuracy, self.worst_accuracy
        if judged is None or worst is None:
            return (
                "gradients masked: do not trust gradient attacks on this model, whose outputs are "
                "random. Judge the mean of its draws: draws=20."
            )
        low, high = share_interval(worst, self.images)
        stand = (
            f"{100 * worst:.1f} % ({100 * low:.1f}-{100 * high:.1f}) of {self.images} images "
            f"stand within L-inf {radius_text(self.epsilon)}; evidence: {self.evidence}"
        )
        proved = self.proved_accuracy
        if proved is not None and self.evidence != "exact":
            stand += f", and {100 * proved:.1f} % are proved"
        if self.kind == CONTRADICTED:
            return (
                "keras-qusec failed: an attack broke an image that is proved, so trust neither "
                f"before this is reported and mended; {stand}"
            )
        if self.kind == BELIEVABLE:
            how = (
                "is exact"
                if self.evidence == "exact"
                else "can be believed as far as we can attack"
            )
            return f"{100 * worst:.1f} % robust: this figure {how}; {stand}"
        _, least, most = self.overstated_by
        more = f"the judged attack leaves {100 * judged:.1f} %, and at most {stand}"
        if self.kind == OVERSTATED:
            return (
                f"overstated by at least {100 * least:.1f} points (95 % interval to "
                f"{100 * most:.1f}), most of them found by {self._summary.most_found}: {more}"
            )
        return f"gradients masked: do not trust gradient attacks on this model; {more}"

    def __str__(self) -> str:
        judged = " and ".join(self.threat_models)
        blocks = [textwrap.fill(f"VERDICT: {self.verdict}", WIDTH)]
        judging = f"Judged: {judged}, PGD of 40 steps. {self._counts()}"
        blocks.append(textwrap.fill(judging, WIDTH))
        blocks += [textwrap.fill(f"NOTE: {note}", WIDTH) for note in self.notes]
        lines = []
        for result in self._results:
            if result.status == FAILED:
                lines += ["", *self._failed_lines(result)]
            else:
                words = f"{result.identifier}: {result.finding.evidence}"
                lines += _item(result.status, words)
        return "\n\n".join([*blocks, "\n".join(lines).lstrip("\n")])

    def _failed_lines(self, result: CheckResult) -> list[str]:
        check = result.check
        return [
            *_item(FAILED, f"{result.identifier}: {result.finding.evidence}"),
            *_item("", f"{check.rule}. {check.explanation}"),
            *_item("", f"What to do: {check.remedy}"),
            "",
        ]

    def _counts(self) -> str:
        status = [result.status for result in self._results]
        failed, skipped = status.count(FAILED), status.count(NOT_RUN)
        return f"{failed} of {len(status)} checks failed, {skipped} not run."

    def to_dict(self) -> dict[str, Any]:
        """Verdict, accuracies and all checks as JSON values."""
        return {
            "verdict": self.verdict,
            "kind": self.kind,
            "model": self._summary.model,
            "epsilon": self.epsilon,
            "images": self.images,
            "threat models": list(self.threat_models),
            "level": self._summary.level,
            "judged accuracy": self.judged_accuracy,
            "worst accuracy": self.worst_accuracy,
            "proved accuracy": self.proved_accuracy,
            "failed": list(self.failed),
            "notes": self.notes,
            "checks": [
                {
                    "identifier": result.identifier,
                    "status": result.status,
                    "evidence": result.finding.evidence,
                    "numbers": {
                        # JSON knows no infinity, which stands for nothing found.
                        name: float(value) if math.isfinite(value) else None
                        for name, value in result.finding.numbers.items()
                    },
                    "images": list(result.finding.images),
                    **result.cost._asdict(),
                }
                for result in self._results
            ],
        }

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one page: the verdict, the checks, pictures, and the whole evaluation.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        return files.write_text(page.html_page(self, self._evidence), path)

    def _repr_html_(self) -> str:
        """The verdict and the checks, as a notebook shows them."""
        return page.summary(self)

    def __repr__(self) -> str:
        return f"<AuditReport of {self._summary.model}: {self.kind}, {self.images} images>"

    def tables(self) -> list[Table]:
        """All checks with what they found and what they took."""
        return [page.checks_table(self)]

    def to_markdown(self) -> str:
        """Verdict, notes and checks in Markdown."""
        return as_markdown([], [f"**{self.verdict}.**", *self.notes], self.tables(), [])

    def to_pandas(self) -> Any:
        """A data frame with a row for each check.

        Raises:
            ImportError: without pandas.
        """
        rows = [
            {
                "check": result.identifier,
                "status": result.status,
                "evidence": result.finding.evidence,
                **result.cost._asdict(),
            }
            for result in self._results
        ]
        return data_frame(rows)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the audit as JSON, to be read again by `load`; readable without this package, too.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.
        """
        content = {"format": _FORMAT, "version": 1, **self.to_dict()}
        return files.write(content | {"summary": content_of(self._summary)}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> AuditReport:
        """Read an audit that was saved: all of it but the pictures, which need the model.

        Args:
            path: of the file.

        Raises:
            ValueError: for a file that is missing, or no audit.
        """
        content = files.read(path, _EXPECTED)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"Expected {_EXPECTED}. Received: {path}, another kind of content.")
        known = {check.identifier: check for check in CHECKS}
        try:
            results = [
                CheckResult(
                    known[one["identifier"]],
                    Finding(
                        one["status"],
                        one["evidence"],
                        _finite(one["numbers"]),
                        tuple(one["images"]),
                    ),
                    Cost(one["gradients"], one["queries"], one["seconds"]),
                )
                for one in content["checks"]
            ]
            return cls(summary_from(content["summary"]), results)
        except files.DAMAGED as error:
            raise ValueError(
                f"Expected {_EXPECTED}. Received: {path}, which is damaged or of another version "
                f"({error!r})."
            ) from error

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw loss surface, sizes of the gradient by image, and accuracy against attack budget.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
            ValueError: for an audit from a file, whose model is not there.
        """
        if self._evidence is None:
            raise ValueError(
                "Expected an audit of this session, whose model is at hand. Received: one from a "
                "file. Draw pictures where it is made."
            )
        return save(plots.audit_figure(self._evidence), path)


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Numbers from a file, where None stands for infinity."""
    return {name: math.inf if value is None else value for name, value in numbers.items()}


def _item(status: str, text: str) -> list[str]:
    """Lines of at most 80 columns with a status on their left."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{status:<8} ", subsequent_indent=" " * 9,
        break_on_hyphens=False,
    )  # fmt: skip
