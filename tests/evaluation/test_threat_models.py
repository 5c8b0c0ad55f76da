"""What each adversary finds: gradients, surrogate gradients, transfers, queries."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import (
    EPSILONS,
    FEATURES,
    IMAGES,
    NEAREST,
    WEIGHTS,
    X,
    Y,
    predicted,
    set_random_weights,
)

from keras_qusec import QuSecQuantization, evaluate_robustness

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestThreatModels:
    @pytest.fixture(scope="class")
    def hard(self):
        """A linear model behind a hard quantizer: its own gradient is zero almost everywhere."""
        model = keras.Sequential(
            [keras.Input((FEATURES,)), QuSecQuantization(2, hardness=2000.0), keras.layers.Dense(2)]
        )
        model.layers[-1].set_weights(
            [np.stack([0 * WEIGHTS, WEIGHTS], 1), np.array([0, 0.1], "float32")]
        )
        return model

    def test_adaptive_sees_through_a_quantizer(self, hard):
        y = predicted(hard, X)
        report = evaluate_robustness(hard, X, y, attacks=["pgd"], epsilons=[0.2])
        white = report.robust_accuracy(threat_model="white-box")
        adaptive = report.robust_accuracy(threat_model="adaptive")
        # Every pixel lies within 0.15 of the threshold, so any image can be turned.
        assert adaptive == 0.0
        assert white > 0.3
        assert report.robust_accuracy() == adaptive
        # The layer is as it was.
        assert hard.layers[0].gradient_hardness is None

    def test_adaptive_alone_has_the_own_gradient_too(self, linear):
        report = evaluate_robustness(
            linear, X, Y, attacks=["fgsm"], epsilons=EPSILONS["linf"], threat_models="adaptive"
        )
        both = evaluate_robustness(linear, X, Y, attacks=["fgsm"], epsilons=EPSILONS["linf"])
        assert report.robust_accuracy() == both.robust_accuracy()

    def test_a_quantizer_without_an_adaptive_attack_is_noted(self, hard):
        y = predicted(hard, X)
        report = evaluate_robustness(hard, X, y, attacks=["fgsm"], threat_models=["white-box"])
        assert "hides gradients" in " ".join(str(report).split())
        assert "hides gradients" in report.to_markdown()
        assert not evaluate_robustness(hard, X, y, attacks=["fgsm"]).notes

    def test_transfer(self, hard, linear):
        """A linear source gives the direction; only pixels that cross 0.5 count."""
        y = predicted(hard, X)
        report = evaluate_robustness(
            {"hard": hard}, X, y, attacks=["fgsm"], epsilons=[0.2],
            threat_models=["white-box", "black-box"], source_model={"linear": linear},
        )  # fmt: skip
        signs = np.where(y == 1, -1, 1)[:, None] * np.sign(WEIGHTS)
        moved = (X + 0.2 * signs).clip(0, 1).astype("float32")
        expected = (predicted(hard, moved) == y).mean()
        assert report.robust_accuracy(threat_model="black-box") == pytest.approx(expected)
        assert report.robust_accuracy(threat_model="black-box", source="linear") < 0.1
        assert report.robust_accuracy(threat_model="white-box") > expected + 0.2
        assert report.robust_accuracy() == pytest.approx(expected, abs=0.02)

    def test_a_model_that_nothing_attacked_has_no_figure(self, hard, linear):
        models = {"hard": hard, "linear": linear}
        report = evaluate_robustness(
            models, X, Y, attacks=["fgsm"], epsilons=[0.2], threat_models=["black-box"],
            source_model={"linear": linear},
        )  # fmt: skip
        assert report.attacked == ("hard",)
        assert "linear was not attacked." in report.notes
        assert "not attacked" in str(report)
        assert {row.model for row in report.rows} == {"hard"}
        with pytest.raises(ValueError, match="not run together"):
            report.robust_accuracy(model="linear")

    def test_images_wrong_when_clean_have_no_example(self, hard, linear):
        """Also where a transfer was made for the sake of another model."""
        report = evaluate_robustness(
            {"hard": hard, "other": linear}, X, Y, attacks=["fgsm"], epsilons=[0.2],
            threat_models=["black-box"], source_model=set_random_weights(
                keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)]), 0
            ),
        )  # fmt: skip
        assert not report.correct["hard"].all()
        for result in report.results:
            wrong = ~report.correct[result.model]
            assert not np.isfinite(result.distances["l2"][wrong]).any()

    def test_a_norm_without_an_attack_is_noted(self, linear):
        report = evaluate_robustness(
            linear, X, Y, attacks=["fgsm"], epsilons={"linf": [0.1], "l2": [0.1]}
        )
        assert "No attack was made in L2" in report.notes[0]

    def test_matrix_of_several_models(self, hard, linear):
        models = {"hard": hard, "linear": linear}
        report = evaluate_robustness(
            models, X, Y, attacks=["fgsm"], epsilons=[0.2],
            threat_models=["white-box", "black-box"], source_model=models,
        )  # fmt: skip
        matrix = report.transfer_matrix()
        assert set(matrix) == {"hard", "linear"}
        own = report.robust_accuracy(threat_model="white-box", model="hard")
        assert matrix["hard"]["hard"] == own
        assert matrix["linear"]["hard"] < own
        assert "from linear" in str(report)
        # The diagonal is no black box.
        assert {(r.model, r.source) for r in report.results if r.source} == {
            ("hard", "linear"),
            ("linear", "hard"),
        }

    def test_the_model_itself_is_no_source(self, linear):
        with pytest.raises(ValueError, match="white-box"):
            evaluate_robustness(linear, X, Y, threat_models=["black-box"], source_model=linear)

    def test_a_model_without_defences_gets_more_random_starts(self, cnn):
        """As many as there would be surrogate gradients, on what stands; none without chance."""
        y = predicted(cnn, IMAGES)
        report = evaluate_robustness(
            cnn, IMAGES, y, attacks=[("pgd", {"steps": 3}), "bim"], epsilons=[0.01],
            surrogate_hardnesses=[3.0, 5.0, 10.0],
        )  # fmt: skip
        by_name = {(r.attack, r.threat_model): r for r in report.results}
        white, adaptive = by_name["pgd", "white-box"], by_name["pgd", "adaptive"]
        stands = int((~np.isfinite(white.distances["linf"])).sum())
        stands_after = int((~np.isfinite(adaptive.distances["linf"])).sum())
        assert stands > 5
        assert 9 * stands_after <= adaptive.gradients.sum() <= 9 * stands
        assert by_name["bim", "adaptive"].gradients.sum() == 0

    def test_queries_are_counted(self, linear):
        report = evaluate_robustness(
            linear, X[:8], Y[:8], attacks=["single-pixel"], threat_models=["black-box"]
        )
        result = report.results[0]
        assert result.threat_model == "black-box"
        assert result.gradients.sum() == 0
        broken = np.isfinite(result.distances["l0"])
        # One query to begin with; all pixels at both bounds where nothing was found.
        assert result.queries.sum() >= 8 + (~broken).sum() * 2 * FEATURES
        only_white = evaluate_robustness(
            linear, X[:8], Y[:8], attacks=["single-pixel"], threat_models=["white-box"]
        )
        assert only_white.threat_models == ("white-box",)

    def test_broken_and_misclassified_images_are_not_attacked_again(self, linear):
        wrong = Y.copy()
        wrong[:20] = 1 - wrong[:20]
        radii = EPSILONS["linf"]
        report = evaluate_robustness(
            linear, X, wrong, attacks=[("bim", {"steps": 2})], epsilons=radii,
            threat_models=["white-box"],
        )  # fmt: skip
        assert report.clean_accuracy() == pytest.approx(40 / 60)
        # Two steps for each image that is left. From the second radius on, the last one's
        # perturbation made larger is tried first, and on a linear model it is enough.
        left = [40, *((NEAREST["linf"][20:] > radius).sum() for radius in radii[1:])]
        assert report.results[0].gradients.tolist() == [2 * count for count in left]
