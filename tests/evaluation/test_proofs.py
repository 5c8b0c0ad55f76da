"""Prove first, attack the rest: what is skipped, what is shown, what is kept."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, RobustnessReport, evaluate_robustness
from keras_qusec.attacks import FunctionClassifier

L = keras.layers
EPSILONS = [0.05, 0.2]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [keras.Input((8,)), QuSecQuantization(2, hard=True), L.Dense(12, activation="relu"),
         L.Dense(3)]
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(model):
    x = np.random.default_rng(0).random((60, 8)).astype("float32")
    y = model.predict(x, verbose=0).argmax(axis=1)
    y[:5] = (y[:5] + 1) % 3
    return x, y


@pytest.fixture(scope="module")
def report(model, data):
    return evaluate_robustness(
        {"net": model}, *data, attacks="standard", epsilons=EPSILONS, prove="exact",
        keep_examples=True,
    )  # fmt: skip


def test_the_answer_is_exact(model, data, report):
    attacked = evaluate_robustness(model, *data, attacks="standard", epsilons=EPSILONS)
    for epsilon in EPSILONS:
        proved, robust = report.bracket(epsilon)
        assert proved == robust
        assert (
            proved.share
            == report.certified_accuracy(epsilon)
            == report.robust_accuracy(epsilon=epsilon)
        )
        assert robust.share <= attacked.robust_accuracy(epsilon=epsilon)
        assert proved.low < proved.share < proved.high
        assert {image.state for image in report.images(epsilon)} == {"proved", "broken"}


def test_proved_images_are_not_attacked(model, data, report):
    alone = evaluate_robustness(model, *data, attacks="standard", epsilons=EPSILONS)
    spent, saved = (
        [r for r in one.rows if r.label == "adaptive standard"][-1] for one in (alone, report)
    )
    assert saved.gradients + saved.queries < 0.5 * (spent.gradients + spent.queries)
    assert any("were not attacked" in note for note in report.notes)


def test_it_is_shown_and_saved(report, tmp_path):
    text = str(report)
    assert "  proved" in text
    assert "exact search" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "proofs and attacks together: exactly" in " ".join(
        report.to_html(tmp_path / "p.html").read_text().split()
    )
    frame = report.to_pandas()
    worst = frame[frame.attack == "worst case"]
    assert (worst.proved == worst.robust_accuracy).all()
    assert frame[frame.attack != "worst case"].proved.isna().all()
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    assert again.bracket(0.2) == report.bracket(0.2)
    assert str(again) == text
    assert report.plot(tmp_path / "plot.png").stat().st_size > 5000


def test_what_the_search_broke_counts_and_is_kept(model, data):
    report = evaluate_robustness(
        model, *data, attacks=[], epsilons=EPSILONS, prove="standard", keep_examples=True
    )
    assert report.evidence == "proof"
    x, y = data
    found = report.examples(0.2)
    broken = [
        image.number for image in report.images(0.2) if image.state == "broken" and image.distance
    ]
    assert found.numbers.tolist() == broken
    assert set(found.attacks) == {"exact search"}
    assert (model.predict(found.images, verbose=0).argmax(axis=1) != y[found.numbers]).all()
    assert (np.abs(found.images - x[found.numbers]).max(axis=1) <= 0.2 * (1 + 1e-6)).all()
    assert report.robust_accuracy(epsilon=0.2) == report.certified_accuracy(0.2)


def test_of_some_models_alone(model, data):
    """A dictionary gives each model an effort of its own, and none to those left out."""
    models = {"net": model, "other": model}
    report = evaluate_robustness(
        models, *data, attacks=["fgsm"], epsilons=[0.1], prove={"net": "bounds"}
    )
    assert [certificate.model for certificate in report.certificates] == ["net"]
    assert report.bracket(model="other") is None
    assert report.provenance["identity"]["proofs"] == {"net": "bounds"}
    with pytest.raises(ValueError, match="a name in prove to be one of"):
        evaluate_robustness(models, *data, attacks=[], epsilons=[0.1], prove={"nets": "bounds"})


def test_proofs_made_apart_are_added(model, data, report):
    apart = evaluate_robustness({"net": model}, *data, attacks=["fgsm"], epsilons=EPSILONS)
    assert apart.bracket() is None
    apart.add_certificates(report.certificates)
    assert apart.certified_accuracy(EPSILONS[0]) == report.certified_accuracy(EPSILONS[0])
    wrong = report.certificates[-1]
    wrong = wrong._replace(states=np.where(wrong.states == "broken", "proved", wrong.states))
    with pytest.raises(ValueError, match="proved"):
        apart.add_certificates([wrong])
    assert len(apart.certificates) == len(report.certificates)


def test_it_resumes(model, data, tmp_path, monkeypatch):
    from keras_qusec.evaluation import proofs

    settings = {
        "attacks": ["fgsm"],
        "epsilons": EPSILONS,
        "prove": "bounds",
        "resume_dir": tmp_path,
    }
    first = evaluate_robustness(model, *data, **settings)
    monkeypatch.setattr(proofs, "proof_of", None)
    again = evaluate_robustness(model, *data, **settings)
    assert [r.as_dict() for r in again.rows] == [r.as_dict() for r in first.rows]
    with pytest.raises(ValueError, match="differs in proofs"):
        evaluate_robustness(model, *data, **{**settings, "prove": "standard"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prove": "hard"}, "prove to be one of"),
        ({"prove": "bounds", "epsilons": {"l2": [0.5]}}, "epsilons in linf"),
        ({"prove": "bounds", "targets": "next"}, "untargeted"),
        ({"attacks": []}, "at least one attack"),
    ],
)
def test_errors(model, data, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(model, *data, **{"epsilons": [0.1], **change})


def test_other_classifiers_cannot_be_proved(data):
    classifier = FunctionClassifier(lambda images: images[:, :3], classes=3)
    with pytest.raises(ValueError, match="no Keras model"):
        evaluate_robustness(classifier, *data, epsilons=[0.1], attacks=["square"], prove="bounds")
