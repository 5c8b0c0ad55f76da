"""Norms: sizes, balls and directions, against definitions and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_qusec import norms

RNG = np.random.default_rng(0)
X = RNG.random((7, 4, 3, 2)).astype("float32")
MOVED = (X + RNG.normal(0, 0.3, X.shape)).astype("float32")


def test_distances_by_hand():
    clean = np.zeros((1, 2, 2, 3), "float32")
    changed = clean.copy()
    changed[0, 0, 0] = [0, 3, 4]
    sizes = norms.distances(clean, changed)
    assert {name: size.tolist() for name, size in sizes.items()} == {
        "l0": [1.0],  # one pixel, in two channels
        "l1": [7.0],
        "l2": [5.0],
        "linf": [4.0],
    }
    assert {size.shape for size in norms.distances(clean[:0], clean[:0]).values()} == {(0,)}


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
def test_the_projection_is_inside_and_keeps_what_is_inside(name):
    norm = norms.get(name)
    epsilon = float(np.median(norm.distance(X, MOVED)))
    inside = norm.distance(X, MOVED) <= epsilon
    moved, clean = map(ops.convert_to_tensor, (MOVED, X))
    projected = ops.convert_to_numpy(norm.project(moved, clean, np.float32(epsilon)))
    np.testing.assert_allclose(projected[inside], MOVED[inside], atol=1e-6)
    sizes = norm.distance(X, projected)
    np.testing.assert_allclose(sizes[~inside], epsilon, rtol=1e-5)
    exact = norm.into_ball(X, MOVED, epsilon)
    if name != "l1":  # whose nearest point is not the shortened perturbation
        np.testing.assert_allclose(exact, projected, atol=1e-5)
    assert norms.within(norm.distance(X, exact), epsilon).all()


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
def test_the_direction_climbs_steepest(name):
    """No other step of the same length gains more on a linear function."""
    norm = norms.get(name)
    gradient = RNG.normal(size=(3, 5)).astype("float32")
    step = ops.convert_to_numpy(norm.direction(ops.convert_to_tensor(gradient)))
    zero = np.zeros_like(gradient)
    np.testing.assert_allclose(norm.distance(zero, step), 1, rtol=1e-6)
    gain = (gradient * step).sum(axis=1)
    for _ in range(200):
        other = RNG.normal(size=gradient.shape).astype("float32")
        other /= norm.distance(zero, other)[:, None]
        assert (gain >= (gradient * other).sum(axis=1) - 1e-6).all()


def test_the_l1_projection_is_the_nearest_point():
    """Against bisection for the amount by which all values shrink."""
    norm, gap = norms.get("l1"), (MOVED.astype("float64") - X).reshape(7, -1)
    epsilon = 0.3 * norm.distance(X, MOVED).min()
    low, high = np.zeros((7, 1)), np.abs(gap).max(axis=1, keepdims=True)
    for _ in range(60):
        middle = (low + high) / 2
        large = np.maximum(np.abs(gap) - middle, 0).sum(axis=1, keepdims=True) > epsilon
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    expected = np.sign(gap) * np.maximum(np.abs(gap) - high, 0)
    moved, clean = map(ops.convert_to_tensor, (MOVED, X))
    projected = ops.convert_to_numpy(norm.project(moved, clean, np.float32(epsilon)))
    np.testing.assert_allclose((projected - X).reshape(7, -1), expected, atol=1e-6)


def test_l1_steps_are_spread_in_images():
    gradient = RNG.normal(size=(2, 20, 20, 1)).astype("float32")
    step = ops.convert_to_numpy(norms.get("l1").direction(ops.convert_to_tensor(gradient)))
    largest = np.sort(np.abs(gradient).reshape(2, -1), axis=1)[:, -4]
    for one, slope, least in zip(step, gradient, largest, strict=True):
        expected = np.where(np.abs(slope) >= least, np.sign(slope) / 4, 0)
        np.testing.assert_allclose(one, expected, atol=1e-7)


def test_the_largest_distance():
    assert norms.get("linf").largest((2, 2, 1), (0.0, 255.0)) == 255
    assert norms.get("l2").largest((2, 2, 1), (-1.0, 1.0)) == 4
    assert norms.get("l0").largest((2, 2, 3), (0.0, 1.0)) == 4


def test_pixels_have_channels_only_in_images():
    assert norms.pixels(X).shape == (7, 12, 2)
    assert norms.pixels(X[:, 0]).shape == (7, 6, 1)
    view = norms.pixels(X.copy())
    assert view.base is not None


def test_a_norm_without_steps_says_so():
    with pytest.raises(ValueError, match=r"a direction and a projection.*norm='l0'"):
        norms.get("l0").check_gradient_steps()


def test_the_l1_projection_inside_the_range_against_a_solver():
    """The nearest point of the ball and the box together, by scipy's quadratic programming."""
    from scipy.optimize import minimize

    x = RNG.random((4, 6)).astype("float32")
    moved = (x + RNG.normal(0, 0.8, x.shape)).astype("float32")
    for epsilon in (0.3, 1.0, 5.0):
        found = ops.convert_to_numpy(
            norms.get("l1").project_inside(
                ops.convert_to_tensor(moved), ops.convert_to_tensor(x), np.float32(epsilon), (0, 1)
            )
        )
        assert (np.abs(found - x).sum(axis=1) <= epsilon + 1e-5).all()
        assert found.min() >= 0
        assert found.max() <= 1
        for row in range(len(x)):
            # Steps up and down are variables of their own, so that all is smooth.
            def distance(steps, row=row):
                return np.square(x[row] + steps[:6] - steps[6:] - moved[row]).sum()

            bounds = [*((0, 1 - v) for v in x[row]), *((0, v) for v in x[row])]
            limit = {"type": "ineq", "fun": lambda steps, e=epsilon: e - steps.sum()}
            best = minimize(distance, np.full(12, 1e-3), bounds=bounds, constraints=[limit])
            gap = np.square(found[row] - moved[row]).sum()
            assert gap <= best.fun + 1e-4


