"""The pure quantizers against float64 NumPy, finite differences and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BACKEND, compiled_value, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qusec import QuSecQuantization, quantization
from keras_qusec.quantization import (
    byte_thresholds,
    equal_thresholds,
    hard_quantize,
    soft_quantize,
)

LEVELS = (2, 3, 4, 5, 6, 16, 35, 36, 37, 64, 256)
HARDNESSES = (0.01, 1.0, 5.0, 31.0, 33.0, 50.0, 63.0, 255.0, 257.0, 5000.0)
PIXELS = (np.arange(256) / 255).astype("float32")


def reference(x, thresholds, z, value_range=(0.0, 1.0)):
    """Eq. 1, its derivative for x, and each sigmoid's s (1 - s), in float64."""
    width = value_range[1] - value_range[0]
    t = np.asarray(thresholds, "float64")
    argument = z * (np.asarray(x, "float64")[None] - t.reshape((-1,) + (1,) * x.ndim)) / width
    s = 0.5 + 0.5 * np.tanh(argument / 2)
    decay = np.exp(-np.abs(argument))
    bumps = decay / (1 + decay) ** 2
    return s.mean(0), z / width * bumps.mean(0), bumps


def near(thresholds):
    """Each threshold and its float32 neighbours, with points a little further away."""
    t = np.asarray(thresholds, "float32")
    below, above = np.nextafter(t, np.float32(-9)), np.nextafter(t, np.float32(9))
    # TensorFlow and JAX count numbers below the smallest normal one as zero.
    smallest = np.finfo("float32").tiny
    below = np.where(t == 0, -smallest, below)
    above = np.where(t == 0, smallest, above)
    return np.concatenate([t, below, above, t - np.float32(0.01), t + np.float32(0.01)])


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("z", HARDNESSES)
def test_soft_value_and_gradient_equal_numpy(levels, z):
    thresholds = equal_thresholds(levels)
    x = np.concatenate([PIXELS, near(thresholds), np.linspace(-1, 2, 301, dtype="float32")])
    y, (dx,) = value_and_gradients(lambda x: soft_quantize(x, levels, hardness=z), x)
    expected, slope, _ = reference(x, thresholds, z)
    # float32 rounds x and t_k by 6e-8, which moves each sigmoid's argument by z times that.
    rounding = 1e-6 + z * 1.2e-7 / (levels - 1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(dx, slope, rtol=0, atol=slope.max() * (6e-6 + z * 2.4e-7))
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 3), (4, 1, 1)])
@pytest.mark.parametrize("levels", [2, 3, 5, 6, 12])
def test_free_thresholds_equal_numpy_for_every_granularity(shape, levels):
    rng = np.random.default_rng(levels)
    x = rng.random((2, 4, 4, 3)).astype("float32")
    t = np.sort(rng.random((levels - 1, *shape)), axis=0).astype("float32")
    dy = rng.normal(size=x.shape).astype("float32")
    z = 7.0
    y, (dx, dt) = value_and_gradients(
        lambda x, t: soft_quantize(x, t, hardness=z), x, t, upstream=dy
    )
    against_images = t.reshape(levels - 1, 1, *(1,) * (3 - len(shape)), *shape)
    s = 1 / (1 + np.exp(-z * (x[None].astype("float64") - against_images)))
    bumps = s * (1 - s)
    np.testing.assert_allclose(y, s.mean(0), atol=5e-7)
    np.testing.assert_allclose(dx, dy * z * bumps.mean(0), atol=5e-6)
    full = -z / (levels - 1) * dy * bumps
    axes = {(): (1, 2, 3, 4), (3,): (1, 2, 3), (4, 4, 3): (1,), (4, 1, 1): (1, 3, 4)}[shape]
    np.testing.assert_allclose(dt, full.sum(axes).reshape(t.shape), atol=2e-5)


