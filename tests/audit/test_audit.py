"""audit_robustness: its verdict, its costs, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import browser
import keras
import numpy as np
import pytest
from helpers import small_cnn

from keras_qusec import AuditReport, QuSecQuantization, audit_robustness
from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.audit import CHECKS, audit, evidence
from keras_qusec.audit.check import FAILED, NOT_RUN, PASSED
from keras_qusec.audit.planted_examples import Planted
from keras_qusec.logits import log_odds

EPSILON = 0.02
X = np.random.default_rng(3).uniform(0.2, 0.8, (24, 8, 8, 1)).astype("float32")


def labels(model):
    return keras.ops.convert_to_numpy(model(X, training=False)).argmax(axis=1)


class Rounded(keras.layers.Layer):
    def call(self, x):
        return keras.ops.round(x * 15) / 15


def rounded_cnn():
    model = small_cnn(2)
    return keras.Sequential([keras.Input((8, 8, 1)), Rounded(), *model.layers])


class Noisy(keras.layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size, self.generator = size, keras.random.SeedGenerator(0)

    def call(self, x):
        return x + self.size * keras.random.normal(keras.ops.shape(x), seed=self.generator)


def noisy_cnn(size):
    return keras.Sequential([keras.Input((8, 8, 1)), Noisy(size), *small_cnn(2).layers])


def audited(model, **settings):
    settings = {"epsilon": EPSILON, "progress": False, **settings}
    return audit_robustness(model, X, labels(model), **settings)


@pytest.fixture(scope="module")
def clear():
    return audited(small_cnn(2))


@pytest.fixture(scope="module")
def masked():
    return audited(rounded_cnn(), epsilon=0.1)


def test_clear_model(clear):
    assert clear.failed == ()
    assert clear.kind == "believable"
    assert "% robust: this figure can be believed as far as we can attack; " in clear.verdict
    assert "of 24 images stand within L-inf 0.02; evidence: quick" in clear.verdict
    assert clear.judged_accuracy >= clear.worst_accuracy >= clear.judged_accuracy - 0.1
    not_run = [check.identifier for check in clear.checks if check.status == NOT_RUN]
    assert not_run == ["transfer", "surrogates", "proofs"]


def test_masked_model(masked):
    assert {"gradient-values", "gradient-path", "surrogates", "gradient-free"} <= set(masked.failed)
    assert masked.kind == "masked"
    assert masked.verdict.startswith("gradients masked: do not trust gradient attacks")
    assert masked.worst_accuracy < masked.judged_accuracy - 0.2
    more, low, high = masked.overstated_by
    assert more == pytest.approx(masked.judged_accuracy - masked.worst_accuracy)
    assert low < more < high


def test_overstated(monkeypatch):
    """An attack that is too weak, on a model that masks nothing."""
    monkeypatch.setattr(audit, "PGD", lambda: audit.get("pgd", steps=1, relative_step_size=0.05))
    found = audited(small_cnn(2), epsilon=0.1)
    assert found.kind == "overstated"
    assert found.verdict.startswith("overstated by at least ")
    assert "more-effort" in found.failed


def test_overstated_by_the_choice_of_the_loss():
    """On few classes of close logits the log-odds lead astray, which masks nothing."""
    found = audited(small_cnn(1))
    assert found.failed == ()
    assert found.kind == "overstated"
    assert "most of them found by apgd-t" in found.verdict


def test_notes_are_shown(clear):
    assert any("Only 24 images" in note for note in clear.notes)
    tiny = audited(small_cnn(2), epsilon=1e-4)
    assert any("in units of the pixel values" in note for note in tiny.notes)
    assert "NOTE: Judged evaluation: All L-inf epsilons are" in str(tiny)


def test_something_of_the_image_goes_past_the_front():
    images = keras.Input((8, 8, 1))
    both = keras.layers.Concatenate()([images, Rounded()(images)])
    model = keras.Model(images, small_cnn_on(2)(both))
    found = audited(model)
    assert {c.identifier for c in found.checks if c.status == NOT_RUN} >= {"surrogates"}


def small_cnn_on(channels):
    return keras.Sequential(
        [keras.Input((8, 8, channels)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )


def test_each_check_says_what_it_is():
    identifiers = [check.identifier for check in CHECKS]
    assert len(set(identifiers)) == len(CHECKS) == 18
    for check in CHECKS:
        assert check.rule.startswith("Fails if")
        assert any(letter.isdigit() for letter in check.rule) or check.identifier in (
            "gradient-path", "half-range", "noise", "random-outputs", "loss-path",
            "planted-examples", "saturated-outputs",
        )  # fmt: skip
        assert check.explanation.endswith(".")
        assert check.remedy.endswith(".")
        assert check.source[-1] != "."


def test_the_documentation_has_the_rules_of_all_checks():
    text = (Path(__file__).parents[2] / "docs" / "audit_rules.md").read_text()
    for check in CHECKS:
        assert f"| `{check.identifier}` | {check.title} | {check.rule}. | {check.source} |" in text


def test_text_fits_a_terminal(clear, masked):
    for found in (clear, masked):
        lines = str(found).splitlines()
        assert max(map(len, lines)) <= 80
        for result in found.checks:
            assert any(line.startswith(result.status) and result.identifier in line
                       for line in lines)  # fmt: skip
    assert "What to do:" in str(masked)


def test_content_is_json(clear, masked):
    for found in (clear, masked):
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["verdict"] == found.verdict
        assert [check["identifier"] for check in content["checks"]] == [
            check.identifier for check in CHECKS
        ]
        assert content["failed"] == list(found.failed)


def test_it_is_saved_and_read_again(clear, masked, tmp_path):
    for found in (clear, masked):
        again = AuditReport.load(found.save(tmp_path / "audit.json"))
        assert str(again) == str(found)
        assert again.to_dict() == found.to_dict()
        assert again.evaluation.to_dict() == found.evaluation.to_dict()
        assert again.to_markdown() == found.to_markdown()
        assert "gradients reach the input" in found.to_markdown()
        name = found.to_dict()["model"]
        assert repr(again) == f"<AuditReport of {name}: {found.kind}, {found.images} images>"
        assert "Pictures" not in again.to_html(tmp_path / "again.html").read_text()
        assert "gradients reach the input" in found._repr_html_()
        with pytest.raises(ValueError, match="whose model is at hand"):
            again.plot(tmp_path / "no.png")


def test_files_that_are_no_audit(clear, tmp_path):
    path = clear.evaluation.save(tmp_path / "report.json")
    with pytest.raises(ValueError, match="another kind of content"):
        AuditReport.load(path)
    content = json.loads(clear.save(path).read_text())
    path.write_text(json.dumps({**content, "checks": [{}]}))
    with pytest.raises(ValueError, match="damaged"):
        AuditReport.load(path)


def test_as_a_data_frame(clear):
    pytest.importorskip("pandas")
    frame = clear.to_pandas()
    assert frame["check"].tolist() == [check.identifier for check in clear.checks]


def test_page_and_picture(masked, tmp_path):
    text = masked.to_html(tmp_path / "new" / "audit.html").read_text()
    browser.check(tmp_path / "new" / "audit.html")
    assert masked.verdict in text.replace("&lt;", "<").replace("&#39;", "'")
    for result in masked.checks:
        assert result.check.rule.split(",")[0] in text
    assert text.index("Is this robustness real?") < text.index("every attack tried")
    assert masked.plot(tmp_path / "audit.png").stat().st_size > 10_000


def test_same_seed_same_findings(clear):
    again = audited(small_cnn(2))
    assert [c.finding for c in again.checks] == [c.finding for c in clear.checks]


def test_costs_are_counted(clear):
    costs = {check.identifier: check.cost for check in clear.checks}
    n = len(X)
    assert costs["gradient-values"][:2] == (n, n)
    assert costs["one-step"].gradients == n  # one gradient of each image
    assert 0 < costs["noise"].queries <= 20 * 2 * n + n
    assert costs["noise"].gradients == 0
    assert costs["planted-examples"].gradients > 0


@pytest.mark.slow  # half a minute
@pytest.mark.once
def test_adaptive_judgement_follows_surrogates():
    model = small_cnn(quantizer=QuSecQuantization(2, hardness=1000.0))
    white = audited(model, epsilon=0.1)
    adaptive = audited(model, epsilon=0.1, threat_models=("white-box", "adaptive"))
    assert "surrogates" in white.failed
    assert "surrogates" not in adaptive.failed
    assert adaptive.judged_accuracy < white.judged_accuracy
    status = {check.identifier: check.status for check in adaptive.checks}
    assert status["finite-differences"] == status["loss-path"] == NOT_RUN


def test_random_model():
    model = noisy_cnn(0.1)
    found = audited(model)
    assert found.failed == ("random-outputs",)
    assert found.judged_accuracy is None
    assert found.evaluation is None
    assert "draws=20" in found.verdict
    assert {check.status for check in found.checks} == {FAILED, NOT_RUN}
    averaged = audited(model, draws=2)
    assert averaged.judged_accuracy is not None
    assert "random-outputs" in averaged.failed


def test_weak_noise_is_told_as_well():
    model = noisy_cnn(1e-3)
    found = audited(model)
    assert found.failed == ("random-outputs",)
    assert found.kind == "masked"


def test_resumes(tmp_path, monkeypatch):
    model = small_cnn(2)
    first = audited(model, resume_dir=tmp_path)
    calls = []
    run = audit.evaluate_robustness
    monkeypatch.setattr(
        audit, "evaluate_robustness", lambda *a, **k: calls.append(run(*a, **k)) or calls[-1]
    )
    again = audited(model, resume_dir=tmp_path)
    assert [c.finding for c in again.checks] == [c.finding for c in first.checks]
    # Seconds are those of the first time, so nothing was run again.
    (report,) = calls
    before = first.evaluation.results
    assert [r.seconds.tolist() for r in report.results] == [r.seconds.tolist() for r in before]


def test_transfer_from_a_source():
    # A model whose gradient is of no use, and one that has the same weights and a gradient.
    found = audited(rounded_cnn(), epsilon=0.1, source_model={"plain": small_cnn(2)})
    assert "transfer" in found.failed
    (result,) = [check for check in found.checks if check.identifier == "transfer"]
    assert "PGD on plain" in result.finding.evidence
    assert result.cost.gradients > 0


def test_full_level_trains_a_substitute_and_makes_the_standard_evaluation():
    found = audited(small_cnn(2), level="full")
    status = {check.identifier: check.status for check in found.checks}
    assert status["transfer"] == PASSED
    assert "standard" in found.evaluation.attacks
    assert "evidence: standard" in found.verdict


def test_values_from_0_to_255():
    inner = small_cnn(2)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), *inner.layers]
    )
    found = audit_robustness(
        model, 255 * X, labels(inner), epsilon=255 * EPSILON, value_range=(0, 255), progress=False
    )
    assert found.failed == ()
    assert found.judged_accuracy == pytest.approx(audited(inner).judged_accuracy, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": 8.0}, "/ 255"),
        ({"level": "slow"}, "'quick', 'full'"),
        ({"threat_models": ("black-box",)}, "'white-box', 'adaptive'"),
        ({"threat_models": ()}, "threat_models"),
        ({"draws": 0}, "draws"),
    ],
)
def test_refuses(settings, words):
    with pytest.raises(ValueError, match=r"Expected .* Received") as error:
        audited(small_cnn(2), **settings)
    assert words in str(error.value)


def test_refuses_models_that_are_never_right():
    model = small_cnn(2)
    with pytest.raises(ValueError, match="wrong on all 24"):
        audit_robustness(model, X, (labels(model) + 1) % 4, epsilon=0.1, progress=False)
    with pytest.raises(ValueError, match="one model"):
        audit_robustness({"a": model, "b": model}, X, labels(model), epsilon=0.1)


def test_log_odds_as_attacks_climb_them():
    logits = np.array([[1.0, 3.0, -2.0], [500.0, 0.0, 1.0]], "float32")
    expected = [np.log(np.exp(1.0) + np.exp(-2.0)) - 3.0, np.log(1.0 + np.exp(1.0)) - 500.0]
    np.testing.assert_allclose(log_odds(logits, np.array([1, 0])), expected, rtol=1e-9)


def test_each_planted_example_is_one_of_its_own():
    """The readout changes from image to image, also in compiled functions."""
    model = small_cnn(2)
    planted = Planted(model, AttackedModel(model).settings, X[:1])
    attacked = AttackedModel(planted)
    rng = np.random.default_rng(0)
    for row in range(3):
        points = np.clip(X[row] + 0.1 * rng.uniform(-1, 1, (50, 8, 8, 1)), 0, 1).astype("float32")
        assert planted.plant(points)
        reached = attacked.is_adversarial(points, Goal(np.zeros(50, "int64")))
        assert np.flatnonzero(reached).tolist() == [0]


def test_proofs_make_evidence_exact_and_a_contradiction_fails(monkeypatch):
    """Behind a hard quantizer; then a proof that is wrong, which an attack on the levels finds."""
    model = small_cnn(2)
    front = QuSecQuantization(2, hard=True)
    model = keras.Sequential([keras.Input((8, 8, 1)), front, *model.layers])
    searched = evidence.BUDGETS["quick"]._replace(prove="standard")
    monkeypatch.setitem(evidence.BUDGETS, "quick", searched)
    found = audited(model, epsilon=0.02, threat_models=("white-box", "adaptive"))
    check = found.checks[-1]
    assert (check.identifier, check.status) == ("proofs", PASSED)
    assert found.proved_accuracy == found.worst_accuracy == found.to_dict()["proved accuracy"]
    assert found.evidence == "exact"
    assert "evidence: exact" in found.verdict
    quick = audited(model, epsilon=0.1, threat_models=("white-box", "adaptive"))
    # What is judged searches the levels, too; PGD along gradients alone misses most of them.
    planted = next(c for c in quick.checks if c.identifier == "planted-examples")
    assert planted.status == PASSED
    assert planted.finding.evidence.startswith("PGD and reachable-levels missed")
    assert quick.proved_accuracy <= quick.worst_accuracy

    def wrong(evaluate, model, x, budget, tell):
        report, reason = proofs(evaluate, model, x, budget, tell)
        for certificate in report.certificates:
            certificate.states[:] = "proved"
        return report, reason

    proofs = audit._proofs
    monkeypatch.setattr(audit, "_proofs", wrong)
    failed = audited(model, epsilon=0.1)
    assert failed.kind == "contradicted"
    assert failed.verdict.startswith("keras-qusec failed: an attack broke an image")
    assert "proved and yet broken" in str(failed)
