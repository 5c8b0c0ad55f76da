"""RobustnessReport: the figures of an evaluation, and ways to read and keep them."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec import files
from keras_qusec.checks import one_of
from keras_qusec.report import page, plots, tables
from keras_qusec.report.file_format import EXPECTED, content_of, parts_of
from keras_qusec.report.measurements import Measurements
from keras_qusec.results import ImageState

# Parts of the provenance that differ with the models.
_OF_MODELS = ("models", "sources", "joined attacks")


class RobustnessReport(Measurements):
    """Robust accuracies of classifiers, worst case first.

    Made by `evaluate_robustness`; all figures are computed from the distance of each image's
    adversarial example, so any question can be asked afterwards. Its arguments are those of
    `Measurements`.
    """

    def __str__(self) -> str:
        return tables.plain_text(self)

    def __repr__(self) -> str:
        count = next(len(rows) for rows in self.correct.values())
        names = ", ".join(self.models)
        return f"<RobustnessReport of {names}: {count} images, {self.evidence} evidence>"

    def to_text(self, *, verbose: bool = False) -> str:
        """The report as text of at most 80 columns, as `print` shows it.

        Args:
            verbose: with the settings of all attacks, hashes and versions.
        """
        return tables.plain_text(self, verbose=verbose)

    def _repr_html_(self) -> str:
        """The answer as a notebook shows it: sentence, chart and table of the worst case."""
        return page.summary(self)

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        return tables.markdown(self)

    def to_pandas(self) -> Any:
        """The rows as a data frame.

        Raises:
            ImportError: without pandas.
        """
        return tables.data_frame([row.as_dict() for row in self.rows])

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw accuracy against epsilon: one panel a model, one line an attack.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        return plots.robustness_curves(self, path)

    def plot_gallery(self, path: str | os.PathLike) -> Path:
        """Draw broken images: clean, adversarial, difference, both behind the defence.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
            ValueError: if no image was broken.
        """
        return plots.adversarial_gallery(self.gallery, path, self.value_range)

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one page with all of it, which needs no other file and no network.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib or jinja2.
        """
        return files.write_text(page.html_page(self), path)

    def save_examples(self, path: str | os.PathLike) -> Path:
        """Write the kept adversarial examples, all that were verified at any distance.

        An ``.npz`` file with the arrays of `Examples`, such as ``images`` and ``numbers``; with
        several models or norms each name begins with those, as in ``"model l2 images"``.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ValueError: for a report that kept none.
        """
        kept = [(name, norm) for name, by_norm in self.kept.items() for norm in by_norm]
        if not kept:
            raise ValueError(
                "Expected a report that kept its adversarial examples. Received: one without. "
                "Evaluate again with keep_examples=True."
            )
        arrays: dict[str, Any] = {
            (f"{name} {norm} {part}" if len(kept) > 1 else part): values
            for name, norm in kept
            for part, values in self.kept[name][norm]._asdict().items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return files.write_bytes(buffer.getvalue(), path)

    def save_images(self, path: str | os.PathLike) -> Path:
        """Write what is known of each image as a table, in CSV.

        A row for each model, norm, radius and image: its number, name, label, the name of its
        class, `state` (proved, broken, open), and of a broken one distance, attack, threat model
        and source; see `images`.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.
        """
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["model", "norm", "epsilon", *ImageState._fields])
        for model in self.models:
            if model not in self.attacked:
                continue
            for norm, radii in self.epsilons.items():
                for epsilon in radii:
                    for state in self.images(epsilon, norm=norm, model=model):
                        far = f"{state.distance:.7g}" if math.isfinite(state.distance) else ""
                        row = state._asdict() | {"distance": far}
                        table.writerow([model, norm, f"{epsilon:.9g}", *row.values()])
        return files.write_text(text.getvalue(), path)

    @classmethod
    def joined(cls, reports: Sequence[RobustnessReport]) -> RobustnessReport:
        """Reports of other models on the same images with the same attacks, as one.

        Args:
            reports: at least one.

        Raises:
            ValueError: for reports that differ in more than their models, or share a name.
        """
        first = reports[0]
        identity = {
            name: value
            for name, value in first.provenance["identity"].items()
            if name not in _OF_MODELS
        }
        named = [name for report in reports for name in report.models]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(
                f"Expected reports of models of other names. Received: {', '.join(twice)} more "
                "than once. Name them with renamed."
            )
        for report in reports[1:]:
            other = report.provenance["identity"]
            differ = [key for key in identity if other.get(key) != identity[key]]
            if differ:
                raise ValueError(
                    "Expected reports of the same images, with the same attacks and settings. "
                    f"Received: {', '.join(first.models)} and {', '.join(report.models)}, which "
                    f"differ in {_differences(identity, other, differ)}. Evaluate them together."
                )
        for part in _OF_MODELS:
            both = [report.provenance["identity"].get(part, {}) for report in reports]
            identity[part] = {name: value for one in both for name, value in one.items()}
        return cls(
            correct={name: rows for report in reports for name, rows in report.correct.items()},
            results=[result for report in reports for result in report.results],
            epsilons=first.epsilons,
            norms={name: norm for report in reports for name, norm in report.norms.items()},
            provenance={**first.provenance, "identity": identity},
            failures=[failure for report in reports for failure in report.failures],
            notes=[note for report in reports for note in report.notes],
            gallery=[example for report in reports for example in report.gallery],
            certificates=[proof for report in reports for proof in report.certificates],
            examples={name: kept for report in reports for name, kept in report.kept.items()},
        )

    def renamed(self, names: Mapping[str, str]) -> RobustnessReport:
        """The same report with other names of its models.

        Args:
            names: new names by old ones; the others stay.

        Raises:
            ValueError: for a model that is not there, or a name that is given twice.
        """
        for name in names:
            one_of(name, "a name to replace", self.models)
        new = {name: names.get(name, name) for name in self.models}
        if len(set(new.values())) < len(new):
            raise ValueError(f"Expected each name once. Received: {', '.join(new.values())}.")

        def moved(by_model: Mapping[str, Any]) -> dict[str, Any]:
            return {new.get(name, name): value for name, value in by_model.items()}

        def with_name(one: Any) -> Any:
            return one._replace(model=new.get(one.model, one.model))

        identity = self.provenance["identity"]
        identity = {**identity, "models": moved(identity["models"])}
        return type(self)(
            correct=moved(self.correct),
            results=[with_name(result) for result in self.results],
            epsilons=self.epsilons,
            norms=self.norms,
            provenance={**self.provenance, "identity": identity},
            failures=self.failures,
            notes=self.notes,
            gallery=[with_name(example) for example in self.gallery],
            certificates=[with_name(one) for one in self.certificates],
            examples=moved(self.kept),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of the report as JSON values; arrays are compressed text.

        ``["rows"]`` repeats the figures for readers without this package.
        """
        return content_of(self)

    @classmethod
    def from_dict(cls, content: Any) -> RobustnessReport:
        """A report from what `to_dict` returned.

        Raises:
            ValueError: for anything else.
        """
        return cls(**parts_of(content))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, to be read again by `load`.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.
        """
        return files.write(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> RobustnessReport:
        """Read a report written by `save`.

        Raises:
            ValueError: for a file that is missing, damaged or of another kind.
        """
        return cls.from_dict(files.read(path, EXPECTED))


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What differs between the settings of two reports, in words."""

    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 60 else f"{text[:57]}..."

    said = [f"{key} ({short(first.get(key))} and {short(other.get(key))})" for key in keys]
    return "; ".join(said)