@pytest.mark.parametrize("levels", [2, 3, 16, 64, 256])
def test_gradient_is_the_finite_difference_of_the_forward(levels):
    z, step = 50.0, 1e-3
    x = np.linspace(0.01, 0.99, 197, dtype="float32")
    _, (dx,) = value_and_gradients(lambda x: soft_quantize(x, levels, hardness=z), x)
    x64 = x.astype("float64")
    if BACKEND == "jax":  # float64 is off by default; differences of the NumPy reference
        up = reference(x64 + step, equal_thresholds(levels), z)[0]
        down = reference(x64 - step, equal_thresholds(levels), z)[0]
    else:
        up = ops.convert_to_numpy(soft_quantize(x64 + step, levels, hardness=z))
        down = ops.convert_to_numpy(soft_quantize(x64 - step, levels, hardness=z))
        assert up.dtype == "float64"
    difference = (up - down) / (2 * step)
    # The error of a central difference: step^2 / 6 times the third derivative.
    np.testing.assert_allclose(dx, difference, atol=step**2 / 6 * z**3 * 0.13 + 1e-4)


def test_threshold_gradient_is_the_finite_difference_of_the_forward():
    x = np.linspace(0, 1, 50, dtype="float32")
    t = np.array([0.2, 0.45, 0.8], "float32")
    _, (_, dt) = value_and_gradients(lambda x, t: soft_quantize(x, t, hardness=20.0), x, t)
    for k in range(3):
        shift = np.zeros(3)
        shift[k] = 1e-4
        difference = reference(x, t + shift, 20.0)[0] - reference(x, t - shift, 20.0)[0]
        np.testing.assert_allclose(dt[k], difference.sum() / 2e-4, rtol=1e-4)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_hard_is_the_count_of_thresholds_at_or_below(levels, value_range):
    thresholds = equal_thresholds(levels, value_range)
    low, high = value_range
    x = np.concatenate([(low + (high - low) * PIXELS).astype("float32"), near(thresholds)])
    y = compiled_value(lambda x: hard_quantize(x, levels, value_range=value_range), x)
    count = (x[:, None] >= thresholds).sum(1)
    np.testing.assert_array_equal(np.rint(y * (levels - 1)), count)
    assert set(np.unique(y)) == set(np.unique(y[np.argsort(count)]))
    assert len(np.unique(y)) == len(np.unique(count))
    if value_range == (0.0, 1.0) and levels <= 64:
        assert len(np.unique(y)) == levels


def test_hard_gradient_is_that_of_the_soft_one():
    x = PIXELS
    for levels in (3, 64):
        _, (hard,) = value_and_gradients(
            lambda x, n=levels: hard_quantize(x, n, gradient_hardness=9.0), x
        )
        _, (soft,) = value_and_gradients(lambda x, n=levels: soft_quantize(x, n, hardness=9.0), x)
        np.testing.assert_allclose(hard, soft, rtol=5e-6)
        assert (hard > 0).all()


def test_the_documented_hardness_is_the_default():
    for function, setting in ((hard_quantize, "gradient_hardness"), (soft_quantize, "hardness")):
        _, (default,) = value_and_gradients(lambda x, f=function: f(x, 2), PIXELS)
        _, (said,) = value_and_gradients(
            lambda x, f=function, s=setting: f(x, 2, **{s: 50.0}), PIXELS
        )
        np.testing.assert_array_equal(default, said)


def test_surrogate_keeps_the_value_and_changes_the_gradient():
    x = PIXELS
    for levels in (2, 16, 64):
        y, (dx,) = value_and_gradients(lambda x, n=levels: soft_quantize(x, n), x)
        z, (dz,) = value_and_gradients(
            lambda x, n=levels: soft_quantize(x, n, gradient_hardness=4.0), x
        )
        np.testing.assert_allclose(y, z, rtol=3e-7)  # compilers may fuse differently
        expected = reference(x, equal_thresholds(levels), 4.0)[1]
        np.testing.assert_allclose(dz, expected, rtol=2e-4)
        assert np.abs(dz - dx).max() > 0.3


