"""A report made by hand, and one of two small models."""

from __future__ import annotations

import numpy as np
import pytest

from keras_qusec import RobustnessReport
from keras_qusec.results import Result

INF = np.inf


def result(model, attack, threat_model, linf, l2, source=None, radii=(0.1, 0.2)):
    linf, l2 = np.array(linf), np.array(l2)
    count = len(radii)
    return Result(
        model, source, threat_model, attack, radii,
        {"l0": np.where(np.isfinite(linf), 3.0, INF), "l2": l2, "linf": linf},
        np.full(count, 40), np.full(count, 60), np.full(count, 1.5), {},
    )  # fmt: skip


@pytest.fixture
def report():
    """Four images, the last misclassified; PGD and CW break different ones."""
    results = [
        result("m", "pgd", "white-box", [0.1, 0.2, INF, INF], [0.5, 0.9, INF, INF]),
        result("m", "pgd", "adaptive", [0.1, 0.1, INF, INF], [0.5, 0.7, INF, INF]),
        result("m", "cw", "white-box", [0.9, 0.9, 0.15, 0.1], [0.3, 0.4, 0.2, 0.1], radii=(None,)),
        result("m", "pgd", "black-box", [0.2, INF, INF, INF], [0.5, INF, INF, INF], "s"),
    ]
    identity = {
        "images": 4, "data": "d", "seed": 0, "value range": [0.0, 1.0],
        "surrogate hardnesses": [3.0], "attacks": {"pgd": "PGD", "cw": "CW"},
        "versions": {"keras": "3"}, "backend": "b", "models": {"m": "1"}, "sources": {"s": "2"},
    }  # fmt: skip
    return RobustnessReport(
        correct={"m": np.array([True, True, True, False])},
        results=results,
        epsilons={"linf": (0.1, 0.2)},
        norms={"pgd": "linf", "cw": "l2"},
        provenance={
            "identity": identity, "goal": "untargeted", "python": "3", "platform": "p",
        },
    )  # fmt: skip
