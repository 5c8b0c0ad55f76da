"""Robust accuracy against closed forms and plain Foolbox; threat models, resume, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import BACKEND

from keras_qusec import QuSecQuantization, evaluate_robustness
from keras_qusec.attacks import PGD
from keras_qusec.evaluation import units
from keras_qusec.evaluation.attacked import AttackedModel, Goal
from keras_qusec.evaluation.bridge import (
    Counter,
    foolbox_model,
    import_foolbox,
    logits_function,
    to_tensor,
)
from keras_qusec.evaluation.methods import NAMES, methods_of
from keras_qusec.evaluation.norms import distances_of
from keras_qusec.evaluation.threat_models import Batch, Job, _Found, verified

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

FEATURES = 10
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=FEATURES).astype("float32")
X = RNG.uniform(0.35, 0.65, (60, FEATURES)).astype("float32")
MARGIN = (X @ WEIGHTS + 0.1).astype("float64")
Y = (MARGIN > 0).astype("int64")
# The exact distance of the nearest adversarial example; the bounds are out of reach.
NEAREST = {
    "linf": np.abs(MARGIN) / np.abs(WEIGHTS).sum(),
    "l2": np.abs(MARGIN) / np.linalg.norm(WEIGHTS),
}
# Between two images' distances, so that rounding decides nothing.
EPSILONS = {
    norm: [float(np.sort(found)[place : place + 2].mean()) for place in (11, 29, 47)]
    for norm, found in NEAREST.items()
}


def set_random_weights(model, seed, scale=0.5):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, scale, w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(weights)
    return model


@pytest.fixture(scope="module")
def linear():
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
    model.set_weights([np.stack([0 * WEIGHTS, WEIGHTS], 1), np.array([0, 0.1], "float32")])
    return model


def small_cnn(seed=1, quantizer=None, activation=None):
    layers = [quantizer] if quantizer is not None else []
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *layers,
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation=activation),
        ],
        name=f"cnn{seed}",
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


IMAGES = np.random.default_rng(5).uniform(0, 1, (24, 8, 8, 1)).astype("float32")


def predicted(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)


def figures(report):
    """All of a report but the clock."""
    content = report.to_dict()
    for part in (*content["rows"], *content["results"]):
        part.pop("seconds")
    return content


class TestClosedForms:
    @pytest.mark.parametrize(
        ("attack", "norm"),
        [
            ("fgsm", "linf"),
            ("bim", "linf"),
            ("pgd", "linf"),
            ("fgsm-l2", "l2"),
            ("bim-l2", "l2"),
            ("pgd-l2", "l2"),
        ],
    )
    def test_in_a_ball(self, linear, attack, norm):
        report = evaluate_robustness(
            linear, X, Y, attacks=[attack], epsilons={norm: EPSILONS[norm]},
            threat_models=["white-box"],
        )  # fmt: skip
        for epsilon in EPSILONS[norm]:
            accuracy = report.robust_accuracy(epsilon=epsilon)
            # From a random start L2 PGD only comes close to the exact direction.
            reached = 0.98 * epsilon if attack == "pgd-l2" else epsilon
            assert accuracy >= (NEAREST[norm] > epsilon).mean() - 1e-9
            assert accuracy <= (NEAREST[norm] > reached).mean() + 1e-9

    @pytest.mark.parametrize(
        ("attack", "settings", "norm", "most"),
        [
            ("deepfool", {}, "l2", 1.03),
            ("deepfool-linf", {}, "linf", 1.03),
            ("cw", {"steps": 300, "binary_search_steps": 6}, "l2", 1.1),
        ],
    )
    def test_closest(self, linear, attack, settings, norm, most):
        report = evaluate_robustness(
            linear, X, Y, attacks=[(attack, settings)], threat_models=["white-box"]
        )
        assert report.robust_accuracy(attack=attack, norm=norm, epsilon=10.0) == 0
        order = ("l0", "l2", "linf").index(norm)
        found = report.results[0].distances[:, order]
        ratio = found / np.maximum(NEAREST[norm], 1e-3)
        assert np.median(ratio) <= most
        assert (found >= NEAREST[norm] * (1 - 1e-3)).all()

    def test_perturbation_sizes(self, linear):
        radius = EPSILONS["linf"][1]
        report = evaluate_robustness(
            linear, X, Y, attacks=["fgsm"], epsilons=[radius], threat_models=["white-box"]
        )
        row = report.rows[0]
        assert row.median_linf == pytest.approx(radius, abs=1e-6)
        assert row.median_l2 == pytest.approx(radius * np.sqrt(FEATURES), abs=1e-5)
        assert row.mean_l0 == FEATURES

    def test_bounds_are_kept(self, linear):
        edge = np.where(WEIGHTS > 0, 1.0, 0.0)  # as far as class 1 can be
        x = np.stack([edge, 1 - edge]).astype("float32")
        report = evaluate_robustness(
            linear, x, predicted(linear, x), attacks=["pgd"], epsilons=[0.01]
        )
        assert report.robust_accuracy() == 1.0


class TestAgainstFoolbox:
    def plain(self, model, attack, x, y, epsilons):
        wrapped = foolbox_model(model)
        _, found, success = attack(wrapped, to_tensor(x), to_tensor(y), epsilons=epsilons)
        if epsilons is None:
            return keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(success)
        return keras.ops.convert_to_numpy(success)

    def test_fgsm_and_bim_give_the_same_accuracies(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        epsilons = [0.01, 0.03, 0.1]
        peers = {
            "fgsm": foolbox.attacks.LinfFastGradientAttack(random_start=False),
            "bim": foolbox.attacks.LinfBasicIterativeAttack(
                steps=10, rel_stepsize=0.1, random_start=False
            ),
        }
        report = evaluate_robustness(
            cnn, IMAGES, y, attacks=["fgsm", "bim"], epsilons=epsilons,
            threat_models=["white-box"],
        )  # fmt: skip
        for name, peer in peers.items():
            # An image that a smaller epsilon breaks is broken, also if a larger one fails.
            success = np.logical_or.accumulate(self.plain(cnn, peer, IMAGES, y, epsilons))
            ours = [report.robust_accuracy(name, epsilon) for epsilon in epsilons]
            theirs = 1 - success.mean(axis=1)
            assert 0 < min(ours) < max(ours)
            if name == "fgsm":
                np.testing.assert_allclose(ours, theirs)
            else:  # we also count the images on the way
                assert (np.array(ours) <= theirs + 1e-9).all()

    def test_attack_objects_give_the_same_distances(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        attack = foolbox.attacks.L2DeepFoolAttack()
        found, success = self.plain(cnn, attack, IMAGES, y, None)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=[attack], threat_models=["white-box"])
        ours = report.results[0].distances
        np.testing.assert_array_equal(np.isfinite(ours[:, 0]), success)
        theirs = distances_of(IMAGES, found)
        np.testing.assert_allclose(ours[success], theirs[success], rtol=2e-2, atol=1e-4)

    def test_ball_attack_objects(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25).repeat(2)
        report = evaluate_robustness(
            cnn, IMAGES, y, attacks={"theirs": attack, "ours": ("pgd", {"steps": 10})},
            epsilons=[0.03],
        )  # fmt: skip
        assert report.results[0].gradients.sum() > 0
        theirs, ours = report.robust_accuracy("theirs"), report.robust_accuracy("ours")
        assert abs(theirs - ours) <= 2 / len(y)


class TestBridge:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
    def test_labels_of_any_integer_type(self, cnn, dtype):
        y = predicted(cnn, IMAGES).astype(dtype)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=["deepfool"])
        assert report.clean_accuracy() == 1.0

    def test_counts_forward_and_backward_passes(self, cnn):
        foolbox = import_foolbox()
        counter = Counter()
        wrapped = foolbox_model(cnn, counter=counter)
        y = to_tensor(predicted(cnn, IMAGES))
        attack = foolbox.attacks.LinfPGD(steps=5)
        attack.run(wrapped, to_tensor(IMAGES), foolbox.criteria.Misclassification(y), epsilon=0.1)
        assert (counter.gradients, counter.queries) == (5 * len(IMAGES), 5 * len(IMAGES))
        wrapped(to_tensor(IMAGES[:7]))
        assert (counter.gradients, counter.queries) == (5 * len(IMAGES), 5 * len(IMAGES) + 7)

    def softmaxed(self, kind):
        """The same network with its softmax in different places."""
        plain = small_cnn()
        if kind == "activation":
            model = small_cnn(activation="softmax")
        elif kind == "layer":
            model = keras.Sequential([*small_cnn().layers, keras.layers.Softmax()])
            model.build((None, 8, 8, 1))
        elif kind == "activation layer":
            model = keras.Sequential([*small_cnn().layers, keras.layers.Activation("softmax")])
            model.build((None, 8, 8, 1))
        else:
            model = keras.Sequential([keras.Input((8, 8, 1)), small_cnn(activation="softmax")])
        model.set_weights(plain.get_weights())
        return model

    def test_half_precision_and_batch_statistics(self):
        """float16 inside, float32 for the attacks; the model's state stays as it was."""
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                QuSecQuantization(2),
                keras.layers.Conv2D(4, 3, activation="relu", dtype="mixed_float16"),
                keras.layers.BatchNormalization(dtype="mixed_float16"),
                keras.layers.Dropout(0.5),
                keras.layers.Flatten(),
                keras.layers.Dense(4, dtype="mixed_float16"),
            ]
        )
        before = [np.array(w) for w in model.get_weights()]
        y = predicted(model, IMAGES)
        report = evaluate_robustness(
            model, IMAGES, y, attacks=["pgd", "deepfool", "jsma-paper"], epsilons=[0.05, 0.3]
        )
        assert not report.failures
        assert report.robust_accuracy() < report.clean_accuracy() == 1.0
        for one, two in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize("kind", ["activation", "layer", "activation layer", "nested"])
    def test_a_softmax_is_left_out(self, cnn, kind):
        model = self.softmaxed(kind)
        logits = keras.ops.convert_to_numpy(cnn(IMAGES))
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(logits_function(model)(IMAGES)), logits, atol=1e-6
        )
        y = logits.argmax(axis=1)
        settings = {"attacks": ["pgd", "deepfool"], "epsilons": [0.01, 0.03]}
        expected = evaluate_robustness(cnn, IMAGES, y, **settings)
        report = evaluate_robustness(model, IMAGES, y, **settings)
        for attack in ("pgd", "deepfool"):
            assert report.robust_accuracy(attack) == expected.robust_accuracy(attack)
        # The model itself is as it was.
        outputs = keras.ops.convert_to_numpy(model(IMAGES))
        np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)

    def test_a_hidden_softmax_is_an_error(self):
        inner = self.softmaxed("layer")
        model = keras.Sequential([keras.Input((8, 8, 1)), inner])
        with pytest.raises(ValueError, match="whose softmax is inside"):
            evaluate_robustness(model, IMAGES, np.zeros(24, int))
        images = keras.Input((8, 8, 1))
        scores = small_cnn()(images)
        model = keras.Model(images, keras.ops.softmax(scores))
        with pytest.raises(ValueError, match="probabilities made in another way"):
            evaluate_robustness(model, IMAGES, np.zeros(24, int))

    def test_what_is_attacked_is_the_model_itself(self):
        """The mean of two softmax networks: no layer's activation may be left out."""
        inputs = keras.Input((8, 8, 1))
        one, two = small_cnn(1, activation="softmax"), small_cnn(2, activation="softmax")
        mean = keras.Model(inputs, (one(inputs) + two(inputs)) / 2)
        with pytest.raises(ValueError, match="probabilities made in another way"):
            evaluate_robustness(mean, IMAGES[:4], np.zeros(4, int))
        with pytest.raises(ValueError, match="probabilities made in another way"):
            evaluate_robustness(
                small_cnn(), IMAGES, np.zeros(24, int), threat_models="black-box", source_model=mean
            )

    def test_saturated_softmax_hides_nothing(self, linear):
        """Logits a thousand times larger: the softmax's gradient is exactly zero."""
        model = keras.Sequential(
            [keras.Input((FEATURES,)), keras.layers.Dense(2, activation="softmax")]
        )
        model.set_weights([1000 * w for w in linear.get_weights()])
        radius = EPSILONS["linf"][2]
        report = evaluate_robustness(model, X, Y, attacks=["pgd"], epsilons=[radius])
        assert report.robust_accuracy() == pytest.approx(
            (NEAREST["linf"] > radius).mean(), abs=0.02
        )


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
            assert not np.isfinite(result.distances[wrong]).any()

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

    def test_queries_are_counted(self, linear):
        report = evaluate_robustness(
            linear, X[:8], Y[:8], attacks=["single-pixel"], threat_models=["black-box"]
        )
        result = report.results[0]
        assert result.threat_model == "black-box"
        assert result.gradients.sum() == 0
        broken = np.isfinite(result.distances[:, 0])
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

    def test_an_image_that_falls_early_stops(self, linear):
        attacked = AttackedModel(linear)
        attack = PGD(10 * NEAREST["linf"].max(), steps=30, random_start=False)
        attacked.search(attack, X, Goal(Y), hardness=None, seed=0)
        assert attacked.counter.gradients <= 6 * len(X)
        attacked.counter.gradients = 0
        attacked.search(attack, X, Goal(Y), hardness=None, seed=0, stop=False)
        assert attacked.counter.gradients == 30 * len(X)


