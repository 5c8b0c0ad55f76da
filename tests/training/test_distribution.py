"""Adversarial training on two logical CPU devices, on Keras' own engines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import BACKEND

COMMON = """
import numpy as np, keras
from keras_qusec import AdversarialTraining, QuSecQuantization
rng = np.random.default_rng(0)
x = rng.random((64, 16)).astype("float32")
y = (x[:, 0] > 0.5).astype("int64")

def make():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), QuSecQuantization(4, hardness=20),
                              keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model

def train(model, objective="loss"):
    attack = dict(epsilon=0.2, steps=3, random_start=False)
    training = AdversarialTraining("pgd", objective=objective, ramp_epochs=1, **attack)
    logs = model.fit(x, y, batch_size=16, epochs=2, verbose=0, shuffle=False,
                     callbacks=[training]).history
    return logs, model.get_weights()
"""
MIRRORED = (
    """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
    + COMMON
    + """
expected_logs, expected = train(make())
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    model = make()
logs, weights = train(model)
for a, b in zip(expected, weights):
    np.testing.assert_allclose(a, b, atol=1e-4)
np.testing.assert_allclose(logs["epsilon"], expected_logs["epsilon"], rtol=1e-5)
assert np.isfinite(logs["adversarial_loss"]).all()
"""
)
PARALLEL = (
    COMMON
    + """
import sys
expected_logs, expected = train(make())
devices = keras.distribution.list_devices("cpu")
assert len(devices) == 2
if sys.argv[1] == "data":
    distribution = keras.distribution.DataParallel(devices=devices)
else:
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["dense.*kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
keras.distribution.set_distribution(distribution)
logs, weights = train(make())
for a, b in zip(expected, weights):
    np.testing.assert_allclose(a, b, atol=1e-4)
np.testing.assert_allclose(logs["adversarial_loss"], expected_logs["adversarial_loss"], rtol=1e-3)
"""
)
TWO_PROCESSES = (
    """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
import keras
rank = int(sys.argv[1])
keras.distribution.initialize(sys.argv[2], num_processes=2, process_id=rank)
assert jax.process_count() == 2
"""
    + COMMON
    + """
keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
# Each process gives its half of every global batch of 16.
rows = np.arange(64).reshape(4, 2, 8)[:, rank].ravel()
x, y = x[rows], y[rows]
training = AdversarialTraining("pgd", epsilon=0.2, steps=3, random_start=False, ramp_epochs=1)
model = make()
logs = model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=[training])
values = [np.asarray(w.value.addressable_data(0)) for w in model.trainable_variables]
print(repr([float(np.abs(v).sum()) for v in values]))
print(repr(logs.history["epsilon"]))
"""
)
ONE_PROCESS = (
    COMMON
    + """
model = make()
logs, _ = train(model)
print(repr([float(np.abs(np.asarray(v.value)).sum()) for v in model.trainable_variables]))
print(repr(logs["epsilon"]))
"""
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX")
def test_two_processes_equal_one():
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outcomes = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outcomes[0][1][-3000:]
    expected = run(ONE_PROCESS).strip().splitlines()[-2:]
    for output, _ in outcomes:
        weights, epsilons = output.strip().splitlines()[-2:]
        np.testing.assert_allclose(json.loads(weights), json.loads(expected[0]), rtol=1e-4)
        assert epsilons == expected[1]


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *arguments]
    outcome = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return outcome.stdout


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's strategy")
def test_mirrored_strategy_equals_one_device():
    run(MIRRORED)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX")
@pytest.mark.parametrize("kind", ["data", "model"])
def test_data_and_model_parallel_equal_one_device(kind):
    run(PARALLEL, kind, XLA_FLAGS="--xla_force_host_platform_device_count=2")
