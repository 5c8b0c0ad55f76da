"""The layers: drop-in, trained, saved, cloned, compiled, in every precision."""

from __future__ import annotations

import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import ops

from keras_qusec import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.defenses import (
    EqualThresholds,
    OrderedThresholds,
    current_surrogate,
    find_quantizers,
    surrogate_choices,
    surrogate_gradients,
)
from keras_qusec.quantization import equal_thresholds, soft_quantize

IMAGES = np.random.default_rng(1).random((6, 8, 8, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 0, 1, 2])
LAYERS = {
    "constant": lambda: QuSecQuantization(2),
    "constant, 16 levels": lambda: QuSecQuantization(16, hardness=80),
    "constant, 64 levels": lambda: QuSecQuantization(64),
    "given": lambda: QuSecQuantization(3, thresholds=[0.2, 0.7], gradient_hardness=4.0),
    "hard": lambda: QuSecQuantization(4, hard=True),
    "hard, 64 levels": lambda: QuSecQuantization(64, hard=True),
    "pixel": lambda: TrainableQuSecQuantization(3),
    "channel": lambda: TrainableQuSecQuantization(8, granularity="channel"),
    "shared": lambda: TrainableQuSecQuantization(
        3, granularity="shared", thresholds_initializer=[0.3, 0.6]
    ),
    "hard, trainable": lambda: TrainableQuSecQuantization(3, hard=True, hardness=8.0),
}


def classifier(quantizer, **compile_settings):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), quantizer, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, **compile_settings)
    return model


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def test_equal_values_eagerly_functionally_in_predict_and_subclassed(layer):
    eager = ops.convert_to_numpy(layer(IMAGES))
    inputs = keras.Input((8, 8, 3))
    functional = keras.Model(inputs, layer(inputs))
    assert functional.output_shape == (None, 8, 8, 3)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.front = layer

        def call(self, x):
            return self.front(x)

    for model in (functional, Subclassed()):
        np.testing.assert_allclose(model.predict(IMAGES, verbose=0), eager, atol=1e-6)
        # Batches of other sizes than the first one.
        np.testing.assert_allclose(
            model.predict(IMAGES[:5], batch_size=2, verbose=0), eager[:5], atol=1e-6
        )


def test_equals_the_pure_function():
    y = ops.convert_to_numpy(QuSecQuantization(5, hardness=30)(IMAGES))
    expected = ops.convert_to_numpy(soft_quantize(IMAGES, 5, hardness=30))
    np.testing.assert_array_equal(y, expected)


def test_reload_in_safe_mode_is_bit_equal(layer, tmp_path):
    model = classifier(layer)
    model.fit(IMAGES, LABELS, epochs=1, verbose=0)
    layer.hardness = 9.0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.layers[0].hardness == 9.0
    assert loaded.layers[0].gradient_hardness == layer.gradient_hardness
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), expected)

    model.save_weights(tmp_path / "model.weights.h5")
    fresh = classifier(type(layer).from_config(layer.get_config()))
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh.predict(IMAGES, verbose=0), expected)

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(IMAGES, verbose=0), expected)


def test_config_survives_json(layer):
    config = json.loads(json.dumps(layer.get_config()))
    again = type(layer).from_config(config)
    assert again.get_config() == layer.get_config()


