"""AdversarialTraining: robust models, untouched models, honest logs, everything fit supports."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import ops

from keras_qusec import AdversarialTraining, HardnessSchedule, QuSecQuantization
from keras_qusec.attacks import BIM, FGSM, PGD
from keras_qusec.defenses import surrogate_gradients

RNG = np.random.default_rng(0)
# Two classes that a robust model can tell apart by many pixels, and a brittle one by one.
Y = np.arange(64) % 3
X = np.clip(
    0.5 + 0.15 * np.eye(3)[Y][:, None, :].repeat(5, 1) + RNG.normal(0, 0.05, (64, 5, 3)), 0, 1
)
X = X.reshape(64, 15).astype("float32")


def classifier(*front, loss=None, **settings):
    model = keras.Sequential(
        [
            keras.Input((15,)),
            *front,
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(3),
        ]
    )
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings.setdefault("optimizer", keras.optimizers.Adam(0.01))
    settings.setdefault("metrics", ["accuracy"])
    model.compile(loss=loss, **settings)
    return model


def fit(model, callback, x=X, y=Y, **settings):
    settings.setdefault("batch_size", 16)
    callbacks = callback if isinstance(callback, list) else [callback]
    return model.fit(x, y, verbose=0, callbacks=callbacks, **settings).history


def robust_accuracy(model, epsilon=0.08):
    adversarial = PGD(epsilon, steps=20)(model, X, Y)
    return float((model.predict(adversarial, verbose=0).argmax(1) == Y).mean())


# --- What it is for -------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["loss", "trades"])
def test_training_makes_the_model_robust(objective):
    plain = classifier()
    plain.fit(X, Y, epochs=60, verbose=0)
    robust = classifier()
    callback = AdversarialTraining("pgd", epsilon=0.08, steps=5, objective=objective)
    logs = fit(robust, callback, epochs=60)
    assert robust_accuracy(robust) > robust_accuracy(plain) + 0.05
    assert logs["adversarial_loss"][-1] < logs["adversarial_loss"][0]


@pytest.mark.slow
def test_training_on_pgd_makes_the_papers_network_robust():
    from keras_qusec.datasets import mnist5k
    from keras_qusec.models import paper_cnn

    data = mnist5k()
    x, y = data.x_test[:200], data.y_test[:200]

    def robust(*callbacks):
        model = paper_cnn(seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.001), loss)
        model.fit(
            data.x_train,
            data.y_train,
            batch_size=128,
            epochs=5,
            verbose=0,
            callbacks=list(callbacks),
        )
        adversarial = PGD(0.2, steps=40)(model, x, y)
        return (model.predict(adversarial, verbose=0).argmax(1) == y).mean()

    assert robust() < 0.15
    training = AdversarialTraining("pgd", epsilon=0.2, steps=4, step_size=0.1, ramp_epochs=3)
    assert robust(training) > 0.4


def test_the_first_step_is_that_of_training_on_the_attack_by_hand():
    first, second = classifier(), classifier()
    second.set_weights(first.get_weights())
    attack = BIM(0.1, steps=3)
    second.train_on_batch(attack(second, X, Y), Y)
    fit(first, AdversarialTraining(attack), batch_size=64, epochs=1, shuffle=False)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_trades_loss_by_hand():
    model = classifier(optimizer=keras.optimizers.SGD(0.0), metrics=[])
    attack = PGD(0.1, steps=2)
    logs = fit(
        model, AdversarialTraining(attack, objective="trades", beta=3.0), batch_size=64, epochs=1
    )
    clean = model.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(logs["clean_loss"][0], clean, rtol=1e-4)
    assert logs["loss"][0] > logs["clean_loss"][0]
    weak = fit(model, AdversarialTraining(FGSM(0.0), objective="trades"), batch_size=64, epochs=1)
    np.testing.assert_allclose(weak["loss"][0], clean, rtol=1e-4)


def test_trades_keeps_to_the_ball_from_a_fixed_start():
    seen = []

    class Spy(keras.Model):
        def train_step(self, *arguments):
            seen.append(ops.convert_to_numpy(arguments[-1][0]))
            return super().train_step(*arguments)

    inputs = keras.Input((15,))
    model = Spy(inputs, keras.layers.Dense(3)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    callback = AdversarialTraining("bim", epsilon=0.05, steps=3, objective="trades")
    fit(model, callback, batch_size=64, epochs=1, shuffle=False)
    clean, adversarial = np.split(seen[0], 2)
    np.testing.assert_array_equal(clean, X)
    assert 0.04 < np.abs(adversarial - X).max() <= 0.05 + 1e-6


class Recording(keras.Model):
    """A linear model that keeps the batches it was trained on, and in which modes it ran."""

    def __init__(self, *front):
        super().__init__()
        self.output_kind = "logits"
        self.front = list(front)
        self.dense = keras.layers.Dense(3)
        self.batches, self.modes = [], []

    def call(self, x, training=False):
        self.modes.append(bool(training))
        for layer in self.front:
            x = layer(x, training=training)
        return self.dense(x)

    def train_step(self, *arguments):
        self.batches.append([None if part is None else ops.convert_to_numpy(part)
                             for part in arguments[-1]])  # fmt: skip
        return super().train_step(*arguments)


def recording(*front):
    model = Recording(*front)
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    model(X[:1])
    model.modes.clear()
    return model


def test_trades_runs_in_training_mode_once():
    """The reference and the attack see the model in inference mode and leave its state alone."""
    layer = keras.layers.BatchNormalization(momentum=0.5)
    model = recording(layer)
    callback = AdversarialTraining(FGSM(0.0), objective="trades")
    fit(model, callback, batch_size=64, epochs=1, shuffle=False)
    assert model.modes.count(True) == 1
    assert model.modes.count(False) >= 2
    # Statistics of one batch, clean and adversarial, which are the same for epsilon 0.
    mean = ops.convert_to_numpy(layer.moving_mean)
    np.testing.assert_allclose(mean, 0.5 * X.mean(axis=0), atol=1e-5)


def test_trades_weighs_samples():
    model = recording()
    weights = np.linspace(0.0, 2.0, 64).astype("float32")
    callback = AdversarialTraining("bim", epsilon=0.1, steps=2, objective="trades", beta=4.0)
    logs = fit(model, callback, batch_size=64, epochs=1, shuffle=False, sample_weight=weights)
    x, y, w = (np.split(part, 2) for part in model.batches[0])
    np.testing.assert_array_equal(w[0], weights)
    clean, adversarial = (
        ops.convert_to_numpy(ops.log_softmax(model(part), axis=-1)).astype("float64") for part in x
    )
    cross_entropy = -clean[np.arange(64), y[0]]
    divergence = (np.exp(clean) * (clean - adversarial)).sum(axis=1)
    assert divergence.mean() > 1e-4
    expected = (weights * cross_entropy).mean() + 4.0 * (weights * divergence).mean()
    np.testing.assert_allclose(logs["loss"], [expected], rtol=1e-4)


# --- Logs that tell the truth -----------------------------------------------------------


def test_logs_for_all_adversarial_from_the_clean_image():
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    logs = fit(model, AdversarialTraining("fgsm", epsilon=0.1), epochs=1)
    clean_loss, clean_accuracy = model.evaluate(X, Y, verbose=0)
    adversarial = FGSM(0.1)(model, X, Y)
    loss, accuracy = model.evaluate(adversarial, Y, verbose=0)
    expected = {
        "clean_loss": clean_loss,
        "clean_accuracy": clean_accuracy,
        "adversarial_loss": loss,
        "adversarial_accuracy": accuracy,
        "loss": loss,
        "accuracy": accuracy,
        "epsilon": 0.1,
        "probe_fgsm_accuracy": accuracy,
        "catastrophic_overfitting": 0.0,
    }
    assert set(logs) == {*expected, "probe_pgd_accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], [value], rtol=1e-4, err_msg=name)


def test_a_random_start_has_no_clean_pass_to_report():
    logs = fit(classifier(), AdversarialTraining("pgd", epsilon=0.1, steps=2), epochs=1)
    assert "clean_loss" not in logs
    assert "adversarial_accuracy" in logs


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_ratio_mixes_both_in_one_pass(ratio):
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    count = int(64 * ratio)
    attack = FGSM(0.1)
    logs = fit(
        model, AdversarialTraining(attack, ratio=ratio), batch_size=64, epochs=1, shuffle=False
    )
    adversarial = attack(model, X[:count], Y[:count])
    loss, _ = model.evaluate(adversarial, Y[:count], verbose=0)
    clean, _ = model.evaluate(X[count:], Y[count:], verbose=0)
    np.testing.assert_allclose(logs["adversarial_loss"], [loss], rtol=1e-4)
    np.testing.assert_allclose(logs["clean_loss"], [clean], rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], [ratio * loss + (1 - ratio) * clean], rtol=1e-4)


def test_validation_is_clean_and_robustness_on_request(tmp_path):
    model = classifier()
    path = str(tmp_path / "best.keras")
    callbacks = [
        AdversarialTraining(
            "fgsm", epsilon=0.1, validation_data=(X, Y), validation_attack=PGD(0.1, steps=4)
        ),
        keras.callbacks.ModelCheckpoint(
            path, monitor="val_adversarial_accuracy", mode="max", save_best_only=True
        ),
        keras.callbacks.EarlyStopping("val_adversarial_accuracy", patience=50, mode="max"),
    ]
    logs = fit(model, callbacks, epochs=4, validation_data=(X, Y))
    clean_loss, clean_accuracy = model.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(logs["val_loss"][-1], clean_loss, rtol=1e-4)
    np.testing.assert_allclose(logs["val_accuracy"][-1], clean_accuracy, rtol=1e-4)
    best = keras.saving.load_model(path)
    adversarial = PGD(0.1, steps=4)(best, X, Y)
    measured = (best.predict(adversarial, verbose=0).argmax(1) == Y).mean()
    assert measured == pytest.approx(max(logs["val_adversarial_accuracy"]), abs=0.02)


def averaging(order, on_epoch=True):
    """Callbacks in an order, a model with averaged weights, and what each epoch saves."""
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    attack = AdversarialTraining("fgsm", epsilon=0.1, validation_data=(X, Y))
    callbacks = [swap, attack] if order == "swap first" else [attack, swap]
    # Averages that stay far behind the weights.
    model = classifier(optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    return model, callbacks


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("order", ["swap first", "swap last"])
def test_averaged_weights_are_those_that_are_measured(tmp_path, order, validates):
    model, callbacks = averaging(order)
    callbacks.append(keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")))
    settings = {"validation_data": (X, Y)} if validates else {}
    impossible = order == "swap last" and not validates
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        logs = fit(model, callbacks, epochs=3, **settings)
    said = [str(w.message) for w in seen if "other weights" in str(w.message)]
    assert len(said) == impossible
    if impossible:
        assert "SwapEMAWeights(swap_on_epoch=True), then AdversarialTraining" in said[0]
        return
    for epoch in range(3):
        saved = keras.saving.load_model(tmp_path / f"{epoch + 1}.keras")
        adversarial = FGSM(0.1)(saved, X, Y)
        accuracy = (saved.predict(adversarial, verbose=0).argmax(1) == Y).mean()
        assert logs["val_adversarial_accuracy"][epoch] == pytest.approx(accuracy, abs=0.02)
    # Otherwise it would not matter which weights were measured.
    averages, raw = saved.trainable_variables[0], model.optimizer.variables
    assert not any(
        np.allclose(ops.convert_to_numpy(averages), ops.convert_to_numpy(variable), atol=1e-3)
        for variable in raw if variable.shape == averages.shape and "momentum" in variable.path
    )  # fmt: skip


@pytest.mark.parametrize("averages", ["swapped for validation alone", "at the end of fit"])
def test_other_weights_than_measured_are_a_warning(averages):
    model, callbacks = averaging("swap first", on_epoch=False)
    settings = {"validation_data": (X, Y)}
    if averages == "at the end of fit":
        callbacks, settings = callbacks[1:], {}
    with pytest.warns(UserWarning, match="measured on other weights"):
        fit(model, callbacks, epochs=3, **settings)


def test_restored_weights_are_no_other_weights():
    """Nor is a schedule of the hardness, which is no weight: warnings are errors in the tests."""
    model = classifier(QuSecQuantization(2))
    training = AdversarialTraining("fgsm", epsilon=0.1, validation_data=(X, Y))
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=2, restore_best_weights=True)
    logs = fit(model, [HardnessSchedule(5, 20), stop, training], epochs=9)
    assert 3 <= len(logs["val_adversarial_accuracy"]) < 9


def test_weights_restored_after_a_crash_are_measured(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def training():
        return [
            AdversarialTraining("fgsm", epsilon=0.1, validation_data=(X, Y)),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        ]

    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [*training(), Crash()], epochs=4)
    again = classifier()
    logs = fit(again, training(), epochs=4)
    adversarial = FGSM(0.1)(again, X, Y)
    accuracy = (again.predict(adversarial, verbose=0).argmax(1) == Y).mean()
    assert logs["val_adversarial_accuracy"][-1] == pytest.approx(accuracy, abs=0.02)


def test_validation_data_of_one_class_are_a_warning():
    order = np.argsort(Y, kind="stable")
    x, y = X[order], Y[order]
    training = AdversarialTraining("fgsm", epsilon=0.1, validation_data=(x[50:], y[50:]))
    with pytest.warns(UserWarning, match=r"14 images of validation_data are of class 2.*split"):
        fit(classifier(), training, epochs=1)


def test_a_used_callback_can_be_copied():
    training = AdversarialTraining(
        "pgd", epsilon=0.1, steps=2, ramp_epochs=1, validation_data=(X, Y),
        epsilon_schedule=lambda epoch: ops.minimum(epoch, 1.0),
    )  # fmt: skip
    callbacks = [training, HardnessSchedule(5, 20)]
    model = classifier(QuSecQuantization(2))
    start = model.get_weights()
    first = fit(model, callbacks, epochs=2, shuffle=False)
    copies = copy.deepcopy(callbacks)
    for each in (copies, copy.deepcopy(copies)):
        other = classifier(QuSecQuantization(2))
        other.set_weights(start)
        again = fit(other, each, epochs=2, shuffle=False)
        assert again["epsilon"] == first["epsilon"]
        np.testing.assert_allclose(
            again["val_adversarial_accuracy"], first["val_adversarial_accuracy"], atol=0.05
        )
    assert training.validation_attack.epsilon == 0.1


def test_warmup_ramp_and_schedule():
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    # Four batches an epoch: the last one starts at 3/4 of it.
    logs = fit(
        model, AdversarialTraining("fgsm", epsilon=0.1, warmup_epochs=1, ramp_epochs=2), epochs=4
    )
    np.testing.assert_allclose(logs["epsilon"], [0, 0.0375, 0.0875, 0.1], rtol=1e-5)
    np.testing.assert_allclose(logs["clean_loss"][0], logs["adversarial_loss"][0], rtol=1e-5)
    assert logs["adversarial_loss"][0] < logs["adversarial_loss"][1] < logs["adversarial_loss"][3]
    # A second fit starts its own schedule, though the optimizer counts on.
    again = fit(
        model,
        AdversarialTraining("fgsm", epsilon=0.1, epsilon_schedule=lambda e: ops.minimum(e, 1.0)),
        epochs=2,
    )
    np.testing.assert_allclose(again["epsilon"], [0.075, 0.1], rtol=1e-5)


def test_random_starts_differ_between_steps_and_repeat_with_the_seed():
    # With a learning rate of 0 only the random start can change the loss between epochs.
    attack = PGD(0.1, steps=1, relative_step_size=1e-5)

    def losses(seed):
        keras.utils.set_random_seed(1)
        model = classifier(optimizer=keras.optimizers.SGD(0.0))
        logs = fit(model, AdversarialTraining(attack, seed=seed), epochs=3, shuffle=False)
        return logs["adversarial_loss"]

    first = losses(0)
    assert len({round(loss, 7) for loss in first}) == 3
    assert losses(0) == first
    assert losses(1) != first


@pytest.mark.parametrize("hardness", [None, 3.0, 20.0])
def test_the_attack_follows_the_surrogate_gradient(hardness):
    """The images trained on are those of the same attack through that surrogate, in L2."""
    quantizer = QuSecQuantization(2, hardness=40.0)
    model = recording(quantizer)
    training = AdversarialTraining(
        "fgsm", epsilon=0.5, norm="l2", gradient_hardness=hardness, random_start=False
    )
    fit(model, training, batch_size=64, epochs=1, shuffle=False)
    with surrogate_gradients(model, hardness):
        expected = FGSM(0.5, norm="l2")(model, X, Y, outputs="logits")
    np.testing.assert_allclose(model.batches[-1][0], expected, atol=2e-3)
    with surrogate_gradients(model, 8.0):
        other = FGSM(0.5, norm="l2")(model, X, Y, outputs="logits")
    assert np.abs(other - expected).max() > 0.02


def test_surrogate_gradients_in_the_attack_only():
    quantizer = QuSecQuantization(2, hardness=1e4)
    model = classifier(quantizer)
    with pytest.warns(
        UserWarning, match="all input gradients of a batch are zero.*gradient_hardness"
    ):
        fit(model, AdversarialTraining("fgsm", epsilon=0.2), x=np.round(X), epochs=2)
    logs = fit(model, AdversarialTraining("fgsm", epsilon=0.6, gradient_hardness=4.0), epochs=1)
    assert quantizer.gradient_hardness is None
    assert logs["adversarial_loss"][0] > logs["clean_loss"][0]


def test_batch_hooks_leave_the_model_alone():
    # Keras runs them in threads on JAX, where asking for the model overwrites its variables.
    class Watched(AdversarialTraining):
        inside = False

        @property
        def model(self):
            assert not self.inside
            return super().model

        def on_train_batch_end(self, batch, logs=None):
            self.inside = True
            super().on_train_batch_end(batch, logs)
            self.inside = False

    model = classifier(QuSecQuantization(2, hardness=1e4))
    with pytest.warns(UserWarning, match="all input gradients of a batch are zero"):
        fit(model, Watched("fgsm", epsilon=0.2), x=np.round(X), epochs=2)


def test_an_exception_before_a_step_arms_no_later_fit():
    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise RuntimeError("stop")

    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    with pytest.raises(RuntimeError, match="stop"):
        fit(model, [AdversarialTraining("fgsm", epsilon=0.2), Fails()], epochs=1)
    clean = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    # Batches of all images, so that the loss of the first step is that of the clean images.
    logs = model.fit(X, Y, verbose=0, batch_size=64).history
    assert logs["loss"][0] == pytest.approx(clean, rel=1e-4)


def test_a_logger_before_it_writes_public_columns(tmp_path):
    model = classifier()
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fit(model, [logger, AdversarialTraining("fgsm", epsilon=0.1)], epochs=2)
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "_" in header
    assert not [name for name in header.split(",") if name.startswith("_")]


def test_the_second_fit_with_a_callback_traces_nothing():
    model = classifier()
    traced = []
    original = model.compute_loss
    object.__setattr__(model, "compute_loss", lambda *a, **k: traced.append(1) or original(*a, **k))
    callback = AdversarialTraining("fgsm", epsilon=0.1)
    fit(model, callback, epochs=1, shuffle=False)
    first = len(traced)
    fit(model, callback, epochs=1, shuffle=False)
    if BACKEND != "torch":  # which runs eagerly
        assert len(traced) == first
    # But what was traced with other settings is not used.
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, callback, epochs=1, shuffle=False)
    assert len(traced) > first


def test_images_named_among_inputs_of_a_list():
    images, extra = keras.Input((15,), name="img"), keras.Input((2,), name="extra")
    hidden = keras.layers.Concatenate()([images, extra])
    model = keras.Model([images, extra], keras.layers.Dense(3)(hidden))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    both = [X, np.zeros((64, 2), "float32")]
    logs = fit(model, AdversarialTraining("fgsm", epsilon=0.1, attacked_input="img"), x=both)
    by_place = fit(model, AdversarialTraining("fgsm", epsilon=0.1, attacked_input=0), x=both)
    assert logs["adversarial_loss"][0] > logs["clean_loss"][0]
    assert by_place["adversarial_loss"][0] > by_place["clean_loss"][0]
    with pytest.raises(ValueError, match="to name the images"):
        fit(model, AdversarialTraining("fgsm", epsilon=0.1, attacked_input="image"), x=both)


# --- Never ----------------------------------------------------------------------------


def public_state(model):
    return {
        name for name in vars(model) if name in ("train_step", "compute_loss", "compute_metrics")
    }


def test_the_model_is_as_it_was_after_fit():
    model = classifier()
    fit(model, AdversarialTraining("fgsm", epsilon=0.1), epochs=1)
    assert public_state(model) == set()
    assert model.train_function is None
    expected = classifier()
    expected.set_weights(model.get_weights())
    a = model.fit(X, Y, epochs=1, verbose=0, shuffle=False).history
    assert set(a) == {"loss", "accuracy"}


class Fails(keras.callbacks.Callback):
    def __init__(self, error, when):
        super().__init__()
        self.error, self.when = error, when

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1 and self.when == "batch end":
            raise self.error

    def on_epoch_end(self, epoch, logs=None):
        if self.when == "epoch end":
            raise self.error


@pytest.mark.parametrize("when", ["batch end", "epoch end"])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_after_an_exception_the_next_fit_is_a_plain_one(error, when):
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    callback = AdversarialTraining("fgsm", epsilon=0.3)
    with pytest.raises(type(error)):
        fit(model, [callback, Fails(error, when)], epochs=2)
    assert public_state(model) == set()
    logs = model.fit(X, Y, epochs=1, verbose=0).history
    assert set(logs) == {"loss", "accuracy"}
    np.testing.assert_allclose(logs["loss"][0], model.evaluate(X, Y, verbose=0)[0], rtol=1e-4)
    # And the callback can be used again, also on another model.
    other = classifier()
    assert "adversarial_loss" in fit(other, callback, epochs=1)
    callback.restore()


def test_batch_statistics_and_dropout_are_those_of_the_training_pass():
    front = [keras.layers.BatchNormalization(momentum=0.5)]
    first, second = classifier(*front, optimizer=keras.optimizers.SGD(0.0)), None
    attack = FGSM(0.1)
    start = first.get_weights()
    fit(first, AdversarialTraining(attack), batch_size=64, epochs=1, shuffle=False)
    second = classifier(
        keras.layers.BatchNormalization(momentum=0.5), optimizer=keras.optimizers.SGD(0.0)
    )
    second.set_weights(start)
    second.train_on_batch(attack(second, X, Y), Y)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    model = classifier(keras.layers.Dropout(0.5), keras.layers.GaussianNoise(0.1))
    assert np.isfinite(
        fit(model, AdversarialTraining("pgd", epsilon=0.1, steps=2), epochs=2)["loss"]
    ).all()


# --- Everything fit supports ------------------------------------------------------------


def test_metrics_weights_and_classes():
    model = classifier(weighted_metrics=["accuracy"])
    weights = np.linspace(0.1, 1, 64).astype("float32")
    logs = fit(
        model, AdversarialTraining("fgsm", epsilon=0.1, ratio=0.5), sample_weight=weights, epochs=1
    )
    assert np.isfinite(logs["loss"]).all()
    logs = fit(
        model,
        AdversarialTraining("fgsm", epsilon=0.1),
        class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        epochs=1,
    )
    assert np.isfinite(logs["loss"]).all()
    logs = fit(
        model,
        AdversarialTraining("fgsm", epsilon=0.1, objective="trades"),
        sample_weight=weights,
        epochs=1,
    )
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_sets_of_every_kind():
    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            rows = slice(16 * index, 16 * index + 16)
            return X[rows], Y[rows]

    sources = [Sequence(), ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16))]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        sources.append(tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(64).batch(24))
    if BACKEND == "torch":
        import torch

        data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
        sources.append(torch.utils.data.DataLoader(data, batch_size=24, shuffle=True))
    for source in sources:
        for ratio in (1, 0.5):
            if ratio == 0.5 and not hasattr(source, "__len__"):
                continue
            model = classifier()
            callback = AdversarialTraining("pgd", epsilon=0.1, steps=2, ratio=ratio)
            history = model.fit(
                source, epochs=1, verbose=0, shuffle=False, callbacks=[callback]
            ).history
            assert np.isfinite(history["adversarial_loss"]).all()


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_last_batches_of_other_sizes(ratio):
    logs = fit(
        classifier(),
        AdversarialTraining("fgsm", epsilon=0.1, ratio=ratio),
        x=X[:33],
        y=Y[:33],
        epochs=2,
    )
    assert np.isfinite(logs["adversarial_loss"]).all()


def two_inputs():
    image, other = keras.Input((15,), name="image"), keras.Input((2,), name="other")
    hidden = keras.layers.Concatenate()([image, other])
    outputs = {
        "a": keras.layers.Dense(3, name="a")(hidden),
        "b": keras.layers.Dense(1, name="b")(hidden),
    }
    model = keras.Model({"image": image, "other": other}, outputs)
    model.compile(
        "adam",
        loss={"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"},
        metrics={"a": ["accuracy"]},
    )
    return model


def test_many_inputs_and_outputs():
    x = {"image": X, "other": np.full((64, 2), 7.0, "float32")}
    y = {"a": Y, "b": np.zeros((64, 1), "float32")}
    for ratio in (1.0, 0.5):
        callback = AdversarialTraining(
            "pgd", epsilon=0.1, steps=2, attacked_input="image", ratio=ratio
        )
        logs = fit(two_inputs(), callback, x=x, y=y, epochs=1)
        assert np.isfinite(logs["adversarial_loss"]).all()
    with pytest.raises(ValueError, match="Expected attacked_input to name the images among"):
        fit(two_inputs(), AdversarialTraining("fgsm", epsilon=0.1), x=x, y=y, epochs=1)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier(QuSecQuantization(4))
        logs = fit(
            model, AdversarialTraining("pgd", epsilon=0.1, steps=2, warmup_epochs=1), epochs=3
        )
        assert np.isfinite(logs["loss"]).all()
        assert logs["epsilon"] == pytest.approx([0, 0.1, 0.1])
        assert logs["adversarial_loss"][1] > 0
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": True},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
        {"optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)},
        {"optimizer": lambda: keras.optimizers.Adam(0.01, use_ema=True)},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("objective", ["loss", "trades"])
def test_compile_settings(settings, objective):
    if BACKEND == "torch" and ("jit_compile" in settings or "steps_per_execution" in settings):
        pytest.skip("not on PyTorch: torch.compile is slow here, one step per execution only")
    settings = {k: v() if callable(v) else v for k, v in settings.items()}
    model = classifier(**settings)
    callback = AdversarialTraining("pgd", epsilon=0.1, steps=2, ramp_epochs=2, objective=objective)
    logs = fit(model, callback, epochs=3)
    assert np.isfinite(logs["loss"]).all()
    assert logs["epsilon"][0] < logs["epsilon"][1] <= logs["epsilon"][2]
    assert logs["epsilon"][2] == pytest.approx(0.1)


def test_custom_train_step_and_loss():
    class Custom(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.seen = []

        def call(self, x):
            return self.dense(x)

        def train_step(self, *arguments):
            self.seen.append(len(arguments))
            return super().train_step(*arguments)

    model = Custom()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = fit(model, AdversarialTraining("fgsm", epsilon=0.1), epochs=1)
    assert model.seen
    assert np.isfinite(logs["adversarial_loss"]).all()


def test_one_hot_labels_and_softmax_outputs():
    model = keras.Sequential([keras.Input((15,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    labels = np.eye(3, dtype="float32")[Y]
    for objective in ("loss", "trades"):
        callback = AdversarialTraining("pgd", epsilon=0.1, steps=2, objective=objective,
                                       validation_data=(X, labels))  # fmt: skip
        logs = fit(model, callback, y=labels, epochs=2)
        assert 0 <= logs["adversarial_accuracy"][-1] <= 1
        assert 0 <= logs["val_adversarial_accuracy"][-1] <= 1


RESUME = """
import os, signal, sys
import keras, numpy as np
from keras_qusec import AdversarialTraining
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).random((64, 8)).astype("float32")
y = np.arange(64) % 2
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[2] == "kill" and self.epoch == 2 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