class TestVerification:
    @pytest.mark.parametrize(
        ("candidate", "epsilon", "counts"),
        [
            (lambda x: x + 5.0, 0.05, False),  # out of bounds and ball: put back, then judged
            (lambda x: np.full_like(x, np.nan), None, False),
            (lambda x: x, None, False),
            (lambda x: x - np.sign(WEIGHTS) * np.sign(MARGIN[:1]), None, True),
            (lambda x: x - np.sign(WEIGHTS) * np.sign(MARGIN[:1]), 1e-6, False),
        ],
    )
    def test_nothing_counts_unseen(self, linear, candidate, epsilon, counts):
        attacked = AttackedModel(linear)
        x, goal = X[:1], Goal(Y[:1])
        images, distances = verified(
            attacked, x, candidate(x).astype("float32"), goal, "linf", epsilon
        )
        assert np.isfinite(distances).all() == counts
        assert images.min() >= 0
        assert images.max() <= 1
        if epsilon is not None:
            assert np.abs(images - x).max() <= epsilon + 1e-6

    def test_a_black_image_counts_only_where_it_is_no_failure(self):
        """Minimizing attacks return zeros for failures; within a ball zeros may be found."""
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.set_weights([np.array([[1, 0], [1, 0]], "float32"), np.array([0, 0.1], "float32")])
        attacked = AttackedModel(model)
        x, goal = np.array([[0.1, 0.2]], "float32"), Goal(np.array([0]))
        assert not np.isfinite(verified(attacked, x, 0 * x, goal, "l2", None)[1]).any()
        assert np.isfinite(verified(attacked, x, 0 * x, goal, "linf", 0.2)[1]).all()
        # The failure is zero also where black is not.
        moved = AttackedModel(model, (-1.0, 1.0))
        assert not np.isfinite(verified(moved, x, 0 * x, goal, "l2", None)[1]).any()

    @pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (900.0, 1100.0), (0.0, 1e-4)])
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_rounding_at_large_pixel_values(self, low, high, norm):
        """What float32 rounds out of the ball is put back, and counts."""
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
        scale = np.float32(1 / (high - low))
        x = RNG.uniform(low + 0.7 * (high - low), high * 0.9 + 0.1 * low, (20, FEATURES))
        x = x.astype("float32")
        weights = np.stack([np.full(FEATURES, scale), np.zeros(FEATURES)], 1)
        model.set_weights([weights, np.zeros(2)])
        attacked = AttackedModel(model, (low, high))
        epsilon = 4e-4 * (high - low)
        moved = x - np.float32(epsilon)
        goal = Goal(1 - predicted(model, x))  # already reached: only the ball matters
        images, distances = verified(attacked, x, moved, goal, norm, epsilon)
        assert np.isfinite(distances).all()
        gap = images.astype("float64") - x
        size = np.abs(gap).max(1) if norm == "linf" else np.linalg.norm(gap, axis=1)
        assert (size <= epsilon * (1 + 1e-6)).all()
        assert (size >= epsilon * 0.7).all()

    def test_the_closest_example_in_each_norm_is_remembered(self, linear):
        batch = Batch(X[:1], Goal(1 - Y[:1]), {"m": np.array([True])})
        job = Job("a", methods_of("deepfool")["deepfool"], batch, (None,), None, 0)
        found = _Found("m", AttackedModel(linear), job)
        wide = X[:1] + np.float32(0.01)  # far in L2, near in L-infinity
        narrow = X[:1].copy()
        narrow[0, 0] += 0.02
        for candidate in (wide, narrow):
            found.offer(np.array([0]), candidate, None)
        np.testing.assert_allclose(found.distances, [[1, 0.02, 0.01]], rtol=1e-4)

    def test_an_attack_that_lies(self, linear):
        foolbox = import_foolbox()

        class Liar(foolbox.attacks.base.MinimizationAttack):
            distance = foolbox.distances.linf

            def run(self, model, inputs, criterion, **_):
                return inputs * 0 + 0.123

        report = evaluate_robustness(linear, X, Y, attacks=[Liar()])
        flat = np.full((1, FEATURES), 0.123, "float32")
        honest = (predicted(linear, flat)[0] == Y).mean()
        assert report.robust_accuracy("Liar", norm="l2", epsilon=100.0) == pytest.approx(honest)