def test_a_file_of_a_newer_version_says_so(tmp_path):
    path = tmp_path / "model.keras"
    classifier(QuSecQuantization(2)).save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    newer = files["config.json"].replace(b'"config_version": 1', b'"config_version": 2')
    assert newer != files["config.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "config.json": newer}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="version 2, written by a newer keras-qusec"):
        keras.saving.load_model(path)


@pytest.mark.parametrize("granularity", ["pixel", "channel", "shared"])
@pytest.mark.parametrize("levels", [2, 4, 9])
def test_trainable_thresholds_move_and_stay_ordered(granularity, levels):
    layer = TrainableQuSecQuantization(levels, granularity=granularity)
    model = classifier(layer)
    before = layer.thresholds
    expected = {"pixel": (8, 8, 3), "channel": (3,), "shared": ()}[granularity]
    assert before.shape == (levels - 1, *expected)
    model.fit(IMAGES, LABELS, epochs=5, verbose=0)
    after = layer.thresholds
    assert np.abs(after - before).max() > 1e-4
    assert (np.diff(after, axis=0) >= 0).all()
    assert after.min() >= 0
    assert after.max() <= 1


def test_constant_thresholds_do_not_move():
    layer = QuSecQuantization(4)
    model = classifier(layer)
    weights = [np.array(w) for w in layer.get_weights()]
    model.fit(IMAGES, LABELS, epochs=3, verbose=0)
    assert layer.trainable_weights == []
    np.testing.assert_array_equal(layer.get_weights(), weights)
    np.testing.assert_array_equal(layer.thresholds, equal_thresholds(4))


def test_trainable_false_freezes_the_thresholds():
    layer = TrainableQuSecQuantization(2, trainable=False)
    model = classifier(layer)
    before = layer.thresholds
    model.fit(IMAGES, LABELS, epochs=2, verbose=0)
    np.testing.assert_array_equal(layer.thresholds, before)


def test_regularizer_initializer_and_constraint_are_used():
    layer = TrainableQuSecQuantization(
        4,
        granularity="shared",
        thresholds_initializer=keras.initializers.RandomUniform(0, 1, seed=3),
        thresholds_regularizer="l2",
    )
    layer.build((None, 8, 8, 3))
    assert (np.diff(layer.thresholds) > 0).all()
    penalty = ops.convert_to_numpy(layer.losses[0])
    np.testing.assert_allclose(penalty, 0.01 * (layer.thresholds**2).sum(), rtol=1e-5)
    free = TrainableQuSecQuantization(3, thresholds_constraint=None, granularity="shared")
    free.build((None, 2))
    assert free._thresholds.constraint is None
    ordered = ops.convert_to_numpy(OrderedThresholds((-1, 1))(np.array([3.0, -2.0, 0.5])))
    np.testing.assert_allclose(ordered, [-1, 0.5, 1])
    equal = EqualThresholds((0, 255))((1, 2, 2))
    np.testing.assert_allclose(ops.convert_to_numpy(equal), 127.5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_thresholds_stay_float32_under_half_precision(policy):
    for layer in (
        TrainableQuSecQuantization(3, dtype=policy, thresholds_initializer=[0.3333, 0.6667]),
        QuSecQuantization(256, dtype=policy),
    ):
        # Pixels next to a threshold, closer than float16 tells apart.
        x = np.array([[0.33329, 0.33331, 0.66669, 0.66671]], "float32")
        y = layer(x)
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {"float32"}
        reference = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
        expected = ops.cast(reference(x), layer.compute_dtype)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(y, "float32")),
            ops.convert_to_numpy(ops.cast(expected, "float32")),
        )