@pytest.mark.parametrize("value_range", [(0.0, 255.0), (-1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("levels", [2, 5, 64])
@pytest.mark.parametrize("hard", [False, True])
def test_a_surrogate_gradient_in_any_range(value_range, levels, hard):
    """Its hardness is in units of the value range, as the forward one's is."""
    low, high = value_range
    x = (low + (high - low) * np.linspace(-0.1, 1.1, 97)).astype("float32")
    thresholds = equal_thresholds(levels, value_range)
    function = hard_quantize if hard else soft_quantize
    for given_thresholds in (levels, thresholds):
        _, (dx,) = value_and_gradients(
            lambda x, t=given_thresholds: function(
                x, t, gradient_hardness=4.0, value_range=value_range
            ),
            x,
        )
        expected = reference(x, thresholds, 4.0, value_range)[1]
        np.testing.assert_allclose(dx, expected, rtol=2e-3, atol=1e-6 * expected.max())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0625, 0.9375, width=32), min_size=1, max_size=7, unique=True),
    st.floats(0.5, 300),
)
def test_monotone_bounded_and_hard_at_n_values(thresholds, z):
    t = np.sort(np.array(thresholds, "float32"))
    x = np.sort(np.concatenate([PIXELS, near(t)]))
    y = ops.convert_to_numpy(soft_quantize(x, t, hardness=z))
    assert y.min() >= 0
    assert y.max() <= 1
    # Rounding may undo a rise smaller than the rounding of its terms.
    assert np.diff(y).min() >= -1e-6 * (1 + z / 50)
    hard = ops.convert_to_numpy(hard_quantize(x, t))
    np.testing.assert_array_equal(np.diff(hard) >= 0, True)
    assert len(np.unique(hard)) == len(t) + 1


@pytest.mark.parametrize("levels", [2, 5, 64])
def test_soft_tends_to_hard_as_hardness_grows(levels):
    thresholds = equal_thresholds(levels)
    x = PIXELS[np.abs(PIXELS[:, None] - thresholds).min(1) > 1e-3]
    hard = ops.convert_to_numpy(hard_quantize(x, levels))
    errors = [
        np.abs(ops.convert_to_numpy(soft_quantize(x, levels, hardness=z)) - hard).max()
        for z in (50, 500, 5000, 50000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_the_value_range_only_rescales(levels):
    y = ops.convert_to_numpy(soft_quantize(PIXELS, levels))
    scaled = PIXELS * 255 - 100
    z = ops.convert_to_numpy(soft_quantize(scaled, levels, value_range=(-100.0, 155.0)))
    np.testing.assert_allclose(y, z, atol=2e-5)


@pytest.mark.parametrize("levels", [2, 8, 64, 256])
@pytest.mark.parametrize("z", [1e-3, 50.0, 1e30])
def test_no_nan_for_huge_hardness_or_inputs(levels, z):
    x = np.array([-np.inf, -1e38, -1.0, 0.0, 0.5, 1.0, 2.0, 1e38, np.inf], "float32")
    y, (dx,) = value_and_gradients(lambda x: soft_quantize(x, levels, hardness=z), x)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(y[[0, -1]], [0, 1], atol=1e-6)
    hard = ops.convert_to_numpy(hard_quantize(x, levels))
    np.testing.assert_array_equal(hard[[0, 1, -2, -1]], [0, 0, 1, 1])


def test_nan_stays_nan():
    x = np.array([np.nan, 0.2], "float32")
    for levels in (2, 64):
        y = ops.convert_to_numpy(soft_quantize(x, levels))
        assert np.isnan(y[0])
        assert not np.isnan(y[1])


def test_one_threshold_at_one_would_lose_the_gradient_of_bright_pixels():
    # The later public code of the authors: n thresholds k/n, divided by n - 1, clipped.
    x = np.array([0.9], "float32")
    _, (theirs,) = value_and_gradients(
        lambda x: ops.clip(ops.sigmoid(50 * (x - 0.5)) + ops.sigmoid(50 * (x - 1)), 0, 1), x
    )
    _, (ours,) = value_and_gradients(lambda x: soft_quantize(x, 2), x)
    assert theirs[0] == 0
    assert ours[0] > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    x = ops.cast(PIXELS, dtype)
    y = ops.convert_to_numpy(soft_quantize(x, 4))
    expected = ops.convert_to_numpy(soft_quantize(ops.cast(x, "float32"), 4))
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == "float32"


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads TensorFlow's memory counters")
@pytest.mark.parametrize("free", [False, True])
def test_memory_does_not_grow_with_levels(free):
    import subprocess
    import sys

    code = """
import resource, sys
import numpy as np, tensorflow as tf
from keras_qusec.quantization import equal_thresholds, soft_quantize
levels, free = int(sys.argv[1]), sys.argv[2] == "True"
t = equal_thresholds(levels) if free else levels
@tf.function
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = soft_quantize(x, t)
    return y, tape.gradient(y, x)
step(tf.zeros((4, 4)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(tf.random.uniform((8_000_000,)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 31250)
"""

    def images(levels):
        command = [sys.executable, "-c", code, str(levels), str(free)]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    # In units of the input. TensorFlow's loops run up to ten rounds ahead, no more.
    few, many = images(48), images(200)
    assert few < 30
    assert many < few + 5


def test_gradient_of_saturated_pixels_is_exact_on_both_sides():
    for thresholds in (2, 16, np.array([0.5], "float32")):
        x = np.array([0.0, 1.0], "float32")
        _, (dx,) = value_and_gradients(lambda x, t=thresholds: soft_quantize(x, t), x)
        t = equal_thresholds(thresholds) if isinstance(thresholds, int) else thresholds
        np.testing.assert_allclose(dx, reference(x, t, 50.0)[1], rtol=1e-5)
        assert dx[0] > 0


@pytest.mark.parametrize("levels", [1, 0, -3, 2.0, "2", True, None, 70000])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="Expected levels to be an integer from 2"):
        equal_thresholds(levels)


@pytest.mark.parametrize("hardness", [0, -1.0, np.nan, np.inf, 1e31])
def test_bad_hardness(hardness):
    with pytest.raises(ValueError, match="Expected hardness to be a number above 0"):
        soft_quantize(PIXELS, 2, hardness=hardness)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, np.inf), 3, (0, 1, 2)])
