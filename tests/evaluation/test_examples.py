"""Adversarial examples that stay: every one verified, within its epsilon, also after a resume."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import X, Y, predicted

from keras_qusec import RobustnessReport, evaluate_robustness, norms
from keras_qusec.attacks import AttackedModel, Goal

EPSILONS = {"linf": [0.03, 0.1], "l2": [0.1, 0.4]}


@pytest.fixture
def report(linear):
    return evaluate_robustness(
        linear, X, Y, attacks=["fgsm", "pgd-l2", ("fmn-l2", {"steps": 20})], epsilons=EPSILONS,
        keep_examples=True, batch_size=25,
    )  # fmt: skip


def check(report, linear, x=X, y=Y):
    """Each broken image has one example, which holds when the model is asked again."""
    attacked = AttackedModel(linear)
    for norm, radii in EPSILONS.items():
        for epsilon in radii:
            robust = report.robust_images(epsilon=epsilon, norm=norm)
            found = report.examples(epsilon, norm=norm)
            (name,) = report.models
            broken = np.flatnonzero(~robust & report.correct[name])
            np.testing.assert_array_equal(found.numbers, broken)
            assert len(broken)
            clean, goal = x[found.numbers], Goal(y[found.numbers])
            assert attacked.is_adversarial(found.images, goal).all()
            distances = norms.get(norm).distance(clean, found.images)
            assert norms.within(distances, epsilon).all()
            np.testing.assert_allclose(found.distances, distances, rtol=1e-5)
            states = {i.number: i for i in report.images(epsilon, norm=norm) if i.state == "broken"}
            for number, attack, threat, distance in zip(
                found.numbers, found.attacks, found.threat_models, found.distances, strict=True
            ):
                image = states[number]
                assert (image.attack, image.threat_model) == (attack, threat)
                assert image.distance == pytest.approx(distance)


def test_every_broken_image_has_its_closest_example(report, linear):
    check(report, linear)
    assert set(report.examples(norm="l2").attacks) <= {"fgsm", "pgd-l2", "fmn-l2"}
    # In another norm than the attack's the closest is kept, too.
    assert "fgsm" in report.examples(0.1, norm="linf").attacks
    # What is shown in the gallery is what it was without.
    plain = evaluate_robustness(
        linear, X, Y, attacks=["fgsm", "pgd-l2", ("fmn-l2", {"steps": 20})], epsilons=EPSILONS,
        batch_size=25,
    )  # fmt: skip
    assert [e.number for e in plain.gallery] == [e.number for e in report.gallery]
    assert all(
        np.array_equal(ours.distances[n], theirs.distances[n])
        for ours, theirs in zip(plain.results, report.results, strict=True)
        for n in ours.distances
    )
    assert [sorted(r.examples) for r in plain.results] == [
        sorted(r.examples) for r in report.results
    ]


def test_they_are_saved(report, linear, tmp_path):
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    check(again, linear)
    with np.load(report.save_examples(tmp_path / "examples.npz")) as file:
        (name,) = report.models
        np.testing.assert_array_equal(
            file[f"{name} linf images"], report.examples(np.inf, norm="linf").images
        )
        assert file[f"{name} l2 attacks"].dtype.kind == "U"
    one = evaluate_robustness(linear, X, Y, epsilons=[0.1], keep_examples=True)
    with np.load(one.save_examples(tmp_path / "one.npz")) as file:
        assert set(file.files) == {
            "numbers", "images", "distances", "attacks", "threat_models", "sources",
        }  # fmt: skip


def test_an_ensemble_resumes_with_them(linear, tmp_path):
    """Half of the finished work and nothing else: the examples are those of a whole run."""
    settings = {
        "attacks": {"mine": "standard"}, "epsilons": [0.03, 0.1], "keep_examples": True,
        "batch_size": 30,
    }  # fmt: skip
    whole = evaluate_robustness(linear, X, Y, resume_dir=tmp_path / "run", **settings)
    files = sorted((tmp_path / "run").glob("units/*.json"))
    assert len(files) == 2
    files[0].unlink()
    resumed = evaluate_robustness(linear, X, Y, resume_dir=tmp_path / "run", **settings)
    for ours, theirs in zip(whole.examples(), resumed.examples(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="kept examples"):
        evaluate_robustness(
            linear, X, Y, resume_dir=tmp_path / "run", **{**settings, "keep_examples": False}
        )


def test_a_report_without_them_says_so(linear, tmp_path):
    report = evaluate_robustness(linear, X, Y, epsilons=[0.1])
    with pytest.raises(ValueError, match="keep_examples=True"):
        report.examples()
    with pytest.raises(ValueError, match="keep_examples=True"):
        report.save_examples(tmp_path / "examples.npz")
    kept = evaluate_robustness(linear, X, Y, epsilons=[0.1], keep_examples=True)
    with pytest.raises(ValueError, match="kept linf"):
        kept.examples(0.1, norm="l2")
    with pytest.raises(ValueError, match="at which"):
        kept.examples(0.05)


def test_nothing_broken_has_no_examples(linear):
    y = predicted(linear, X)
    report = evaluate_robustness(linear, X, y, epsilons=[1e-6], keep_examples=True)
    found = report.examples()
    assert found.images.shape == (0, *X.shape[1:])
    assert {image.state for image in report.images()} == {"open"}
    assert report.plot is not None


def test_reports_are_joined_with_them(linear):
    y = predicted(linear, X)
    one, other = (
        evaluate_robustness({name: linear}, X, y, epsilons=[0.1], keep_examples=True)
        for name in ("one", "other")
    )
    joined = RobustnessReport.joined([one, other])
    np.testing.assert_array_equal(joined.examples(model="other").images, other.examples().images)
