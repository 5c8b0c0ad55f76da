"""What every bound must satisfy, as checks that a planted fault makes fail."""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Network
from keras_qusec.certification.pieces import Interval
from keras_qusec.certification.reduction import reduced


def random_box(shape, generator, *, moving=0.3, images=2):
    """Boxes of which some values move, ``(images, *shape)``."""
    low = generator.uniform(-1, 1, (images, *shape)).astype("float32")
    width = generator.uniform(0, 0.5, low.shape) * (generator.random(low.shape) < moving)
    return low, (low + width).astype("float32")


def points_in(low, high, count, generator):
    """Random points of boxes, many of them corners, ``(images, count, ...)``."""
    share = generator.random((len(low), count, *low.shape[1:]))
    share = np.where(generator.random(share.shape) < 0.7, np.round(share), share)
    share = share.astype("float32")
    points = low[:, None] + share * (high - low)[:, None]
    return np.clip(points, low[:, None], high[:, None]).astype("float32")


def check_sound(model, *, seed=0, count=60):
    """Raise an AssertionError if any bound of a model can be exceeded.

    Checked are, on random boxes: that the network in float64 is the model in float32 but for its
    own account of rounding; that bounds by intervals, in float64 and in `keras.ops`, linear
    bounds, and those with optimized slopes contain what random points give; and that reducing
    the network changes nothing.
    """
    generator = np.random.default_rng(seed)
    pieces = pieces_between(model)
    network = Network.of(pieces)
    shape = model.input_shape[1:]
    low, high = random_box(shape, generator)
    points = points_in(low, high, count, generator)
    bounds = network.bounds(low.reshape(len(low), -1), high.reshape(len(low), -1))
    given = pieces.intervals(Interval(*map(ops.convert_to_tensor, (low, high))))[pieces.output]
    rough = [ops.convert_to_numpy(end).reshape(len(low), -1) for end in given]
    for image in range(len(low)):
        exact = network.forward(points[image].reshape(count, -1))
        computed = logits_of(model, network, points[image])
        error = bounds[-1].error[image]
        assert (np.abs(computed - exact) <= error).all(), np.abs(computed - exact).max()
        assert (bounds[-1].low[image] <= exact).all()
        assert (exact <= bounds[-1].high[image]).all()
        if rough[0].shape[1] == network.classes:
            slack = 1e-4 * (1 + np.abs(exact))
            assert (rough[0][image] <= exact + slack).all()
            assert (exact - slack <= rough[1][image]).all()
        small = reduced(network, bounds, image)
        free = np.flatnonzero(bounds[0].moves[image])
        inputs = points[image].reshape(count, -1)[:, free].astype("float64")
        np.testing.assert_allclose(small.forward(inputs), exact, rtol=1e-9, atol=1e-9)
        check_reduced(small, inputs, exact)
        tight = small.tighten()
        np.testing.assert_allclose(tight.forward(inputs), exact, rtol=1e-9, atol=1e-9)
        check_reduced(tight, inputs, exact)
        for place in range(min(2, len(free))):
            middle = (small.low[place] + small.high[place]) / 2
            inside = inputs[:, place] <= middle
            half = small.restricted(place, small.low[place], middle).tighten()
            check_reduced(half, inputs[inside], exact[inside])


def check_reduced(small, inputs, exact):
    """Raise an AssertionError if bounds of a reduced network do not contain its outputs."""
    slack = 1e-9 * (1 + np.abs(exact))
    low, high = small.bounds(both=True)
    assert (low <= exact + slack).all()
    assert (exact - slack <= high).all()
    for highest, slopes, _ in (small.upper_lines(), small.optimized_lines(5)):
        assert (exact - slack <= highest).all()
        # Also where each bound says that its output is largest.
        corners = np.where(slopes > 0, small.high, small.low)
        reached = np.diag(small.forward(corners))
        assert (reached <= highest + 1e-9 * (1 + np.abs(reached))).all()
    received = [inputs]
    for group in small.groups:
        total = group.offset + sum(
            value @ matrix.T for value, matrix in zip(received, group.matrices, strict=True)
        )
        roundings = 1e-9 * (1 + np.abs(total))
        assert (group.low - roundings <= total).all()
        assert (total <= group.high + roundings).all()
        values = group.curve.function(total)
        lines = group.lines()
        if not group.curve.has_steps:
            assert (lines.low_slope * total + lines.low_offset <= values + roundings).all()
            assert (values <= lines.high_slope * total + lines.high_offset + roundings).all()
        received.append(values)


def logits_of(model, network, x):
    """The logits of a model as it computes them, ``(n, classes)``."""
    outputs = ops.convert_to_numpy(model(ops.convert_to_tensor(x), training=False))
    outputs = outputs.reshape(len(x), -1).astype("float64")
    if outputs.shape[1] == 1 and network.classes == 2:
        return np.concatenate([np.zeros_like(outputs), outputs], axis=1)
    return outputs
