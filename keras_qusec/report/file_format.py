"""The content of a report's file: JSON values, with arrays as compressed text."""

from __future__ import annotations

from typing import Any

from keras_qusec.files import DAMAGED, packed, unpacked
from keras_qusec.report.measurements import Measurements
from keras_qusec.results import (
    Examples,
    certificate_of,
    content_of_certificate,
    content_of_example,
    content_of_result,
    example_of,
    result_of,
)

FORMAT = "keras-qusec robustness report"
EXPECTED = "a report saved by RobustnessReport.save"
FORMAT_VERSION = 2


def content_of(report: Measurements) -> dict[str, Any]:
    """The data of a report as JSON values."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "rows": [row.as_dict() for row in report.rows],
        "notes": report.notes,
        "failures": report.failures,
        "provenance": report.provenance,
        "epsilons": {norm: list(radii) for norm, radii in report.epsilons.items()},
        "norms": report.norms,
        "correct": {name: packed(rows) for name, rows in report.correct.items()},
        "results": [content_of_result(result) for result in report.results],
        "gallery": [content_of_example(example) for example in report.gallery],
        "certificates": [content_of_certificate(one) for one in report.certificates],
        "examples": {
            name: {norm: list(map(packed, kept)) for norm, kept in by_norm.items()}
            for name, by_norm in report.kept.items()
        },
    }


def parts_of(content: Any) -> dict[str, Any]:
    """The arguments of `Measurements` from what `content_of` returned, of this or an older version.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            "Expected a report saved by RobustnessReport.save. Received: another kind of "
            "content. Check the path."
        )
    if content.get("version") not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"Expected a report of version {FORMAT_VERSION} or older. Received: version "
            f"{content.get('version')!r}, written by another keras-qusec. Use that one."
        )
    try:
        return {
            "correct": {name: unpacked(rows) for name, rows in content["correct"].items()},
            "results": [result_of(result) for result in content["results"]],
            "epsilons": content["epsilons"],
            "norms": content["norms"],
            "provenance": content["provenance"],
            "failures": content["failures"],
            "notes": content["notes"],
            "gallery": [example_of(example) for example in content["gallery"]],
            "certificates": [certificate_of(one) for one in content.get("certificates", [])],
            "examples": {
                name: {norm: Examples(*map(unpacked, parts)) for norm, parts in by_norm.items()}
                for name, by_norm in content.get("examples", {}).items()
            },
        }
    except DAMAGED as error:
        raise ValueError(
            f"Expected a complete report. Received: one with damaged or missing parts ({error}). "
            "Save it again."
        ) from error
