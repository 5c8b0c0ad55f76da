"""Models whose Input is of whole numbers are attacked behind the cast, and given whole numbers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import predicted

import keras_qusec_cli as cli
from keras_qusec import (
    AdversarialTraining,
    QuSecQuantization,
    audit_robustness,
    evaluate_robustness,
)
from keras_qusec.attacks import FGSM, PGD, AttackedModel, Goal, ReachableLevels
from keras_qusec.expected_inputs import expected_range
from keras_qusec.integer_inputs import casts_images, integer_input
from keras_qusec.verify import verified

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

RNG = np.random.default_rng(0)
X = RNG.integers(20, 236, (60, 4, 4, 1)).astype("float32")
WEIGHTS = RNG.normal(size=(16, 3)).astype("float32")
BYTES = {"value_range": (0, 255), "progress": False}


def network(dtype, kind="functional", dropout=0.5):
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(3, use_bias=False, activation="softmax" if kind == "softmax" else None),
    ]
    if kind == "sequential":
        model = keras.Sequential([keras.Input((4, 4, 1), dtype=dtype), *layers])
    else:
        tensor = inputs = keras.Input((4, 4, 1), dtype=dtype)
        for layer in layers:
            tensor = layer(tensor)
        if kind == "two paths":
            tensor = tensor + 0.0 * layers[1](keras.ops.cast(inputs, "float32"))[:, :3]
        model = keras.Model(inputs, tensor)
    model.set_weights([WEIGHTS])
    if kind == "nested":
        outer = keras.Input((4, 4, 1), dtype=dtype)
        model = keras.Model(outer, model(outer))
    elif kind == "nested behind floats":
        outer = keras.Input((4, 4, 1))
        model = keras.Model(outer, model(outer))
    return model


KINDS = ["functional", "sequential", "softmax", "nested", "two paths"]
Y = predicted(network("float32"), X)


def robust_accuracy(epsilon):
    """The closed form for whole numbers: the worst corner of the box is of whole numbers."""
    robust = 0
    for image, label in zip(X.reshape(60, -1), Y, strict=True):
        margins = []
        for other in set(range(3)) - {int(label)}:
            slope = WEIGHTS[:, label] - WEIGHTS[:, other]
            worst = np.where(slope > 0, image - epsilon, image + epsilon)
            margins.append(np.clip(worst, 0, 255) @ slope)
        robust += min(margins) > 0
    return robust / 60


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=[] if k in ("nested", "softmax") else [pytest.mark.once])
        for k in KINDS
    ],
)
def test_evaluation_gives_the_closed_form(kind):
    model = network("uint8", kind)
    report = evaluate_robustness(model, X, Y, epsilons=[6, 15], attacks=["apgd-t"], **BYTES)
    for epsilon in (6, 15):
        assert report.robust_accuracy(epsilon=epsilon) == robust_accuracy(epsilon)
    assert 0 < robust_accuracy(15) < robust_accuracy(6) < 1
    assert report.notes == []
    for example in report.gallery:
        clean, adversarial = example.images[:2]
        np.testing.assert_array_equal(adversarial, np.round(adversarial))
        assert predicted(model, adversarial[None].astype("uint8"))[0] == example.prediction
        assert np.abs(adversarial - clean).max() <= 15


def test_a_float_input_gives_the_same():
    reports = [
        evaluate_robustness(network(dtype), X, Y, epsilons=[6, 15], **BYTES)
        for dtype in ("uint8", "float32")
    ]
    for epsilon in (6, 15):
        assert len({report.robust_accuracy(epsilon=epsilon) for report in reports}) == 1


def test_an_input_of_bytes_inside_a_model_of_floats():
    """Fractions are cut off inside; the gradient is that of the floats."""
    model = network("uint8", "nested behind floats")
    assert integer_input(model) is None
    assert casts_images(model)
    report = evaluate_robustness(model, X, Y, epsilons=[6, 15], **BYTES)
    # The attack cannot see what is cut off, and is up to one of 255 short.
    assert robust_accuracy(15) <= report.robust_accuracy(epsilon=15) <= robust_accuracy(14) + 0.02


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_what_counts_is_whole_and_inside_the_ball(norm):
    model = AttackedModel(network("uint8"), (0, 255))
    assert model.takes_whole_numbers
    epsilon = {"linf": 8.7, "l2": 40.3, "l1": 120.2, "l0": 7}[norm]
    candidates = np.clip(X + RNG.normal(0, 12, X.shape), 0, 255).astype("float32")
    if norm == "l0":
        candidates = np.where(RNG.random(X.shape) < 0.3, candidates, X)
    images, distances = verified(model, X, candidates, Goal(Y), norm, epsilon)
    np.testing.assert_array_equal(images, np.round(images))
    broken = np.isfinite(distances[norm])
    assert (distances[norm][broken] <= epsilon).all()
    assert (predicted(model.model, images[broken].astype("uint8")) != Y[broken]).all()
    # A step of nearly 8 is 8 and not 7.
    if norm == "linf":
        nearly, _ = verified(model, X, X + np.float32(7.9999), Goal(Y), norm, epsilon)
        np.testing.assert_array_equal(nearly, np.clip(X + 8, 0, 255))


@pytest.mark.parametrize("attack", [FGSM(9.5, value_range=(0, 255)),
                                    PGD(40, norm="l2", steps=5, value_range=(0, 255))])  # fmt: skip
def test_an_attack_alone(attack):
    for x in (X, X.astype("uint8")):
        images = attack(network("uint8"), x, Y)
        np.testing.assert_array_equal(images, np.round(images))
        assert (predicted(network("uint8"), images) != Y).any()


@pytest.mark.once
def test_bytes_are_taken_as_they_are():
    report = evaluate_robustness(
        network("uint8"), X.astype("uint8"), Y, epsilons=[15], attacks=["apgd-t"], **BYTES
    )
    assert report.robust_accuracy() == robust_accuracy(15)


@pytest.mark.parametrize(
    ("x", "settings", "words"),
    [
        (X + 0.4, BYTES, r"whole numbers, since the Input of .*'uint8'.*float Input"),
        (X / 255, {"progress": False}, r"whole numbers, since the Input"),
        (X // 128, {"progress": False}, r"an Input of uint8.*\(0, 255\)"),
    ],
)
def test_fractions_and_another_range_are_errors_that_name_the_input(x, settings, words):
    assert expected_range(network("uint8")) == (0.0, 255.0)
    with pytest.raises(ValueError, match=words):
        evaluate_robustness(network("uint8"), x, Y, epsilons=[0.6], **settings)


@pytest.mark.once
def test_audit_finds_no_masked_gradients():
    audit = audit_robustness(network("uint8"), X, Y, epsilon=12, **BYTES)
    assert audit.failed == ()


@pytest.mark.parametrize("objective", ["loss", "trades"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_training_attacks_behind_the_cast(objective, as_bytes):
    """The logs are those of the same network with a float Input, for epsilon in whole numbers."""
    logs = []
    for dtype in ("uint8", "float32"):
        model = network(dtype, dropout=0.0)
        model.compile(
            keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        x = X.astype("uint8") if as_bytes and dtype == "uint8" else X
        training = AdversarialTraining(
            "pgd", epsilon=12, steps=3, step_size=4, random_start=objective == "trades", seed=1,
            value_range=(0, 255), objective=objective, validation_data=(x, Y),
        )  # fmt: skip
        history = model.fit(x, Y, verbose=0, shuffle=False, callbacks=[training]).history
        logs.append(history)
    one, other = logs
    assert one["adversarial_accuracy"][0] < 0.9
    tolerance = 0.1 if objective == "trades" else 1e-4  # rounding of random starts
    for name in ("adversarial_loss", "adversarial_accuracy", "val_adversarial_accuracy"):
        assert one[name][0] == pytest.approx(other[name][0], abs=tolerance), name


def test_training_rounds_inside_a_ball_that_grows():
    seen = []

    class Seeing(keras.Model):
        def train_step(self, *arguments):
            seen.append(keras.ops.convert_to_numpy(arguments[-1][0]))
            return super().train_step(*arguments)

    plain = network("uint8")
    model = Seeing(plain.inputs, plain.outputs)
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )  # fmt: skip
    training = AdversarialTraining(
        "pgd", epsilon=9.5, steps=3, value_range=(0, 255), ramp_epochs=2, seed=0
    )
    model.fit(X, Y, epochs=3, batch_size=60, verbose=0, shuffle=False, callbacks=[training])
    for images, most in zip(seen, (0, 4, 9), strict=True):
        np.testing.assert_array_equal(images, np.round(images))
        assert np.abs(images - X).max() == most


@pytest.mark.once
def test_the_command_line_scales_to_whole_numbers(tmp_path, capsys):
    network("uint8").save(tmp_path / "bytes.keras")
    np.savez(tmp_path / "data.npz", x=X.astype("uint8"), y=Y)
    assert cli.main(["evaluate", str(tmp_path / "bytes.keras"), "--data",
                     str(tmp_path / "data.npz"), "--attacks", "apgd-t",
                     "--epsilons", "15"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert f"{100 * robust_accuracy(15):.1f}" in out
    assert "scaled to 0 ... 255" in out


# --- What a reviewer found ------------------------------------------------------------


def wide(dtype, size=768):
    rng = np.random.default_rng(5)
    model = keras.Sequential(
        [keras.Input((size,), dtype=dtype), keras.layers.Rescaling(1 / 255), keras.layers.Dense(2)]
    )
    model.set_weights([rng.normal(size=(size, 2)), np.zeros(2)])
    return model


WIDE = np.random.default_rng(6).integers(60, 196, (100, 768)).astype("float32")


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 60.0), ("l2", 12.0), ("l1", 900.0)])
def test_whole_numbers_use_the_ball(norm, epsilon):
    """Rounding leaves the sphere; only a few values must go back, and not all of them."""
    y = predicted(wide("float32"), WIDE)
    name = {"l2": "pgd-l2", "l1": "apgd-ce-l1"}[norm]
    shares, sizes = [], []
    for dtype in ("uint8", "float32"):
        report = evaluate_robustness(
            wide(dtype), WIDE, y, attacks=[name], epsilons={norm: [epsilon]}, **BYTES
        )
        shares.append(report.robust_accuracy())
        sizes.append(report.results[0].distances[norm])
    assert 0 < shares[1] < 1
    assert shares[1] <= shares[0] <= shares[1] + (0.08 if epsilon == 12 else 0.04)
    found = np.isfinite(sizes[0])
    assert (sizes[0][found] <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize("attack", ["pgd", "square", "apgd-ce"])
def test_a_fraction_more_of_epsilon_changes_nothing(attack):
    """Whole numbers within 15.9 are those within 15."""
    x, y = X, Y
    shares = [
        evaluate_robustness(
            network("uint8"), x, y, attacks=[attack], epsilons=[epsilon], **BYTES
        ).robust_accuracy()
        for epsilon in (15, 15.5, 15.9)
    ]
    assert shares[0] == shares[1] == shares[2]


def test_the_quantizer_is_found_behind_the_cast():
    """And what the search in levels finds is as good as with a float Input."""
    reports = []
    for dtype in ("uint8", "float32"):
        rng = np.random.default_rng(2)
        model = keras.Sequential(
            [keras.Input((4, 4, 1), dtype=dtype), keras.layers.Rescaling(1 / 255),
             QuSecQuantization(4, hard=True), keras.layers.Flatten(),
             keras.layers.Dense(3, use_bias=False)]
        )  # fmt: skip
        model.layers[-1].set_weights([rng.normal(size=(16, 3))])
        assert ReachableLevels().applies_to(AttackedModel(model, (0, 255)), X)
        y = predicted(model, X)
        reports.append(evaluate_robustness(
            model, X, y, attacks=["fgsm"], epsilons=[12, 25], threat_models=["adaptive"], **BYTES
        ))  # fmt: skip
    for epsilon in (12, 25):
        one, other = (r.robust_accuracy("reachable-levels", epsilon) for r in reports)
        assert one == pytest.approx(other, abs=0.04)
    assert reports[0].robust_accuracy() < 0.9


def test_integers_that_overflow_are_an_error():
    inputs = keras.Input((16,), dtype="uint8")
    outputs = keras.layers.Dense(3)(keras.ops.cast(inputs + inputs, "float32"))
    flat = X.reshape(60, 16)
    with pytest.raises(ValueError, match="computes with floats behind its Input of integers"):
        evaluate_robustness(keras.Model(inputs, outputs), flat, Y, epsilons=[8], **BYTES)


def test_an_inner_model_called_by_name():
    inner = network("uint8")
    outer = keras.Input((4, 4, 1), dtype="uint8")
    model = keras.Model(outer, inner(inputs=outer))
    logits = AttackedModel(model, (0, 255)).gradient(X, Y)[1]
    np.testing.assert_allclose(logits, AttackedModel(inner, (0, 255)).logits(X), rtol=1e-4)


def test_an_epsilon_below_one_reaches_nothing():
    with pytest.raises(ValueError, match=r"1 or more in L-inf.*8, and not 8 / 255"):
        evaluate_robustness(network("uint8"), X, Y, epsilons=[0.6, 3], **BYTES)
    model = network("uint8")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="1 or more in L-inf"):
        model.fit(X, Y, verbose=0, callbacks=[
            AdversarialTraining("fgsm", epsilon=0.6, value_range=(0, 255))])  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_of_sequential_models_and_in_l2(norm):
    model = network("uint8", "sequential", dropout=0.0)
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    training = AdversarialTraining(
        "fgsm", epsilon=40 if norm == "l2" else 12, norm=norm, value_range=(0, 255)
    )
    logs = model.fit(X, Y, verbose=0, callbacks=[training]).history
    assert logs["adversarial_loss"][0] > logs["clean_loss"][0] + 0.3


@pytest.mark.parametrize("images", ["float32", "uint8"])
def test_several_inputs_by_keys_of_their_own(images):
    """Words beside the images are integers, and no images."""
    pixels = keras.Input((4, 4, 1), name="pixels", dtype=images)
    words = keras.Input((2,), dtype="int32", name="ids")
    both = keras.layers.Concatenate()(
        [keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)),
         keras.layers.Flatten()(keras.layers.Embedding(5, 3)(words))]
    )  # fmt: skip
    model = keras.Model({"image": pixels, "tokens": words}, keras.layers.Dense(3)(both))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = {"image": X, "tokens": np.ones((60, 2), "int32")}
    logs = model.fit(x, Y, epochs=2, verbose=0, callbacks=[
        AdversarialTraining("fgsm", epsilon=12, attacked_input="image", value_range=(0, 255))
    ]).history  # fmt: skip
    assert logs["adversarial_loss"][0] > logs["clean_loss"][0]