def test_training_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = TrainableQuSecQuantization(3)
        model = classifier(layer)
        before = layer.thresholds
        history = model.fit(IMAGES, LABELS, epochs=5, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert np.abs(layer.thresholds - before).max() > 0
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.skipif(BACKEND == "torch", reason="compiles with torch.compile, slow on a CPU")
@pytest.mark.parametrize("name", ["constant, 64 levels", "pixel", "channel", "hard"])
def test_jit_compile_changes_nothing(name):
    layer = LAYERS[name]()
    plain = classifier(layer, jit_compile=False)
    expected = plain.predict(IMAGES, verbose=0)
    compiled = keras.Sequential(plain.layers)
    compiled.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    np.testing.assert_allclose(compiled.predict(IMAGES, verbose=0), expected, atol=1e-5)
    history = compiled.fit(IMAGES, LABELS, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_images_of_any_size():
    for quantizer in (
        QuSecQuantization(64),
        TrainableQuSecQuantization(5, granularity="shared"),
        TrainableQuSecQuantization(3, granularity="channel"),
    ):
        model = keras.Sequential([keras.Input((None, None, 3)), quantizer])
        for size in (4, 7):
            x = np.random.default_rng(size).random((2, size, size + 1, 3)).astype("float32")
            y = model.predict(x, verbose=0)
            assert y.shape == x.shape
            np.testing.assert_allclose(y, ops.convert_to_numpy(quantizer(x)), atol=1e-6)


def test_channels_first():
    layer = TrainableQuSecQuantization(3, granularity="channel", data_format="channels_first")
    x = np.moveaxis(IMAGES, -1, 1)
    y = ops.convert_to_numpy(layer(x))
    assert layer.thresholds.shape == (2, 3, 1, 1)
    last = TrainableQuSecQuantization(3, granularity="channel")
    np.testing.assert_allclose(np.moveaxis(y, 1, -1), ops.convert_to_numpy(last(IMAGES)))


def test_the_hardness_can_be_set_before_and_after_building():
    layer = QuSecQuantization(2)
    layer.hardness = 10
    assert layer.get_config()["hardness"] == 10
    low = ops.convert_to_numpy(layer(np.array([0.6], "float32")))
    layer.hardness = 40
    high = ops.convert_to_numpy(layer(np.array([0.6], "float32")))
    np.testing.assert_allclose([*low, *high], 1 / (1 + np.exp([-1.0, -4.0])), rtol=1e-5)


def test_find_quantizers_everywhere():
    class Custom(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = {"inside": [QuSecQuantization(2)]}

        def call(self, x):
            return self.parts["inside"][0](x)

    shared = TrainableQuSecQuantization(2)
    inner = keras.Sequential([shared, Custom()])
    model = keras.Sequential([keras.Input((4,)), inner, shared])
    found = find_quantizers(model)
    assert len(found) == 2
    assert shared in found


def test_surrogate_gradients_are_put_back_also_after_an_error():
    layers = [QuSecQuantization(2), QuSecQuantization(2, gradient_hardness=7.0)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    with surrogate_gradients(model, 3.0):
        assert [current_surrogate(layer) for layer in layers] == [3.0, 3.0]
        with surrogate_gradients(model, None):
            assert [current_surrogate(layer) for layer in layers] == [None, None]
    with pytest.raises(KeyError), surrogate_gradients(model, 3.0):
        raise KeyError
    assert [current_surrogate(layer) for layer in layers] == [None, None]
    assert [layer.gradient_hardness for layer in layers] == [None, 7.0]


def test_a_defence_with_fewer_surrogates_keeps_its_last_one():
    class One(keras.layers.Layer):
        def surrogates(self, hardnesses):
            return ["identity"]

    quantizer, one, none = QuSecQuantization(2), One(), QuSecQuantization(2)
    none.surrogates = lambda hardnesses: []
    choices = surrogate_choices([one, quantizer, none], [3.0, 10.0])
    assert choices == [{one: "identity", quantizer: 3.0}, {one: "identity", quantizer: 10.0}]
    assert surrogate_choices([none], [3.0]) == []


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 1}, "Expected levels to be an integer"),
        ({"levels": 2.5}, "Expected levels to be an integer"),
        ({"hardness": 0}, "Expected hardness to be a number above 0"),
        ({"gradient_hardness": -1}, "Expected gradient_hardness to be a number above 0"),
        ({"value_range": (1, 0)}, "Expected value_range"),
        ({"levels": 3, "thresholds": [0.5]}, "Expected 2 thresholds"),
        ({"levels": 3, "thresholds": 0.5}, "Expected 2 thresholds"),
        ({"levels": 3, "thresholds": [0.6, 0.4]}, "strictly increasing"),
        ({"levels": 3, "thresholds": [0.5, 0.5]}, "strictly increasing"),
        ({"levels": 3, "thresholds": [0.5, float("nan")]}, "finite thresholds"),
        ({"levels": 3, "thresholds": [0.5, 1.5]}, "strictly inside value_range"),
        ({"levels": 3, "thresholds": ["a", "b"]}, "increasing numbers"),
        ({"levels": 3, "thresholds": [[0.2], [0.4]]}, "flat sequence"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        QuSecQuantization(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "image"}, "Expected granularity to be one of"),
        ({"data_format": "last"}, "Expected data_format"),
        ({"thresholds_initializer": [0.1, 0.2, 0.3]}, "Expected 1 thresholds"),
    ],
)
def test_bad_trainable_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainableQuSecQuantization(**settings)


@pytest.mark.parametrize("make", [QuSecQuantization, TrainableQuSecQuantization])
def test_integer_images(make):
    with pytest.raises(ValueError, match=r"Received: dtype=uint8.*/ 255"):
        make(2)(np.zeros((2, 8, 8, 1), "uint8"))


def test_values_outside_the_range_saturate():
    y = ops.convert_to_numpy(QuSecQuantization(2)(np.array([-5.0, 7.0], "float32")))
    np.testing.assert_allclose(y, [0, 1])


def test_changed_image_size_with_pixel_thresholds():
    layer = TrainableQuSecQuantization(2)
    layer(IMAGES)
    with pytest.raises(
        ValueError, match=r"shape \(8, 8, 3\).*Received: images of shape \(7, 8, 3\)"
    ):
        layer(IMAGES[:, :7])


def test_unknown_image_size_with_pixel_thresholds():
    with pytest.raises(ValueError, match='Expected a known size for granularity="pixel"'):
        keras.Sequential([keras.Input((None, None, 3)), TrainableQuSecQuantization(2)])


def test_thresholds_before_building():
    with pytest.raises(ValueError, match="Expected a built layer"):
        _ = TrainableQuSecQuantization(2).thresholds


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_pixels_rounded_before_they_are_quantized_are_warned_of(policy):
    """By a layer of the policy; not where that layer computes in float32."""

    def model(dtype):
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Rescaling(1 / 255, dtype=dtype),
             QuSecQuantization(2, hard=True, dtype=keras.DTypePolicy(policy))]
        )  # fmt: skip

    with pytest.warns(UserWarning, match="were rounded across it"):
        model(keras.DTypePolicy(policy))(np.zeros((1, 4), "float32"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*were rounded across it")
        whole = model("float32")
        levels = whole.predict(np.arange(256, dtype="float32").reshape(64, 4), verbose=0)
    np.testing.assert_array_equal(levels.ravel().astype("float32"), np.arange(256) >= 127.5)
