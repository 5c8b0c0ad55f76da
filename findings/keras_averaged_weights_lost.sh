#!/usr/bin/env bash
# Keras 3.15.1: SwapEMAWeights(swap_on_epoch=True) and EarlyStopping in one fit. Each epoch is
# validated and saved with the averaged weights, but when training stops early, fit leaves the
# weights of the last step in the model: their values are not those of the file saved last.
# Only the last of the planned epochs hands the averages on.
# Also: predict with this callback leaves the averaged weights in the model afterwards.
# Seen on 2026-11-29 with PyTorch 2.13.0 on a CPU; fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/pip" install --quiet keras==3.15.1
KERAS_BACKEND=torch "$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys

import keras
import numpy as np
import torch

print("keras", keras.__version__, "torch", torch.__version__)
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
y = (x.sum(axis=1) > 0).astype("int64")


def fitted(epochs, *more):
    """The kernel that was saved after the last epoch, and the one that fit left behind."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9), loss)
    path = f"{sys.argv[1]}/last.keras"
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(path),
        *more,
    ]
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks)
    return keras.saving.load_model(path).get_weights()[0], model.get_weights()[0], model


stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1)
saved, left, _ = fitted(9, stop)
gap = float(np.abs(saved - left).max())
print(f"stopped early: saved and left-behind weights differ by up to {gap:.3f}")
saved, left, _ = fitted(3)
same = float(np.abs(saved - left).max())
print(f"all epochs: they differ by up to {same:.1e}")

model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9),
              keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.train_on_batch(x, y)
model.train_on_batch(x, y)
before = model.get_weights()[0]
model.predict(x, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
moved = float(np.abs(model.get_weights()[0] - before).max())
print(f"predict with the callback changed the weights by up to {moved:.3f}")
assert gap > 1e-3 and same < 1e-6 and moved > 1e-3
PYTHON