class TestTargets:
    def test_rules(self, cnn):
        y = predicted(cnn, IMAGES)
        for rule in ("next", "random", "second", "least-likely", (y + 2) % 4):
            report = evaluate_robustness(
                cnn, IMAGES, y, attacks=["pgd", "cw-paper", "jsma"], epsilons=[0.1, 0.5],
                targets=rule, threat_models=["white-box"],
            )  # fmt: skip
            assert not report.failures
            assert report.robust_accuracy("pgd", 0.5) < report.clean_accuracy()

    def test_a_target_is_harder_than_any_class(self, cnn):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["pgd"], "epsilons": [0.03], "threat_models": ["white-box"]}
        untargeted = evaluate_robustness(cnn, IMAGES, y, **settings)
        least = evaluate_robustness(cnn, IMAGES, y, targets="least-likely", **settings)
        second = evaluate_robustness(cnn, IMAGES, y, targets="second", **settings)
        assert untargeted.robust_accuracy() <= second.robust_accuracy() < least.robust_accuracy()

    def test_two_classes_targeted_is_untargeted(self, linear):
        radius = EPSILONS["linf"][1]
        reports = [
            evaluate_robustness(linear, X, Y, attacks=["pgd"], epsilons=[radius], targets=targets)
            for targets in (None, "next", 1 - Y)
        ]
        assert len({report.robust_accuracy() for report in reports}) == 1

    def test_deepfool_cannot_be_targeted_but_the_others_stand(self, cnn):
        y = predicted(cnn, IMAGES)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=["deepfool", "fgsm"], targets="next")
        assert report.attacks == ("fgsm",)
        assert "deepfool" in report.notes[0]
        assert "targeted" in report.failures[0]["message"]


