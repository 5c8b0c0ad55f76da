"""Defences whose steps mask the gradient: what they do, and how the adaptive attack undoes it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from digit_networks import small_network, trained
from helpers import compiled_value, slope, value_and_gradients
from keras import ops

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import FGSM
from keras_qusec.defenses import (
    BitDepthReduction,
    QuantizedActivation,
    ThermometerEncoding,
    distill,
    reduce_bit_depth,
    surrogate_gradients,
)
from keras_qusec.quantization import equal_thresholds

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

RNG = np.random.default_rng(0)


def reports(model, data, epsilon=0.3, **settings):
    """Clean accuracy, and what is left under plain white-box and adaptive attacks."""
    settings = {"attacks": [("bim", {"steps": 10})], "epsilons": [epsilon], **settings}
    report = evaluate_robustness(model, data.x_test[:60], data.y_test[:60], **settings)
    return (
        report.clean_accuracy(),
        report.robust_accuracy(threat_model="white-box"),
        report.robust_accuracy(threat_model="adaptive"),
    )


class TestThermometer:
    def test_values_by_hand(self):
        layer = ThermometerEncoding(4, value_range=(0, 2))
        x = np.array([[[0.0, 0.5], [1.4, 2.0]]], "float32")
        y = ops.convert_to_numpy(layer(x))
        expected = [[[1, 0, 0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1]]]
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(compiled_value(layer, x), expected)
        assert layer.compute_output_shape((None, 1, 2)) == (None, 1, 8)

    @pytest.mark.parametrize("value_range", [(0.0, 255.0), (-1.0, 1.0)])
    def test_the_surrogate_is_in_units_of_the_value_range(self, value_range):
        low, high = value_range
        layer = ThermometerEncoding(4, value_range=value_range)
        x = (low + (high - low) * np.linspace(0.02, 0.98, 30)).astype("float32")[:, None]
        with surrogate_gradients(layer, 6.0):
            _, (dx,) = value_and_gradients(layer, x)
        share = (x.astype("float64") - layer.marks) / (high - low)
        s = 1 / (1 + np.exp(-6.0 * share))
        expected = (6.0 / (high - low) * s * (1 - s)).sum(axis=1)
        np.testing.assert_allclose(dx[:, 0], expected, rtol=1e-4)

    def test_own_gradient_is_zero_and_the_surrogate_that_of_sigmoids(self):
        layer = ThermometerEncoding(5)
        x = RNG.random((3, 4)).astype("float32")
        weights = RNG.normal(size=20).astype("float32")

        def weighed(x):
            return ops.sum(layer(x) * ops.convert_to_tensor(weights))

        np.testing.assert_array_equal(slope(weighed, x), 0)
        with surrogate_gradients(layer, 7.0):
            value, (gradient,) = value_and_gradients(weighed, x)
        s = 1 / (1 + np.exp(-7 * (x[..., None] - layer.marks)))
        expected = (7 * s * (1 - s) * weights.reshape(4, 5)).sum(axis=-1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
        assert value == pytest.approx(float(compiled_value(weighed, x)), rel=1e-6)

    def test_it_collapses_under_the_adaptive_attack(self, digits):
        model = trained(small_network(ThermometerEncoding(8)), digits)
        clean, white, adaptive = reports(model, digits)
        assert clean > 0.85
        assert white > 0.5
        assert adaptive < 0.1


class TestQuantizedActivation:
    @pytest.mark.parametrize("levels", [2, 3, 5])
    def test_values_by_hand(self, levels):
        layer = QuantizedActivation(levels)
        x = RNG.normal(size=(4, 6)).astype("float32")
        y = ops.convert_to_numpy(layer(x))
        marks = equal_thresholds(levels, (-1.0, 1.0))
        count = (np.tanh(x)[..., None] >= marks).sum(axis=-1)
        np.testing.assert_allclose(y, 2 * count / (levels - 1) - 1, atol=1e-6)
        np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=True)), y)

    def test_straight_through_in_training_and_masked_in_inference(self):
        layer = QuantizedActivation(3)
        x = RNG.normal(size=(4, 6)).astype("float32")
        layer.build(x.shape)
        np.testing.assert_array_equal(slope(lambda x: ops.sum(layer(x)), x), 0)
        expected = 1 - np.tanh(x) ** 2
        _, (training,) = value_and_gradients(lambda x: ops.sum(layer(x, training=True)), x)
        np.testing.assert_allclose(training, expected, atol=1e-5)
        with surrogate_gradients(layer, 5.0):
            _, (adaptive,) = value_and_gradients(lambda x: ops.sum(layer(x)), x)
        np.testing.assert_allclose(adaptive, expected, atol=1e-5)

    def test_thresholds_train_or_stay(self, digits):
        for trainable in (True, False):
            layer = QuantizedActivation(3, trainable_thresholds=trainable)
            model = small_network(activation=lambda layer=layer: layer)
            before = layer.thresholds
            trained(model, digits, images=256, epochs=1)
            assert (np.abs(layer.thresholds - before).max() > 1e-4) == trainable
            assert (np.diff(layer.thresholds) >= 0).all()

    def test_it_collapses_under_the_adaptive_attack(self, digits):
        """The paper's Fig. 6: the sign masks the gradient; the adaptive attack lets it pass."""
        model = trained(small_network(activation=lambda: QuantizedActivation(2)), digits)
        clean, white, adaptive = reports(model, digits)
        assert clean > 0.75
        assert white > 0.5
        assert adaptive < 0.1


