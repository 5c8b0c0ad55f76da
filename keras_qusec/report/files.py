"""Reports on disk: JSON values, with arrays as compressed text."""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec.evaluation.results import COUNTS, Example, Part, Result
from keras_qusec.report.figures import Certificate, Figures

FORMAT = "keras-qusec robustness report"
# Version 1 had distances in columns, always in these norms.
FORMAT_VERSION = 2
_NORMS_OF_VERSION_1 = ("l0", "l2", "linf")


def content_of(figures: Figures) -> dict[str, Any]:
    """The data of a report as JSON values."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "rows": [row.as_dict() for row in figures.rows],
        "notes": figures.notes,
        "failures": figures.failures,
        "provenance": figures.provenance,
        "epsilons": {norm: list(radii) for norm, radii in figures.epsilons.items()},
        "norms": figures.norms,
        "correct": {name: _packed(rows) for name, rows in figures.correct.items()},
        "results": [
            {
                **result._asdict(),
                "radii": list(result.radii),
                "distances": {norm: _packed(d) for norm, d in result.distances.items()},
                "gradients": result.gradients.tolist(),
                "queries": result.queries.tolist(),
                "seconds": result.seconds.tolist(),
                "examples": {str(k): _packed(v) for k, v in result.examples.items()},
                "parts": [
                    {**part._asdict(), **{name: getattr(part, name).tolist() for name in COUNTS}}
                    for part in result.parts
                ],
            }
            for result in figures.results
        ],
        "gallery": [content_of_example(example) for example in figures.gallery],
        "certificates": [
            {**certificate._asdict(), "radii": _packed(certificate.radii)}
            for certificate in figures.certificates
        ],
    }


def parts_of(content: Any) -> dict[str, Any]:
    """The arguments of `Figures` from what `content_of` returned, of this or an older version.

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
            "correct": {name: _unpacked(rows) for name, rows in content["correct"].items()},
            "results": [_result(result) for result in content["results"]],
            "epsilons": content["epsilons"],
            "norms": content["norms"],
            "provenance": content["provenance"],
            "failures": content["failures"],
            "notes": content["notes"],
            "gallery": [example_of(example) for example in content["gallery"]],
            "certificates": [
                Certificate(**{**certificate, "radii": _unpacked(certificate["radii"])})
                for certificate in content.get("certificates", [])
            ],
        }
    except (KeyError, TypeError, AttributeError, ValueError, zlib.error, EOFError) as error:
        raise ValueError(
            f"Expected a complete report. Received: one with damaged or missing parts ({error}). "
            "Save it again."
        ) from error


def _result(content: dict[str, Any]) -> Result:
    distances = content["distances"]
    if isinstance(distances, str):
        columns = _unpacked(distances).T
        measured = dict(zip(_NORMS_OF_VERSION_1, columns, strict=True))
    else:
        measured = {norm: _unpacked(text) for norm, text in distances.items()}
    return Result(
        **{
            **content,
            "radii": tuple(content["radii"]),
            "distances": measured,
            "gradients": np.array(content["gradients"]),
            "queries": np.array(content["queries"]),
            "seconds": np.array(content["seconds"]),
            "examples": {int(k): _unpacked(v) for k, v in content["examples"].items()},
            "parts": tuple(
                Part(**{**part, **{name: np.array(part[name]) for name in COUNTS}})
                for part in content.get("parts", [])
            ),
        }
    )


def content_of_example(example: Example) -> dict[str, Any]:
    """An adversarial example as JSON values."""
    packed = {"images": _packed(example.images), "names": list(example.names)}
    return {**example._asdict(), **packed}


def example_of(content: dict[str, Any]) -> Example:
    """An adversarial example from the values of `content_of_example`."""
    distances = content["distances"]
    if not isinstance(distances, dict):
        distances = dict(zip(_NORMS_OF_VERSION_1, distances, strict=True))
    parts = {"images": _unpacked(content["images"]), "names": tuple(content.get("names", ()))}
    return Example(**{**content, "distances": distances, **parts})


def write(content: dict[str, Any], path: str | os.PathLike) -> Path:
    """Write a report under another name, then rename it, so that it is complete or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_text(text: str, path: str | os.PathLike) -> Path:
    """Write a page; its folder is created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(path: str | os.PathLike) -> Any:
    """The content of a report's file.

    Raises:
        ValueError: for a file that is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a report saved by RobustnessReport.save. Received: {path} ({error}). "
            "Check the path."
        ) from error


def _packed(array: np.ndarray) -> str:
    """An array as text: the .npy format, compressed, in base 64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