def test_bad_value_range(value_range):
    with pytest.raises(ValueError, match="Expected value_range to be two finite numbers"):
        soft_quantize(PIXELS, 2, value_range=value_range)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integer_images(dtype):
    with pytest.raises(ValueError, match=r"Expected images as floats.*/ 255"):
        soft_quantize(np.zeros((2, 2), dtype), 2)


def test_every_public_function_has_an_example():
    for name in ("equal_thresholds", "soft_quantize", "hard_quantize"):
        assert ">>>" in getattr(quantization, name).__doc__


class TestByteThresholds:
    def test_bytes_keep_their_levels(self):
        for levels in (2, 3, 4, 5, 8, 16, 32):
            usual = equal_thresholds(levels)
            found = byte_thresholds(usual)
            values = (np.arange(256) / 255).astype("float32")
            scaled = np.arange(256, dtype="float32") * np.float32(1 / 255)  # off by a rounding
            for pixels in (values, scaled):
                np.testing.assert_array_equal(
                    (pixels[:, None] >= found).sum(axis=1), (values[:, None] >= usual).sum(axis=1)
                )

    def test_the_layer_takes_their_name(self):
        layer = QuSecQuantization(4, thresholds="bytes", value_range=(0, 255))
        np.testing.assert_allclose(layer.thresholds, [64, 128, 192], atol=0.002)
        again = QuSecQuantization.from_config(layer.get_config())
        np.testing.assert_array_equal(again.thresholds, layer.thresholds)

    def test_errors(self):
        with pytest.raises(ValueError, match="byte value between"):
            byte_thresholds([0.5, 0.501])
        with pytest.raises(ValueError, match="at most 32 levels"):
            QuSecQuantization(64, thresholds="bytes")
        with pytest.raises(ValueError, match="thresholds to be one of 'bytes'"):
            QuSecQuantization(4, thresholds="byte")