class TestEveryAttack:
    SMALL: dict = {  # noqa: RUF012
        "cw": {"binary_search_steps": 3, "steps": 40, "stepsize": 0.1, "initial_const": 1.0},
        "cw-paper": {"steps": 20},
        "salt-and-pepper": {"steps": 50},
        "boundary": {"steps": 20},
        "hopskipjump": {"steps": 1, "initial_gradient_eval_steps": 20},
        "local-search": {"rounds": 10},
        "local-search-paper": {"rounds": 3},
        "pgd": {"restarts": 2, "steps": 5, "relative_step_size": 0.3},
        "gaussian": {"repeats": 3},
    }

    def test_all_run_and_are_checked(self, cnn):
        y = predicted(cnn, IMAGES)
        report = evaluate_robustness(
            cnn, IMAGES[:12], y[:12], attacks=[(name, self.SMALL.get(name, {})) for name in NAMES],
            epsilons={"linf": [0.05, 0.3], "l2": [0.5, 3.0]}, threat_models=["white-box"],
        )  # fmt: skip
        assert not report.failures, report.failures
        assert report.attacks == NAMES
        for result in report.results:
            for index, image in result.examples.items():
                assert predicted(cnn, image[None])[0] != y[index]
                sizes = distances_of(IMAGES[index : index + 1], image[None])[0]
                np.testing.assert_allclose(result.distances[index], sizes, rtol=1e-5)
        strong = ("pgd", "cw", "deepfool", "jsma", "boundary", "hopskipjump", "pointwise")
        for name in strong:
            broken = np.isfinite(next(r for r in report.results if r.attack == name).distances)
            assert broken[:, 0].mean() > 0.7, name

    @pytest.mark.parametrize("name", ["hopskipjump", "pgd", "deepfool", "pointwise"])
    def test_other_value_ranges(self, cnn, name):
        """The same images in bytes' units: the same figures."""
        scaled = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), cnn])
        y = predicted(cnn, IMAGES)
        settings = {"attacks": [(name, self.SMALL.get(name, {}))]}
        small = evaluate_robustness(cnn, IMAGES, y, epsilons=[0.05], **settings)
        large = evaluate_robustness(
            scaled, IMAGES * 255, y, epsilons=[0.05 * 255], value_range=(0, 255), **settings
        )
        assert not large.failures, large.failures
        a, b = (r.results[0].distances[:, 1] for r in (small, large))
        both = np.isfinite(a) & np.isfinite(b)
        assert both.mean() >= np.isfinite(a).mean() - 0.1
        assert np.median(b[both]) / 255 == pytest.approx(np.median(a[both]), rel=0.3)

    def test_starting_points_without_another_class(self, linear):
        """All images of one class: starts are noise, or the image is left alone."""
        one = np.flatnonzero(Y == 1)[:6]
        report = evaluate_robustness(linear, X[one], Y[one], attacks=[("boundary", {"steps": 5})])
        assert not report.failures


