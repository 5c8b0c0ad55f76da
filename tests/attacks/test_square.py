"""Square: the published schedule, balls, counts of queries."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import IMAGES, predicted, small_cnn

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel, Goal, Square
from keras_qusec.attacks.draws import ImageDraws
from keras_qusec.attacks.square import _L2Squares, square_size


@pytest.fixture(scope="module")
def attacked():
    return AttackedModel(small_cnn())


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.15), ("l2", 1.2)])
def test_it_breaks_images_and_stays_in_the_ball(attacked, norm, radius):
    goal = Goal(predicted(attacked.model, IMAGES))
    images = Square(norm=norm, queries=300).run(attacked, IMAGES, goal, epsilon=radius, seed=0)
    assert norms.get(norm).distance(IMAGES, images).max() <= radius * (1 + 1e-5)
    assert images.min() >= 0
    assert images.max() <= 1
    assert attacked.is_adversarial(images, goal).mean() > 0.5


def test_more_queries_break_no_fewer(attacked):
    goal = Goal(predicted(attacked.model, IMAGES))
    shares = [
        attacked.is_adversarial(
            Square(queries=queries).run(attacked, IMAGES, goal, epsilon=0.05, seed=0), goal
        ).mean()
        for queries in (1, 30, 600)
    ]
    assert shares[0] <= shares[1] <= shares[2]
    assert shares[0] < shares[2]


def test_queries_are_counted_and_end_where_an_image_falls(attacked):
    goal = Goal(predicted(attacked.model, IMAGES))
    attacked.counter.queries = attacked.counter.gradients = 0
    Square(queries=40).run(attacked, IMAGES, goal, epsilon=1e-5, seed=0)
    assert (attacked.counter.queries, attacked.counter.gradients) == (40 * len(IMAGES), 0)
    attacked.counter.queries = 0
    Square(queries=4000).run(attacked, IMAGES, goal, epsilon=0.9, seed=0)
    assert attacked.counter.queries < 400 * len(IMAGES)


def test_the_schedule_is_the_published_one():
    attack = Square(queries=10000)
    at = [attack.share_at(query) for query in (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 8001)]
    np.testing.assert_allclose(at, 0.8 / 2.0 ** np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 9]))
    # The whole schedule, whatever the budget.
    for queries in (100, 1000, 5000):
        scaled = Square(queries=queries)
        last = [scaled.share_at(round(share * queries)) for share in (0, 0.01, 0.03, 0.5, 0.99)]
        assert last == [
            attack.share_at(round(share * 10000)) for share in (0, 0.01, 0.03, 0.5, 0.99)
        ]
    # As many pixels in any shape of image.
    assert square_size(0.25, 28, 28) == (14, 14)
    assert square_size(0.5, 1, 100) == (1, 50)
    assert square_size(1e-9, 28, 28) == (1, 1)


def test_data_that_is_no_image():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    attacked, x = AttackedModel(model), np.full((5, 6), 0.5, "float32")
    goal = Goal(attacked.predictions(x))
    images = Square(queries=60).run(attacked, x, goal, epsilon=0.5, seed=0)
    assert images.shape == x.shape
    assert attacked.is_adversarial(images, goal).any()
    with pytest.raises(ValueError, match="at least 5 pixels a side"):
        Square(norm="l2").run(attacked, x, goal, epsilon=0.5, seed=0)


def test_a_target_is_reached(attacked):
    goal = Goal(predicted(attacked.model, IMAGES), (predicted(attacked.model, IMAGES) + 1) % 4)
    images = Square(queries=400).run(attacked, IMAGES, goal, epsilon=0.5, seed=0)
    assert attacked.is_adversarial(images, goal).mean() > 0.5


def test_the_same_seed_gives_the_same_images(attacked):
    goal = Goal(predicted(attacked.model, IMAGES))
    one, same, other = (
        Square(queries=20).run(attacked, IMAGES, goal, epsilon=0.01, seed=seed)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_square_in_l2_moves_length_and_leaves_the_rest():
    """Two odd squares change; together they have the length that they had."""
    clean = np.full((6, 12, 12, 1), 0.5, "float32")
    clean[:, 0, 0, 0] += np.linspace(0, 0.01, 6)  # images of their own, with draws of their own
    rows = np.arange(6)
    squares = _L2Squares(np.float32(0.4), (0.0, 1.0), ImageDraws(clean, 0))
    sizes, patches = [], squares.patches
    squares.patches = lambda rows, size: (sizes.append(size), patches(rows, size))[1]
    best = squares.start(clean, rows)
    assert (best != clean).mean() > 0.5
    sizes.clear()
    for share in (0.05, 0.1, 0.2, 0.3):
        moved = squares.changed(clean, best, share, rows)
        (size,), _ = set(sizes), sizes.clear()
        assert size % 2 == 1
        apart = (np.abs(moved - best) > 1e-6).reshape(len(clean), -1).sum(axis=1)
        assert 0 < apart.max() <= 2 * size**2
        length = np.sqrt(np.square(moved - clean).sum(axis=(1, 2, 3)))
        np.testing.assert_allclose(length, 0.4, rtol=1e-5)
        best = moved
