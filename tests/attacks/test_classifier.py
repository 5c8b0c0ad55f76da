"""Classifiers that are no Keras models: judged, asked, transferred to, reported."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import MARGIN, WEIGHTS, X, Y

from keras_qusec import audit_robustness, evaluate_robustness
from keras_qusec.attacks import AttackedModel, Classifier, FunctionClassifier, Goal, Square

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


def logits(images):
    score = images @ WEIGHTS + np.float32(0.1)
    return np.stack([0 * score, score], axis=1)


def probabilities(images):
    shares = np.exp(logits(images).astype("float64"))
    return shares / shares.sum(axis=1, keepdims=True)


def classes(images):
    return logits(images).argmax(axis=1)


KINDS = {"logits": logits, "probabilities": probabilities, "classes": classes}
# The distance within which no attack can break an image.
NEAREST = np.abs(MARGIN) / np.abs(WEIGHTS).sum()


def classifier_of(kind, **settings):
    return FunctionClassifier(KINDS[kind], classes=2, outputs=kind, **settings)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_asked_equals_the_keras_model(linear, kind):
    ours, theirs = classifier_of(kind), AttackedModel(linear)
    np.testing.assert_array_equal(ours.predictions(X), theirs.predictions(X))
    goal = Goal(Y)
    np.testing.assert_array_equal(ours.is_adversarial(X, goal), theirs.is_adversarial(X, goal))
    assert ours.counter.queries == 2 * len(X)
    assert not ours.rejected(X).any()
    signs = [np.sign(one.margins(X, goal)) for one in (ours, theirs)]
    np.testing.assert_array_equal(*signs)
    if kind != "classes":
        np.testing.assert_allclose(ours.margins(X, goal), theirs.margins(X, goal), atol=1e-5)


def test_an_attack_that_asks_is_the_same_on_both(linear):
    images = [
        Square(queries=200).run(one, X, Goal(Y), epsilon=0.1, seed=0)
        for one in (classifier_of("logits"), AttackedModel(linear))
    ]
    np.testing.assert_allclose(*images, atol=1e-6)


# HopSkipJump, for classes alone, takes long to compile on JAX.
@pytest.mark.parametrize("kind", ["logits", pytest.param("classes", marks=pytest.mark.once)])
def test_an_evaluation(kind):
    """By default attacks that ask for outputs, as an adversary without the gradients."""
    report = evaluate_robustness(classifier_of(kind), X, Y, attacks="quick", epsilons=[0.02, 0.2])
    assert report.threat_models == ("black-box",)
    assert report.models == (kind,)
    assert report.evidence == "queries"
    assert "gives no gradients" in report.notes[0]
    assert not any("random" in note for note in report.notes)
    for epsilon in (0.02, 0.2):
        robust = report.robust_images(epsilon=epsilon)
        # Never broken where that is impossible.
        assert robust[(epsilon * 1.001 < NEAREST) & report.correct[kind]].all()
    assert report.robust_accuracy(epsilon=0.2) < 0.5 * report.clean_accuracy()


def test_transferred_to_and_asked(linear):
    """PGD on a Keras source breaks what it can; the function alone judges."""
    report = evaluate_robustness(
        {"function": classifier_of("logits"), "keras": linear}, X, Y,
        attacks=["pgd", "square"], epsilons=[0.05],
        threat_models=["white-box", "black-box"], source_model={"source": shifted(linear)},
    )  # fmt: skip
    made = {(r.model, r.attack, r.threat_model, r.source) for r in report.results}
    assert ("function", "pgd", "black-box", "source") in made
    assert ("function", "square", "black-box", None) in made
    assert ("keras", "pgd", "white-box", None) in made
    assert ("function", "pgd", "white-box", None) not in made
    robust = report.robust_images("pgd", 0.05, "black-box", model="function")
    np.testing.assert_array_equal(
        robust, report.robust_images("pgd", 0.05, "black-box", model="keras")
    )
    assert robust.mean() == pytest.approx((NEAREST > 0.05).mean(), abs=1 / len(X))


def shifted(linear):
    """The same weights and another bias: its own examples break both."""
    other = keras.models.clone_model(linear)
    weights, bias = linear.get_weights()
    other.set_weights([weights, bias + np.array([0.0, 1e-3], "float32")])
    return other


def test_with_a_source_the_preset_transfers_too(linear):
    report = evaluate_robustness(
        classifier_of("logits"), X, Y, epsilons=[0.05], source_model={"source": shifted(linear)}
    )
    assert set(report.attacks) == {"square", "fgsm", "pgd"}


@pytest.mark.parametrize("attack", ["boundary", "pointwise", "standard"])
def test_more_attacks(attack):
    settings = ("boundary", {"steps": 50}) if attack == "boundary" else attack
    report = evaluate_robustness(
        classifier_of("logits"), X[:10], Y[:10], attacks=[settings],
        epsilons={"linf": [0.2], "l2": [0.5]},
    )  # fmt: skip
    assert not report.failures
    assert report.results[0].queries.sum() > 0
    assert report.results[0].gradients.sum() == 0
    if attack == "standard":
        assert [part.attack for part in report.results[0].parts] == ["square"]
        assert report.robust_accuracy(epsilon=0.2) < 1
    else:
        assert report.robust_accuracy(epsilon=np.inf, norm="l2") == 0


@pytest.mark.once
def test_in_other_processes():
    settings = {"attacks": [("square", {"queries": 50})], "epsilons": [0.05], "batch_size": 30}
    one, two = (
        evaluate_robustness(classifier_of("logits"), X, Y, n_jobs=n_jobs, **settings)
        for n_jobs in (None, 2)
    )
    np.testing.assert_array_equal(one.robust_images(), two.robust_images())


def test_it_resumes_and_knows_itself(tmp_path):
    settings = {
        "attacks": [("square", {"queries": 20})],
        "epsilons": [0.05],
        "resume_dir": tmp_path,
    }
    first = evaluate_robustness(classifier_of("logits"), X, Y, **settings)
    again = classifier_of("logits")
    assert evaluate_robustness(again, X, Y, **settings).results[0].queries.tolist() == (
        first.results[0].queries.tolist()
    )
    with pytest.raises(ValueError, match="differs in models"):
        evaluate_robustness(
            FunctionClassifier(logits, classes=2, name="logits", identity="another"),
            X, Y, **settings,
        )  # fmt: skip


def test_channels_first():
    """The function gets images as it wants them; attacks and examples have channels last."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 6 * 5, 2)).astype("float32")
    x = rng.uniform(0.3, 0.7, (8, 3, 6, 5)).astype("float32")
    shapes = set()

    def first(images):
        shapes.add(images.shape[1:])
        return images.reshape(len(images), -1) @ weights

    y = first(x).argmax(axis=1)
    classifier = FunctionClassifier(
        first, classes=2, input_shape=(3, 6, 5), data_format="channels_first"
    )
    report = evaluate_robustness(
        classifier, x, y, attacks=[("square", {"queries": 50})], epsilons=[0.2], keep_examples=True
    )
    assert report.clean_accuracy() == 1.0
    found = report.examples()
    assert len(found.numbers)
    assert found.images.shape[1:] == (6, 5, 3)
    moved = np.moveaxis(found.images, -1, 1)
    assert (first(moved).argmax(axis=1) != y[found.numbers]).all()
    assert np.abs(moved - x[found.numbers]).max() <= 0.2 + 1e-6
    assert shapes == {(3, 6, 5)}
    with pytest.raises(ValueError, match="data_format"):
        evaluate_robustness(classifier, x, y, data_format="channels_last")