class TestSeedsAndBatches:
    def test_same_seed_same_report_and_user_generators_untouched(self, cnn):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["pgd", ("boundary", {"steps": 10})], "epsilons": [0.02, 0.05]}
        np.random.seed(7)
        expected = np.random.random()
        np.random.seed(7)
        first = evaluate_robustness(cnn, IMAGES, y, seed=3, **settings)
        assert np.random.random() == expected
        again = evaluate_robustness(cnn, IMAGES, y, seed=3, **settings)
        other = evaluate_robustness(cnn, IMAGES, y, seed=4, **settings)
        assert figures(first) == figures(again)
        assert figures(first)["results"] != figures(other)["results"]

    def test_batches_change_only_the_random_starts(self, linear):
        radii = EPSILONS["linf"]
        settings = {"attacks": ["fgsm", "deepfool"], "epsilons": radii}
        whole = evaluate_robustness(linear, X, Y, **settings)
        parts = evaluate_robustness(linear, X, Y, batch_size=7, **settings)
        for a, b in zip(whole.results, parts.results, strict=True):
            np.testing.assert_allclose(a.distances, b.distances, rtol=1e-3, atol=1e-5)

    def test_backends_agree(self):
        """Figures of a small CNN with fixed weights, the same on every backend."""
        models = {"plain": small_cnn(2), "quantized": small_cnn(2, QuSecQuantization(2))}
        y = predicted(models["plain"], IMAGES)
        report = evaluate_robustness(
            models, IMAGES, y, attacks=["fgsm", "bim", "deepfool", "jsma", "single-pixel"],
            epsilons=[0.02, 0.05, 0.1],
        )  # fmt: skip
        for (model, threat_model, attack), expected in AGREED.items():
            wanted = (model, threat_model, attack)
            got = [
                round(row.robust_accuracy * 24)
                for row in report.rows
                if (row.model, row.threat_model, row.attack) == wanted
            ]
            assert got == list(expected), wanted


