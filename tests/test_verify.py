"""Nothing that an attack returns counts unseen."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FEATURES, MARGIN, RNG, WEIGHTS, X, Y, predicted

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.verify import ClosestExamples, verified

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


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
        assert np.isfinite(distances["linf"]).all() == counts
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
        assert not np.isfinite(verified(attacked, x, 0 * x, goal, "l2", None)[1]["l2"]).any()
        assert np.isfinite(verified(attacked, x, 0 * x, goal, "linf", 0.2)[1]["l2"]).all()
        # The failure is zero also where black is not.
        moved = AttackedModel(model, (-1.0, 1.0))
        assert not np.isfinite(verified(moved, x, 0 * x, goal, "l2", None)[1]["l2"]).any()

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
        assert np.isfinite(distances[norm]).all()
        gap = images.astype("float64") - x
        size = np.abs(gap).max(1) if norm == "linf" else np.linalg.norm(gap, axis=1)
        assert (size <= epsilon * (1 + 1e-6)).all()
        assert (size >= epsilon * 0.7).all()

    def test_the_closest_example_in_each_norm_is_remembered(self, linear):
        closest = ClosestExamples(
            AttackedModel(linear), X[:1], Goal(1 - Y[:1]), np.array([True]), "l2"
        )
        wide = X[:1] + np.float32(0.01)  # far in L2, near in L-infinity
        narrow = X[:1].copy()
        narrow[0, 0] += 0.02
        for candidate in (wide, narrow):
            closest.offer(np.array([0]), candidate, None)
        for norm, size in {"l0": 1, "l2": 0.02, "linf": 0.01}.items():
            np.testing.assert_allclose(closest.distances[norm], [size], rtol=1e-4)

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


def test_an_image_of_zeros_is_how_foolbox_says_that_it_failed(linear):
    """From an attack that minimizes; one in a ball may return black images."""
    attacked = AttackedModel(linear)
    for candidates, counts in ((np.zeros_like(X), False), (np.ones_like(X), True)):
        goal = Goal(1 - attacked.predictions(candidates))
        assert attacked.is_adversarial(candidates, goal).all()
        _, distances = verified(attacked, X, candidates, goal, "linf", None)
        assert (np.isfinite(distances["linf"]) == counts).all()
        _, distances = verified(attacked, X, candidates, goal, "linf", 1.0)
        assert np.isfinite(distances["linf"]).all()
