"""A report's tables, as plain text of at most 80 columns and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras_qusec.norms import radius_text, symbol
from keras_qusec.report.measurements import Measurement, Measurements
from keras_qusec.results import BROKEN, OPEN, PROVED

WIDTH = 80


class Table(NamedTuple):
    """A table of text; the first column is the label of its row.

    Attributes:
        title: what the figures are.
        columns: heads of the columns.
        rows: cells.
        strong: indices of the rows to be read first.
        spare: the last column may be left out where there is no room.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    strong: tuple[int, ...] = ()
    spare: bool = False


def headline(report: Measurements, *, by_worst_case: bool = False) -> list[Table]:
    """The worst case of each model, one table a norm; in the order given, or the best first."""
    tables = []
    for norm, radii in report.epsilons.items():
        rows = []
        for model in sorted_by_worst_case(report) if by_worst_case else report.models:
            if model not in report.attacked:
                clean = _percent(report.clean_accuracy(model))
                rows.append([model, clean, *["-"] * len(radii)])
                rows.append(["  not attacked", *[""] * (len(radii) + 1)])
                continue
            cases = [report.worst_case(model, norm, epsilon) for epsilon in radii]
            rows.append(
                [
                    model,
                    _percent(report.clean_accuracy(model)),
                    *(_percent(c.robust_accuracy) for c in cases),
                ]
            )
            rows.append(
                ["  95 % interval", "", *(f"{_percent(c.low)}-{_percent(c.high)}" for c in cases)]
            )
            proved = [report.certified_accuracy(e, norm=norm, model=model) for e in radii]
            if any(share is not None for share in proved):
                cells = ("-" if share is None else _percent(share) for share in proved)
                rows.append(["  proved", "", *cells])
        strong = tuple(i for i, row in enumerate(rows) if not row[0].startswith(" "))
        columns = ["model", "clean", *(radius_text(epsilon) for epsilon in radii)]
        evidence = evidence_in(report, norm)
        what = "at most" if evidence == "proof" else "worst case over all attacks"
        title = f"Robust accuracy in %, {what}, {symbol(norm)}; {evidence} evidence"
        tables.append(Table(title, columns, rows, strong))
    return tables


def details(report: Measurements, model: str) -> list[Table]:
    """Each attack on one model: within epsilon, and at any distance."""
    rows = [row for row in report.rows if row.model == model]
    if not rows:
        return []
    tables = []
    for norm, radii in report.epsilons.items():
        lines: dict[str, list[Measurement]] = {}
        for row in rows:
            if row.norm == norm and row.epsilon is not None:
                lines.setdefault(row.label, []).append(row)
        cells = [
            [label, *(_percent(row.robust_accuracy) for row in line), *_cost(line[-1])]
            for label, line in lines.items()
        ]
        columns = ["attack", *(radius_text(epsilon) for epsilon in radii), "grads", "queries", "s"]
        title = f"{model}: accuracy in % within {symbol(norm)} epsilon"
        tables.append(Table(title, columns, cells, (len(cells) - 1,)))
    any_distance = [row for row in rows if row.epsilon is None]
    if any_distance:
        sizes = [symbol(norm) for norm in report.measured_norms]
        columns = ["attack", "acc.", *sizes, "grads", "queries", "s"]
        cells = [
            [
                row.label,
                _percent(row.robust_accuracy),
                *(_size(row.median[norm]) for norm in report.measured_norms),
                *_cost(row),
            ]
            for row in any_distance
        ]
        title = f"{model}: accuracy in % at any distance, and median size of the perturbation"
        tables.append(Table(title, columns, cells, spare=True))
    return tables


def evidence_in(report: Measurements, norm: str) -> str:
    """The class of the evidence in a norm: *exact* where proofs and attacks meet everywhere."""
    brackets = [
        report.bracket(radius, norm=norm, model=model)
        for model in report.models
        for radius in report.epsilons[norm]
        if model in report.attacked
    ]
    exact = all(pair is not None and pair[0].share == pair[1].share for pair in brackets)
    return "exact" if brackets and exact else report.evidence


def proofs(report: Measurements, model: str) -> list[Table]:
    """What was proved of one model, and what the search of the proofs broke."""
    rows = []
    for certificate in report.certificates:
        if certificate.model != model:
            continue
        states = certificate.states
        counts = [f"{int((states == state).sum())}" for state in (PROVED, BROKEN, OPEN)]
        rows.append(
            [radius_text(certificate.epsilon), *counts, f"{certificate.margin:.2g}",
             f"{certificate.seconds.mean():.2g}"]
        )  # fmt: skip
    columns = ["epsilon", "proved", "broken", "open", "margin", "s/image"]
    return [Table(f"{model}: images by proofs, {symbol('linf')}", columns, rows)] if rows else []


