"""Pointwise leaves no pixel that could be put back."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from pixel_models import FEATURES, linear, predictions, run

from keras_qusec.attacks import Pointwise
from keras_qusec.attacks.foolbox import foolbox_model, import_foolbox, to_tensor


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
