"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from keras_qusec.norms import distances_text, radius_text, symbol
from keras_qusec.plots import embedded, pyplot
from keras_qusec.report import plots
from keras_qusec.report.measurements import Measurements
from keras_qusec.report.tables import (
    EVIDENCE,
    GLOSSARY,
    Table,
    evidence_in,
    headline,
    of_model,
    remarks,
    sentence,
    sorted_by_worst_case,
    transfers,
)
from keras_qusec.results import Example


@cache
def _templates() -> Any:
    """The templates of this folder; what is put into them is escaped."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            'Pages need jinja2. Install it with: pip install "keras-qusec[evaluate]"'
        ) from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("keras_qusec.report"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def markup(html: str) -> Any:
    """HTML that is put into a page as it is."""
    from markupsafe import Markup

    return Markup(html)


def rendered(template: str, **values: Any) -> Any:
    """A part of a page, as HTML.

    Args:
        template: file of the folder of templates.
        **values: what it shows; text is escaped.
    """
    return markup(_templates().get_template(template).render(**values))


def paragraph(text: str, style: str = "") -> Any:
    """Text as a paragraph of a class."""
    return markup('<p class="{}">{}</p>').format(style, text)


def heading(text: str, level: int = 2) -> Any:
    """Text as a heading."""
    return markup(f"<h{level}>{{}}</h{level}>").format(text)


def html_document(title: str, body: Sequence[Any]) -> str:
    """A page of some parts, with its style inside.

    Args:
        title: of the page.
        body: parts; text that is not marked as HTML is escaped.
    """
    return str(rendered("page.html", title=title, body=body)) + "\n"


def table_html(table: Table, style: str = "") -> Any:
    """A table that scrolls sideways where it has no room; `style` is a class."""
    return rendered("table.html", table=table, style=style)


def embedded_figure(figure: Any, caption: str, *, wide: bool = False) -> Any:
    """As `embedded`, marked as safe for the template."""
    return markup(embedded(figure, caption, wide=wide))


def html_page(report: Measurements, *, title: str = "", first: Sequence[Any] = ()) -> str:
    """The whole report as HTML, its figures inside.

    Args:
        report: what `evaluate_robustness` returned.
        title: of the page; default with the names of the models.
        first: parts of the page above all others.

    Raises:
        ImportError: without matplotlib or jinja2.
    """
    few = len(report.models) <= 3
    names = ", ".join(report.models) if few else f"{len(report.models)} models"
    title = title or f"Robustness of {names}"
    return html_document(title, [heading(title, level=1), *first, report_body(report)])


def folded(title: str, parts: Sequence[Any], *, is_open: bool = False) -> Any:
    """Parts of a page that a click unfolds, or folds if they are open."""
    inside, opened = markup("").join(parts), markup(" open" if is_open else "")
    return markup("<details{}><summary>{}</summary>{}</details>").format(opened, title, inside)


def summary(report: Measurements) -> str:
    """The answer alone, for a notebook: sentence, chart and table of the worst case.

    Raises:
        ImportError: without matplotlib or jinja2.
    """
    best = sorted_by_worst_case(report)[0]
    quote = _sentence(report, best)
    return str(
        markup("").join(
            [
                markup("<p>{}</p>").format(quote) if quote else "",
                _chart(report),
                *(table_html(table) for table in headline(report, by_worst_case=True)),
            ]
        )
    )


def report_body(report: Measurements) -> Any:
    """The whole report as a part of a page: the answer first, then each model."""
    shown = [one for one in report.gallery if plots.as_picture(one.images[0]) is not None]
    factor = plots.magnification(shown, report.value_range)
    models = [
        {
            "name": model,
            "anchor": f"model-{place}",
            "bars": _bars(report, model),
            "examples": [
                _example(example, report.value_range, factor)
                for example in shown
                if example.model == model
            ],
            "tables": [table_html(table) for table in of_model(report, model)],
        }
        for place, model in enumerate(sorted_by_worst_case(report))
    ]
    best = models[0]["name"]
    evidence = evidence_in(report, report.main_norm)
    return rendered(
        "report.html",
        report=report,
        sentence=_sentence(report, str(best)),
        evidence=evidence,
        stronger=EVIDENCE[evidence],
        chart=_chart(report),
        headline=[table_html(table) for table in headline(report, by_worst_case=True)],
        glossary=GLOSSARY,
        models=models,
        transfers=[table_html(table) for table in transfers(report)],
        remarks=remarks(report),
        provenance=_provenance(report),
    )


def _sentence(report: Measurements, model: str) -> Any:
    """The sentence of the most robust model, its name emphasised."""
    text = sentence(report, model)
    return markup("<em>{}</em>: {}").format(model, text) if text else None


def _chart(report: Measurements) -> Any:
    """A chart a norm, beside each other where there is room."""
    low, high = report.value_range
    parts = []
    for norm in report.epsilons:
        units = (
            "numbers of pixels" if norm == "l0"
            else f"in units of the pixel values, from {low:g} to {high:g}"
        )  # fmt: skip
        caption = (
            f"{symbol(norm)}: accuracy in the worst case over all attacks, and 95 % intervals; "
            f"epsilon {units}."
        )
        parts.append(embedded_figure(plots.worst_case_figure(report, norm), caption))
    return markup('<div class="charts">{}</div>').format(markup("").join(parts))


def _bars(report: Measurements, model: str) -> Any:
    figure = plots.broken_figure(report, model)
    if figure is None:
        return None
    norm = report.main_norm
    caption = (
        f"What each attack on {model} broke of the images, within {symbol(norm)} epsilon "
        f"{radius_text(report.epsilons[norm][-1])}; the longest bars decide."
    )
    return embedded_figure(figure, caption)


def _example(example: Example, value_range: tuple[float, float], factor: int) -> dict[str, Any]:
    """An adversarial example as the template shows it."""
    low, high = value_range
    clean, adversarial = ((image - low) / (high - low) for image in example.images[:2])
    gap = np.clip(factor * (adversarial - clean), -1, 1)
    difference = plots.difference_title(factor).replace("\n", " ")
    pictures = [("clean", _png(clean)), ("adversarial", _png(adversarial))]
    grey = plots.as_picture(gap)
    if grey is not None and grey.ndim == 2:
        pictures.append((difference, _png(gap, colours="RdBu_r", limits=(-1, 1))))
    else:
        pictures.append((difference, _png((1 + gap) / 2)))
    behind = ("clean, behind defence", "adversarial, behind defence")
    pictures += [(n, _png(i)) for n, i in zip(behind, example.images[2:], strict=False)]
    label, prediction = example.shown_classes
    return {
        "number": example.number,
        "label": label,
        "prediction": prediction,
        "sizes": distances_text(example.distances),
        "attack": example.attack,
        "threat": example.threat_model,
        "pictures": pictures,
    }


def _png(image: np.ndarray, colours: str = "gray", limits: tuple[float, float] = (0.0, 1.0)) -> str:
    """An image as the text of a PNG, a pixel a pixel."""
    buffer = io.BytesIO()
    shown = plots.as_picture(np.asarray(image, "float32"))
    if shown is not None and shown.ndim == 3:
        shown = np.clip(shown, 0, 1)
    low, high = limits
    pyplot().imsave(buffer, shown, cmap=colours, vmin=low, vmax=high, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _provenance(report: Measurements) -> Any:
    identity = report.provenance["identity"]
    rows = [
        *([f"model {name}", digest] for name, digest in identity["models"].items()),
        *([f"source {name}", digest] for name, digest in identity["sources"].items()),
        ["data", identity["data"]],
        ["Python", report.provenance["python"]],
        ["platform", report.provenance["platform"]],
    ]
    return table_html(Table("Hashes and platform", ["what", "value"], rows))