# Robust images of 24, by model, threat model, attack: at 0.02, 0.05, 0.1, or any distance.
AGREED = {
    ("plain", "white-box", "fgsm"): (19, 6, 2),
    ("plain", "white-box", "bim"): (19, 6, 2),
    ("plain", "white-box", "deepfool"): (0,),
    ("plain", "adaptive", "jsma"): (0,),
    ("plain", "white-box", "single-pixel"): (5,),
    ("plain", "all", "worst case"): (19, 6, 2),
    ("quantized", "white-box", "fgsm"): (14, 9, 6),
    ("quantized", "adaptive", "bim"): (14, 9, 5),
    ("quantized", "adaptive", "deepfool"): (0,),
    ("quantized", "white-box", "jsma"): (0,),
    ("quantized", "white-box", "single-pixel"): (9,),
    ("quantized", "all", "worst case"): (14, 9, 5),
}


class TestResume:
    SETTINGS: dict = {  # noqa: RUF012
        "attacks": ["fgsm", ("pgd", {"steps": 4}), "deepfool"],
        "epsilons": [0.02, 0.05],
        "batch_size": 6,
    }

    def test_nothing_runs_twice(self, cnn, tmp_path, monkeypatch):
        y = predicted(cnn, IMAGES)
        whole = evaluate_robustness(cnn, IMAGES, y, **self.SETTINGS)
        ran = []
        original = units.run_task

        def counted(task, *rest):
            if len(ran) == 5:
                raise KeyboardInterrupt
            ran.append(task.unit)
            return original(task, *rest)

        monkeypatch.setattr(units, "run_task", counted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        monkeypatch.setattr(
            units, "run_task", lambda task, *rest: ran.append(task.unit) or original(task, *rest)
        )
        report = evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        assert len(ran) == len(set(ran)) == 12
        assert figures(report) == figures(whole)
        again = evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        assert len(ran) == 12
        assert again.to_dict() == report.to_dict()

    def test_killed_in_the_middle(self, cnn, tmp_path):
        """SIGKILL, then the same call: the same report as without."""
        y = predicted(cnn, IMAGES)
        cnn.save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", x=IMAGES, y=y)
        code = f"""
import sys, time
import keras, numpy as np
from keras_qusec import evaluate_robustness
folder = {str(tmp_path)!r}
model = keras.saving.load_model(folder + "/model.keras")
data = np.load(folder + "/data.npz")
slow = (lambda text, share: time.sleep(0.3)) if sys.argv[1] == "slow" else False
report = evaluate_robustness(model, data["x"], data["y"], resume_dir=folder + "/run",
    progress=slow, **{self.SETTINGS!r})
report.save(folder + "/" + sys.argv[1] + ".json")
"""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", code]
        child = subprocess.Popen([*command, "slow"], env=environment)
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "run").glob("[!.]*.npz"))) < 3:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("[!.]*.npz")}
        assert 3 <= len(finished) < 12
        subprocess.run([*command, "resumed"], env=environment, check=True)
        assert not (tmp_path / "slow.json").exists()
        for path, written in finished.items():
            assert path.stat().st_mtime_ns == written
        resumed = json.loads((tmp_path / "resumed.json").read_text())
        whole = evaluate_robustness(cnn, IMAGES, y, **self.SETTINGS).to_dict()
        for content in (resumed, whole):
            for part in (*content["rows"], *content["results"]):
                part.pop("seconds")
        assert resumed["rows"] == json.loads(json.dumps(whole["rows"]))

    def test_folder_of_another_run(self, cnn, linear, tmp_path):
        y = predicted(cnn, IMAGES)
        evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run")
        with pytest.raises(ValueError, match="differs in seed"):
            evaluate_robustness(
                cnn, IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run", seed=1
            )
        with pytest.raises(ValueError, match="differs in data"):
            evaluate_robustness(cnn, IMAGES[::-1], y, attacks=["fgsm"], resume_dir=tmp_path / "run")
        with pytest.raises(ValueError, match="differs in models"):
            evaluate_robustness(
                small_cnn(3), IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run"
            )

    def test_foreign_and_damaged_folders(self, cnn, tmp_path):
        y = predicted(cnn, IMAGES)
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        (foreign / "thesis.tex").write_text("important")
        with pytest.raises(ValueError, match="has other files"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=foreign)
        with pytest.raises(ValueError, match="Received: the file"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=foreign / "thesis.tex")
        run = tmp_path / "run"
        evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)
        (unit,) = run.glob("[!.]*.npz")
        unit.write_bytes(unit.read_bytes()[:100])
        with pytest.raises(ValueError, match="Delete this file"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)
        (run / "run.json").write_text("{")
        with pytest.raises(ValueError, match="unreadable"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)


