"""Feature squeezing: the squeezers, the detector, and the attack on both."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import compiled_value, slope, value_and_gradients
from keras import ops

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import AttackedModel, Goal, get
from keras_qusec.defenses import (
    BitDepthReduction,
    MedianSmoothing,
    NonLocalMeans,
    SqueezingDetector,
    area_under_curve,
    median_filter,
    non_local_means,
    roc_curve,
    surrogate_gradients,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 9, 7, 3)).astype("float32")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_median_equals_scipy(size):
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.median_filter(IMAGES, (1, size, size, 1), mode="reflect")
    filtered = compiled_value(lambda x: median_filter(x, size), IMAGES)
    np.testing.assert_array_equal(filtered, expected)


def test_median_takes_single_pixels_away():
    x = np.zeros((1, 8, 8, 1), "float32")
    x[0, 3, 4] = 1
    assert ops.convert_to_numpy(MedianSmoothing(2)(x)).max() == 0


def test_median_gradient_is_the_finite_difference():
    weights = RNG.normal(size=IMAGES.shape).astype("float32")

    def weighed(x):
        return ops.sum(median_filter(x, 2) * ops.convert_to_tensor(weights))

    _, (gradient,) = value_and_gradients(weighed, IMAGES)
    for place in [(0, 0, 0, 0), (1, 4, 3, 2), (0, 8, 6, 1)]:
        step = np.zeros_like(IMAGES)
        step[place] = 1e-4
        up, down = (float(compiled_value(weighed, x)) for x in (IMAGES + step, IMAGES - step))
        assert gradient[place] == pytest.approx((up - down) / 2e-4, abs=2e-2)


def test_non_local_means_equals_its_formula():
    search, patch, strength = 5, 3, 0.3
    x = IMAGES.astype("float64")
    padded = np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)], mode="symmetric")
    expected = np.zeros_like(x)
    for n in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                own = padded[n, i + 2 : i + 5, j + 2 : j + 5]
                total, weights = 0.0, 0.0
                for di in range(-2, 3):
                    for dj in range(-2, 3):
                        other = padded[n, i + 2 + di : i + 5 + di, j + 2 + dj : j + 5 + dj]
                        weight = np.exp(-np.mean((own - other) ** 2) / strength**2)
                        total = total + weight * other[1, 1]
                        weights += weight
                expected[n, i, j] = total / weights
    smoothed = compiled_value(lambda x: non_local_means(x, search, patch, strength), IMAGES)
    np.testing.assert_allclose(smoothed, expected, atol=1e-5)


def test_non_local_means_can_be_differentiated():
    layer = NonLocalMeans(3, 3, 0.2)
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(layer(x) ** 2), IMAGES)
    step = np.zeros_like(IMAGES)
    step[0, 4, 3, 1] = 1e-3
    up, down = (
        float(ops.convert_to_numpy(ops.sum(layer(ops.convert_to_tensor(x)) ** 2)))
        for x in (IMAGES + step, IMAGES - step)
    )
    assert gradient[0, 4, 3, 1] == pytest.approx((up - down) / 2e-3, abs=2e-2)


@pytest.fixture(scope="module")
def detector(digits, undefended):
    squeezers = [BitDepthReduction(1), MedianSmoothing(2)]
    detector = SqueezingDetector(undefended, squeezers)
    detector.calibrate(digits.x_train[2000:2400], false_positive_rate=0.05)
    return detector


class TestDetector:
    def test_it_separates_cw_from_clean_images(self, digits, undefended, detector):
        x, y = digits.x_test[:40], digits.y_test[:40]
        attacked = AttackedModel(undefended)
        cw = get("cw", steps=60, binary_search_steps=3, stepsize=0.05, initial_const=1.0)
        broken = cw.run(attacked, x, Goal(y), epsilon=None, seed=0)
        fooled = attacked.is_adversarial(broken, Goal(y)) & (broken != 0).any(axis=(1, 2, 3))
        assert fooled.sum() > 15
        clean, adversarial = detector.scores(x), detector.scores(broken[fooled])
        assert area_under_curve(clean, adversarial) > 0.9
        false_positives, detections = roc_curve(clean, adversarial)
        assert (np.diff(false_positives) >= 0).all()
        assert (np.diff(detections) >= 0).all()
        assert (detector.scores(digits.x_train[2000:2400]) > detector.threshold).mean() <= 0.05

    def test_it_loses_to_the_joint_adaptive_attack(self, digits, undefended, detector):
        x, y = digits.x_test[:40], digits.y_test[:40]
        smoothing = SqueezingDetector(undefended, [MedianSmoothing(2)])
        smoothing.calibrate(digits.x_train[2000:2400])
        # One bit is a quantizer of two levels, of whose robustness on digits some is real.
        models = {"median": smoothing, "one bit and median": detector}
        report = evaluate_robustness(models, x, y, attacks=[("pgd", {"steps": 60})], epsilons=[0.3])
        for name, model in models.items():
            predictions = AttackedModel(model).predictions(x)
            clean = report.clean_accuracy(name)
            assert clean == (predictions == y).mean() > 0.7
            white = report.robust_accuracy(model=name, threat_model="white-box")
            adaptive = report.robust_accuracy(model=name, threat_model="adaptive")
            assert adaptive <= white
            assert adaptive < (0.1 if name == "median" else clean - 0.15)

    def test_the_surrogate_is_that_of_all_predictions_together(self, digits, detector):
        """The mean of the logits on the image and on its squeezed versions, by hand."""
        x = digits.x_test[:6]
        layer = keras.layers.Rescaling(1.0)
        alone = SqueezingDetector(detector.classifier, [layer, keras.layers.Rescaling(0.5)])
        classify = AttackedModel(detector.classifier)
        with surrogate_gradients(alone, 5.0):
            together = slope(lambda x: ops.sum(alone(x)[:, 3]), x)
        own = slope(lambda x: ops.sum(alone(x)[:, 3]), x)
        pieces = [
            slope(lambda x, f=factor: ops.sum(detector.classifier(f * x)[:, 3]), x)
            for factor in (1.0, 1.0, 0.5)
        ]
        np.testing.assert_allclose(own, pieces[0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(together, np.mean(pieces, axis=0), rtol=1e-3, atol=1e-5)
        assert np.abs(together - own).max() > 1e-3
        np.testing.assert_allclose(
            ops.convert_to_numpy(alone(x)), classify.logits(x), rtol=1e-4, atol=1e-4
        )

    def test_the_surrogate_of_the_rejection_does_not_saturate(self, digits, detector):
        """Where predictions differ most, differences of probabilities have no gradient."""
        x = digits.x_test[:10]
        scale = keras.layers.Rescaling(1e4)
        sure = keras.Sequential([keras.Input((28, 28, 1)), detector.classifier, scale])
        saturated = SqueezingDetector(sure, [BitDepthReduction(1), MedianSmoothing(2)])
        own = slope(lambda x: ops.sum(saturated.rejection(x)), x)
        with surrogate_gradients(saturated, 5.0):
            adaptive = slope(lambda x: ops.sum(saturated.rejection(x)), x)
            value = compiled_value(lambda x: saturated.rejection(x), x)
        assert (own == 0).all(axis=(1, 2, 3)).mean() > 0.5
        assert (adaptive != 0).any(axis=(1, 2, 3)).all()
        plain = compiled_value(lambda x: saturated.rejection(x), x)
        np.testing.assert_allclose(value, plain, atol=1e-6)

    def test_saved_and_loaded(self, digits, detector, tmp_path):
        detector.save(tmp_path / "d.keras")
        again = keras.saving.load_model(tmp_path / "d.keras")
        x = digits.x_test[:8]
        np.testing.assert_allclose(again.scores(x), detector.scores(x), atol=1e-5)
        assert again.threshold == detector.threshold
        np.testing.assert_allclose(
            again.predict(x, verbose=0), detector.predict(x, verbose=0), atol=1e-5
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: SqueezingDetector(m, []), "at least one"),
        (lambda m: SqueezingDetector("model", [MedianSmoothing()]), "built Keras classifier"),
        (lambda m: SqueezingDetector(m, [MedianSmoothing()], threshold=3), "threshold"),
        (lambda m: SqueezingDetector(m, [MedianSmoothing()]).calibrate(
            np.ones((2, 28, 28, 1)), false_positive_rate=2), "false_positive_rate"),
        (lambda m: MedianSmoothing(1), "size"),
        (lambda m: MedianSmoothing(2)(np.ones((1, 28), "float32")), "Expected images"),
        (lambda m: MedianSmoothing(2).build((None, None, None, 1)), "known height"),
        (lambda m: NonLocalMeans(4), "odd"),
        (lambda m: NonLocalMeans(13, 3, 0), "strength"),
        (lambda m: roc_curve(np.ones(0), np.ones(3)), "scores of clean"),
    ],
)  # fmt: skip
def test_bad_settings(undefended, make, message):
    with pytest.raises(ValueError, match=message):
        make(undefended)
