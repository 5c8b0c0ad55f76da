"""What an audit says in numbers: plain data that a file can hold, computed from the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_qusec.audit.evidence import Evidence
from keras_qusec.report import RobustnessReport
from keras_qusec.statistics import wilson_interval


class Summary(NamedTuple):
    """The numbers behind a verdict.

    Attributes:
        model: name of the audited model.
        images: how many there are.
        correct: how many of them are classified correctly when clean.
        epsilon: radius.
        threat_models: under which the robustness was judged.
        level: of the audit.
        standard: whether the standard evaluation was made.
        judged: robust accuracy that the judged attack leaves, in [0, 1]; None if the model was
            not attacked.
        worst: robust accuracy that everything leaves.
        proved: share of images that is proved; None if no proof was tried.
        overstated: by how much the judged accuracy is too high, and its 95 % interval.
        most_found: the attack that broke most images on which the judged one failed.
        evaluation: what the judged attack and those of the checks found.
    """

    model: str
    images: int
    correct: int
    epsilon: float
    threat_models: tuple[str, ...]
    level: str
    standard: bool
    judged: float | None
    worst: float | None
    proved: float | None
    overstated: tuple[float, float, float]
    most_found: str
    evaluation: RobustnessReport | None


def summary_of(evidence: Evidence) -> Summary:
    """The numbers of what the checks looked at."""
    images = len(evidence.x)
    proved = None if evidence.proved is None else float(evidence.proved.mean())
    judged = worst = None
    overstated, most = (0.0, 0.0, 1.0), ""
    if evidence.has_evaluation:
        judged = float((evidence.correct & ~evidence.judged).mean())
        worst = float((evidence.correct & ~evidence.worst).mean())
        more = int((evidence.worst & ~evidence.judged).sum())
        overstated, most = (more / images, *wilson_interval(more, images)), _most_found(evidence)
    return Summary(
        model=evidence.model.name,
        images=images,
        correct=len(evidence.rows),
        epsilon=evidence.epsilon,
        threat_models=evidence.threat_models,
        level=evidence.budget.name,
        standard=evidence.budget.standard,
        judged=judged,
        worst=worst,
        proved=proved,
        overstated=overstated,
        most_found=most,
        evaluation=evidence.evaluation if evidence.has_evaluation else None,
    )


def _most_found(evidence: Evidence) -> str:
    found = {
        name: int((evidence.found(name) & ~evidence.judged).sum())
        for name in evidence.evaluation.attacks
    }
    others = {
        "an adaptive attack": evidence.known_defense,
        "a transferred example": evidence.transferred((*evidence.sources, *evidence.identities)),
    }
    found |= {name: int((rows & ~evidence.judged).sum()) for name, rows in others.items()}
    return max(found, key=lambda name: found[name])


def content_of(summary: Summary) -> dict[str, Any]:
    """The numbers as JSON values."""
    evaluation = summary.evaluation
    return summary._asdict() | {"evaluation": None if evaluation is None else evaluation.to_dict()}


def summary_from(content: Mapping[str, Any]) -> Summary:
    """The numbers from what `content_of` returned."""
    values = dict(content)
    report = values.pop("evaluation")
    values["threat_models"] = tuple(values["threat_models"])
    values["overstated"] = tuple(values["overstated"])
    return Summary(
        evaluation=None if report is None else RobustnessReport.from_dict(report), **values
    )
