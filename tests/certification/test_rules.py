"""Every layer with a rule: the network in float64 is the model, and its bounds hold."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from certification.soundness import check_sound
from keras import ops

from keras_qusec import QuSecQuantization
from keras_qusec.certification import curves, matrices, pieces, rules
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Network
from keras_qusec.defenses import BitDepthReduction, BoundedReLU, QuantizedActivation

L = keras.layers
RANDOM = keras.initializers.RandomNormal(stddev=0.4, seed=1)


def conv(kind, *sizes, **settings):
    return kind(*sizes, kernel_initializer=RANDOM, bias_initializer=RANDOM, **settings)


def separable(kind, *sizes, **settings):
    return kind(
        *sizes, depthwise_initializer=RANDOM, pointwise_initializer=RANDOM,
        bias_initializer=RANDOM, **settings,
    )  # fmt: skip


def depthwise(kind, *sizes, **settings):
    return kind(*sizes, depthwise_initializer=RANDOM, bias_initializer=RANDOM, **settings)


def normalized(shape):
    layer = L.BatchNormalization(
        moving_mean_initializer=RANDOM, gamma_initializer=RANDOM, beta_initializer=RANDOM,
        moving_variance_initializer=keras.initializers.RandomUniform(0.2, 2.0, seed=3),
    )  # fmt: skip
    return sequential(shape, [layer])


def sequential(shape, layers):
    return keras.Sequential([keras.Input(shape), *layers])


def two_paths(join, *, shapes=((3,), (3,))):
    x = keras.Input((4,))
    branches = [conv(L.Dense, shape[0], activation="relu")(x) for shape in shapes]
    return keras.Model(x, conv(L.Dense, 3)(join(branches)))


IMAGE, LINE, CUBE = (6, 5, 2), (7, 2), (4, 4, 3, 2)
LAYERS = {
    "dense": lambda: sequential((4,), [conv(L.Dense, 3)]),
    "dense on rows": lambda: sequential((2, 4), [conv(L.Dense, 3, activation="relu")]),
    "conv1d": lambda: sequential(LINE, [conv(L.Conv1D, 3, 3, strides=2, padding="same")]),
    "conv1d causal": lambda: sequential(LINE, [conv(L.Conv1D, 3, 3, padding="causal")]),
    "conv2d": lambda: sequential(IMAGE, [conv(L.Conv2D, 3, (3, 2), activation="relu")]),
    "conv2d same": lambda: sequential(IMAGE, [conv(L.Conv2D, 3, 4, strides=2, padding="same")]),
    "conv2d dilated": lambda: sequential(IMAGE, [conv(L.Conv2D, 3, 2, dilation_rate=2)]),
    "conv2d groups": lambda: sequential(IMAGE, [conv(L.Conv2D, 4, 3, groups=2)]),
    "conv3d": lambda: sequential(CUBE, [conv(L.Conv3D, 2, 2, padding="same")]),
    "depthwise1d": lambda: sequential(LINE, [depthwise(L.DepthwiseConv1D, 3)]),
    "depthwise2d": lambda: sequential(
        IMAGE, [depthwise(L.DepthwiseConv2D, 3, depth_multiplier=2, padding="same")]
    ),
    "separable1d": lambda: sequential(LINE, [separable(L.SeparableConv1D, 3, 3)]),
    "separable2d": lambda: sequential(
        IMAGE, [separable(L.SeparableConv2D, 3, 3, strides=2, padding="same")]
    ),
    "transposed1d": lambda: sequential(LINE, [conv(L.Conv1DTranspose, 3, 3, strides=2)]),
    "transposed2d": lambda: sequential(
        IMAGE, [conv(L.Conv2DTranspose, 3, 3, strides=2, padding="same")]
    ),
    "transposed2d valid": lambda: sequential(IMAGE, [conv(L.Conv2DTranspose, 3, (2, 3))]),
    "batch normalization": lambda: normalized(IMAGE),
    "rescaling": lambda: sequential((4,), [L.Rescaling(2.0, -1.0)]),
    "normalization": lambda: sequential((3,), [L.Normalization(mean=[1, 2, 3], variance=[4, 5, 6])]),
    "average pooling": lambda: sequential(IMAGE, [L.AveragePooling2D(2, padding="same")]),
    "average pooling 1d": lambda: sequential(LINE, [L.AveragePooling1D(3, strides=1)]),
    "average pooling 3d": lambda: sequential(CUBE, [L.AveragePooling3D(2)]),
    "max pooling": lambda: sequential(
        IMAGE, [conv(L.Conv2D, 3, 2, activation="relu"), L.MaxPooling2D(2), L.Flatten(),
                conv(L.Dense, 3)]
    ),
    "max pooling same": lambda: sequential(IMAGE, [L.MaxPooling2D(3, 2, padding="same")]),
    "max pooling 1d": lambda: sequential(LINE, [L.MaxPooling1D(3)]),
    "max pooling 3d": lambda: sequential(CUBE, [L.MaxPooling3D(2)]),
    "global average": lambda: sequential(IMAGE, [L.GlobalAveragePooling2D()]),
    "global maximum": lambda: sequential(IMAGE, [L.GlobalMaxPooling2D()]),
    "zero padding": lambda: sequential(IMAGE, [L.ZeroPadding2D((1, 2)), conv(L.Conv2D, 2, 3)]),
    "cropping": lambda: sequential(IMAGE, [L.Cropping2D(1), L.Flatten(), conv(L.Dense, 3)]),
    "up-sampling": lambda: sequential(IMAGE, [L.UpSampling2D(2)]),
    "permute, reshape": lambda: sequential(IMAGE, [L.Permute((3, 1, 2)), L.Reshape((-1, 4))]),
    "dropout, noise": lambda: sequential(
        (4,), [L.GaussianNoise(1.0), conv(L.Dense, 3, activation="relu"), L.Dropout(0.5)]
    ),
    "add": lambda: two_paths(L.Add()),
    "subtract": lambda: two_paths(L.Subtract()),
    "average": lambda: two_paths(L.Average()),
    "concatenate": lambda: two_paths(L.Concatenate(), shapes=((3,), (2,))),
    "bounded ReLU": lambda: sequential((4,), [conv(L.Dense, 5, activation=BoundedReLU(0.5))]),
    "leaky": lambda: sequential((4,), [conv(L.Dense, 5), L.LeakyReLU(0.1), conv(L.Dense, 3)]),
    "prelu": lambda: sequential(
        (4,), [conv(L.Dense, 5), L.PReLU(alpha_initializer=RANDOM), conv(L.Dense, 3)]
    ),
    "relu layer": lambda: sequential((4,), [conv(L.Dense, 5), L.ReLU(0.5, 0.1), conv(L.Dense, 3)]),
    "elu layer": lambda: sequential((4,), [conv(L.Dense, 5), L.ELU(0.5), conv(L.Dense, 3)]),
    "one logit": lambda: sequential((4,), [conv(L.Dense, 1)]),
}  # fmt: skip


def residual():
    x = keras.Input(IMAGE)
    y = conv(L.Conv2D, 2, 3, padding="same", activation="relu")(x)
    y = L.Add()([x, conv(L.Conv2D, 2, 3, padding="same")(y)])
    return keras.Model(x, conv(L.Dense, 3)(L.Flatten()(L.ReLU()(y))))


def nested():
    inner = sequential((5, 4, 3), [L.ReLU(), L.Flatten(), conv(L.Dense, 6, activation="relu")])
    return sequential(IMAGE, [conv(L.Conv2D, 3, 2), inner, conv(L.Dense, 3)])


def of_operations():
    x = keras.Input((6,))
    y = 2.0 * x - 0.5
    y = 3.0 - ops.relu(conv(L.Dense, 6)(y)) / 2.0
    y = ops.reshape(-y, (-1, 2, 3))[:, 1]
    return keras.Model(x, conv(L.Dense, 3)(y + y))


LAYERS |= {"residual": residual, "nested": nested, "operations": of_operations}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    check_sound(LAYERS[name]())


@pytest.mark.parametrize("name", sorted(curves.CURVES))
def test_activation(name):
    if name != "tanh_gelu" and not hasattr(keras.activations, name):
        pytest.skip("not in this Keras")
    activation = "gelu" if name == "tanh_gelu" else name
    layers = [conv(L.Dense, 5), L.Activation(activation), conv(L.Dense, 3)]
    check_sound(sequential((4,), layers))


@pytest.mark.parametrize("name", sorted(curves.CURVES))
def test_curve(name):
    """Ends, lines, secants and curvature of each curve, on many intervals."""
    curve = curves.CURVES[name]
    generator = np.random.default_rng(0)
    low = generator.normal(0, 4, 400)
    high = low + generator.exponential(2, 400) * (generator.random(400) < 0.9)
    share = np.linspace(0, 1, 301)[:, None]
    points = low + share * (high - low)
    values = curve.function(points)
    least, most = curve.ends(low, high)
    assert (least - 1e-9 <= values).all()
    assert (values <= most + 1e-9).all()
    lines = curve.lines(low, high)
    assert (lines.low_slope * points + lines.low_offset <= values + 1e-9).all()
    assert (values <= lines.high_slope * points + lines.high_offset + 1e-9).all()
    straight = curve.is_linear(low, high)
    chord = values[0] + share * (values[-1] - values[0])
    np.testing.assert_allclose(chord[:, straight], values[:, straight], atol=1e-9)
    grid = np.linspace(-12, 12, 48001)
    slopes = np.diff(curve.function(grid)) / np.diff(grid)
    assert np.abs(slopes).max() <= curve.slope + 1e-6
    if not curve.linear:
        away = np.all([np.abs(grid[1:-1] - knot) > 2e-3 for knot in curve.knots] or [True], axis=0)
        bend = np.abs(np.diff(slopes) / np.diff(grid[1:]))
        assert (bend * away).max() <= curve.curvature + 1e-3


@pytest.mark.parametrize("front", ["hard", "soft", "trained", "bits", "inside"])
def test_quantizers(front):
    layer = {
        "hard": lambda: QuSecQuantization(3, hard=True, value_range=(-1, 1)),
        "soft": lambda: QuSecQuantization(3, value_range=(-1, 1)),
        "trained": lambda: QuSecQuantization(2, hard=True, thresholds=[0.1], value_range=(-1, 1)),
        "bits": lambda: BitDepthReduction(2, value_range=(-1, 1)),
        "inside": lambda: QuantizedActivation(3),
    }[front]()
    before = [conv(L.Dense, 4)] if front == "inside" else []
    model = sequential(
        (4,), [*before, layer, conv(L.Dense, 5, activation="relu"), conv(L.Dense, 3)]
    )
    network, generator = Network.of(pieces_between(model)), np.random.default_rng(0)
    low = generator.uniform(-1, 0.5, (3, 4)).astype("float32")
    high = low + 0.4
    bounds = network.bounds(low, high)[-1]
    for _ in range(50):
        x = generator.uniform(low, high).astype("float32")
        outputs = ops.convert_to_numpy(model(x))
        assert (bounds.low - bounds.error <= outputs).all()
        assert (outputs <= bounds.high + bounds.error).all()


class Doubled(L.Layer):
    def call(self, x):
        return 2.0 * x


def test_a_layer_without_a_rule_is_named():
    model = sequential((3,), [Doubled(name="twice"), L.Dense(2)])
    with pytest.raises(ValueError, match=r"'twice' of class Doubled.*rules\.register"):
        pieces_between(model)


def test_a_rule_of_ones_own():
    rules.register(Doubled)(lambda layer, call: [pieces.Scaling(lambda: (2.0, 0.0))])
    try:
        check_sound(sequential((3,), [Doubled(), conv(L.Dense, 2)]))
        rules.register(Doubled)(lambda layer, call: [pieces.Scaling(lambda: (1.9, 0.0))])
        with pytest.raises(AssertionError):
            check_sound(sequential((3,), [Doubled(), conv(L.Dense, 2)]))
    finally:
        del rules._RULES[Doubled]


class Wider(L.Dense):
    def call(self, x):
        return super().call(3.0 * x)


def test_a_layer_that_inherits_from_one_of_keras_has_no_rule_by_that():
    with pytest.raises(ValueError, match="class Wider"):
        pieces_between(sequential((3,), [Wider(2)]))


class Coded(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Coded, "functional or sequential model"),
        (lambda: sequential((3,), [L.Dense(2, activation=lambda x: x**2)]), "activation function"),
        (lambda: sequential((3,), [L.Dense(2, dtype="float16")]), "compute in float32"),
        (lambda: sequential((3,), [L.Softmax(), L.Dense(2)]), "softmax at the end"),
        (lambda: sequential((4,), [L.ReLU(threshold=1.0)]), "without a threshold"),
        (lambda: sequential(IMAGE, [L.UpSampling2D(2, interpolation="bilinear")]), "nearest"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        Network.of(pieces_between(make()))


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "softmax layer"])
def test_the_squashing_at_the_end_is_left_out(head):
    last = conv(L.Dense, 3, activation=None if head == "softmax layer" else head)
    layers = [last, L.Softmax()] if head == "softmax layer" else [last]
    model = sequential((4,), layers)
    bare = sequential((4,), [conv(L.Dense, 3)])
    bare.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(5, 4))
    given, expected = (Network.of(pieces_between(m)).forward(x) for m in (model, bare))
    np.testing.assert_array_equal(given, expected)


def test_channels_first_places():
    places = matrices.Places.of((3, 4, 5), "channels_first")
    assert (places.channels, places.spatial) == (3, (4, 5))
    assert places.place(np.array(7), np.array(2)) == 2 * 20 + 7


@pytest.mark.parametrize(
    "fault",
    ["slope on the wrong side", "bias forgotten", "weights not as sizes", "padding shifted"],
)
def test_a_planted_fault_is_noticed(fault, monkeypatch):
    """The checks of this file see a rule that is wrong in one place."""
    network = sequential(
        IMAGE, [conv(L.Conv2D, 3, 3, padding="same", activation="relu"), L.Flatten(),
                conv(L.Dense, 4, activation="relu"), conv(L.Dense, 3)]
    )  # fmt: skip
    check_sound(network)
    if fault == "slope on the wrong side":
        good = type(curves.RELU).lines

        def lines(self, low, high):
            found = good(self, low, high)
            return found._replace(high_offset=0.0 * found.high_offset)

        monkeypatch.setattr(type(curves.RELU), "lines", lines)
    elif fault == "bias forgotten":
        monkeypatch.setattr(rules, "_bias", lambda layer, rank: None)
    elif fault == "weights not as sizes":
        monkeypatch.setattr(ops, "absolute", lambda x: x)
    else:
        monkeypatch.setattr(matrices.Window, "_before", lambda self, axis, n, out: 0)
    with pytest.raises(AssertionError):
        check_sound(network)
