"""Fixtures of all tests."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FEATURES, WEIGHTS, small_cnn

from keras_qusec import QuSecQuantization, datasets, evaluate_robustness


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def measured():
    """A real report of two small models on images of a data set."""
    keras.utils.set_random_seed(0)
    data = datasets.mnist5k()
    models = {}
    for name, first in {"plain": [], "quantized": [QuSecQuantization(2)]}.items():
        model = keras.Sequential(
            [keras.Input((28, 28, 1)), *first, keras.layers.Flatten(), keras.layers.Dense(10)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(data.x_train[:1000], data.y_train[:1000], epochs=3, verbose=0)
        models[name] = model
    report = evaluate_robustness(
        models, data.x_test[:30], data.y_test[:30], attacks=["fgsm", "deepfool", "jsma-paper"],
        epsilons={"linf": [0.05, 0.1, 0.2, 0.3, 0.4], "l2": [0.5, 1.0]},
        threat_models=["white-box", "adaptive", "black-box"], source_model=models,
    )  # fmt: skip
    return models, report


@pytest.fixture(scope="module")
def linear():
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
    model.set_weights([np.stack([0 * WEIGHTS, WEIGHTS], 1), np.array([0, 0.1], "float32")])
    return model


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


# What these folders and files compute is compiled by others, whose tests run on each backend.
_COMPILED_BELOW = (
    "audit", "comparison", "deployment", "reproduction", "report", "test_cli", "test_debugging", "test_demo",
    "test_extensions", "test_odd_inputs", "test_other_backends", "test_package", "test_parity",
    "test_public_reports", "test_random_models", "test_squeezing",
)  # fmt: skip

# JAX compiles each of their many small models for seconds; PyTorch, the third backend, runs them.
_COMPILED_SLOWLY_BY_JAX = (
    "test_datasets", "test_generators", "test_integer_inputs", "test_masking_defenses",
    "test_logits", "test_small_gradients", "test_stored_images", "test_wheel",
    # What is kept, resumed and counted of evaluations, whichever backend computes it; each attack
    # is tested there by itself.
    "test_evaluate", "test_examples", "test_proofs", "test_run", "test_store",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """But on TensorFlow, the users' default, tests of some rooms count as `once`."""
    if keras.backend.backend() == "tensorflow":
        return
    elsewhere = _COMPILED_BELOW
    if keras.backend.backend() == "jax":
        elsewhere += _COMPILED_SLOWLY_BY_JAX
    for item in items:
        if item.path.parent.name in elsewhere or item.path.stem in elsewhere:
            item.add_marker(pytest.mark.once)
