"""Beside published implementations on the same models and images.

The figures of adv-lib are written down by ``benchmarks/parity.py``; ART runs beside ours on
PyTorch. Without random numbers ours must leave at most half a point more, which is one of 200
images; APGD starts at random, and adv-lib's own figures differ by six images between seeds
(32, 34 and 38 on the quantized model in L2), so that six are allowed.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_qusec import datasets, norms
from keras_qusec.attacks import APGD, FAB, FMN, AttackedModel, Goal, SigmaZero, Square
from keras_qusec.defenses import surrogate_gradients

DATA = Path(__file__).parent.parent / "data"
PUBLISHED = json.loads((DATA / "parity.json").read_text())
MODELS = tuple(PUBLISHED["models"])

ATTACKS = {
    "apgd-ce": lambda norm: APGD(norm=norm),
    "apgd-t": lambda norm: APGD(norm=norm, loss="dlr", targets=9),
    "fab": lambda norm: FAB(norm=norm),
    "fmn": lambda norm: FMN(norm=norm, steps=200),
    "sigma-zero": lambda _: SigmaZero(steps=300),
}


@pytest.fixture(scope="module")
def images():
    data = datasets.mnist5k()
    return data.x_test[: PUBLISHED["images"]], data.y_test[: PUBLISHED["images"]].astype("int64")


@pytest.fixture(scope="module")
def attacked():
    """Each model, and what gives the gradients that both sides followed."""
    models = {}
    for name in MODELS:
        model = AttackedModel(keras.saving.load_model(DATA / f"parity-{name}.keras", compile=False))
        models[name] = (model, (model.with_surrogates((10.0,)) or [model])[0])
    return models


def figures(model, followed, attack, x, y, epsilon, seed=0):
    """Robust images, and the median size of the adversarial examples."""
    right = ~model.is_adversarial(x, Goal(y))
    given = x[right], Goal(y[right])
    radius = None if attack.minimizes else epsilon
    found = np.clip(attack.run(followed, *given, epsilon=radius, seed=seed), 0, 1)
    sizes = norms.get(attack.norm).distance(given[0], found)
    wrong = model.is_adversarial(found, given[1])
    near = np.ones(len(sizes), bool) if epsilon is None else sizes <= epsilon * (1 + 1e-5)
    median = np.median(np.where(wrong, sizes, np.inf))
    return int((~(wrong & near)).sum()), float(median)


def compare(name, key, attacked, images):
    attack, norm = key.split()
    epsilon = PUBLISHED["epsilons"][name] * PUBLISHED["scale"].get(norm, np.nan)
    # Random starts matter most behind the quantizer: the median of three.
    seeds = range(3) if attack == "apgd-ce" and name == "quantized" else range(1)
    radius = None if norm == "l0" else epsilon
    found = [
        figures(*attacked[name], ATTACKS[attack](norm), *images, radius, seed) for seed in seeds
    ]
    robust, median = np.median(found, axis=0)
    theirs = PUBLISHED["models"][name][key]
    assert robust <= theirs["robust"] + (6 if attack.startswith("apgd") else 1)
    if attack in ("fab", "fmn", "sigma-zero"):
        # Counted in pixels, or within a hundredth.
        limit = theirs["median"] + 1 if norm == "l0" else 1.01 * theirs["median"]
        assert median <= limit


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[] if m == "quantized" else pytest.mark.once) for m in MODELS]
)
@pytest.mark.parametrize(
    "key",
    [
        "apgd-ce linf",
        "fmn l0",
        *(
            pytest.param(k, marks=pytest.mark.once)
            for k in ("apgd-ce l2", "apgd-ce l1", "fmn linf")
        ),
    ],
)
def test_adv_lib(name, key, attacked, images):
    compare(name, key, attacked, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("key", sorted(PUBLISHED["models"][MODELS[0]]))
def test_all_of_adv_lib(name, key, attacked, images):
    compare(name, key, attacked, images)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="ART wraps PyTorch models")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("trained", "linf"),
        pytest.param("quantized", "l2", marks=pytest.mark.slow),
        pytest.param("undefended", "l2", marks=pytest.mark.slow),
    ],
)
def test_square_of_art(name, norm, attacked, images):
    import torch
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    model, _ = attacked[name]
    x, y = images
    queries, epsilon = 1000, PUBLISHED["epsilons"][name] * PUBLISHED["scale"][norm]

    class Module(torch.nn.Module):
        def forward(self, images):
            with surrogate_gradients(model.model, 10.0):
                return model.model(images, training=False)

    classifier = PyTorchClassifier(
        Module().eval(), torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0),
        channels_first=False,
    )  # fmt: skip
    np.random.seed(0)
    theirs = SquareAttack(
        classifier, norm=np.inf if norm == "linf" else 2, eps=epsilon, max_iter=queries,
        batch_size=len(x), verbose=False,
    ).generate(x, np.eye(10, dtype="float32")[y])  # fmt: skip
    robust = (~model.is_adversarial(theirs.astype("float32"), Goal(y))).sum()
    ours, _ = figures(model, model, Square(norm=norm, queries=queries), x, y, epsilon)
    assert ours <= robust + 3  # two random searches
