#!/usr/bin/env bash
# Keras 3.15.1: on a backend other than TensorFlow, the first `get_config` of any layer imports
# TensorFlow if it is installed beside: Keras asks whether the layer's type of numbers is one of
# TensorFlow's. So the first `get_config`, `clone_model` or `save` of a process takes seconds longer,
# and all of TensorFlow's memory, though nothing of it is used; without TensorFlow it is immediate.
# Seen on 2026-11-30 with TensorFlow 2.21.0 and JAX 0.10.2; fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-compile keras==3.15.1 tensorflow==2.21.0 jax==0.10.2
KERAS_BACKEND=jax TF_CPP_MIN_LOG_LEVEL=3 "$folder/env/bin/python" - <<'PYTHON'
import resource
import sys
import time

import keras


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


layer = keras.layers.Dense(3)
before = "tensorflow" in sys.modules, memory()
print("Keras", keras.__version__, "backend", keras.backend.backend())
seconds = []
for _ in range(2):
    start = time.perf_counter()
    layer.get_config()
    seconds.append(time.perf_counter() - start)
print(f"TensorFlow imported before: {before[0]}, after: {'tensorflow' in sys.modules}")
print(f"first get_config {seconds[0]:.1f} s, second {seconds[1]:.4f} s; "
      f"{memory() - before[1]:.0f} MiB more at the peak")
assert not before[0] and "tensorflow" in sys.modules
PYTHON
