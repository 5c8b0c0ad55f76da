"""JSMA, SinglePixel, LocalSearch and Pointwise: a published implementation, closed forms."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from keras_qusec.attacks.pixel_search import LocalSearch, SinglePixel
from keras_qusec.attacks.pointwise import Pointwise
from keras_qusec.attacks.saliency_map import JSMA
from keras_qusec.evaluation.bridge import foolbox_model, import_foolbox, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

FEATURES = 12
Y0 = np.zeros(1, "int64")


def run(attack, model, x, y, targets=None, bounds=(0.0, 1.0)):
    criteria = import_foolbox().criteria
    if targets is None:
        criterion = criteria.Misclassification(to_tensor(y))
    else:
        criterion = criteria.TargetedMisclassification(to_tensor(targets))
    found = attack.run(foolbox_model(model, bounds), to_tensor(x), criterion)
    return keras.ops.convert_to_numpy(found)


def predictions(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)


@pytest.fixture(scope="module")
def network():
    """A network with one hidden layer, its weights, and images it classifies."""
    rng = np.random.default_rng(3)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )
    model.set_weights([rng.normal(0, 0.8, w.shape).astype("float32") for w in model.get_weights()])
    x = rng.uniform(0.0, 0.9, (20, FEATURES)).astype("float32")
    return model, x, predictions(model, x)


def linear(weights, bias=0.0):
    """Two classes; class 1 where ``weights @ x + bias`` is positive."""
    weights = np.asarray(weights, "float32")
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(2)])
    model.set_weights([np.stack([0 * weights, weights], 1), np.array([0, bias], "float32")])
    return model


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
        np.testing.assert_array_equal(run(JSMA(decrease=False), model, x, Y0), x)
        found = run(JSMA(), model, x, Y0)
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
        found = run(JSMA(decrease=False), linear(weights, -400.0), np.zeros((1, 4), "float32"), Y0)
        np.testing.assert_array_equal(found, [[0, 1, 0, 1]])

    @pytest.mark.parametrize("bad", [{"theta": 0}, {"gamma": 1.5}, {"targets": 0}])
    def test_bad_settings(self, bad):
        with pytest.raises(ValueError, match="Expected"):
            JSMA(**bad)

    def test_other_criteria_are_refused(self, network):
        class Confident(import_foolbox().criteria.Criterion):
            def __repr__(self):
                return "Confident()"

            def __call__(self, perturbed, outputs):
                return outputs

        model, x, _ = network
        with pytest.raises(ValueError, match="Misclassification"):
            JSMA().run(foolbox_model(model), to_tensor(x), Confident())


class TestSinglePixel:
    def test_succeeds_exactly_where_one_pixel_is_enough(self):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=FEATURES).astype("float32")
        bias = np.float32(0.5 * np.abs(weights).max() - 0.5 * weights.sum())
        model = linear(weights, bias)
        x = rng.uniform(0.3, 0.7, (60, FEATURES)).astype("float32")
        y = predictions(model, x)
        margin = x @ weights + bias
        reachable = np.stack([margin[:, None] + weights * (edge - x) for edge in (0, 1)])
        possible = ((reachable > 0) != (margin > 0)[:, None]).any(axis=(0, 2))
        assert 0 < possible.sum() < len(x)
        found = run(SinglePixel(), model, x, y)
        np.testing.assert_array_equal(predictions(model, found) != y, possible)
        np.testing.assert_array_equal((found != x).sum(1), possible.astype(int))

    def test_all_channels_of_a_pixel_change_together(self):
        model = keras.Sequential(
            [keras.Input((3, 3, 2)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
        kernel = np.zeros((18, 2), "float32")
        kernel[8:10, 1] = 3.0  # both channels of the middle pixel are needed
        model.set_weights([kernel, np.array([5.0, 0.0], "float32")])
        x = np.full((2, 3, 3, 2), 0.1, "float32")
        found = run(SinglePixel(), model, x, np.zeros(2, int))
        np.testing.assert_array_equal(found[:, 1, 1], np.ones((2, 2)))
        assert ((found != x).any(axis=-1).sum(axis=(1, 2)) == 1).all()
        few = run(SinglePixel(max_pixels=1, seed=1), model, x, np.zeros(2, int))
        np.testing.assert_array_equal(few, x)

    def test_targets_and_bad_settings(self, network):
        model, x, y = network
        targets = (y + 1) % 4
        found = run(SinglePixel(), model, x, y, targets)
        moved = (found != x).any(axis=1)
        assert (predictions(model, found[moved]) == targets[moved]).all()
        with pytest.raises(ValueError, match="max_pixels"):
            SinglePixel(max_pixels=0)


class TestLocalSearch:
    def image_model(self, weights, bias):
        model = keras.Sequential(
            [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
        weights = np.asarray(weights, "float32").reshape(36)
        model.set_weights([np.stack([0 * weights, weights], 1), np.array([0, bias], "float32")])
        return model

    def test_greedy_choice_on_a_linear_model(self):
        """From black, each round turns the t untouched candidates of largest weight white."""
        rng = np.random.default_rng(0)
        weights = rng.uniform(0.1, 1.0, (6, 6))
        best = np.sort(weights.ravel())[::-1]
        x = np.zeros((1, 6, 6, 1), "float32")
        # All pixels are candidates from the second round on, by the radius.
        settings = {"scale": 1.5, "radius": 6, "changed": 3, "candidates": 36}
        for magnitude in (None, 10.0):
            model = self.image_model(weights, bias=-best[:6].sum() + 0.01)
            found = run(LocalSearch(magnitude=magnitude, **settings), model, x, np.array([0]))
            white = found[0, :, :, 0] == 1.0
            assert (weights[white].sum() > best[:6].sum() - 0.01) == (magnitude is None)
            if magnitude is None:
                # The first round knows only a tenth of the pixels, so a seventh may be needed.
                assert 6 <= white.sum() <= 9

    def test_probes_of_the_original_are_blind_behind_a_clip(self):
        """Black stays black when a probe far below the range is clipped: no information."""
        weights = np.linspace(0.1, 1.0, 36)
        model = keras.Sequential(
            [keras.Input((6, 6, 1)), keras.layers.ReLU(max_value=1.0), keras.layers.Flatten(),
             keras.layers.Dense(2)]
        )  # fmt: skip
        kernel = np.stack([0 * weights, weights], 1).astype("float32")
        model.set_weights([kernel, np.array([0, -10.0], "float32")])
        x = np.zeros((4, 6, 6, 1), "float32")
        settings = {"radius": 6, "changed": 1, "candidates": 36, "rounds": 12}
        seeing = run(LocalSearch(**settings), model, x, np.zeros(4, int))
        blind = run(LocalSearch(magnitude=10.0, **settings), model, x, np.zeros(4, int))
        assert (predictions(model, seeing) == 1).all()
        assert (predictions(model, blind) == 0).all()

    def test_bounds_targets_and_failures(self, network):
        model, x, y = network
        targets = (y + 1) % 4
        found = run(LocalSearch(rounds=20, changed=1), model, x, y, targets)
        assert found.min() >= 0
        assert found.max() <= 1
        moved = (found != x).any(axis=1)
        assert moved.any()
        assert (predictions(model, found[moved]) == targets[moved]).all()

    @pytest.mark.parametrize("name", ["radius", "changed", "rounds", "candidates"])
    def test_bad_settings(self, name):
        with pytest.raises(ValueError, match=name):
            LocalSearch(**{name: 0})


class TestPointwise:
    def test_no_single_feature_can_be_put_back(self, network):
        model, x, y = network
        found = run(Pointwise(), model, x, y)
        assert (predictions(model, found) != y).all()
        for row, feature in itertools.product(range(len(x)), range(FEATURES)):
            if found[row, feature] != x[row, feature]:
                back = found[row : row + 1].copy()
                back[0, feature] = x[row, feature]
                assert predictions(model, back)[0] == y[row]

    def test_linear_model_with_equal_weights_needs_the_least_number(self):
        """Each feature set to 1 adds as much, so every minimal set has the same size."""
        model = linear(np.ones(FEATURES), bias=-4.5)
        x = np.zeros((5, FEATURES), "float32")
        found = run(Pointwise(), model, x, np.zeros(5, int))
        np.testing.assert_array_equal((found != x).sum(1), np.full(5, 5))

    def test_starts_from_another_image_where_noise_does_not_help(self):
        # Class 1 only where the first two features are near 0.5, which noise never sets.
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(2, activation="relu"), keras.layers.Dense(2)]
        )
        # |x - 0.5| summed over the features, as far as two units reach.
        model.set_weights([
            np.array([[10, -10], [0, 0]], "float32"), np.array([-5, 5], "float32"),
            np.array([[1, 0], [1, 0]], "float32"), np.array([0, 1], "float32"),
        ])  # fmt: skip
        x = np.array([[0.0, 0.2], [0.5, 0.9]], "float32")
        y = predictions(model, x)
        np.testing.assert_array_equal(y, [0, 1])
        found = run(Pointwise(), model, x, y)
        np.testing.assert_array_equal(found[0], np.array([0.5, 0.2], "float32"))
        assert predictions(model, found[1:])[0] == 0

    def test_nothing_found_returns_the_clean_images(self):
        model = linear(np.zeros(FEATURES), bias=-1.0)
        x = np.full((3, FEATURES), 0.4, "float32")
        np.testing.assert_array_equal(run(Pointwise(draws=1), model, x, np.zeros(3, int)), x)

    @pytest.mark.skipif(keras.backend.backend() != "torch", reason="Foolbox's works on PyTorch")
    def test_as_small_as_foolbox(self, network):
        foolbox = import_foolbox()
        model, x, y = network
        ours = run(Pointwise(), model, x, y)
        np.random.seed(0)
        start = np.where(np.arange(FEATURES) % 2, 0.0, 1.0).astype("float32")
        fooled = predictions(model, np.tile(start, (len(x), 1))) != y
        peer = foolbox.attacks.PointwiseAttack(l2_binary_search=False)
        criterion = foolbox.criteria.Misclassification(to_tensor(y[fooled]))
        theirs = peer.run(
            foolbox_model(model), to_tensor(x[fooled]), criterion,
            starting_points=to_tensor(np.tile(start, (fooled.sum(), 1))),
        ).numpy()  # fmt: skip
        assert (ours != x)[fooled].sum() <= (theirs != x[fooled]).sum()

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="noise_levels"):
            Pointwise(noise_levels=(0.0,))
        with pytest.raises(ValueError, match="draws"):
            Pointwise(draws=0)
