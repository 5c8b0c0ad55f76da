"""An audit as one HTML page: the verdict on top of the evaluation's report."""

from __future__ import annotations

from typing import Any

from keras_qusec.audit import plots
from keras_qusec.audit.check import FAILED
from keras_qusec.audit.evidence import Evidence
from keras_qusec.norms import radius_text
from keras_qusec.report.page import (
    embedded_figure,
    folded,
    heading,
    html_document,
    markup,
    paragraph,
    report_body,
    table_html,
)
from keras_qusec.report.tables import Table

# A figure that can be believed may be a low one, so it is not green.
_COLOURS = {"believable": "neutral", "overstated": "warn"}
_HEADS = ["check", "result", "evidence", "grads", "queries", "s"]


def html_page(audit: Any, evidence: Evidence | None) -> str:
    """The page as text.

    Args:
        audit: the `AuditReport`.
        evidence: what its checks looked at; without it there are no pictures.
    """
    body = [
        heading("Is this robustness real?", level=1),
        _verdict(audit),
        paragraph(
            f"Judged under {' and '.join(audit.threat_models)}: PGD of 40 steps, epsilon "
            f"{radius_text(audit.epsilon)}, {audit.images} images."
        ),
        *(paragraph(note, "note") for note in audit.notes),
        table_html(checks_table(audit), style="checks"),
        *_explanations(audit),
    ]
    if audit.evaluation is not None:
        if evidence is not None:
            drawn = plots.audit_plots(evidence).items()
            body += [heading("Pictures")]
            body += [embedded_figure(figure, caption) for caption, figure in drawn]
        body += [heading("The evaluation"), report_body(audit.evaluation)]
    return html_document("Audit of robustness", body)


def summary(audit: Any) -> str:
    """The verdict and the checks alone, for a notebook."""
    return str(markup("").join([_verdict(audit), table_html(checks_table(audit))]))


def _verdict(audit: Any) -> Any:
    return paragraph(f"{audit.verdict}.", f"verdict {_COLOURS.get(audit.kind, 'bad')}")


def checks_table(audit: Any) -> Table:
    """A row for each check: what is in order, whether it passed, what was seen, what it took."""
    rows = [
        [
            result.check.title,
            result.status,
            result.finding.evidence,
            f"{result.cost.gradients}",
            f"{result.cost.queries}",
            f"{result.cost.seconds:.0f}",
        ]
        for result in audit.checks
    ]
    strong = tuple(i for i, result in enumerate(audit.checks) if result.status == FAILED)
    return Table("Checks", _HEADS, rows, strong)


def _explanations(audit: Any) -> list[Any]:
    """Rule, reason, source and remedy of each check, those that failed unfolded."""
    parts = [heading("What each check means")]
    for result in audit.checks:
        check = result.check
        lines = [
            f"{check.rule}.",
            check.explanation,
            f"What to do: {check.remedy}",
            f"Source: {check.source}.",
        ]
        if result.finding.images:
            shown = ", ".join(map(str, result.finding.images[:20]))
            more = "" if len(result.finding.images) <= 20 else ", ..."
            lines.append(f"Images of the data: {shown}{more}.")
        title = f"{check.title}: {result.status}"
        parts.append(folded(title, list(map(paragraph, lines)), is_open=result.status == FAILED))
    return parts
