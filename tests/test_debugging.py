"""The debugging tools of each backend that look for NaN find none of ours."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
from helpers import BACKEND

from keras_qusec import (
    AdversarialTraining,
    QuSecQuantization,
    TrainableQuSecQuantization,
    audit_robustness,
    evaluate_robustness,
)
from keras_qusec.attacks import AttackedModel, Goal, registry
from keras_qusec.attacks.foolbox import FoolboxAttack

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch warns of its own debugging mode

RNG = np.random.default_rng(0)
# Black and white pixels, where differences and gradients are zero.
X = np.round(RNG.random((16, 5, 5, 1)), 1).astype("float32")
Y = np.arange(16) % 3


@contextlib.contextmanager
def debugging():
    """What a user switches on to find a NaN."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.debugging.enable_check_numerics()
        try:
            yield
        finally:
            tf.debugging.disable_check_numerics()
    elif BACKEND == "jax":
        import jax

        with jax.debug_nans(True):
            yield
    else:
        import torch

        with torch.autograd.detect_anomaly():
            yield


def network(*front, softmax=False):
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            *front,
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax" if softmax else None),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


FRONTS = {
    "none": (),
    "soft": (lambda: QuSecQuantization(2),),
    "hard": (lambda: QuSecQuantization(4, hard=True),),
    "trainable": (lambda: TrainableQuSecQuantization(3),),
}


@pytest.mark.parametrize(
    ("front", "settings"),
    [
        ("none", {"norm": "l2"}), ("soft", {"ratio": 0.5}), ("hard", {"objective": "trades"}),
        ("trainable", {}),
    ],
    ids=str,
)  # fmt: skip
def test_training(front, settings):
    model = network(*(make() for make in FRONTS[front]), softmax=front == "soft")
    training = AdversarialTraining(
        "pgd", epsilon=0.3, steps=2, ramp_epochs=1, validation_data=(X, Y), **settings
    )
    with debugging():
        logs = model.fit(X, Y, epochs=2, verbose=0, callbacks=[training]).history
    assert np.isfinite(logs["adversarial_loss"]).all()


def test_the_tool_is_on():
    """It stops at a NaN that is really there; where it looks at gradients alone, at theirs."""
    bad = X.copy()
    bad[0, 0, 0, 0] = np.nan
    model = network()
    with debugging(), pytest.raises(Exception, match=r"(?i)nan"):
        model.fit(bad, Y, verbose=0)


OURS = [
    name for name in registry.names()
    if not isinstance(registry.get(name), FoolboxAttack) and "parts" not in vars(registry.get(name))
]  # fmt: skip
# One of each kind of compiled loop; the others differ in settings.
EVERYWHERE = (
    "pgd-l2", "apgd-ce", "apgd-ce-l1", "fab-l2", "fmn-l1", "fmn-l0", "sigma-zero", "jsma",
    "reachable-levels", "cheapest-levels-l2",
)  # fmt: skip


SLOWEST = ("sigma-zero", "tensorflow")


@pytest.mark.parametrize(
    "name",
    [
        # On TensorFlow each operation of a step is checked: half a minute for sigma-zero.
        pytest.param(
            n, marks=[] if n in EVERYWHERE and (n, BACKEND) != SLOWEST else pytest.mark.slow
        )
        for n in OURS
    ],
)
def test_attacks(name):
    attack = registry.get(name)
    few = {key: 12 for key in ("steps", "queries") if key in attack.settings()}
    attack = registry.get(name, **(few if attack.settings().get("steps") != 1 else {}))
    front = FRONTS["hard"] if attack.attacks_defense else FRONTS["soft"]
    attacked = AttackedModel(network(*(make() for make in front)))
    goal = Goal(attacked.predictions(X))
    with debugging():
        for model in [attacked, *attacked.with_surrogates([5.0])]:
            search = attack.on_batch(model, X, goal)
            images = search(np.arange(16), None if attack.minimizes else 0.2, 0)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("front", [pytest.param("none", marks=pytest.mark.once), "hard"])
def test_evaluation(front):
    model = network(*(make() for make in FRONTS[front]))
    labels = AttackedModel(model).predictions(X)
    with debugging():
        report = evaluate_robustness(
            model, X[:6], labels[:6], attacks=["pgd", ("apgd-t", {"steps": 8}), "fgsm-l2"],
            epsilons={"linf": [0.1, 0.3], "l2": [0.5]}, progress=False,
        )  # fmt: skip
    assert not report.failures
    assert not any("failed" in note for note in report.notes)


@pytest.mark.slow
def test_standard_evaluation_and_audit():
    model = network(*(make() for make in FRONTS["hard"]))
    labels = AttackedModel(model).predictions(X)
    with debugging():
        report = evaluate_robustness(
            model, X, labels, attacks="standard", epsilons={"linf": [0.1]}, progress=False
        )
        audit = audit_robustness(model, X, labels, epsilon=0.1, progress=False)
    assert not any("failed" in note for note in report.notes)
    assert audit.verdict
