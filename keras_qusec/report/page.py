"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from keras_qusec.plots import close
from keras_qusec.report import plots
from keras_qusec.report.figures import Figures
from keras_qusec.report.tables import Table, headline, of_model, remarks, transfers

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --strong: #c0392b; --muted: #777; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 60%; }
.caption { margin: 1.4rem 0 0.2rem; font-weight: 600; font-size: 0.95rem; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr.strong td { font-weight: 700; }
tr.below td { color: var(--muted); font-size: 0.85rem; padding-top: 0; }
tr:has(+ tr.below) td { border-bottom: none; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.figures figure { flex: 1 1 20rem; max-width: 30rem; margin: 0.5rem 0; }
.verdict { font-size: 1.15rem; font-weight: 600; border-left: 6px solid; padding: 0.5rem 0.9rem; }
.verdict.robust { border-color: #1e8449; }
.verdict.overstated { border-color: #b9770e; }
.verdict.masked { border-color: var(--strong); }
.checks :is(td, th):nth-child(3) { white-space: normal; text-align: left; min-width: 16rem; }
details { margin: 0.3rem 0; }
details p { margin: 0.2rem 0 0.2rem 1rem; }
.note { border-left: 4px solid var(--strong); padding: 0.4rem 0.8rem; margin: 0.8rem 0; }
figure { margin: 1rem 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; background: white; display: block; }
figcaption, .small { color: var(--muted); font-size: 0.85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 0.6rem; font-size: 15px; }
  th, td { padding: 0.2rem 0.35rem; font-size: 0.85rem; }
  th:first-child, td:first-child { min-width: 7rem; }
  tr.below td { white-space: normal; font-size: 0.75rem; }
}
"""


def html_page(
    report: Figures, *, first: Sequence[Table] = (), remarks_first: Sequence[str] = ()
) -> str:
    """The whole report as HTML, its figures inside.

    Args:
        report: what `evaluate_robustness` returned.
        first: tables above all others.
        remarks_first: what must be known to read them.

    Raises:
        ImportError: without matplotlib.
    """
    names = _names(report)
    body = [
        f"<h1>Robustness of {html.escape(names)}</h1>",
        *map(table_html, first),
        *(f'<p class="small">{html.escape(remark)}</p>' for remark in remarks_first),
        *report_body(report),
    ]
    return html_document(f"Robustness of {names}", body)


def report_body(report: Figures) -> list[str]:
    """The whole report as parts of a page."""
    return [
        *map(table_html, headline(report)),
        *(f'<p class="note">{html.escape(note)}</p>' for note in report.notes),
        "<h2>Accuracy against epsilon</h2>",
        '<div class="figures">',
        *(
            embedded_figure(
                plots.robustness_figure(report, [model]), f"{model}; grey: 95 % interval."
            )
            for model in report.attacked
        ),
        "</div>",
        "<h2>Each attack</h2>",
        *(table_html(table) for model in report.models for table in of_model(report, model)),
        *map(table_html, transfers(report)),
        *_gallery(report),
        "<h2>How this was measured</h2>",
        *(f'<p class="small">{html.escape(remark)}</p>' for remark in remarks(report)),
        _provenance(report),
    ]


def html_document(title: str, body: Sequence[str]) -> str:
    """A page of some parts, with its style inside."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def _names(report: Figures) -> str:
    few = len(report.models) <= 3
    return ", ".join(report.models) if few else f"{len(report.models)} models"


def table_html(table: Table, style: str = "") -> str:
    """A table that scrolls sideways where it has no room; `style` is a class."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.columns)
    rows = []
    for index, row in enumerate(table.rows):
        kind = ' class="strong"' if index in table.strong else ""
        if row[0].startswith(" "):  # a line that belongs to the one above
            kind = ' class="below"'
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        rows.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<p class="caption">{html.escape(table.title)}</p>'
        f'<div class="scroll"><table class="{style}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def embedded_figure(figure: Any, caption: str) -> str:
    """A figure inside the page, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    close(figure)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = html.escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{alt}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _gallery(report: Figures) -> list[str]:
    figure = plots.gallery_figure(report.gallery, report.value_range)
    if figure is None:
        return []
    caption = (
        "Images that the model classifies correctly when clean, and their adversarial examples. "
        "The difference is red where the image became brighter and blue where darker (in colour "
        "images, around grey)."
    )
    return ["<h2>Adversarial examples</h2>", embedded_figure(figure, caption)]


def _provenance(report: Figures) -> str:
    identity = report.provenance["identity"]
    rows = [
        *([f"model {name}", digest] for name, digest in identity["models"].items()),
        *([f"source {name}", digest] for name, digest in identity["sources"].items()),
        ["data", identity["data"]],
        ["Python", report.provenance["python"]],
        ["platform", report.provenance["platform"]],
    ]
    return table_html(Table("Hashes and platform", ["what", "value"], rows))
