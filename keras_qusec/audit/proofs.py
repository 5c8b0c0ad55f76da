"""Attacks and proofs agree, and how far they are from each other."""

from __future__ import annotations

from keras_qusec.audit.check import NOT_RUN, Check, Finding, passed_or_failed
from keras_qusec.audit.evidence import Evidence


class Proofs(Check):
    """Does every attack respect what a search over all levels proves?"""

    identifier = "proofs"
    title = "no attack breaks what is proved"
    rule = "Fails if at least 1 image is proved within epsilon and broken by an attack"
    explanation = (
        "One of the two is wrong then, so neither can be trusted. The share that is proved is the "
        "least that robust accuracy can be; where it equals what the attacks leave, that is exact."
    )
    source = "Bunel et al. 2020 (branch and bound); Zhang et al. 2018 (CROWN)"
    remedy = (
        "Report the image, the model and the versions as a fault of keras-qusec. If a layer has a "
        "rule of your own, check its bounds first."
    )
    shows_masking = False

    def judge(self, evidence: Evidence) -> Finding:
        proved = evidence.proved
        if proved is None:
            return Finding(NOT_RUN, evidence.not_proved_because)
        contradicted = proved & evidence.worst
        left = int((evidence.correct & ~evidence.worst).sum())
        count, n = int(proved.sum()), len(proved)
        between = f"{100 * count / n:.1f} % proved, {100 * left / n:.1f} % left by all attacks"
        wrong = int(contradicted.sum())
        if wrong:
            between = f"{wrong} of {n} images are proved and yet broken; {between}"
        return passed_or_failed(
            wrong,
            between,
            numbers={"proved": count / n, "left": left / n, "contradicted": wrong},
            images=tuple(contradicted.nonzero()[0].tolist()),
        )