class TestBitDepth:
    def test_all_bytes(self):
        x = (np.arange(256) / 255).astype("float32")
        for bits in (1, 2, 5, 8):
            steps = 2**bits - 1
            y = ops.convert_to_numpy(reduce_bit_depth(ops.convert_to_tensor(x), bits))
            np.testing.assert_allclose(y, np.rint(x * steps) / steps, atol=1e-6)
            scaled = ops.convert_to_numpy(
                reduce_bit_depth(ops.convert_to_tensor(255 * x), bits, (0.0, 255.0))
            )
            np.testing.assert_allclose(scaled, 255 * y, atol=1e-3)

    def test_the_adaptive_attack_goes_through_it(self, digits):
        model = trained(small_network(BitDepthReduction(1)), digits)
        clean, white, adaptive = reports(model, digits, epsilon=0.4)
        assert clean > 0.85
        assert white == clean
        assert adaptive < clean - 0.2


class TestDistillation:
    def test_it_masks_the_gradient_of_probabilities_and_falls_to_the_logits(self, digits):
        x, y = digits.x_train[:2000], digits.y_train[:2000]
        optimizer = keras.optimizers.Adam(0.01)
        student = distill(
            small_network(), x, y, temperature=40, optimizer=optimizer, epochs=6, batch_size=64,
            verbose=0,
        )  # fmt: skip
        x, y = digits.x_test[:60], digits.y_test[:60]
        right = student.predict(x, verbose=0).argmax(axis=1) == y

        # The gradient of the cross-entropy of the saturated softmax, as an attack that takes the
        # model as it is would follow; Keras cuts probabilities off there, too.
        def loss(images):
            shares = student(images, training=False)
            return ops.sum(-ops.log(ops.clip(ops.max(shares, axis=1), 1e-7, 1 - 1e-7)))

        gradient = slope(loss, x)
        zero = (gradient == 0).all(axis=(1, 2, 3))
        assert zero[right].mean() > 0.5
        fgsm = np.clip(x + 0.2 * np.sign(gradient), 0, 1).astype("float32")
        masked = ((student.predict(fgsm, verbose=0).argmax(axis=1) == y) & right).mean()
        ours = FGSM(0.2)(student, x, y)
        followed = ((student.predict(ours, verbose=0).argmax(axis=1) == y) & right).mean()
        assert masked > followed + 0.3
        clean, white, adaptive = reports(student, digits, epsilon=0.2)
        assert clean > 0.8
        assert white < 0.1
        assert adaptive < 0.1

    def test_the_soft_labels_are_those_at_the_temperature(self):
        """The first loss of a student that begins as its teacher ended is their entropy."""
        rng = np.random.default_rng(1)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
        model.set_weights([rng.normal(0, 4, (5, 4)), rng.normal(0, 1, 4)])
        x = rng.random((64, 5)).astype("float32")
        losses = keras.callbacks.History()
        distill(
            model, x, np.arange(64) % 4, temperature=7, optimizer=keras.optimizers.SGD(0.0),
            callbacks=[losses], epochs=1, batch_size=64, verbose=0,
        )  # fmt: skip
        logits = ops.convert_to_numpy(model(x)).astype("float64") / 7
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        entropy = -(p * np.log(p)).sum(axis=1).mean()
        assert losses.history["loss"][0] == pytest.approx(entropy, rel=1e-4)

    def test_the_model_given_stays_as_it_is(self, digits):
        model = small_network()
        before = [np.array(w) for w in model.get_weights()]
        distill(model, digits.x_train[:64], digits.y_train[:64], epochs=1, verbose=0)
        for one, two in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThermometerEncoding(1), "levels to be a whole number from 2"),
        (lambda: ThermometerEncoding(4, value_range=(1, 0)), "value_range"),
        (lambda: ThermometerEncoding(4)(ops.ones((2, 2), "uint8")), "dtype=uint8"),
        (lambda: BitDepthReduction(0), "bits"),
        (lambda: BitDepthReduction(1)(ops.ones((2, 2), "uint8")), "dtype=uint8"),
        (lambda: QuantizedActivation(1), "levels"),
        (lambda: distill(small_network(), np.ones((2, 28, 28, 1)), [0, 1], temperature=0), "temper"),
        (lambda: distill(small_network(), np.ones((2, 28, 28, 1)), [0, 10]), "from 0 to 9"),
        (lambda: distill(keras.Sequential([keras.Input((3,)), keras.layers.Softmax()]),
                         np.ones((2, 3)), [0, 1]), "ends in logits"),
    ],
)  # fmt: skip
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
