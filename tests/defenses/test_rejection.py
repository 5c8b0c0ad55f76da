"""Classifiers that may reject an image: what counts as correct, and as an adversarial example."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import PGD, REJECTED, AttackedModel, Goal
from keras_qusec.defenses import RejectingClassifier

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


@keras.saving.register_keras_serializable("tests")
class Guarded(keras.Model):
    """Two features: the first decides the class at 0.5, the second is rejected above a limit.

    The classifier also listens to the second feature, so that an attack which follows it alone
    raises that one and runs into the detector.
    """

    def __init__(self, limit=0.6):
        super().__init__()
        self.output_kind = "logits"
        self.limit = limit
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(x)

    def rejection(self, images):
        return images[:, 1] - self.limit

    def get_config(self):
        return {"limit": self.limit}


@pytest.fixture
def guarded():
    model = Guarded()
    model(np.zeros((1, 2), "float32"))
    # Class 1 where x0 + 2 x1 > 1.45.
    model.head.set_weights([np.array([[0, 1], [0, 2]], "float32"), np.array([0, -1.45], "float32")])
    return model


# Classes 0, 0 and 1; the last image is rejected, though classified correctly.
X = np.array([[0.2, 0.5], [0.2, 0.3], [0.2, 0.9]], "float32")
Y = np.array([0, 0, 1])


def test_the_protocol(guarded):
    assert isinstance(guarded, RejectingClassifier)
    assert not isinstance(keras.Sequential([keras.layers.Dense(2)]), RejectingClassifier)


def test_a_rejected_clean_image_counts_as_misclassified(guarded):
    attacked = AttackedModel(guarded)
    np.testing.assert_array_equal(attacked.predictions(X), [0, 0, REJECTED])
    report = evaluate_robustness(guarded, X, Y, attacks=["fgsm"], epsilons=[0.01])
    assert report.clean_accuracy() == pytest.approx(2 / 3)


def test_goals_are_never_reached_by_a_rejected_image():
    rejected = np.full(2, REJECTED)
    assert not Goal(np.array([0, 1])).reached(rejected).any()
    assert not Goal(np.array([0, 1]), np.array([1, 0])).reached(rejected).any()


def test_misclassified_and_rejected_does_not_count(guarded):
    """FGSM raises both features by 0.15: misclassified, and rejected."""
    x, y = X[:1], Y[:1]
    moved = x + np.float32(0.15)
    assert keras.ops.convert_to_numpy(guarded(moved)).argmax() == 1
    report = evaluate_robustness(
        guarded, x, y, attacks=["fgsm"], epsilons=[0.15], threat_models=["white-box"]
    )
    assert report.robust_accuracy() == 1.0


def test_the_adaptive_attacker_evades_the_detector(guarded):
    """At 0.3 there is an accepted example: the first feature up, the second below the limit."""
    x, y = X[:1], Y[:1]
    accepted = x + np.array([[0.29, 0.095]], "float32")
    assert AttackedModel(guarded).predictions(accepted)[0] == 1
    report = evaluate_robustness(
        guarded, x, y, attacks=[("bim", {"steps": 40, "relative_step_size": 0.05})],
        epsilons=[0.3],
    )  # fmt: skip
    adaptive = report.robust_accuracy(threat_model="adaptive")
    assert adaptive == 0.0
    for result in report.results:
        for index, image in result.examples.items():
            assert AttackedModel(guarded).predictions(image[None])[0] == 1 - y[index]
    # No accepted example exists within 0.1: x0 + 2 x1 stays below 0.3 + 1.2 at the limit.
    report = evaluate_robustness(guarded, X[1:2], Y[1:2], attacks=["pgd"], epsilons=[0.1])
    assert report.robust_accuracy() == 1.0


def test_images_go_on_while_they_are_rejected(guarded):
    """An image that is misclassified but rejected is not done, so its steps go on."""
    attacked = AttackedModel(guarded)
    (evading,) = attacked.with_surrogates([3.0])
    attack = PGD(0.3, steps=40, relative_step_size=0.05, random_start=False)
    search = attack.on_batch(evading, X[:1], Goal(Y[:1]))
    image = search(np.array([0]), 0.3, 0)
    assert attacked.predictions(image)[0] == 1
    assert attacked.counter.gradients >= 4


def test_queries_see_rejections(guarded):
    report = evaluate_robustness(guarded, X[:2], Y[:2], attacks=["single-pixel", "pointwise"])
    for result in report.results:
        for index, image in result.examples.items():
            assert image[1] <= guarded.limit
            assert AttackedModel(guarded).predictions(image[None])[0] != Y[index]
