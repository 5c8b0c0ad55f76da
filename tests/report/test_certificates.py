"""Certificates: what is proved, and that nothing is proved and broken at once."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import MARGIN, WEIGHTS, X, Y

from keras_qusec import RobustnessReport, evaluate_robustness
from keras_qusec.report import Certificate

NEAREST = np.abs(MARGIN) / np.abs(WEIGHTS).sum()
EPSILONS = [0.02, 0.1]


def exact(epsilon, model, correct):
    """The truth of the linear model, which is right on all images."""
    states = np.where(epsilon * 1.001 < NEAREST, "proved", "broken")
    states[np.abs(NEAREST - epsilon) < 1e-3 * epsilon] = "open"
    states[~correct] = "broken"
    seconds = np.full(len(X), 0.01)
    return Certificate(model, "linf", epsilon, states, "closed form", seconds, 1e-6)


@pytest.fixture
def attacked(linear):
    return evaluate_robustness(linear, X, Y, attacks=["pgd"], epsilons=EPSILONS)


def parts(report, **changed):
    return {
        "correct": report.correct, "results": report.results, "epsilons": report.epsilons,
        "norms": report.norms, "provenance": report.provenance, **changed,
    }  # fmt: skip


def test_what_is_proved_is_shown(attacked, tmp_path):
    (name,) = attacked.models
    both = [exact(epsilon, name, attacked.correct[name]) for epsilon in EPSILONS]
    report = RobustnessReport(**parts(attacked, certificates=both))
    for epsilon, certificate in zip(EPSILONS, both, strict=True):
        share = (certificate.states == "proved").mean()
        assert report.certified_accuracy(epsilon) == share
        assert report.certified_accuracy(epsilon) <= report.robust_accuracy(epsilon=epsilon)
        states = report.images(epsilon)
        assert [image.number for image in states] == list(range(len(X)))
        robust = report.robust_images(epsilon=epsilon)
        for image in states:
            if certificate.states[image.number] == "proved":
                assert (image.state, image.attack) == ("proved", "closed form")
            elif not robust[image.number]:
                assert image.state == "broken"
                assert image.attack == "pgd"
                assert 0 < image.distance <= epsilon * (1 + 1e-6)
    assert "proved" in str(report)
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    assert again.images(0.02) == report.images(0.02)
    assert again.certificates[1].states.tolist() == both[1].states.tolist()
    # A proof at a larger radius holds at a smaller one too, but not the other way round.
    one = RobustnessReport(**parts(attacked, certificates=both[1:]))
    assert one.certified_accuracy(0.02) == one.certified_accuracy(0.1)
    one = RobustnessReport(**parts(attacked, certificates=both[:1]))
    assert one.certified_accuracy(0.1) is None


def test_broken_by_a_search_that_attacks_missed(attacked):
    (name,) = attacked.models
    certificate = exact(0.02, name, attacked.correct[name])
    nothing = [
        result._replace(distances={n: np.full_like(d, np.inf) for n, d in result.distances.items()})
        for result in attacked.results
    ]
    report = RobustnessReport(**parts(attacked, certificates=[certificate], results=nothing))
    number = int(np.flatnonzero((certificate.states == "broken") & attacked.correct[name])[0])
    image = report.images(0.02)[number]
    assert (image.state, image.attack) == ("broken", "closed form")


def test_proved_and_broken_at_once_is_an_error(attacked):
    (name,) = attacked.models
    certificate = exact(0.1, name, attacked.correct[name])
    number = int(np.flatnonzero(~attacked.robust_images(epsilon=0.1))[0])
    lie = certificate.states.copy()
    lie[number] = "proved"
    with pytest.raises(ValueError, match=f"image {number} of .*proved within linf 0.1 by 'closed "
                       "form' and broken by 'pgd'"):  # fmt: skip
        RobustnessReport(**parts(attacked, certificates=[certificate._replace(states=lie)]))
    # Proved at a radius, broken by another proof at a smaller one.
    proved = np.flatnonzero(certificate.states == "proved")
    broken = np.full(len(X), "open")
    broken = broken.astype("<U6")
    broken[proved[0]] = "broken"
    other = certificate._replace(states=broken, epsilon=0.05, method="search")
    with pytest.raises(ValueError, match=f"image {proved[0]} .*broken by 'search' at 0.05"):
        RobustnessReport(**parts(attacked, certificates=[certificate, other]))
    # Broken at a larger radius is no contradiction.
    RobustnessReport(**parts(attacked, certificates=[certificate, other._replace(epsilon=0.2)]))
    wrong = {name: np.arange(len(X)) != proved[0]}
    with pytest.raises(ValueError, match="misclassified when clean"):
        RobustnessReport(**parts(attacked, correct=wrong, certificates=[certificate]))


def test_a_certificate_must_fit(attacked):
    (name,) = attacked.models
    certificate = exact(0.1, name, attacked.correct[name])
    for wrong in (
        certificate._replace(states=certificate.states[:5]),
        certificate._replace(states=np.full(len(X), "maybe")),
        certificate._replace(seconds=np.zeros(3)),
    ):
        with pytest.raises(ValueError, match="Expected a certificate"):
            RobustnessReport(**parts(attacked, certificates=[wrong]))
    with pytest.raises(ValueError, match="model"):
        RobustnessReport(**parts(attacked, certificates=[certificate._replace(model="other")]))
