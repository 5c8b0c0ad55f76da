"""Cheap adversarial training: N-FGSM, FGSM-MEP and its priors, and the probe for collapse."""

from __future__ import annotations

import hashlib
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import ops

from keras_qusec import AdversarialTraining, QuSecQuantization, datasets, evaluate_robustness
from keras_qusec.attacks import PGD
from keras_qusec.training import FGSMMEP, NFGSM, ModelLoss, PriorGuidedLoss
from keras_qusec.training.priors import PriorStore

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (48, 5)).astype("float32")
Y = RNG.integers(0, 3, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(learning_rate=0.0, **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), L.Dense(3)])
    model.compile(keras.optimizers.SGD(learning_rate), LOSS, metrics=["accuracy"], **settings)
    return model


def fit(model, callback, x=X, y=Y, **settings):
    settings = {"batch_size": 16, "epochs": 2, "verbose": 0} | settings
    return model.fit(x, y, callbacks=[callback], **settings).history


# N-FGSM.


def test_n_fgsm_steps_from_noise_and_out_of_the_ball():
    weights = np.array([1.0, -2.0, 3.0, 0.0, -1.0], "float32")

    def images(seed):
        found = NFGSM(0.1).perturb(
            lambda moved: (ops.zeros_like(moved) + ops.convert_to_tensor(weights), moved),
            ops.convert_to_tensor(X),
            ops.convert_to_tensor([seed, 0], "int32"), epsilon=0.1, step_size=0.1,
        )  # fmt: skip
        return tuple(map(ops.convert_to_numpy, (found.images, found.first_output)))

    moved, noisy = images(0)
    np.testing.assert_allclose(moved, np.clip(noisy + 0.1 * np.sign(weights), 0, 1), atol=1e-6)
    inside = (noisy > 0) & (noisy < 1)
    assert np.abs(noisy - X)[inside].max() == pytest.approx(0.2, abs=0.01)
    assert abs((noisy - X)[inside].mean()) < 0.02
    assert np.abs(moved - X).max() > 0.25
    assert 0 <= moved.min() < moved.max() <= 1
    np.testing.assert_array_equal(moved, images(0)[0])
    assert (moved != images(1)[0]).mean() > 0.9


def test_n_fgsm_is_what_is_trained_on():
    """Every pixel of a linear model's gradient has a sign, so the mean step is epsilon."""
    history = fit(linear(), AdversarialTraining("n-fgsm", epsilon=0.1, seed=3))
    assert history["adversarial_loss"][0] == pytest.approx(history["loss"][0])
    assert "clean_loss" not in history
    own = fit(linear(), AdversarialTraining("fgsm", epsilon=0.1))
    assert history["loss"][0] > own["clean_loss"][0]


# FGSM-MEP.


def gradients(model, x, y):
    weights, bias = model.get_weights()
    logits = x @ weights + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return (p - np.eye(3)[y]) @ weights.T


def test_fgsm_mep_by_numpy():
    """Three epochs with fixed weights, shuffled: each image finds its own prior again."""
    epsilon, momentum = 0.1, 0.3
    model = linear()
    callback = AdversarialTraining("fgsm-mep", epsilon=epsilon, seed=1)
    fit(model, callback, epochs=1)
    store = callback._priors
    places = dict(store._places)
    order = [places[hashlib.blake2b(image.tobytes(), digest_size=12).digest()] for image in X]
    assert sorted(order) == list(range(48))
    shares, momenta = (part[order].astype("float64") for part in (store._shares, store._momenta))
    history = fit(model, callback, epochs=2)
    for _ in range(2):
        first = np.clip(X + epsilon * shares, 0, 1)
        slope = gradients(model, first, Y)
        trained = np.clip(first + epsilon * np.sign(slope), np.maximum(X - epsilon, 0), X + epsilon)
        momenta = momentum * momenta + slope / np.abs(slope).mean(axis=1, keepdims=True)
        moved = first + epsilon * np.sign(momenta)
        shares = np.clip((np.clip(moved, 0, 1) - X) / epsilon, -1, 1)
    np.testing.assert_allclose(store._momenta[order], momenta, rtol=5e-3, atol=5e-3)
    assert (np.abs(store._shares[order] - shares) < 5e-3).mean() > 0.99
    weights, bias = model.get_weights()
    gap = np.square((trained - first) @ weights).mean()
    logits = np.clip(trained, 0, 1) @ weights + bias
    own = float(ops.convert_to_numpy(LOSS(Y, logits.astype("float32"))))
    assert history["loss"][-1] == pytest.approx(own + 10 * gap, rel=0.01)
    assert history["adversarial_loss"][-1] == pytest.approx(own, rel=0.01)


def batches(x, y):
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, len(x), 16)]


class Batches(keras.utils.PyDataset):
    def __init__(self, augment=False):
        super().__init__()
        self.augment, self.generator = augment, np.random.default_rng(0)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = batches(X, Y)[index]
        if self.augment:
            x = np.clip(x + self.generator.normal(0, 0.01, x.shape), 0, 1).astype("float32")
        return x, y