def by_class(report: Measurements, model: str) -> list[Table]:
    """Accuracies by class at the largest radius, where the report has labels."""
    if model not in report.attacked or "labels" not in report.provenance:
        return []
    epsilon = report.epsilons[report.main_norm][-1]
    rows = [
        [one.name or f"{one.label}", f"{one.images}", _percent(one.clean), _percent(one.robust)]
        for one in report.by_class(model=model)
    ]
    where = f"{symbol(report.main_norm)} {radius_text(epsilon)}"
    columns = ["class", "images", "clean", "robust"]
    return [Table(f"{model}: accuracy in % by class, within {where}", columns, rows)]


def of_model(report: Measurements, model: str, *, verbose: bool = True) -> list[Table]:
    """All tables of one model.

    Args:
        report: the report.
        model: its name.
        verbose: with the accuracies by class.
    """
    parts = [*proofs(report, model), *details(report, model), *found_by_part(report, model)]
    return [*parts, *(by_class(report, model) if verbose else [])]


def found_by_part(report: Measurements, model: str) -> list[Table]:
    """For each ensemble what each of its attacks broke, of the images that it was made on."""
    tables = []
    for attack in report.attacks:
        results = [r for r in report.results if (r.model, r.attack) == (model, attack) and r.parts]
        if not results:
            continue
        radii = [radius for radius in results[0].radii if radius is not None]
        cells = [
            [
                f"{result.threat_model} {part.attack}" + (" (failed)" if part.failure else ""),
                *(f"{b}/{t}" for b, t in zip(part.broken, part.tried, strict=True)),
                *(f"{sum(cost) / len(report.correct[model]):.0f}"
                  for cost in (part.gradients, part.queries)),
                f"{sum(part.seconds):.0f}",
            ]
            for result in results
            for part in result.parts
        ]  # fmt: skip
        columns = ["attack", *(radius_text(epsilon) for epsilon in radii), "grads", "queries", "s"]
        title = f"{model}: images that each attack of {attack} broke, of those it was made on"
        tables.append(Table(title, columns, cells))
    return tables


def transfers(report: Measurements) -> list[Table]:
    """Which model's examples break which, if there are several to compare."""
    matrix = report.transfer_matrix()
    if len(matrix) < 2:
        return []
    rows = [
        [
            f"from {source}",
            *(_percent(line[model]) if model in line else "-" for model in report.models),
        ]
        for source, line in matrix.items()
    ]
    epsilon = f"{symbol(report.main_norm)} {radius_text(report.epsilons[report.main_norm][-1])}"
    title = f"Transfer, accuracy in % within {epsilon}: made on (row), tried on (column)"
    return [Table(title, ["source", *report.models], rows)]


def _parts(report: Measurements, *, verbose: bool) -> tuple[list[Table], list[Table]]:
    """The headline's tables, and all others."""
    each = [t for model in report.models for t in of_model(report, model, verbose=verbose)]
    return headline(report), [*each, *transfers(report)]


def sorted_by_worst_case(report: Measurements) -> list[str]:
    """The models, the most robust first at the largest radius of the main norm.

    Where several are equal there, at the next smaller one, and so on.
    """
    norm = report.main_norm

    def shares(model: str) -> list[float]:
        if model not in report.attacked:
            return [-1.0]
        radii = reversed(report.epsilons[norm])
        return [report.worst_case(model, norm, radius).robust_accuracy for radius in radii]

    return sorted(report.models, key=shares, reverse=True)


def sentence(report: Measurements, model: str) -> str | None:
    """What can be quoted of a model; None if nothing attacked it."""
    norm = report.main_norm
    radius = report.epsilons[norm][-1]
    if model not in report.attacked:
        return None
    worst = report.worst_case(model, norm, radius)
    if report.evidence == "proof":
        return _proved(report, model)
    text = (
        f"{100 * worst.robust_accuracy:.1f} % of {worst.images} images stand against every attack "
        f"tried at epsilon = {radius_text(radius)} ({symbol(norm)})"
    )
    if "white-box" in report.threat_models and len(report.threat_models) > 1:
        white = report.robust_accuracy(
            epsilon=radius, norm=norm, threat_model="white-box", model=model
        )
        text += f"; white-box alone would have said {100 * white:.1f} %"
    found = report.bracket(radius, norm=norm, model=model)
    if found is not None:
        low, high = (100 * share.share for share in found)
        between = f"exactly {low:.1f} %" if low == high else f"between {low:.1f} % and {high:.1f} %"
        text += f"; proofs and attacks together: {between} are robust"
    return f"{text}; evidence: {evidence_in(report, norm)}."


