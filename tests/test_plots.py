"""Pictures of quantizers."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, TrainableQuSecQuantization, plot_thresholds
from keras_qusec.plots import close, thresholds_figure

pytestmark = pytest.mark.once

IMAGES = np.random.default_rng(0).random((5, 6, 6, 1)).astype("float32")


def trainable(shape, **settings):
    layer = TrainableQuSecQuantization(3, **settings)
    layer.build((None, *shape))
    return layer


@pytest.mark.parametrize(
    ("layer", "panels"),
    [
        (lambda: QuSecQuantization(3, hard=True), 1),
        (lambda: trainable((6, 6, 1)), 3),  # a curve and an image for each threshold
        (lambda: trainable((6, 6, 3)), 3),
        (lambda: trainable((6, 6, 3), granularity="channel"), 1),
        (lambda: trainable((4,)), 1),
    ],
)
def test_thresholds(layer, panels, tmp_path):
    made = layer()
    figure = thresholds_figure(made)
    shown = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    close(figure)
    assert len(shown) == panels
    assert plot_thresholds(made, tmp_path / "t.png", x=IMAGES).stat().st_size > 5_000


def test_the_histogram_stands_beside_the_curve():
    figure = thresholds_figure(QuSecQuantization(2), IMAGES)
    heights = sum(bar.get_height() for bar in figure.axes[1].patches)
    close(figure)
    assert heights == IMAGES.size


def test_a_notebook_shows_the_layer():
    shown = QuSecQuantization(3)._repr_html_()
    assert "3 levels, z = 50" in shown
    assert "<svg" in shown
    assert "Not built yet" in TrainableQuSecQuantization(2)._repr_html_()
    keras.Sequential([keras.Input((4,)), (layer := TrainableQuSecQuantization(2))])
    assert "<svg" in layer._repr_html_()
