"""What a reproduced figure says, as plain data: the paper's number, ours, and the worst case."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_qusec.report import files
from keras_qusec.report.tables import Table, markdown_table, text_table


class Row(NamedTuple):
    """One number of a figure.

    Attributes:
        series: a line or bar of the figure, such as the name of a defence.
        value: where on the figure's axis: an epsilon, an epoch, a hardness.
        measure: what the number is, such as the accuracy under an attack.
        ours: measured here; shares in [0, 1].
        low: lower end of the 95 % interval, or None where there is none.
        high: upper end.
        paper: the paper's number, or None where it gives none.
        worst: accuracy in the worst case over all attacks that were made, or None.
        images: number of images.
        seed: of training and attack.
    """

    series: str
    value: float
    measure: str
    ours: float
    low: float | None
    high: float | None
    paper: float | None
    worst: float | None
    images: int
    seed: int


class Reproduction(NamedTuple):
    """A figure of the paper, measured again.

    Attributes:
        figure: its name, such as ``"figure-7"``.
        title: what it shows.
        claim: what the paper concludes from it.
        axis: what `Row.value` is.
        rows: the numbers.
        made_with: data, epochs, evidence, versions.
    """

    figure: str
    title: str
    claim: str
    axis: str
    rows: Sequence[Row]
    made_with: Mapping[str, Any]

    def __str__(self) -> str:
        return text_table(self.table())

    def table(self) -> Table:
        """The numbers as a table; means over the seeds, and how far they spread."""
        cells, strong = [], []
        for rows in self.by_seed():
            first = rows[0]
            mean = sum(row.ours for row in rows) / len(rows)
            spread = max(row.ours for row in rows) - min(row.ours for row in rows)
            worst = [row.worst for row in rows if row.worst is not None]
            share = first.low is not None
            cells.append([
                first.series,
                "any" if math.isinf(first.value) else f"{first.value:g}",
                first.measure,
                "-" if first.paper is None else _number(first.paper, share),
                _number(mean, share) + (f" ±{_number(spread / 2, share)}" if len(rows) > 1 else ""),
                "-" if first.low is None or len(rows) > 1 else
                f"{100 * first.low:.0f}-{100 * (first.high or 0):.0f}",
                _number(sum(worst) / len(worst), True) if worst else "-",
            ])  # fmt: skip
            if first.paper is not None:
                strong.append(len(cells) - 1)
        columns = ["series", self.axis, "measure", "paper", "ours", "95 %", "worst"]
        return Table(f"{self.figure}: {self.title}", columns, cells, tuple(strong))

    def by_seed(self) -> list[list[Row]]:
        """The rows that differ in their seed only, together."""
        groups: dict[tuple[str, float, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.series, row.value, row.measure), []).append(row)
        return list(groups.values())

    def to_markdown(self) -> str:
        """Table, claim and settings in Markdown."""
        listed = "; ".join(f"{name}: {value}" for name, value in self.made_with.items())
        return f"{markdown_table(self.table())}\n\nThe paper: {self.claim}\n\n{listed}.\n"

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as JSON."""
        # JSON knows no infinity, which stands for any distance.
        rows = [[None if part == math.inf else part for part in row] for row in self.rows]
        content = {**self._asdict(), "rows": rows}
        return files.write({**content, "made_with": dict(self.made_with)}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Reproduction:
        """Read what `save` wrote.

        Raises:
            ValueError: for a file that is missing or of another kind.
        """
        content = files.read(path)
        if not isinstance(content, dict) or set(content) != set(cls._fields):
            raise ValueError(
                f"Expected a figure that was saved by Reproduction.save. Received: {path}."
            )
        return cls(**{**content, "rows": [_row(*row) for row in content["rows"]]})


def _row(series: str, value: float | None, *rest: Any) -> Row:
    return Row(series, math.inf if value is None else value, *rest)


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.3g}"