def _proved(report: Measurements, model: str) -> str:
    """The sentence on a model that was not attacked but by the search of the proofs."""
    radius = report.epsilons[report.main_norm][-1]
    states = [state.state for state in report.images(radius, model=model)]
    proved, open_ = (100 * states.count(state) / len(states) for state in (PROVED, OPEN))
    text = f"{proved:.1f} % of {len(states)} images are proved at epsilon = {radius_text(radius)}"
    text += f" ({symbol(report.main_norm)}), {open_:.1f} % are open"
    return f"{text}; no attack was made."


# Words of the report, for those who are new to the field.
GLOSSARY = (
    ("adversarial example", "an image changed on purpose, by at most epsilon, so that the model is "
     "wrong"),
    ("epsilon", "how far an image may be changed, in units of the pixel values: L-inf, each value "
     "by at most so much; L2, the length of the whole change; L0, the number of values"),
    ("robust accuracy", "share of the images that are classified correctly, and for which no "
     "attack found an adversarial example within epsilon"),
    ("worst case", "over all attacks and threat models; the figure that counts"),
    ("white-box", "the attacker knows the model and follows its own gradients"),
    ("adaptive", "the attacker also knows the defence: gradients through softer surrogates (BPDA), "
     "and attacks made for quantizers"),
    ("black-box", "the attacker does not see the model: examples made on another one"),
    ("proved", "no image within epsilon is misclassified, whatever attack may come; the rest up to "
     "the worst case is open"),
    ("95 % interval", "where the share on all images of this kind lies, if these are a sample "
     "(Wilson)"),
    ("gradient masking", "a model whose gradients lead attacks astray and that looks robust "
     "without being it"),
)  # fmt: skip

# What each class of evidence means, and what would make it stronger.
EVIDENCE = {
    "quick": 'Accuracy under AutoAttack is often some points lower; ask for attacks="standard".',
    "standard": 'In our measurements as low as AutoAttack; attacks="strong" contains it.',
    "proof": "Proofs, and the search that comes with them; ask for attacks as well if images are "
    "open.",
    "exact": "Proofs and attacks meet, so no attack can lower these figures.",
    "queries": "Outputs were asked for and nothing else. Who has the weights finds more.",
    "strong": "AutoAttack and every attack of this package that fits, on what was not broken.",
}


def remarks(report: Measurements, *, verbose: bool = True) -> list[str]:
    """What the figures mean, what was left out, and what they were made from.

    Args:
        report: the report.
        verbose: with the settings of all attacks and all versions.
    """
    identity = report.provenance["identity"]
    listed = identity["attacks"] | identity.get("joined attacks", {})
    attacks = "; ".join(f"{name}: {attack}" for name, attack in listed.items())
    versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
    evidence = evidence_in(report, report.main_norm)
    evidence_line = f"Evidence: {evidence}. {EVIDENCE[evidence]}"
    versions_line = f"Versions: {versions}; backend {identity['backend']}."
    rounding = (
        "Proved: no image within epsilon is misclassified. Broken: misclassified when clean, or by "
        "an adversarial example that the search found. Open: neither in the time given. Margin: "
        "how far the logits of the nearest two classes must be apart for the rounding of float32."
    )
    if report.evidence == "proof":
        return [
            evidence_line,
            rounding,
            f"{identity['images']} images (hash {identity['data']}), seed {identity['seed']}.",
            versions_line,
        ]
    made_of = [
        f"{identity['images']} images (hash {identity['data']}), seed {identity['seed']}, "
        f"{report.provenance['goal']}; surrogate hardnesses "
        f"{', '.join(f'{z:g}' for z in identity['surrogate hardnesses'])}.",
        *([f"Attacks: {attacks}."] if attacks else []),
        versions_line,
    ]
    if not verbose:
        few = ("keras-qusec", "keras", identity["backend"])
        shown = ", ".join(f"{n} {v}" for n, v in identity["versions"].items() if n in few)
        made_of = [
            f"{identity['images']} images, seed {identity['seed']}, {report.provenance['goal']}; "
            f"{shown}. Settings of the attacks: to_text(verbose=True), pages and files."
        ]
    return [
        evidence_line,
        *([rounding] if report.certificates else []),
        "Robust: classified correctly, and no attack found an adversarial example within epsilon. "
        "A stronger attack can only lower these figures. Adaptive is white-box and what surrogate "
        "gradients found beyond it. Gradients and queries are per image.",
        *made_of,
    ]


