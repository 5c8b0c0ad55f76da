"""What users of other tools reported, tried on ours; docs/design.md has the table.

Kinds that need files of their own: folders in test_datasets.py, small gradients in
attacks/test_small_gradients.py, weights in training/test_callback.py, integer Inputs in
test_integer_inputs.py, debugging tools in test_debugging.py.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from helpers import BACKEND, predicted, set_random_weights
from keras import ops

from keras_qusec import AdversarialTraining, evaluate_robustness
from keras_qusec.attacks import FGSM, PGD, registry

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

RNG = np.random.default_rng(0)
X = RNG.random((40, 6, 6, 1)).astype("float32")


def network(batch=None):
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(batch, 6, 6, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    return set_random_weights(model, 1)


def robust_accuracy(model, x, y=None, **settings):
    settings = {"epsilons": [0.05], "attacks": ["pgd"], "progress": False, **settings}
    return evaluate_robustness(model, x, y, **settings).robust_accuracy()


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def labels(model):
    return predicted(model, X)


@pytest.fixture(scope="module")
def expected(model, labels):
    share = robust_accuracy(model, X, labels)
    assert 0.3 < share < 1
    return share


@pytest.mark.skipif(BACKEND != "torch", reason="modes of PyTorch")
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_block_without_gradients(model, labels, expected, mode):
    """In inference mode no gradient can be had, and attacks stood still without a word."""
    import torch

    with getattr(torch, mode)():
        assert robust_accuracy(model, X, labels) == expected
        images = PGD(0.05, steps=3)(model, X, labels)
    np.testing.assert_array_equal(images, PGD(0.05, steps=3)(model, X, labels))


def reversed_data(x, y):
    return x[::-1], y[::-1]


def memory_mapped(x, y, tmp_path):
    np.save(tmp_path / "x.npy", x)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), y


def read_only(x, y):
    x = x.copy()
    x.flags.writeable = False
    return x, y


FORMS = {
    "read-only": lambda x, y, _: read_only(x, y),
    "Fortran order": lambda x, y, _: (np.asfortranarray(x), y),
    "float64": lambda x, y, _: (x.astype("float64"), y),
    "reversed view": lambda x, y, _: reversed_data(x, y),
    "memory-mapped": memory_mapped,
    "labels in a list": lambda x, y, _: (x, y.tolist()),
    "labels as a tensor": lambda x, y, _: (x, ops.convert_to_tensor(y)),
    "labels as bytes": lambda x, y, _: (x, y.astype("uint8")),
    "one-hot labels": lambda x, y, _: (x, keras.utils.to_categorical(y)),
}


@pytest.mark.once
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_images_and_labels(model, labels, expected, form, tmp_path):
    assert robust_accuracy(model, *FORMS[form](X, labels, tmp_path)) == expected


@pytest.mark.once
def test_labels_of_a_data_frame(model, labels, expected):
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(labels, index=range(100, 140))
    assert robust_accuracy(model, X, series) == expected


@pytest.mark.once
def test_a_data_set_that_shuffles_at_each_pass(model, labels):
    """Images and labels come from one pass."""
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, labels)).shuffle(40).batch(7)
    report = evaluate_robustness(model, data, epsilons=[0.05], attacks=["fgsm"], progress=False)
    assert report.clean_accuracy() == 1.0


def test_a_model_of_fixed_batch_size(labels, expected):
    assert robust_accuracy(network(16), X, labels) == expected


@pytest.mark.slow  # every attack by name
@pytest.mark.once
def test_no_attack_changes_what_it_is_given(model, labels):
    for name in registry.names():
        attack = registry.get(name)
        if attack.attacks_defense or "parts" in vars(attack):
            continue
        steps = {"steps": 3} if "steps" in attack.settings() else {}
        with contextlib.suppress(ValueError):
            attack = registry.get(name, **steps)
        x, y = X[:6].copy(), labels[:6].copy()
        evaluate_robustness(
            model, x, y, attacks={name: attack}, progress=False,
            epsilons={"linf": [0.05], "l2": [0.3], "l1": [1.0], "l0": [3]},
        )  # fmt: skip
        np.testing.assert_array_equal(x, X[:6], err_msg=name)
        np.testing.assert_array_equal(y, labels[:6], err_msg=name)


def test_an_epsilon_of_zero_is_the_clean_accuracy(labels):
    """Also behind batch normalization and dropout, which training modes would change."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, labels, epochs=2, verbose=0)
    np.testing.assert_array_equal(PGD(0.0)(model, X, labels), X)
    right = (model.predict(X, verbose=0).argmax(1) == labels).mean()
    assert robust_accuracy(model, X, labels, epsilons=[1e-7]) == right


def test_weights_of_classes_in_training(labels):
    """A class of weight zero adds nothing to the loss of the attacked batch."""
    losses = []
    for weights in (None, {0: 0.0, 1: 1.0, 2: 1.0}):
        model = network()
        model.compile(
            keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        history = model.fit(
            X, labels, batch_size=40, verbose=0, shuffle=False, class_weight=weights,
            callbacks=[AdversarialTraining("fgsm", epsilon=0.05)],
        ).history  # fmt: skip
        losses.append(history["loss"][0])
    logits = ops.convert_to_numpy(network()(FGSM(0.05)(network(), X, labels))).astype("float64")
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(40), labels]
    assert losses[0] == pytest.approx(each.mean(), rel=1e-3)
    assert losses[1] == pytest.approx(each[labels > 0].sum() / 40, rel=1e-3)


def test_evaluations_in_two_threads(model, labels, expected):
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(lambda _: robust_accuracy(model, X, labels), range(2)))
    assert shares == [expected, expected]
