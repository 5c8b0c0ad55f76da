"""What a check of the audit is, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_qusec.attacks import Attack
from keras_qusec.audit.evidence import Budget, Evidence
from keras_qusec.results import Result
from keras_qusec.statistics import wilson_interval

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


class Finding(NamedTuple):
    """The outcome of a check on a model.

    Attributes:
        status: ``"passed"``, ``"FAILED"`` or ``"not run"``.
        evidence: what was seen, in a sentence with its numbers; why, if not run.
        numbers: the figures behind it, by name.
        images: which images of the data show it.
    """

    status: str
    evidence: str
    numbers: Mapping[str, float] = {}
    images: tuple[int, ...] = ()


class Check:
    """One thing that must be in order in an evaluation, and the rule that tells.

    A subclass sets the attributes and writes `judge`. What an attack must find out is named in
    `attacks`, and made by the evaluation together with those of all other checks.

    Attributes:
        identifier: what `AuditReport.failed` calls it.
        title: what is in order if it passes, in a line.
        rule: when it fails, with its number.
        explanation: why that means something.
        source: where it comes from.
        remedy: what to do.
        shows_masking: failed, it says that gradient attacks cannot be trusted; otherwise that
            the attack was too weak.
        needs_one_answer: cannot be judged on a model that answers at random.
    """

    identifier: str
    title: str
    rule: str
    explanation: str
    source: str
    remedy: str
    shows_masking: bool = True
    needs_one_answer: bool = True

    def attacks(self, epsilon: float, width: float, budget: Budget) -> dict[str, Attack]:
        """The attacks that it needs, by name; checks that need the same give the same name.

        Args:
            epsilon: radius of the audit.
            width: of the value range.
            budget: how much work the audit may do.
        """
        return {}

    def own_results(self, evidence: Evidence) -> list[Result]:
        """What was run for this check alone, beside `attacks`."""
        return []

    def judge(self, evidence: Evidence) -> Finding:
        """Look at the evidence."""
        raise NotImplementedError(f"{type(self).__name__} needs a method judge.")


def passed_or_failed(has_failed: Any, evidence: str, **more: Any) -> Finding:
    """A finding by a rule."""
    return Finding(FAILED if has_failed else PASSED, evidence, **more)


def more_found(
    evidence: Evidence, found: np.ndarray, by: str, limit: float, *, judged_alone: bool = False
) -> Finding:
    """Whether an attack broke images on which gradients failed.

    Args:
        evidence: all there is.
        found: which images it broke, ``(n,)`` bool.
        by: the attack in words.
        limit: failed if the share is above it with 95 % confidence.
        judged_alone: compared with the judged attack, and not also with that towards targets.
    """
    new = found & ~(evidence.judged if judged_alone else evidence.by_gradients)
    count, n = int(new.sum()), len(evidence.rows)
    low, high = wilson_interval(count, n)
    other = "the judged attack" if judged_alone else "PGD and targeted APGD"
    return passed_or_failed(
        low > limit,
        f"{by} broke {count} of {n} images ({100 * low:.1f}-{100 * high:.1f} %) on which {other} "
        "failed",
        numbers={"images": count, "share": count / n, "low": low, "high": high},
        images=tuple(np.flatnonzero(new).tolist()),
    )
