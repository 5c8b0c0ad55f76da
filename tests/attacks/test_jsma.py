"""JSMA against a published implementation and closed forms."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from pixel_models import FEATURES, LABEL_0, linear, predictions, run

from keras_qusec.attacks import JSMA, AttackedModel, Goal


class TestJSMA:
    @pytest.mark.parametrize(("theta", "gamma"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.4), (0.2, 0.5)])
    def test_equals_art(self, network, theta, gamma):
        pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
        from art.attacks.evasion import SaliencyMapMethod
        from art.estimators import BaseEstimator
        from art.estimators.classification import ClassGradientsMixin, ClassifierMixin

        model, x, y = network
        w1, b1, w2, b2 = (np.asarray(w, "float64") for w in model.get_weights())

        class Softmax(ClassGradientsMixin, ClassifierMixin, BaseEstimator):
            """The network's probabilities and their derivatives, by hand in NumPy."""

            input_shape = (FEATURES,)

            def __init__(self):
                super().__init__(model=None, clip_values=(0.0, 1.0))
                self.nb_classes = 4

            def predict(self, x, **_):
                logits = np.tanh(x @ w1 + b1) @ w2 + b2
                shares = np.exp(logits - logits.max(1, keepdims=True))
                return shares / shares.sum(1, keepdims=True)

            def class_gradient(self, x, label=None, **_):
                hidden, shares = np.tanh(x @ w1 + b1), self.predict(x)
                rows = np.arange(len(x))
                outer = (np.eye(4)[label] - shares) * shares[rows, label][:, None]
                return (((1 - hidden**2) * (outer @ w2.T)) @ w1.T)[:, None]

            def fit(self, *_, **__):
                raise NotImplementedError

        targets = (y + 1) % 4
        peer = SaliencyMapMethod(Softmax(), theta=theta, gamma=gamma, verbose=False)
        expected = peer.generate(x, np.eye(4)[targets])
        reached = Softmax().predict(expected).argmax(1) == targets
        assert reached.sum() > 0
        if gamma < 1:
            assert reached.sum() < len(x)
        ours = run(JSMA(theta=theta, gamma=gamma, decrease=False), model, x, y, targets)
        np.testing.assert_allclose(ours[reached], expected[reached], atol=1e-6)
        np.testing.assert_array_equal(ours[~reached], x[~reached])

    def test_decreasing_finds_what_increasing_cannot(self):
        model = linear([-2.0, -1.0, 0.1, -3.0], bias=4.5)
        x = np.full((1, 4), 0.9, "float32")  # 4.5 - 5.31: class 0
        np.testing.assert_array_equal(run(JSMA(decrease=False), model, x, LABEL_0), x)
        found = run(JSMA(), model, x, LABEL_0)
        np.testing.assert_allclose(found, [[0, 0.9, 0.9, 0]])

    def test_more_targets_never_need_more_features(self, network):
        model, x, y = network
        counts = []
        for targets in (1, 2, None):
            found = run(JSMA(theta=0.2, targets=targets), model, x, y)
            assert (predictions(model, found) != y).all()
            counts.append((found != x).sum(1))
        assert (counts[0] >= counts[1]).all()
        assert (counts[1] >= counts[2]).all()

    def test_linear_model_needs_the_known_number_of_features(self):
        weights = np.array([0.5, -1.0, 2.0, 0.25, 1.5, -0.1], "float32")
        model = linear(weights, bias=-3.0)
        x = np.full((1, 6), 0.5, "float32")  # -3 + 1.575: class 0
        # Two features a step: 2.0 and 1.5 give 1.75 more, which is enough.
        found = run(JSMA(), model, x, np.array([0]))
        assert np.flatnonzero(found[0] != 0.5).tolist() == [2, 4]
        np.testing.assert_array_equal(found[0, [2, 4]], [1, 1])

    def test_value_range_and_failures(self):
        model = linear([1.0, 1.0, 0.0], bias=-1000.0)
        x = np.full((2, 3), 100.0, "float32")
        np.testing.assert_array_equal(run(JSMA(), model, x, np.zeros(2, int), None, (0, 255)), x)
        model = linear([1.0, 1.0, 0.0], bias=-400.0)
        found = run(JSMA(), model, x, np.zeros(2, int), None, (0, 255))
        np.testing.assert_array_equal(found, [[255, 255, 100]] * 2)

    def test_saturated_probabilities_do_not_hide_the_gradient(self):
        # The probability of class 1 is exp(-400), zero in float32.
        weights = np.array([100.0, 300.0, 200.0, 250.0], "float32")
        found = run(
            JSMA(decrease=False), linear(weights, -400.0), np.zeros((1, 4), "float32"), LABEL_0
        )
        np.testing.assert_array_equal(found, [[0, 1, 0, 1]])

    @pytest.mark.parametrize("bad", [{"theta": 0}, {"gamma": 1.5}, {"targets": 0}])
    def test_bad_settings(self, bad):
        with pytest.raises(ValueError, match="Expected"):
            JSMA(**bad)


def test_a_step_is_theta():
    """A feature goes up or down by theta, once; behind several steps a multiple of it."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, use_bias=False)])
    weights = np.array([3, -3, 0.1, 0.1, -0.1, 0.1], "float32")
    model.set_weights([np.stack([0 * weights, weights], 1)])
    x = np.full((1, 6), 0.5, "float32")
    x[0, 1] = 0.55  # of class 0 until the heaviest features change
    goal = Goal(np.array([0]))
    attacked = AttackedModel(model)
    assert not attacked.is_adversarial(x, goal).any()
    images = JSMA(theta=0.1).run(attacked, x, goal, epsilon=None, seed=0)
    assert attacked.is_adversarial(images, goal).all()
    np.testing.assert_allclose(images - x, [[0.1, -0.1, 0, 0, 0, 0]], atol=1e-6)