class TestJobs:
    def test_two_processes_give_the_same_report(self, cnn, tmp_path):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["fgsm", ("pgd", {"steps": 4})], "epsilons": [0.02, 0.05]}
        one = evaluate_robustness(cnn, IMAGES, y, batch_size=12, **settings)
        two = evaluate_robustness(
            cnn, IMAGES, y, batch_size=12, n_jobs=2, resume_dir=tmp_path, **settings
        )
        assert figures(one)["rows"] == figures(two)["rows"]
        assert len(list(tmp_path.glob("[!.]*.npz"))) == 4

    def test_a_dask_cluster_of_two_workers(self, cnn):
        distributed = pytest.importorskip("distributed", reason='needs the extra "dask"')
        import joblib

        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["fgsm", ("pgd", {"steps": 4})], "epsilons": [0.02, 0.05]}
        one = evaluate_robustness(cnn, IMAGES, y, batch_size=6, **settings)
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        )
        with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
            two = evaluate_robustness(cnn, IMAGES, y, batch_size=6, **settings)
        assert figures(one)["rows"] == figures(two)["rows"]

    def test_a_model_that_cannot_be_sent(self, linear):
        class Odd(keras.Model):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def call(self, x, training=False):
                return self.inner(x, training=training)

        model = Odd(linear)
        model(X[:1])
        assert evaluate_robustness(model, X, Y, attacks=["fgsm"]).clean_accuracy() == 1.0
        with pytest.raises(ValueError, match="n_jobs=1"):
            evaluate_robustness(model, X, Y, attacks=["fgsm"], n_jobs=2)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": X * 2}, "inside value_range"),
            ({"x": X[:0], "y": Y[:0]}, "at least one"),
            ({"x": np.where(X > 0.6, np.nan, X)}, "finite images"),
            ({"x": X[:, :5]}, "Expected images of shape"),
            ({"x": (X * 255).astype("uint8")}, "dtype=uint8"),
            ({"y": Y[:5]}, "60 labels"),
            ({"y": Y + 1}, "from 0 to 1"),
            ({"y": Y.astype("float32")}, "integers"),
            ({"y": np.ones((60, 2))}, "single one"),
            ({"attacks": ["pdg"]}, "Did you mean 'pgd'"),
            ({"attacks": []}, "at least one attack"),
            ({"attacks": ["pgd", "pgd"]}, "Received: 'pgd' twice"),
            ({"attacks": [("pgd", {"step": 3})]}, "settings of PGD"),
            ({"attacks": [("cw", {"step": 3})]}, "settings of the attack 'cw'"),
            ({"attacks": [("pgd", {"restarts": 0})]}, "restarts"),
            ({"attacks": [PGD(0.1)]}, "without an epsilon of its own"),
            ({"attacks": [42]}, "Expected a Foolbox attack"),
            ({"attacks": ["pgd-l2"]}, "epsilons for the norm 'l2'"),
            ({"epsilons": [0.3, 0.1]}, "rising order"),
            ({"epsilons": [-0.1]}, "above 0"),
            ({"epsilons": [0.1, 0.1]}, "each once"),
            ({"epsilons": []}, "above 0"),
            ({"epsilons": {}}, "at least one norm"),
            ({"epsilons": {"l1": [0.1]}}, "one of"),
            ({"epsilons": [float("nan")]}, "above 0"),
            ({"threat_models": ["grey-box"]}, "some of white-box"),
            ({"threat_models": []}, "some of white-box"),
            ({"threat_models": ["black-box"]}, "source_model"),
            ({"surrogate_hardnesses": []}, "surrogate_hardnesses"),
            ({"surrogate_hardnesses": [-1]}, "surrogate_hardnesses"),
            ({"targets": "nearest"}, "least-likely"),
            ({"targets": Y}, "differ from the labels"),
            ({"targets": Y[:3]}, "60 target classes"),
            ({"targets": Y + 5}, "targets from 0"),
            ({"batch_size": 0}, "batch_size"),
            ({"seed": -1}, "seed"),
            ({"model": "model.keras"}, "load_model"),
            ({"model": {}}, "model or several"),
            ({"value_range": (1, 0)}, "value_range"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_errors_teach(self, linear, change, message):
        arguments = {"model": linear, "x": X, "y": Y, **change}
        with pytest.raises(ValueError, match=message) as caught:
            evaluate_robustness(
                arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments
            )
        assert "Expected" in str(caught.value)

    def test_models_that_are_no_classifiers(self, linear):
        inputs = keras.Input((FEATURES,))
        two = keras.Model(inputs, [linear(inputs), keras.layers.Dense(3)(inputs)])
        with pytest.raises(ValueError, match="one output"):
            evaluate_robustness(two, X, Y)
        single = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])
        with pytest.raises(ValueError, match="two classes or more"):
            evaluate_robustness(single, X, Y)
        unbuilt = keras.Sequential([keras.layers.Dense(2)])
        with pytest.raises(ValueError, match="to be built"):
            evaluate_robustness(unbuilt, X, Y)
        broken = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
        broken.set_weights([np.full((FEATURES, 2), np.nan), np.zeros(2)])
        with pytest.raises(ValueError, match="finite outputs"):
            evaluate_robustness(broken, X, Y)
        three = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(3)])
        with pytest.raises(ValueError, match="same classes"):
            evaluate_robustness(linear, X, Y, threat_models=["black-box"], source_model=three)
        with pytest.raises(ValueError, match='"black-box" among threat_models'):
            evaluate_robustness(linear, X, Y, source_model=three)

    def test_labels_as_they_come(self, linear):
        one_hot = np.eye(2)[Y]
        for y in (one_hot, Y[:, None], Y.astype("uint8"), Y.tolist()):
            report = evaluate_robustness(linear, X, y, attacks=["fgsm"])
            assert report.clean_accuracy() == 1.0

    def test_a_failing_attack_does_not_lose_the_others(self, linear):
        foolbox = import_foolbox()

        class Broken(foolbox.attacks.base.MinimizationAttack):
            distance = foolbox.distances.l2

            def run(self, *_, **__):
                raise RuntimeError("out of luck")

        report = evaluate_robustness(linear, X, Y, attacks=["fgsm", Broken()])
        assert report.attacks == ("fgsm",)
        assert "out of luck" in report.notes[0]
        assert "out of luck" in " ".join(str(report).split())
        with pytest.raises(ValueError, match="out of luck"):
            evaluate_robustness(linear, X, Y, attacks=[Broken()])


