"""The paper's network."""

from __future__ import annotations

import numpy as np
import pytest

from keras_qusec import QuSecQuantization
from keras_qusec.models import paper_cnn


def test_paper_cnn():
    plain, defended = paper_cnn(seed=1), paper_cnn(QuSecQuantization(2), seed=1)
    # CleverHans' basic CNN on MNIST.
    assert [tuple(layer.output.shape[1:]) for layer in plain.layers] == [
        (14, 14, 64),
        (5, 5, 128),
        (1, 1, 128),
        (128,),
        (10,),
    ]
    # The same seed gives the same network, quantizer or not; other layers other weights.
    for a, b in zip(plain.get_weights(), defended.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(paper_cnn(seed=2).get_weights()[0] - plain.get_weights()[0]).max() > 0
    assert paper_cnn(input_shape=(32, 32, 3), classes=7).output_shape == (None, 7)
    with pytest.raises(ValueError, match="from 26 up"):
        paper_cnn(input_shape=(20, 28, 1))