def test_fixed_batches_are_filled():
    seen = []

    def fixed(images):
        seen.append(len(images))
        images[:] = 0  # what it does to its input is its own affair
        return np.tile(np.float32([[1, 0]]), (len(images), 1))

    x = X[:10].copy()
    classifier = FunctionClassifier(fixed, classes=2, batch_size=4)
    assert classifier.logits(x).shape == (10, 2)
    assert seen == [4, 4, 4]
    np.testing.assert_array_equal(x, X[:10])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FunctionClassifier("model", classes=2), "Expected a function"),
        (lambda: FunctionClassifier(logits, classes=1), "classes"),
        (lambda: FunctionClassifier(logits, classes=2, outputs="scores"), "outputs"),
        (lambda: FunctionClassifier(logits, classes=3).logits(X), r"shape \(60, 3\)"),
        (lambda: FunctionClassifier(logits, classes=2, outputs="classes").logits(X), "classes"),
        (
            lambda: FunctionClassifier(
                lambda x: 10 * logits(x), classes=2, outputs="probabilities"
            ).logits(X),
            'Say outputs="logits"',
        ),
        (
            lambda: FunctionClassifier(
                lambda x: np.full(len(x), 2), classes=2, outputs="classes"
            ).logits(X),
            "classes from 0 to 1",
        ),
        (
            lambda: evaluate_robustness(classifier_of("logits", value_range=(0, 255)), X, Y),
            "value_range",
        ),
        (
            lambda: evaluate_robustness(classifier_of("logits", input_shape=(9,)), X, Y),
            r"shape \(None, 9\)",
        ),
        (
            lambda: evaluate_robustness(
                FunctionClassifier(lambda x: np.random.default_rng().random((len(x), 2)), classes=2),
                X, Y,
            ),
            "repeats its outputs",
        ),
        (
            lambda: evaluate_robustness(classifier_of("logits"), X, Y, outputs="logits"),
            "where the classifier is made",
        ),
        (
            lambda: evaluate_robustness(
                classifier_of("logits"), X, Y, attacks=["pgd"], threat_models=["white-box"]
            ),
            "an attack that can be made",
        ),
        (lambda: audit_robustness(classifier_of("logits"), X, Y, epsilon=0.1), "Keras model"),
        (lambda: evaluate_robustness(logits, X, Y), "FunctionClassifier"),
    ],
)  # fmt: skip
def test_errors_teach(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Rejecting(Classifier):
    """A classifier of one's own that rejects dark images."""

    digest, rejects = "rejecting", True

    def logits(self, x):
        self.counter.queries += len(x)
        return logits(x)

    def rejected(self, x):
        return x.mean(axis=1) < 0.5


def test_a_class_of_ones_own_may_reject():
    report = evaluate_robustness(Rejecting("mine"), X, Y, attacks=["square"], epsilons=[0.3])
    dark = X.mean(axis=1) < 0.5
    assert 0 < dark.sum() < len(X)
    assert not report.correct["mine"][dark].any()