def plain_text(report: Measurements, *, verbose: bool = False) -> str:
    """The whole report as text of at most 80 columns.

    Args:
        report: the report.
        verbose: with the settings of all attacks and all versions, which pages and files have.
    """
    first, rest = _parts(report, verbose=verbose)
    return as_text(first, report.notes, rest, remarks(report, verbose=verbose))


def markdown(report: Measurements) -> str:
    """The whole report in Markdown."""
    first, rest = _parts(report, verbose=True)
    return as_markdown(first, report.notes, rest, remarks(report))


def as_text(
    first: Sequence[Table], notes: Sequence[str], rest: Sequence[Table], lines: Sequence[str]
) -> str:
    """Tables, what must be known before the others, these, and remarks, in 80 columns.

    Args:
        first: tables on top.
        notes: what a reader must know.
        rest: further tables.
        lines: remarks.
    """
    noted = "\n".join(textwrap.fill(f"NOTE: {note}", WIDTH) for note in notes)
    remarked = "\n".join(textwrap.fill(line, WIDTH) for line in lines)
    blocks = ["\n\n".join(map(text_table, part)) for part in (first, rest)]
    return "\n\n".join(block for block in (blocks[0], noted, blocks[1], remarked) if block)


def as_markdown(
    first: Sequence[Table], notes: Sequence[str], rest: Sequence[Table], lines: Sequence[str]
) -> str:
    """The same as `as_text` in Markdown."""
    noted = "\n".join(f"> {note}" for note in notes)
    remarked = "\n".join(f"- {line}" for line in lines)
    blocks = [*map(markdown_table, first), noted, *map(markdown_table, rest), remarked]
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(table: Table, *, titled: bool = True) -> str:
    """A table in Markdown, its names escaped; below its title, or below a heading of the page."""
    head = f"| {' | '.join(map(_escaped, table.columns))} |"
    rule = f"| --- |{' ---: |' * (len(table.columns) - 1)}"
    body = []
    for index, row in enumerate(table.rows):
        cells = [_escaped(cell) for cell in row]
        cells = [f"**{cell}**" if cell and index in table.strong else cell for cell in cells]
        body.append(f"| {' | '.join(cells)} |")
    title = [f"### {_escaped(table.title)}", ""] if titled else []
    return "\n".join([*title, head, rule, *body])


def _escaped(text: str) -> str:
    """Names of models are the user's, and may hold what Markdown or HTML takes for its own."""
    for mark in "\\`*_|<>[]$":
        text = text.replace(mark, f"\\{mark}")
    return one_line(text)


def one_line(text: str) -> str:
    """Text without line breaks; the spaces at its beginning stay."""
    return " ".join(text.splitlines())


def text_table(table: Table) -> str:
    """A table in text; columns that do not fit go below, with the labels again."""
    columns = [one_line(cell) for cell in table.columns]
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    table = table._replace(title=one_line(table.title), columns=columns, rows=rows)
    widths = [
        max(len(row[column]) for row in [table.columns, *table.rows]) + 2
        for column in range(len(table.columns))
    ]
    # Names of models are the user's and can be of any length.
    label = min(widths[0], WIDTH - max(widths[1:]), 40)
    groups: list[list[int]] = [[]]
    shown = list(range(1, len(table.columns)))
    if table.spare and label + sum(widths[1:]) > WIDTH:
        shown.pop()
    for column in shown:
        if groups[-1] and label + sum(widths[c] for c in groups[-1]) + widths[column] > WIDTH:
            groups.append([])
        groups[-1].append(column)
    lines = textwrap.wrap(table.title, WIDTH)
    for group in groups:
        size = label + sum(widths[column] for column in group)
        for index, row in enumerate([table.columns, *table.rows]):
            cells = "".join(f"{row[column]:>{widths[column]}}" for column in group)
            name = row[0] if len(row[0]) <= label else row[0][: label - 3] + ".. "
            lines.append(f"{name:<{label}}{cells}".rstrip())
            if index == 0:
                lines.append("-" * size)
    return "\n".join(lines)


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a data frame.

    Raises:
        ImportError: without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "A data frame needs pandas. Install it with: pip install pandas"
        ) from error
    return pandas.DataFrame(rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _size(size: float | None) -> str:
    return "-" if size is None else f"{size:.0f}" if size >= 1000 else f"{size:.3g}"


def _cost(row: Measurement) -> list[str]:
    return [f"{row.gradients:.0f}", f"{row.queries:.0f}", f"{row.seconds:.0f}"]
