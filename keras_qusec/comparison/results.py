"""What a comparison measured, and its table as text, Markdown and page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_qusec import files
from keras_qusec.norms import radius_text
from keras_qusec.report import RobustnessReport
from keras_qusec.report.page import folded, html_page, paragraph, table_html
from keras_qusec.report.tables import Table, as_markdown, as_text

# Heads of the columns of threat models; others have their names.
_HEADS = {"white-box": "white", "adaptive": "adapt.", "black-box": "black"}


class Measured(NamedTuple):
    """One defence: its evaluation, and what it costs.

    Attributes:
        name: name of the defence.
        settings: what it is, in a few words.
        report: its evaluation.
        training_seconds: time of all of its training.
        inference: time of `predict` for an image, as a multiple of the undefended network's.
        parameters: number of weights.
    """

    name: str
    settings: str
    report: RobustnessReport
    training_seconds: float
    inference: float
    parameters: int


class Comparison:
    """Defences side by side, made by `compare`.

    Attributes:
        measured: one for each defence, in the order asked for.
        provenance: what the comparison was made with.
    """

    def __init__(self, measured: Sequence[Measured], provenance: Mapping[str, Any]) -> None:
        self.measured = list(measured)
        self.provenance = dict(provenance)

    def tables(self) -> list[Table]:
        """One table an epsilon, accuracies in %."""
        tables = []
        norm, radii = next(iter(self.measured[0].report.epsilons.items()))
        for epsilon in radii:
            threats = [_HEADS.get(name, name) for name in self._threat_models()]
            proved = ["proved"] if self._proves else []
            columns = [
                "defence",
                "worst",
                "95 %",
                *proved,
                "clean",
                *threats,
                "train",
                "infer",
                "params",
            ]
            rows = [self._row(one, norm, epsilon) for one in self.measured]
            title = f"Accuracy in % at epsilon {radius_text(epsilon)} ({norm}), and cost"
            tables.append(Table(title, columns, rows, ()))
        return tables

    def _threat_models(self) -> tuple[str, ...]:
        """Under which all defences were attacked."""
        return self.measured[0].report.threat_models

    @property
    def _proves(self) -> bool:
        """Whether anything was proved of any defence."""
        return any(one.report.certificates for one in self.measured)

    def _row(self, one: Measured, norm: str, epsilon: float) -> list[str]:
        report = one.report
        shares = [report.clean_accuracy()]
        shares += [
            report.robust_accuracy(epsilon=epsilon, threat_model=name)
            for name in self._threat_models()
        ]
        case = report.worst_case(report.models[0], norm, epsilon)
        proved = report.certified_accuracy(epsilon, norm=norm)
        cells = ["-" if proved is None else f"{100 * proved:.1f}"] if self._proves else []
        return [
            one.name,
            f"{100 * case.robust_accuracy:.1f}",
            f"{100 * case.low:.0f}-{100 * case.high:.0f}",
            *cells,
            *(f"{100 * share:.1f}" for share in shares),
            f"{one.training_seconds:.0f}s",
            f"{one.inference:.1f}x",
            f"{one.parameters / 1000:.0f}k",
        ]

    def remarks(self) -> list[str]:
        """What the columns mean, and what was compared."""
        made = self.provenance
        identity = self.measured[0].report.provenance["identity"]
        attacks = "; ".join(identity["attacks"].values())
        versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
        settings = "; ".join(f"{one.name}: {one.settings}" for one in self.measured)
        proved = (
            "Proved is the share that no attack can break; - where no hard quantizer is in front, "
            "or a layer has no rule.",
        )
        return [
            "Worst is the accuracy under all attacks of all threat models: the figure to read. "
            "White-box alone is no evidence for a defence that masks gradients. A detector's "
            "rejected clean image is an error, and an adversarial example must be accepted.",
            *(proved if self._proves else ()),
            f"{identity['images']} of {made['test images']} test images of {made['data']}, each "
            f"class at its share; {made['epochs']} epochs on {made['training images']} images, "
            f"seed {made['seed']}, one training each; attacks: {attacks}. "
            "Black-box examples are made on an undefended network of another seed.",
            f"Settings: {settings}.",
            "95 %: interval of the worst case. Train: all training. Infer: time of an image in "
            "predict, in multiples of the undefended network's. Params: weights, in thousands.",
            f"Versions: {versions}; backend {identity['backend']}.",
        ]

    def notes(self) -> list[str]:
        """What stands on top of the evaluations, each once."""
        return list(dict.fromkeys(note for one in self.measured for note in one.report.notes))

    def __str__(self) -> str:
        return as_text(self.tables(), self.notes(), [], self.remarks())

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        return as_markdown(self.tables(), self.notes(), [], self.remarks())

    def report(self) -> RobustnessReport:
        """The evaluations of all defences as one report."""
        return RobustnessReport.joined([one.report for one in self.measured])

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one page: the tables, and then the evaluations in full.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        *others, answer = self.tables()
        first, *rest = self.remarks()
        parts = [table_html(answer), paragraph(first, "small")]
        if others:
            parts.append(folded("Smaller epsilons", list(map(table_html, others))))
        parts.append(folded("What was compared", [paragraph(one, "small") for one in rest]))
        page = html_page(self.report(), title="Defences compared", first=parts)
        return files.write_text(page, path)
