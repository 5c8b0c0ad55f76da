#!/usr/bin/env bash
# TensorFlow 2.21.0: the softmax of saturated logits is exactly 1 with oneDNN, and one float below 1
# (0.99999994) without it. TensorFlow itself chooses by the processor: on a CPU without AVX-512 it
# may leave oneDNN out. So a cross-entropy whose gradient is exactly zero on one machine has one on
# another, and a check for probabilities of exactly 1 finds nothing there. Both follow from the
# variable TF_ENABLE_ONEDNN_OPTS, too.
# Seen on 2026-11-30 on an x86-64 CPU with AVX2; fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet tensorflow==2.21.0 numpy==2.4.6
for onednn in 1 0; do
  TF_ENABLE_ONEDNN_OPTS=$onednn TF_CPP_MIN_LOG_LEVEL=3 "$folder/env/bin/python" - "$onednn" <<'PYTHON'
import sys

import numpy as np
import tensorflow as tf

logits = np.random.default_rng(0).normal(0, 5, (1000, 10)).astype("float32")
logits[np.arange(1000), np.arange(1000) % 10] = 500.0
probabilities = tf.nn.softmax(logits).numpy().max(axis=1)
values, counts = np.unique(probabilities, return_counts=True)
found = {float(value): int(count) for value, count in zip(values, counts, strict=True)}
print(f"tensorflow {tf.__version__}, TF_ENABLE_ONEDNN_OPTS={sys.argv[1]}: {found}")
one = float((probabilities == 1).mean())
assert one == int(sys.argv[1])
PYTHON
done
