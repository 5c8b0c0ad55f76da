"""LocalSearch chooses what a linear model says."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from pixel_models import predictions, run

from keras_qusec.attacks import LocalSearch


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