def test_methods_by_name_object_and_mapping():
    foolbox = import_foolbox()
    methods = methods_of({"mine": ("pgd", {"steps": 3}), "theirs": foolbox.attacks.L0FMNAttack()})
    assert methods["mine"].norm == "linf"
    assert methods["theirs"].norm == "l0"
    assert methods["theirs"].minimizes
    assert methods["theirs"].uses_gradients
    assert list(methods_of("fgsm")) == ["fgsm"]
    assert list(methods_of(("pgd", {"steps": 3}))) == ["pgd"]
    flexible = foolbox.attacks.GaussianBlurAttack(distance=foolbox.distances.linf)
    assert methods_of([flexible])["GaussianBlurAttack"].norm == "linf"
    assert methods_of([foolbox.attacks.GaussianBlurAttack()])["GaussianBlurAttack"].norm == "l2"


def test_progress(cnn, capsys):
    seen = []
    y = predicted(cnn, IMAGES)
    evaluate_robustness(
        cnn, IMAGES, y, attacks=["fgsm"], batch_size=6, progress=lambda *step: seen.append(step)
    )
    shares = [share for _, share in seen]
    assert shares == [0, 0.25, 0.5, 0.75, 1.0]
    evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], progress=True)
    assert "100 %" in capsys.readouterr().err


@pytest.mark.skipif(BACKEND != "torch", reason="one backend is enough for a slow test")
@pytest.mark.slow
def test_the_papers_cw_and_a_strong_one_side_by_side():
    """On the paper's CNN behind a quantizer the strong settings find closer examples."""
    from keras_qusec import datasets
    from keras_qusec.models import paper_cnn

    data = datasets.mnist5k()
    model = paper_cnn(QuSecQuantization(2), seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, epochs=3, verbose=0)
    report = evaluate_robustness(
        model, data.x_test[:20], data.y_test[:20], attacks=["cw-paper", "cw"],
    )  # fmt: skip
    sizes = {(row.attack, row.threat_model): row for row in report.rows if row.epsilon is None}
    assert sizes["cw", "adaptive"].robust_accuracy <= sizes["cw-paper", "white-box"].robust_accuracy
    assert sizes["cw", "adaptive"].median_l2 < sizes["cw-paper", "adaptive"].median_l2
