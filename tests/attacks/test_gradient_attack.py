"""The compiled attacks against closed forms, independent NumPy, and Foolbox."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_qusec import QuSecQuantization, attacks
from keras_qusec.attacks import BIM, FGSM, PGD, AttackedModel, Goal
from keras_qusec.attacks.foolbox import foolbox_model, import_foolbox, to_tensor
from keras_qusec.defenses import surrogate_gradients
from keras_qusec.logits import output_kind

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (12, 6)).astype("float32")
Y = RNG.integers(0, 3, 12)


@pytest.fixture
def linear():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


@pytest.fixture
def cnn():
    return keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Conv2D(8, 3, strides=2, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )


def loss_gradient(model, x, y):
    """Cross-entropy's gradient for a linear model, by hand, in float64."""
    w, b = (np.asarray(v, "float64") for v in model.get_weights())
    logits = x.astype("float64") @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p - np.eye(3)[y]) @ w.T


def test_fgsm_is_the_sign_of_the_gradient(linear):
    expected = X + 0.1 * np.sign(loss_gradient(linear, X, Y))
    np.testing.assert_allclose(FGSM(0.1)(linear, X, Y), expected, atol=1e-6)
    targeted = FGSM(0.1, targeted=True)(linear, X, Y)
    np.testing.assert_allclose(targeted, 2 * X - expected, atol=1e-6)


def test_l2_step_has_the_direction_of_the_gradient(linear):
    g = loss_gradient(linear, X, Y)
    expected = X + 0.1 * g / np.linalg.norm(g, axis=1, keepdims=True)
    np.testing.assert_allclose(FGSM(0.1, norm="l2")(linear, X, Y), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_iterations_equal_independent_numpy(linear, norm, steps):
    epsilon, step = 0.2, 0.07
    x = X.astype("float64")
    for _ in range(steps):
        g = loss_gradient(linear, x, Y)
        if norm == "linf":
            x = np.clip(x + step * np.sign(g), X - epsilon, X + epsilon)
        else:
            difference = x + step * g / np.linalg.norm(g, axis=1, keepdims=True) - X
            length = np.linalg.norm(difference, axis=1, keepdims=True)
            x = X + difference * np.minimum(1, epsilon / length)
        x = np.clip(x, 0, 1)
    ours = BIM(epsilon, steps=steps, step_size=step, norm=norm)(linear, X, Y)
    np.testing.assert_allclose(ours, x, atol=1e-5)


def test_linf_optimum_of_a_two_class_linear_model():
    # Its worst case in the ball is known: every pixel epsilon against the weight's sign.
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    w = model.get_weights()[0]
    y = Y % 2
    direction = (w[:, 0] - w[:, 1]) * np.where(y == 0, -1, 1)[:, None]
    expected = X + 0.15 * np.sign(direction)
    for attack in (FGSM(0.15), BIM(0.15, steps=5), PGD(0.15, steps=20)):
        np.testing.assert_allclose(attack(model, X, y), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_foolbox_on_a_cnn(cnn, norm):
    foolbox = import_foolbox()
    x = np.random.default_rng(1).random((8, 10, 10, 1)).astype("float32")
    y = np.arange(8) % 5
    kinds = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }
    theirs = kinds[norm](abs_stepsize=0.05, steps=7, random_start=False)
    _, expected, _ = theirs(foolbox_model(cnn), to_tensor(x), to_tensor(y), epsilons=0.2)
    ours = PGD(0.2, steps=7, step_size=0.05, norm=norm, random_start=False)(cnn, x, y)
    np.testing.assert_allclose(ours, ops.convert_to_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.4, 1.0])
def test_never_outside_the_ball_or_the_range(cnn, norm, epsilon):
    x = RNG.random((9, 10, 10, 1)).astype("float32")
    x[0], x[1] = 0, 1
    attack = PGD(epsilon, steps=4, norm=norm)
    adversarial = attack(cnn, x, np.zeros(9, int), batch_size=4)
    difference = (adversarial - x).reshape(9, -1)
    length = np.abs(difference).max(1) if norm == "linf" else np.linalg.norm(difference, axis=1)
    assert length.max() <= epsilon + 1e-5
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    if epsilon:
        assert np.abs(difference).max(1).min() > 0


