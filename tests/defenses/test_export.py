"""Exported models give the outputs of the model."""

from __future__ import annotations

import contextlib
import io

import keras
import numpy as np
import pytest
from helpers import BACKEND
from test_quantizers import LAYERS, classifier

from keras_qusec import QuSecQuantization, TrainableQuSecQuantization

IMAGES = np.random.default_rng(2).random((4, 8, 8, 3)).astype("float32")


@pytest.fixture(params=LAYERS)
def model(request):
    return classifier(LAYERS[request.param]())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="SavedModel is TensorFlow's")
def test_saved_model(model, tmp_path):
    import tensorflow as tf

    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(served.serve(IMAGES).numpy(), expected, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tested through TensorFlow's interpreter")
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_litert(model, tmp_path):
    import tensorflow as tf

    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    entry = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(entry, IMAGES.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry, IMAGES)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, model.predict(IMAGES, verbose=0), atol=2e-6)


def eight_bits(model, images, kind):
    """A model of 8-bit numbers as a function."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if kind != "float":
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        content = converter.convert()
    interpreter = Interpreter(model_content=content)
    entry, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(x):
        interpreter.resize_tensor_input(entry["index"], x.shape)
        interpreter.allocate_tensors()
        scale, zero = entry["quantization"]
        x = x if kind == "float" else np.round(x / scale + zero).astype(entry["dtype"])
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        scale, zero = output["quantization"]
        found = interpreter.get_tensor(output["index"])
        return found if kind == "float" else (found.astype("float32") - zero) * scale

    return run


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the converter is TensorFlow's")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("levels", "kind", "value_range"),
    [(2, "uint8", (0, 1)), (4, "int8", (0, 1)), (16, "float", (0, 1)), (32, "uint8", (0, 1)),
     (4, "uint8", (0, 255))],
)  # fmt: skip
@pytest.mark.parametrize("trained", [False, True])
def test_levels_of_all_bytes_in_eight_bits(levels, kind, value_range, trained):
    """The same as in Keras: a converter that made pixels dark would fail for half of them."""
    low, high = value_range
    plain = QuSecQuantization(levels, hard=True, thresholds="bytes", value_range=value_range)
    layer = plain
    if trained:
        layer = TrainableQuSecQuantization(
            levels, hard=True, granularity="shared", value_range=value_range,
            thresholds_initializer=plain.thresholds,
        )  # fmt: skip
    model = keras.Sequential([keras.Input((16, 16, 1)), layer])
    images = (low + (high - low) * np.arange(256) / 255).astype("float32").reshape(1, 16, 16, 1)
    expected = model.predict(images, verbose=0)
    # With the thresholds k / n bytes have the same levels.
    usual = QuSecQuantization(levels, hard=True, value_range=value_range)
    np.testing.assert_allclose(expected, keras.ops.convert_to_numpy(usual(images)), atol=1e-6)
    found = eight_bits(model, images, kind)(images)
    assert np.abs(found - expected).max() < 0.5 / (levels - 1)
    assert len(np.unique(np.round(found * (levels - 1)))) == levels


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the converter is TensorFlow's")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("levels", [2, 4])
def test_soft_levels_of_all_bytes_in_eight_bits(levels):
    model = keras.Sequential([keras.Input((16, 16, 1)), QuSecQuantization(levels)])
    images = (np.arange(256) / 255).astype("float32").reshape(1, 16, 16, 1)
    found = eight_bits(model, images, "int8")(images)
    assert np.abs(found - model.predict(images, verbose=0)).max() < 0.03


@pytest.mark.skipif(BACKEND == "jax", reason="needs jax2onnx, which lags behind JAX")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("levels", [2, 8])
def test_hard_steps_in_onnx_are_equal_to_the_bit(levels, tmp_path):
    """In batches of any size, at each threshold and beside it."""
    pytest.importorskip("tf2onnx" if BACKEND == "tensorflow" else "onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = QuSecQuantization(levels, hard=True)
    model = keras.Sequential([keras.Input((5,)), layer])
    path = str(tmp_path / "model.onnx")
    model(np.zeros((2, 5), "float32"))
    signature = [keras.InputSpec(shape=(None, 5), dtype="float32")]
    model.export(path, format="onnx", verbose=False, input_signature=signature)
    session = runtime.InferenceSession(path)
    name = session.get_inputs()[0].name
    steps = layer.thresholds
    beside = [np.nextafter(steps, np.float32(end)) for end in (-1, 2)]
    values = np.resize(np.concatenate([steps, *beside, np.arange(256) / 255]), (60, 5))
    for rows in (values[:1], values[:7], values):
        rows = rows.astype("float32")
        (found,) = session.run(None, {name: rows})
        np.testing.assert_array_equal(found, model.predict(rows, verbose=0))


@pytest.mark.skipif(BACKEND == "jax", reason="needs jax2onnx, which lags behind JAX")
@pytest.mark.filterwarnings("ignore")
def test_onnx(model, tmp_path):
    pytest.importorskip("tf2onnx" if BACKEND == "tensorflow" else "onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = str(tmp_path / "model.onnx")
    signature = [keras.InputSpec(shape=IMAGES.shape, dtype="float32")]
    model.export(path, format="onnx", verbose=False, input_signature=signature)
    session = runtime.InferenceSession(path)
    (output,) = session.run(None, {session.get_inputs()[0].name: IMAGES})
    np.testing.assert_allclose(output, model.predict(IMAGES, verbose=0), atol=2e-6)
