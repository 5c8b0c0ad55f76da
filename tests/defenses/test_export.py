"""Exported models give the outputs of the model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND
from test_quantizers import LAYERS, classifier

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