def test_other_value_ranges(cnn):
    x = RNG.uniform(-1, 1, (4, 10, 10, 1)).astype("float32")
    adversarial = PGD(0.8, steps=3, value_range=(-1, 1))(cnn, x, np.zeros(4, int))
    assert -1 <= adversarial.min() < -0.9
    assert 0.9 < adversarial.max() <= 1


def test_seeds(cnn):
    x, y = RNG.random((6, 10, 10, 1)).astype("float32"), np.arange(6) % 5
    for norm in ("linf", "l2"):
        attack = PGD(0.2, steps=1, relative_step_size=5e-4, norm=norm)
        first = attack(cnn, x, y, seed=3)
        np.testing.assert_array_equal(first, attack(cnn, x, y, seed=3))
        assert np.abs(first - attack(cnn, x, y, seed=4)).max() > 0.01
        # The random start spreads over the ball and is not the same for every image.
        noise = (first - x).reshape(6, -1)
        assert np.abs(noise[0] - noise[1]).max() > 0.01


def test_sees_changed_weights_and_surrogate_gradients(cnn):
    x, y = RNG.random((6, 10, 10, 1)).astype("float32"), np.arange(6) % 5
    attack = FGSM(0.1)
    before = attack(cnn, x, y)
    cnn.set_weights([-w for w in cnn.get_weights()])
    assert np.abs(attack(cnn, x, y) - before).max() > 0.05

    hard = keras.Sequential(
        [keras.Input((6,)), QuSecQuantization(2, hardness=1e4), keras.layers.Dense(3)]
    )
    masked = attack(hard, X, Y)
    with surrogate_gradients(hard, 5.0):
        adaptive = attack(hard, X, Y)
    assert np.abs(masked - X).max() < 0.1
    assert np.abs(adaptive - X).min() > 0.09
    np.testing.assert_array_equal(attack(hard, X, Y), masked)


def test_attacks_leave_the_model_as_it_was():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    before = [np.array(w) for w in model.get_weights()]
    PGD(0.1, steps=3)(model, X, Y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_softmax_outputs_are_attacked_as_logits(linear):
    softmax = keras.Sequential([*linear.layers, keras.layers.Softmax()])
    np.testing.assert_allclose(FGSM(0.1)(softmax, X, Y), FGSM(0.1)(linear, X, Y), atol=1e-6)
    assert output_kind(softmax) == "probabilities"
    assert output_kind(linear) == "logits"


def test_label_forms(linear):
    expected = FGSM(0.1)(linear, X, Y)
    for labels in (Y.astype("uint8"), Y[:, None], np.eye(3, dtype="float32")[Y]):
        np.testing.assert_array_equal(FGSM(0.1)(linear, X, labels), expected)


def test_the_cache_does_not_keep_models_alive():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    FGSM(0.1)(model, X, Y)
    alive = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(-0.1), "Expected epsilon to be a number 0 or more"),
        (lambda: FGSM(float("nan")), "Expected epsilon to be a number"),
        (lambda: PGD(0.1, steps=0), "Expected steps to be a whole number"),
        (lambda: PGD(0.1, steps=2.5), "Expected steps to be a whole number"),
        (lambda: PGD(0.1, step_size=0), "Expected step_size to be a number above 0"),
        (lambda: PGD(0.1, norm="l7"), "Expected norm to be one of"),
        (lambda: PGD(0.1, value_range=(1, 0)), "Expected value_range"),
        (lambda: attacks.get("pdg", epsilon=0.1), "Did you mean 'pgd'"),
        (lambda: attacks.get(3), "Expected an attack"),
        (lambda: PGD()(None, X, Y), "Expected an attack with an epsilon"),
        (lambda: PGD(0.1, step_size=0.1, relative_step_size=0.1), "Leave one out"),
        (lambda: PGD(0.1, norm="l0"), "one with a direction and a projection"),
        (
            lambda: attacks.get("fgsm", epsilon=0.1, stepz=3),
            "Expected settings of the attack 'fgsm': epsilon",
        ),
        (lambda: attacks.get(FGSM(0.1), epsilon=0.1), "Expected either an attack object"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, "Expected images inside value_range"),
        ((X * 255).astype("uint8"), Y, "Expected images as floats"),
        (X, Y[:3], "Expected as many labels as images"),
        (X[:0], Y[:0], "Expected as many labels as images"),
        (X * np.nan, Y, "Expected images inside value_range"),
    ],
)
def test_bad_data(linear, x, y, message):
    with pytest.raises(ValueError, match=message):
        FGSM(0.1)(linear, x, y)