@pytest.mark.parametrize("name", ["l1", "l2", "linf"])
def test_the_hyperplane_is_reached_at_the_least_distance(name):
    """Far from the ends of the range by the dual norm; near them no farther than any other way."""
    norm = norms.get(name)
    x = np.full((5, 8), 0.5, "float32")
    normal = RNG.normal(size=x.shape).astype("float32")
    for sign in (1, -1):
        slope = ops.convert_to_numpy(norm.dual(ops.convert_to_tensor(normal)))
        gap = (sign * 0.2 * slope).astype("float32")
        near = norm.to_hyperplane(*map(ops.convert_to_tensor, (x, normal, gap)), (0, 1))
        near = ops.convert_to_numpy(near)
        np.testing.assert_allclose(((near - x) * normal).sum(axis=1), gap, rtol=1e-3)
        np.testing.assert_allclose(norm.distance(x, near), 0.2, rtol=1e-3)
    # The range forbids the straight way, so that other values must go farther.
    x[:, :4] = 0.95
    gap = np.abs(normal).sum(axis=1) * 0.2
    near = norm.to_hyperplane(
        *map(ops.convert_to_tensor, (x, np.abs(normal), gap.astype("float32"))), (0, 1)
    )
    near = ops.convert_to_numpy(near)
    possible = (np.abs(normal) * (1 - x)).sum(axis=1) > gap
    assert possible.any()
    reached = ((near - x) * np.abs(normal)).sum(axis=1)
    np.testing.assert_allclose(reached[possible], gap[possible], rtol=1e-3)
    np.testing.assert_allclose(near[~possible], 1, atol=1e-5)
    assert near.max() <= 1 + 1e-6


def test_lengths_and_duals_by_hand():
    change = np.array([[0.0, -3.0, 4.0]], "float32")
    tensor = ops.convert_to_tensor(change)
    sizes = {name: float(norms.get(name).length(tensor)[0]) for name in norms.names()}
    assert sizes == {"l0": 2.0, "l1": 7.0, "l2": 5.0, "linf": 4.0}
    duals = {name: float(norms.get(name).dual(tensor)[0]) for name in norms.names()}
    assert duals == {"l0": 4.0, "l1": 4.0, "l2": 5.0, "linf": 7.0}


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (0.3, "0.3"), (0.05, "0.05"), (1, "1"), (8, "8"), (12.75, "12.75"), (0.2, "0.2"),
        (8 / 255, "8/255"), (float(np.float32(8 / 255)), "8/255"), (1 / 255, "1/255"),
        (16 / 255, "16/255"), (0.0314, "0.0314"), (1 / 3, "0.333333"), (0.0123456, "0.0123456"),
        (1e-9, "1e-09"), (np.inf, "inf"),
    ],
)  # fmt: skip
def test_radii_are_written_as_people_write_them(epsilon, text):
    assert norms.radius_text(epsilon) == text
