"""What a reproduced figure says, as plain data: the paper's number, ours, and the worst case."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from keras_qusec import files
from keras_qusec.report.tables import Table, markdown_table, text_table
from keras_qusec.results import Example, content_of_example, example_of
from keras_qusec.statistics import share_interval


class Row(NamedTuple):
    """One number of a figure.

    Attributes:
        series: a line or bar of the figure, such as the name of a defence.
        value: where on the figure's axis: an epsilon, an epoch, a hardness.
        measure: what the number is, such as the accuracy under an attack.
        ours: measured here; shares in [0, 1].
        images: number of images.
        seed: of training and attack.
        low: lower end of the 95 % interval, or None where there is none.
        high: upper end.
        paper: the paper's number, or None where it gives none.
        worst: accuracy of the same images in the worst case over all attacks, or None.
    """

    series: str
    value: float
    measure: str
    ours: float
    images: int
    seed: int
    low: float | None = None
    high: float | None = None
    paper: float | None = None
    worst: float | None = None


class Reproduction(NamedTuple):
    """A figure of the paper, measured again.

    Attributes:
        figure: its name, such as ``"figure-7"``.
        title: what it shows.
        claim: what the paper concludes from it.
        axis: what `Row.value` is.
        rows: the numbers.
        made_with: data, epochs, evidence, versions.
        gallery: adversarial examples to be shown.
        logs: of training, by series and quantity: one number an epoch.
    """

    figure: str
    title: str
    claim: str
    axis: str
    rows: Sequence[Row]
    made_with: Mapping[str, Any]
    gallery: Sequence[Example] = ()
    logs: Mapping[str, Mapping[str, Sequence[float]]] = {}

    def __str__(self) -> str:
        return text_table(self.table())

    def table(self) -> Table:
        """The numbers as a table; means over the seeds, and how far they spread."""
        cells: list[list[str]] = []
        bold: list[int] = []
        counts = len({row.images for row in self.rows}) > 1
        for rows in self.by_seed():
            first = rows[0]
            mean = fmean(row.ours for row in rows)
            spread = max(row.ours for row in rows) - min(row.ours for row in rows)
            share = first.low is not None
            low, high = image_interval(rows)
            cells.append([
                first.series,
                "any" if math.isinf(first.value) else f"{first.value:.3g}",
                first.measure,
                "-" if first.paper is None else _number(first.paper, share),
                _number(mean, share) + (f" ±{_number(spread / 2, share)}" if len(rows) > 1 else ""),
                "-" if low is None or high is None else
                f"{100 * low:.0f}{' to ' if low < 0 else '-'}{100 * high:.0f}",
                _mean_share([row.worst for row in rows]),
                str(first.images) if counts else "-",
            ])  # fmt: skip
            if first.paper is not None:
                bold.append(len(cells) - 1)
        columns = ["series", self.axis, "measure", "paper", "ours", "95 %", "worst", "images"]
        # Only what at least one row has.
        shown = [place for place in range(len(columns))
                 if place < 3 or any(row[place] != "-" for row in cells)]  # fmt: skip
        cells = [[row[place] for place in shown] for row in cells]
        columns = [columns[place] for place in shown]
        return Table(f"{self.figure}: {self.title}", columns, cells, tuple(bold))

    def by_seed(self) -> list[list[Row]]:
        """The rows that differ in their seed only, together."""
        groups: dict[tuple[str, float, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.series, row.value, row.measure), []).append(row)
        return list(groups.values())

    def to_markdown(self) -> str:
        """Table, claim and settings in Markdown."""
        table = markdown_table(self.table())
        return f"{table}\n\nThe paper: {self.claim}\n\n{self.settings()}\n"

    def settings(self) -> str:
        """What it was made with, in one line."""
        listed = [f"{name}: {value}" for name, value in self.made_with.items()]
        return f"{'; '.join(listed).rstrip('.')}."

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as JSON."""
        # JSON knows no infinity, which stands for any distance.
        rows = [[None if part == math.inf else part for part in row] for row in self.rows]
        content = {**self._asdict(), "rows": rows}
        gallery = [content_of_example(example) for example in self.gallery]
        return files.write({**content, "made_with": dict(self.made_with), "gallery": gallery}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Reproduction:
        """Read what `save` wrote.

        Raises:
            ValueError: for a file that is missing or of another kind.
        """
        content = files.read(path, "a figure that was saved by Reproduction.save")
        if not isinstance(content, dict) or set(content) != set(cls._fields):
            raise ValueError(
                f"Expected a figure that was saved by Reproduction.save. Received: {path}."
            )
        rows = [_row(*row) for row in content["rows"]]
        gallery = tuple(example_of(example) for example in content["gallery"])
        return cls(**{**content, "rows": rows, "gallery": gallery})


def _row(series: str, value: float | None, *rest: Any) -> Row:
    return Row(series, math.inf if value is None else value, *rest)


def image_interval(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """The 95 % interval of a share of images, of seeds that share them; without ends for others."""
    first = rows[0]
    # A share of something else has ends that are equal.
    if first.low is None or first.low == first.high:
        return None, None
    if len(rows) == 1:
        return first.low, first.high
    return share_interval(fmean(row.ours for row in rows), first.images)


def _mean_share(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return _number(fmean(known), True) if known else "-"


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.3g}"