def test_an_image_that_falls_early_stops():
    """A linear model, on which two steps are enough for each image."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    attacked = AttackedModel(model)
    labels = attacked.predictions(X)
    attack = PGD(steps=30, random_start=False)
    for transfer, most in ((False, 6), (True, 30)):
        attacked.counter.gradients = 0
        search = attack.on_batch(attacked, X, Goal(labels, transfer=transfer))
        search(np.arange(len(X)), 3.0, 0)
        assert attacked.counter.gradients <= most * len(X)
    assert attacked.counter.gradients == 30 * len(X)


def test_at_the_next_radius_images_that_withstand_are_attacked_again(linear):
    """First by the last perturbation made larger; only those that fell to it are spared."""
    attacked = AttackedModel(linear)
    goal = Goal(attacked.predictions(X))
    search = PGD(steps=3, random_start=False).on_batch(attacked, X, goal)
    rows = np.arange(len(X))
    search(rows, 1e-5, 0)
    images = search(rows, 2e-5, 0)
    assert not attacked.is_adversarial(images, goal).any()
    assert attacked.counter.gradients == 2 * 3 * len(X)


def test_a_step_of_zero_is_for_an_epsilon_of_zero_alone():
    assert PGD(0.0, step_size=0.0).step_size == 0
    with pytest.raises(ValueError, match="step_size"):
        PGD(1.0, step_size=0.0)


def test_settings_of_a_defence_changed_after_an_attack_are_seen():
    """What is compiled for an attacked model is not used when a defence does something else."""
    layer = QuSecQuantization(2, hardness=5.0)
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(3)])
    attacked = AttackedModel(model)
    soft = attacked.logits(X)
    layer.hard = True
    hard = attacked.logits(X)
    np.testing.assert_allclose(hard, ops.convert_to_numpy(model(X)), atol=1e-6)
    assert np.abs(hard - soft).max() > 0.01
    layer.hard = False
    np.testing.assert_array_equal(attacked.logits(X), soft)
    layer.hardness = 50.0  # a variable, which compiled code reads anew
    np.testing.assert_allclose(attacked.logits(X), ops.convert_to_numpy(model(X)), atol=1e-6)


class TestCircles:
    """Images that are where they have been before leave the search, which loses nothing."""

    def test_without_a_gradient_nothing_is_repeated(self):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Lambda(lambda x: ops.stop_gradient(x)),
                keras.layers.Dense(3),
            ]
        )
        attacked = AttackedModel(model)
        goal = Goal(attacked.predictions(X))
        PGD(steps=40).on_batch(attacked, X, goal)(np.arange(len(X)), 0.001, 0)
        assert attacked.counter.gradients == 2 * len(X)

    def test_a_circle_of_two_is_left(self):
        """A valley that steps of one size jump over for ever."""

        def valley(x):
            return ops.concatenate([10 + 0 * x, -ops.absolute(x - 0.5)], axis=1)

        model = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(valley)])
        attacked = AttackedModel(model, outputs="logits")
        x = np.full((3, 1), 0.45, "float32")
        attack = PGD(steps=40, step_size=0.1, random_start=False)
        attack.on_batch(attacked, x, Goal(np.zeros(3, int)))(np.arange(3), 0.4, 0)
        assert attacked.counter.gradients <= 3 * 8
