"""A few digits, and a small network trained on them without a defence."""

from __future__ import annotations

import keras
import pytest
from digit_networks import small_network, trained

from keras_qusec import datasets


@pytest.fixture(scope="session")
def digits():
    return datasets.mnist5k()


@pytest.fixture(scope="session")
def undefended(digits):
    keras.utils.set_random_seed(0)
    return trained(small_network(), digits)
