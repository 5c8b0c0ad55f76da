"""Defences saved on this backend give the same outputs on another one."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND

from keras_qusec.defenses import (
    BitDepthReduction,
    DefenseGAN,
    MedianSmoothing,
    NonLocalMeans,
    Purifier,
    QuantizedActivation,
    SqueezingDetector,
    ThermometerEncoding,
    ape_generator,
    brelu_gda,
    wgan_generator,
)

SHAPE = (8, 8, 1)
LOAD = """
import sys, numpy as np, keras, keras_qusec
folder = sys.argv[1]
with np.load(folder + "/outputs.npz") as saved:
    for name in saved.files:
        if name == "x":
            continue
        model = keras.saving.load_model(f"{folder}/{name}.keras", safe_mode=True)
        outputs = model.predict(saved["x"], verbose=0)
        np.testing.assert_allclose(outputs, saved[name], atol=2e-4, err_msg=name)
print("the same")
"""


def models():
    classifier = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    layers = {
        "bit-depth": BitDepthReduction(2),
        "median": MedianSmoothing(2),
        "means": NonLocalMeans(5, 3, 0.2),
        "activation": QuantizedActivation(3),
        "thermometer": ThermometerEncoding(4),
        "purifier": Purifier(ape_generator(SHAPE, filters=2, seed=0)),
        "defense-gan": DefenseGAN(wgan_generator(SHAPE, units=(8,), seed=0), steps=4, restarts=2),
    }
    made = {name: keras.Sequential([keras.Input(SHAPE), layer]) for name, layer in layers.items()}
    made["detector"] = SqueezingDetector(classifier, [BitDepthReduction(1), MedianSmoothing(2)])
    made["brelu"] = brelu_gda(classifier)
    return made


@pytest.mark.filterwarnings("ignore")
def test_saved_here_and_loaded_there(tmp_path):
    x = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
    outputs = {}
    for name, model in models().items():
        model.save(tmp_path / f"{name}.keras")
        outputs[name] = model.predict(x, verbose=0)
    np.savez(tmp_path / "outputs.npz", x=x, **outputs)
    other = "tensorflow" if BACKEND != "tensorflow" else "jax"
    pytest.importorskip(other)
    child = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": other, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert "the same" in child.stdout
