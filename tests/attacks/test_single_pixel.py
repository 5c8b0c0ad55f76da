"""SinglePixel succeeds exactly where one pixel is enough."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from pixel_models import FEATURES, linear, predictions, run

from keras_qusec.attacks import SinglePixel


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
        few = run(SinglePixel(max_pixels=1), model, x, np.zeros(2, int), seed=1)
        np.testing.assert_array_equal(few, x)

    def test_targets_and_bad_settings(self, network):
        model, x, y = network
        targets = (y + 1) % 4
        found = run(SinglePixel(), model, x, y, targets)
        moved = (found != x).any(axis=1)
        assert (predictions(model, found[moved]) == targets[moved]).all()
        with pytest.raises(ValueError, match="max_pixels"):
            SinglePixel(max_pixels=0)
