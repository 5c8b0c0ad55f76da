#!/usr/bin/env bash
# LiteRT 2.3.0, models of 8-bit integers converted by TensorFlow 2.21.0: comparing an image with a
# constant between two byte values takes the darker byte for at least the constant. Byte 127,
# which is 0.498, passes x >= 0.5, and still does for constants nearly up to byte 128; only one
# at the byte value itself separates the two. And adding a value that is always zero, as
# clip(x, 0, 0) is, which keeps NaN in float32, makes every output of the sum zero.
# Seen on 2026-11-30 on a CPU; fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6 ai-edge-litert==2.3.0
TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=tensorflow "$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import contextlib
import io

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

IMAGES = (np.arange(256) / 255).astype("float32").reshape(256, 1)


class Step(keras.layers.Layer):
    def __init__(self, threshold, plus_zero):
        super().__init__()
        self.threshold, self.plus_zero = threshold, plus_zero

    def call(self, x):
        step = keras.ops.cast(x >= self.threshold, "float32")
        return step + keras.ops.clip(x, 0.0, 0.0) if self.plus_zero else step


def bright(threshold, plus_zero=False):
    """Byte values for which the 8-bit model says 1, and those for which Keras does."""
    model = keras.Sequential([keras.Input((1,)), Step(threshold, plus_zero)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in IMAGES)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with contextlib.redirect_stdout(io.StringIO()):
        content = converter.convert()
    interpreter = Interpreter(model_content=content)
    entry, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(entry["index"], IMAGES.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], IMAGES)
    interpreter.invoke()
    found = interpreter.get_tensor(output["index"])[:, 0] > 0.5
    ours = np.asarray(model(IMAGES))[:, 0] > 0.5
    return np.flatnonzero(found != ours).tolist(), int(found.sum()), int(ours.sum())


print("tensorflow", tf.__version__, "keras", keras.__version__)
between, _, _ = bright(0.5)
near, _, _ = bright(127.9 / 255)
at, _, _ = bright(128 / 255)
print(f"other than in float32: {between} for 0.5, {near} for byte 127.9, {at} for byte 128")
_, found, ours = bright(0.5, plus_zero=True)
print(f"with clip(x, 0, 0) added: {found} of 256 bytes give 1, in float32 {ours}")
assert between == [127] and near == [127] and at == []
assert (found, ours) == (0, 128)
PYTHON