def test_data_sets_find_their_priors():
    callback = AdversarialTraining("fgsm-mep", epsilon=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(linear(0.1), callback, Batches(), None, batch_size=None, epochs=3)
    store = callback._priors
    assert store.remembers_images
    assert len(store._places) == 48
    assert store.nbytes >= 48 * 5 * 2 * 2


def test_images_augmented_anew_take_the_prior_of_the_last_batch():
    callback = AdversarialTraining("fgsm-mep", epsilon=0.1)
    with pytest.warns(UserWarning, match="48 of 48 images of an epoch were not seen") as caught:
        history = fit(linear(0.1), callback, Batches(augment=True), None, batch_size=None, epochs=4)
    assert sum("FGSM-BP" in str(warning.message) for warning in caught) == 1
    assert not callback._priors.remembers_images
    assert callback._priors.nbytes == 0
    assert np.isfinite(history["loss"]).all()


def test_the_prior_of_the_last_batch_is_that_of_the_last_batch():
    store = PriorStore(0)
    store.remembers_images = False
    places, first = store.of(X[:4])
    assert set(np.unique(first.shares)) == {-1.0, 1.0}
    kept = first._replace(shares=np.arange(20, dtype="float32").reshape(4, 5) / 20)
    store.keep(places, kept)
    np.testing.assert_allclose(
        store.of(X[:6])[1].shares, kept.shares[[0, 1, 2, 3, 0, 1]], atol=1e-3
    )


def test_a_training_continued_from_its_file_is_the_same(tmp_path):
    def callback(name):
        return AdversarialTraining("fgsm-mep", epsilon=0.1, priors_file=tmp_path / name)

    whole = linear(0.1)
    fit(whole, callback("whole.npz"), Batches(), None, batch_size=None, epochs=4, shuffle=False)
    part = linear(0.1)
    settings = {"batch_size": None, "shuffle": False}
    fit(part, callback("part.npz"), Batches(), None, epochs=2, **settings)
    fit(part, callback("part.npz"), Batches(), None, epochs=4, initial_epoch=2, **settings)
    for one, other in zip(whole.get_weights(), part.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    lost = linear(0.1)
    fit(lost, callback("a.npz"), Batches(), None, epochs=2, **settings)
    fit(lost, callback("b.npz"), Batches(), None, epochs=4, initial_epoch=2, **settings)
    assert np.abs(lost.get_weights()[0] - whole.get_weights()[0]).max() > 1e-5
    (tmp_path / "part.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"Expected a file of priors.*part\.npz"):
        fit(part, callback("part.npz"))
    other = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    other.compile("sgd", LOSS)
    with pytest.raises(ValueError, match=r"Expected images of shape \(5,\)"):
        fit(other, callback("whole.npz"), X[:, :4])


def test_a_share_of_each_batch_and_a_quantizer_in_front():
    model = keras.Sequential([keras.Input((5,)), QuSecQuantization(2, hard=True), L.Dense(3)])
    model.compile("sgd", LOSS, metrics=["accuracy"])
    callback = AdversarialTraining(
        "fgsm-mep", epsilon=0.1, ratio=0.5, gradient_hardness=5.0, objective=ModelLoss()
    )
    history = fit(model, callback, epochs=2)
    assert {"clean_accuracy", "adversarial_accuracy"} <= set(history)
    changed = np.abs(callback._priors._momenta[:48].astype("float32")).max(axis=1) > 0
    assert 0 < changed.sum() <= 48


def test_uint8_images_and_several_inputs():
    image = keras.Input((5,), name="image")
    other = keras.Input((2,), name="other")
    joined = L.Concatenate()([L.Dense(4)(image), other])
    model = keras.Model({"image": image, "other": other}, L.Dense(3)(joined))
    model.compile("sgd", LOSS)
    x = {"image": X, "other": np.ones((48, 2), "float32")}
    callback = AdversarialTraining("fgsm-mep", epsilon=0.1, attacked_input="image")
    history = fit(model, callback, x, Y)
    assert len(callback._priors._places) == 48
    assert "catastrophic_overfitting" not in history
    whole = keras.Sequential([keras.Input((5,), dtype="uint8"), L.Rescaling(1 / 255), L.Dense(3)])
    whole.compile("sgd", LOSS)
    callback = AdversarialTraining("n-fgsm", epsilon=8, value_range=(0, 255))
    history = fit(whole, callback, np.round(255 * X).astype("uint8"))
    assert history["catastrophic_overfitting"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdversarialTraining("n-fgsm", epsilon=0.1, steps=3), "Received: steps"),
        (lambda: AdversarialTraining("fgsm-mep"), "Expected epsilon"),
        (lambda: AdversarialTraining("fgsm-mep", epsilon=0.1, momentum=1.0), "momentum"),
        (lambda: AdversarialTraining("n-fgsm", epsilon=0.1, noise=0.0), "noise"),
        (lambda: AdversarialTraining("fgsm-mep", epsilon=0.1, ratio=0.5), "ratio=1 with PriorG"),
        (lambda: fit(linear(), AdversarialTraining("fgsm", epsilon=0.1,
                                                   objective=PriorGuidedLoss())), "fgsm-mep"),
        (lambda: AdversarialTraining("fgsm", epsilon=0.1, collapse="end"), "collapse to be one of"),
        (lambda: AdversarialTraining("fgsm", epsilon=0.1, priors_file="a.npz"), "alone has priors"),
        (lambda: evaluate_robustness(linear(), X, Y, attacks=[NFGSM()], epsilons=[0.1]),
         "for training alone"),
        (lambda: evaluate_robustness(linear(), X, Y, attacks=[FGSMMEP()], epsilons=[0.1]),
         "for training alone"),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no steps_per_execution")
def test_several_steps_at_once_are_refused():
    with pytest.raises(ValueError, match="one batch at a time"):
        fit(linear(steps_per_execution=2), AdversarialTraining("fgsm-mep", epsilon=0.1))


# Collapse.


def collapsing(method="fgsm", epochs=40, epsilon=0.3, **settings):
    """A recipe that ends in catastrophic overfitting: few images, a large radius."""
    keras.utils.set_random_seed(0)
    data = datasets.mnist5k()
    hidden = [L.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((28, 28, 1)), L.Flatten(), *hidden, L.Dense(10)])
    model.compile(keras.optimizers.Adam(0.002), LOSS)
    x, y = data.x_train[:512], data.y_train[:512]
    callback = AdversarialTraining(method, epsilon=epsilon, **settings)
    history = fit(model, callback, x, y, batch_size=32, epochs=epochs)
    return model, history, (x, y)


@pytest.mark.once  # what the next test does on each backend, in more detail
def test_a_collapse_is_noticed():
    with pytest.warns(UserWarning, match="catastrophic overfitting") as caught:
        model, history, (x, y) = collapsing()
    assert sum("catastrophic" in str(warning.message) for warning in caught) == 1
    assert history["catastrophic_overfitting"][0] == 0
    first = history["catastrophic_overfitting"].index(1.0)
    assert history["probe_fgsm_accuracy"][first] - history["probe_pgd_accuracy"][first] >= 0.3
    adversarial = PGD(0.3, steps=10)(model, x, y)
    robust = (model.predict(adversarial, verbose=0).argmax(axis=1) == y).mean()
    assert robust < 0.15
    assert history["adversarial_loss"][-1] < history["adversarial_loss"][3]


def test_after_a_collapse_the_training_stops_or_the_weights_come_back():
    with pytest.warns(UserWarning, match="The training stops"):
        # When it collapses differs between backends and processors, from the 18th epoch on.
        stopped, history, _ = collapsing(collapse="stop", epochs=60)
    assert len(history["loss"]) < 60
    assert history["catastrophic_overfitting"] == [0.0] * (len(history["loss"]) - 1) + [1.0]
    with pytest.warns(UserWarning, match="the weights of the last epoch without it come back"):
        restored, again, _ = collapsing(collapse="restore", epochs=60)
    assert len(again["loss"]) == len(history["loss"])
    good, _, _ = collapsing(epochs=len(history["loss"]) - 1)
    for one, other, bad in zip(
        restored.get_weights(), good.get_weights(), stopped.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.abs(one - bad).max() > 1e-4


@pytest.mark.once
@pytest.mark.parametrize("method", ["n-fgsm", "fgsm-mep"])
def test_a_recipe_that_does_not_collapse(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, history, (x, y) = collapsing(
            method, epochs=14, epsilon=0.05, warmup_epochs=4, ramp_epochs=4
        )
    assert not any(history["catastrophic_overfitting"])
    adversarial = PGD(0.05, steps=10)(model, x, y)
    robust = (model.predict(adversarial, verbose=0).argmax(axis=1) == y).mean()
    assert robust > 0.5
    assert history["probe_pgd_accuracy"][-1] == pytest.approx(robust, abs=0.15)


def test_what_is_no_classifier_is_not_probed():
    model = keras.Sequential([keras.Input((5,)), L.Dense(3)])
    model.compile("sgd", "mse")
    history = fit(model, AdversarialTraining("fgsm", epsilon=0.1), X, X[:, :3])
    assert "catastrophic_overfitting" not in history
    history = fit(linear(), AdversarialTraining("fgsm", epsilon=0.1, collapse=None))
    assert "catastrophic_overfitting" not in history
    history = fit(linear(), AdversarialTraining("pgd", epsilon=0.1))
    assert "catastrophic_overfitting" not in history
    history = fit(linear(), AdversarialTraining("fgsm", epsilon=0.1, ramp_epochs=2), epochs=4)
    assert len(history["catastrophic_overfitting"]) == 2


class Small(keras.Sequential):
    """Trained without labels."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred))


def test_data_without_labels_are_not_probed():
    model = Small([keras.Input((5,)), L.Dense(3)])
    model.compile("sgd")
    callback = AdversarialTraining("fgsm", epsilon=0.1, outputs="logits")
    history = fit(model, callback, X, None)
    assert "catastrophic_overfitting" not in history
