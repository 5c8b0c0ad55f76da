"""Pages of the results in Markdown: each figure of a data set, and what becomes of the claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from keras_qusec.report.tables import Table, markdown_table
from keras_qusec.reproduction.claims import (
    FAILS,
    FLOOR,
    HOLDS,
    LITTLE,
    OPEN,
    POINTS,
    UNMEASURED,
    WEAK,
    judged,
)
from keras_qusec.reproduction.results import Reproduction, Row, image_interval


def claims_page(results: Mapping[str, Mapping[str, Reproduction]]) -> str:
    """The paper's claims, judged by the figures of each data set.

    Args:
        results: by data set, ``"MNIST"`` or ``"CIFAR-10"``, with words in brackets, the figures by
            name.
    """
    parts = [
        "# The paper's claims",
        f"What the numbers of the [figures](index.md) say. **{HOLDS}**: under the paper's attack "
        f"and, where it is about robustness, in the worst case over all attacks. **{WEAK}**: a "
        f"stronger attack undoes it. **{FAILS}**: not in our measurement, which follows the paper "
        f"as we read it. **{OPEN}**: the numbers do not tell. "
        f"**{UNMEASURED}**: says nothing for or against the claim.",
        "A claim about black-box attacks is held to the worst case, too: whoever can train a copy "
        "of a network can attack it white-box. The figures are of one training seed, but for "
        "`headline`; intervals are of images and not of seeds.",
        "CQ: constant quantization (`QuSecQuantization`); VQ: variable, that is trainable, "
        "quantization (`TrainableQuSecQuantization`); n: levels; z: hardness.",
        f"One share is above another if their 95 % intervals are apart (radii at which "
        f"{100 * FLOOR:.0f} % or less are left are not compared); a number comes out if it "
        f"is at most {100 * POINTS:.0f} points below the paper's; a gain below {100 * LITTLE:.0f} "
        "points is little; a distance is larger if it is so by a tenth; of a range of gains the "
        "lower end is judged, by the intervals of the gains; training halts if thresholds move "
        "less than half as far at the largest z as at any from 5 to 40; a rise from 0 % needs an "
        "undefended network that "
        f"keeps at most {100 * POINTS:.0f} %.",
    ]
    verdicts = (HOLDS, WEAK, FAILS, OPEN, UNMEASURED)
    for data, figures in results.items():
        table = judged(data.split(" (")[0], figures)
        counted = Counter(row[1] for row in table.rows)
        counts = ", ".join(f"{v}: {counted[v]}" for v in verdicts if counted[v])
        parts += [f"## {data}", f"{len(table.rows)} claims; {counts}.", _listed(data, table)]
    return "\n\n".join(parts) + "\n"


def figures_page(
    title: str, figures: Mapping[str, Reproduction], pictures: Mapping[str, Sequence[Path | str]]
) -> str:
    """Figures with their pictures, tables, and what they were made with.

    Args:
        title: of the page.
        figures: by heading.
        pictures: by heading, paths as the page links to them.
    """
    parts = [f"# {title}"]
    for heading, figure in figures.items():
        parts += [f"({_anchor(title, figure.figure)})=", f"## {heading}"]
        parts.append(f"The paper: {figure.claim}")
        parts += _numbers(heading, figure, pictures)
    return "\n\n".join(parts) + "\n"


def best_page(
    figures: Mapping[str, Reproduction], pictures: Mapping[str, Sequence[Path | str]]
) -> str:
    """The figure ``best`` of each data set, its answer first.

    Args:
        figures: by data set.
        pictures: by data set, paths as the page links to them.
    """
    parts = ["# The best honest model"]
    for data, figure in figures.items():
        parts += [f"## {data}", _best_sentence(figure), *_numbers(data, figure, pictures)]
    return "\n\n".join(parts) + "\n"


def _numbers(
    heading: str, figure: Reproduction, pictures: Mapping[str, Sequence[Path | str]]
) -> list[str]:
    """What is below a heading: pictures, table, and what it was made with."""
    drawn = [f"![{heading}]({path})" for path in pictures.get(heading, ())]
    return [*drawn, markdown_table(figure.table(), titled=False), f"*{figure.settings()}*"]


def _best_sentence(figure: Reproduction) -> str:
    """The robust accuracy of the best recipe, and of the others."""
    robust = [rows for rows in figure.by_seed() if rows[0].measure == "robust accuracy"]
    best = max(robust, key=_mean)
    first, rest = best[0], [rows for rows in robust if rows is not best]
    sentence = (
        f"**{first.series}**: at most {_robust(best)} of {first.images:,} test images are robust "
        f"at L-infinity {first.value:.3g} against the standard evaluation"
        f"{_clean(figure, first.series)}."
    )
    others = "; ".join(
        f"{rows[0].series}: {_robust(rows)}{_clean(figure, rows[0].series)}" for rows in rest
    )
    close = " and ".join(rows[0].series for rows in rest if _overlap(best, rows))
    parts = [sentence]
    if rest:
        parts.append(f"{others[0].upper()}{others[1:]}.")
    if close:
        parts.append(f"The intervals of {close} overlap with the best one's.")
    if rest:
        parts.append("Which is best was seen on these test images.")
    return " ".join(parts)


def _mean(rows: Sequence[Row]) -> float:
    return fmean(row.ours for row in rows)


def _robust(rows: Sequence[Row]) -> str:
    """A share with the interval of its images, and the range of the seeds if there are several."""
    low, high = (100 * (end or 0.0) for end in image_interval(rows))
    shares = [100 * row.ours for row in rows]
    seeds = f"; {len(rows)} seeds: {min(shares):.1f}-{max(shares):.1f}" if len(rows) > 1 else ""
    return f"{100 * _mean(rows):.1f} % ({low:.1f}-{high:.1f}{seeds})"


def _clean(figure: Reproduction, series: str) -> str:
    rows = [row for row in figure.rows if (row.series, row.measure) == (series, "clean")]
    return f", {100 * _mean(rows):.1f} % clean" if rows else ""


def _overlap(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether the intervals of two shares overlap."""
    (low, high), (other_low, other_high) = image_interval(one), image_interval(other)
    return (low or 0.0) <= (other_high or 0.0) and (other_low or 0.0) <= (high or 0.0)


def _anchor(title: str, figure: str) -> str:
    """Where a figure is: the data set, which the title begins with, and its name."""
    return f"{title.split()[0].lower()}-{figure}"


def _listed(data: str, table: Table) -> str:
    """A table of sentences, to be read from the left, with links to the figures."""
    lines = [table.columns, ["---"] * len(table.columns)]
    for claim, verdict, figure, reason in table.rows:
        link = f"[{figure}](#{_anchor(data, figure)})" if reason else figure
        lines.append([claim, f"**{verdict}**", link, reason])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
