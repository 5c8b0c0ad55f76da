"""Models that the tests of the attacks share."""

from __future__ import annotations

import pytest
from pixel_models import make_network


@pytest.fixture(scope="module")
def network():
    """A network with one hidden layer, images, and the classes it gives them."""
    return make_network()