order = [AdversarialTraining("pgd", epsilon=0.4, steps=2, ramp_epochs=4),
         keras.callbacks.BackupAndRestore(sys.argv[1]), Kill()]
if sys.argv[3] == "last":
    order = order[1:] + order[:1]
history = model.fit(x, y, batch_size=16, epochs=5, verbose=0, callbacks=order).history
print([round(e, 4) for e in history["epsilon"]])
"""


@pytest.mark.parametrize("place", ["first", pytest.param("last", marks=pytest.mark.slow)])
def test_killed_in_an_epoch_it_resumes_with_the_right_epsilon(tmp_path, place):
    def run(kill):
        command = [sys.executable, "-c", RESUME, str(tmp_path / "backup"), kill, place]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("kill").returncode == -9
    resumed = run("go on")
    assert resumed.returncode == 0, resumed.stderr
    # Epochs 2, 3 and 4 of 0 to 4; the last of four batches begins at 3/4 of its epoch.
    assert resumed.stdout.strip().splitlines()[-1] == "[0.275, 0.375, 0.4]"


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "fgms", "epsilon": 0.1}, "Did you mean 'fgsm'"),
        ({"eps": 0.1}, "Here it is 'epsilon'"),
        ({"epsilon": 0.1, "nb_iter": 3}, "Here it is 'steps'"),
        ({"epsilon": 0.1, "step": 3}, "epsilon, steps, step_size"),
        ({"attack": "fgsm", "epsilon": -1}, "Expected epsilon to be a number 0 or more"),
        ({"attack": "pgd", "epsilon": 0.1, "steps": 0}, "Expected steps"),
        ({"attack": "pgd", "epsilon": 0.1, "norm": "l0"}, "Expected norm"),
        ({"attack": "pgd"}, "Expected epsilon for the attack"),
        ({"attack": "pgd", "epsilon": 0.1, "restarts": 3}, "an attack without restarts"),
        ({"attack": "jsma"}, "follows gradients inside a ball"),
        ({"epsilon": 0.1, "ratio": 0}, "Expected ratio to be a number above 0"),
        ({"epsilon": 0.1, "ratio": 1.5}, "Expected ratio"),
        ({"epsilon": 0.1, "objective": "mart"}, "Expected objective"),
        ({"epsilon": 0.1, "objective": "trades", "ratio": 0.5}, "Expected ratio=1"),
        ({"epsilon": 0.1, "objective": "trades", "targeted": True}, "untargeted"),
        ({"epsilon": 0.1, "beta": -1}, "Expected beta"),
        ({"epsilon": 0.1, "warmup_epochs": -1}, "Expected warmup_epochs"),
        ({"epsilon": 0.1, "epsilon_schedule": 3}, "Expected epsilon_schedule"),
        ({"epsilon": 0.1, "gradient_hardness": 0}, "Expected gradient_hardness"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(**settings)


def test_images_outside_the_range():
    with pytest.raises(ValueError, match=r"up to 1\.\d+ outside it"):
        fit(classifier(), AdversarialTraining("fgsm", epsilon=0.1), x=X + 2, epochs=2)


def test_integer_images():
    with pytest.raises(ValueError, match=r"Received: dtype=uint8.*/ 255"):
        fit(
            classifier(),
            AdversarialTraining("fgsm", epsilon=0.1),
            x=(255 * X).astype("uint8"),
            epochs=1,
        )


def test_no_loss():
    model = keras.Sequential([keras.Input((15,)), keras.layers.Dense(3)])
    model.compile("adam")
    with pytest.raises(ValueError, match="Expected a model compiled with a loss"):
        fit(model, AdversarialTraining("fgsm", epsilon=0.1), epochs=1)


def test_two_callbacks():
    both = [AdversarialTraining("fgsm", epsilon=0.1), AdversarialTraining("fgsm", epsilon=0.2)]
    with pytest.raises(ValueError, match="Expected one AdversarialTraining"):
        fit(classifier(), both, epochs=1)


def test_a_schedule_needs_to_know_the_steps():
    def endless():
        while True:
            yield X, Y

    callback = AdversarialTraining("fgsm", epsilon=0.1, ramp_epochs=1)
    with pytest.raises(ValueError, match="Expected a known number of steps"):
        classifier().fit(endless(), epochs=1, verbose=0, shuffle=False, callbacks=[callback])
    logs = classifier().fit(
        endless(), steps_per_epoch=3, epochs=2, verbose=0, shuffle=False, callbacks=[callback]
    )
    assert logs.history["epsilon"][-1] == pytest.approx(0.1)


@pytest.mark.parametrize("words_first", [True, False])
def test_the_attacked_one_of_several_inputs_by_name(words_first):
    """A float input beside one of whole numbers is not rounded, whichever comes first."""
    image, words = keras.Input((4,), name="image"), keras.Input((2,), dtype="int32", name="words")
    joined = keras.layers.Concatenate()([image, keras.layers.Rescaling(0.1)(words)])
    inputs = {"words": words, "image": image} if words_first else {"image": image, "words": words}
    model = keras.Model(inputs, keras.layers.Dense(2)(joined))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    rng = np.random.default_rng(0)
    x = {
        "image": rng.uniform(0.3, 0.7, (16, 4)).astype("float32"),
        "words": rng.integers(0, 5, (16, 2)).astype("int32"),
    }
    y = rng.integers(0, 2, 16)
    clean = float(model.evaluate(x, y, verbose=0))
    callback = AdversarialTraining("fgsm", epsilon=0.2, attacked_input="image")
    history = model.fit(x, y, verbose=0, callbacks=[callback]).history
    # Rounded to 0 or 1 nothing would be left of the step.
    weights = model.get_weights()[0][:4].astype("float64")
    rise = 0.2 * np.abs(weights[:, 0] - weights[:, 1]).sum()
    assert history["adversarial_loss"][0] > clean + 0.2 * rise
