"""What a model's outputs are, and how its logits are reached."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import EPSILONS, FEATURES, IMAGES, NEAREST, X, Y, predicted, small_cnn

from keras_qusec import QuSecQuantization, evaluate_robustness
from keras_qusec.logits import logits_function

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestLogits:
    def softmaxed(self, kind):
        """The same network with its softmax in different places."""
        plain = small_cnn()
        inputs = keras.Input((8, 8, 1))
        if kind == "activation":
            model = small_cnn(activation="softmax")
        elif kind == "operation":
            model = keras.Model(inputs, keras.ops.softmax(small_cnn()(inputs)))
        elif kind == "logarithm":
            model = keras.Model(inputs, keras.ops.log(keras.ops.softmax(small_cnn()(inputs))))
        elif kind == "twice nested":
            nested = keras.Sequential([inputs, small_cnn(activation="softmax")])
            model = keras.Sequential([keras.Input((8, 8, 1)), nested])
        elif kind == "cast":
            scores = small_cnn(activation="softmax")(inputs)
            model = keras.Model(inputs, keras.ops.cast(scores, "float16"))
        elif kind == "layer":
            model = keras.Sequential([*small_cnn().layers, keras.layers.Softmax()])
            model.build((None, 8, 8, 1))
        elif kind == "activation layer":
            model = keras.Sequential([*small_cnn().layers, keras.layers.Activation("softmax")])
            model.build((None, 8, 8, 1))
        else:
            model = keras.Sequential([keras.Input((8, 8, 1)), small_cnn(activation="softmax")])
        model.set_weights(plain.get_weights())
        return model

    def test_half_precision_and_batch_statistics(self):
        """float16 inside, float32 for the attacks; the model's state stays as it was."""
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                QuSecQuantization(2),
                keras.layers.Conv2D(4, 3, activation="relu", dtype="mixed_float16"),
                keras.layers.BatchNormalization(dtype="mixed_float16"),
                keras.layers.Dropout(0.5),
                keras.layers.Flatten(),
                keras.layers.Dense(4, dtype="mixed_float16"),
            ]
        )
        before = [np.array(w) for w in model.get_weights()]
        y = predicted(model, IMAGES)
        report = evaluate_robustness(
            model, IMAGES, y, attacks=["pgd", "deepfool", "jsma-paper"], epsilons=[0.05, 0.3]
        )
        assert not report.failures
        assert report.robust_accuracy() < report.clean_accuracy() == 1.0
        for one, two in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize(
        "kind",
        [
            "activation", "layer", "activation layer", "operation", "logarithm", "nested",
            "twice nested", "cast",
        ],
    )  # fmt: skip
    def test_a_softmax_is_left_out(self, cnn, kind):
        model = self.softmaxed(kind)
        logits = keras.ops.convert_to_numpy(cnn(IMAGES))
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(logits_function(model)(IMAGES)), logits, atol=1e-6
        )
        y = logits.argmax(axis=1)
        settings = {"attacks": ["pgd", "deepfool"], "epsilons": [0.01, 0.03]}
        expected = evaluate_robustness(cnn, IMAGES, y, **settings)
        report = evaluate_robustness(model, IMAGES, y, **settings)
        for attack in ("pgd", "deepfool"):
            assert report.robust_accuracy(attack) == expected.robust_accuracy(attack)
        # The model itself is as it was.
        outputs = keras.ops.convert_to_numpy(model(IMAGES)).astype("float32")
        outputs = np.exp(outputs) if kind == "logarithm" else outputs
        np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=2e-3)

    def test_what_is_attacked_is_the_model_itself(self):
        """The mean of two softmax networks: no layer's activation may be left out."""
        inputs = keras.Input((8, 8, 1))
        one, two = small_cnn(1, activation="softmax"), small_cnn(2, activation="softmax")
        mean = keras.Model(inputs, (one(inputs) + two(inputs)) / 2)
        with pytest.raises(ValueError, match=r"computed from probabilities.*Say outputs="):
            evaluate_robustness(mean, IMAGES[:4], np.zeros(4, int))
        with pytest.raises(ValueError, match="computed from probabilities"):
            evaluate_robustness(
                small_cnn(), IMAGES, np.zeros(24, int), threat_models="black-box", source_model=mean
            )

    def test_saturated_softmax_hides_nothing(self, linear):
        """Logits a thousand times larger: the softmax's gradient is exactly zero."""
        model = keras.Sequential(
            [keras.Input((FEATURES,)), keras.layers.Dense(2, activation="softmax")]
        )
        model.set_weights([1000 * w for w in linear.get_weights()])
        radius = EPSILONS["linf"][2]
        report = evaluate_robustness(model, X, Y, attacks=["pgd"], epsilons=[radius])
        assert report.robust_accuracy() == pytest.approx(
            (NEAREST["linf"] > radius).mean(), abs=0.02
        )
