"""Each check of the audit alone: evidence made by hand on which it must fail, and must not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_qusec import RobustnessReport
from keras_qusec.attacks import AttackedModel
from keras_qusec.audit import CHECKS
from keras_qusec.audit.check import FAILED, NOT_RUN, PASSED
from keras_qusec.audit.evidence import BUDGETS, JUDGED, TARGETED, Evidence
from keras_qusec.audit.rising_accuracy import radii_of
from keras_qusec.defenses import straight_through
from keras_qusec.results import Certificate, Result

# The checks are NumPy but for planted examples, gradients and logits, which other tests see on
# each backend.
pytestmark = pytest.mark.once

BY_NAME = {check.identifier: check for check in CHECKS}
COUNT, FEATURES, EPSILON = 40, 24, 0.1
RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (COUNT, FEATURES)).astype("float32")
WEIGHTS = RNG.normal(size=(FEATURES, 2)).astype("float32")
WEIGHTS -= WEIGHTS.mean(axis=0)  # so that about half of the images are of each class
FAR, NEAR = np.full(COUNT, np.inf), np.full(COUNT, 0.05)


class Layer(keras.layers.Layer):
    """A layer of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def model_of(*identities, scale=1.0, behind=()):
    layers = [Layer(function) for function in identities]
    dense = keras.layers.Dense(2, use_bias=False)
    ends = [Layer(function) for function in behind]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers, dense, *ends])
    dense.set_weights([scale * WEIGHTS])
    return model


def report_of(found, correct, models="m", sources=()):
    """A report of what attacks found: by name, the L-infinity distance of each image's example."""
    results = []
    for key, distances in found.items():
        attack, _, source = key.partition(" from ")
        sizes = {norm: np.asarray(distances, "float32") for norm in ("linf", "l2", "l0", "l1")}
        none = np.zeros(1)
        results.append(
            Result(
                models, source or None, "white-box", attack, (None,), sizes, none, none, none, {}
            )
        )
    identity = {
        "images": COUNT, "value range": [0.0, 1.0], "joined attacks": {},
        "surrogate hardnesses": [3.0], "models": {models: "1"}, "sources": dict.fromkeys(sources),
    }  # fmt: skip
    return RobustnessReport(
        correct={models: correct}, results=results, epsilons={"linf": [EPSILON]},
        norms={result.attack: "linf" for result in results}, provenance={"identity": identity},
    )  # fmt: skip


def proofs_of(correct, proved):
    """A report that proves some images and attacks none."""
    states = np.where(correct, "open", "broken")
    states[list(proved)] = "proved"
    report = report_of({}, correct)
    report.certificates.append(
        Certificate("m", "linf", EPSILON, states, "bounds", np.zeros(COUNT), 0.0)
    )
    return report


def evidence_of(
    model=None,
    found=None,
    *,
    adaptive_report=None,
    transfers=None,
    wrong=(),
    outputs="logits",
    identities=(),
    surrogates=False,
    proved=None,
):
    attacked = AttackedModel(model or model_of(), outputs=outputs)
    labels = attacked.predictions(X)
    labels[list(wrong)] = 1 - labels[list(wrong)]
    correct = attacked.predictions(X) == labels
    found = {JUDGED: FAR, TARGETED: FAR, **(found or {})}
    return Evidence(
        model=attacked, followed=[attacked, attacked] if surrogates else [attacked], x=X,
        labels=labels, correct=correct, epsilon=EPSILON, threat_models=("white-box",),
        budget=BUDGETS["quick"], seed=0, evaluation=report_of(found, correct),
        adaptive_report=None if adaptive_report is None else report_of(adaptive_report, correct),
        transfers=None if transfers is None else report_of(transfers, correct), identities=identities,
        proofs=None if proved is None else proofs_of(correct, proved),
    )  # fmt: skip


def mirrored(x):
    return straight_through(x, -x)


def rounded(x):
    return ops.round(8 * x) / 8


RADII = {f"pgd at {radius:g}": radius for radius in radii_of(EPSILON, 1.0).values()}
WITHIN = {name: np.full(COUNT, radius) for name, radius in RADII.items()}
# By check: evidence on which it fails.
MUST_FAIL = {
    "gradient-values": lambda: evidence_of(model_of(ops.stop_gradient)),
    "gradient-path": lambda: evidence_of(model_of(rounded)),
    "saturated-outputs": lambda: evidence_of(model_of(scale=1e4)),
    "one-step": lambda: evidence_of(found={"fgsm": NEAR}),
    "more-effort": lambda: evidence_of(found={"pgd-more": NEAR}),
    "rising-accuracy": lambda: evidence_of(found={**WITHIN, "pgd at 0.5": FAR}),
    "unbounded": lambda: evidence_of(found={**WITHIN, "pgd at 1": FAR}),
    "half-range": lambda: evidence_of(found={**WITHIN, "pgd at 0.5": FAR}),
    "noise": lambda: evidence_of(found={"noise": NEAR}),
    "gradient-free": lambda: evidence_of(found={"square": NEAR}),
    "transfer": lambda: evidence_of(transfers={"pgd from other": NEAR}),
    "surrogates": lambda: evidence_of(adaptive_report={"pgd": NEAR}),
    "loss-path": lambda: evidence_of(model_of(mirrored)),
    "distances": lambda: evidence_of(found={"fmn-linf": FAR, **WITHIN}),
    "finite-differences": lambda: evidence_of(model_of(mirrored)),
    "proofs": lambda: evidence_of(found={"pgd": NEAR}, proved=range(5)),
}
# What would be found of a model whose gradients can be trusted.
GOOD = {
    **WITHIN, "fgsm": FAR, "pgd-more": FAR, "noise": FAR, "square": FAR,
    "fmn-linf": np.full(COUNT, 0.01),
}  # fmt: skip


def good(**more):
    return evidence_of(
        found=GOOD,
        transfers={"pgd from other": FAR},
        adaptive_report={"pgd": FAR},
        proved=(),
        **more,
    )


@pytest.mark.parametrize("identifier", MUST_FAIL)
def test_each_check_has_failed_and_passed(identifier):
    check = BY_NAME[identifier]
    assert check.judge(MUST_FAIL[identifier]()).status == FAILED
    assert check.judge(good()).status == PASSED


def test_the_radii_of_the_sweep():
    assert list(radii_of(0.1, 1.0).values()) == [0.025, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert list(radii_of(0.8, 1.0).values()) == [0.2, 0.4, 0.5, 0.8, 1.0]


def test_planted_examples():
    """PGD along the mirrored gradient misses what is planted; along the own one it does not."""
    check = BY_NAME["planted-examples"]
    found = check.judge(evidence_of(model_of(mirrored)))
    assert found.status == FAILED
    assert found.numbers["missed"] > 0.8
    assert check.judge(good()).status == PASSED


@pytest.mark.parametrize(
    ("scale", "largest", "status"),
    # TensorFlow's softmax reaches 1 or the float below it, as the processor decides.
    [(1e4, 1.0, FAILED), (1e4, 1 - 2**-24, FAILED), (1.0, 1.0, PASSED)],
)
def test_saturated_probabilities(scale, largest, status):
    model = model_of(scale=scale, behind=[ops.softmax, lambda p: p * np.float32(largest)])
    found = BY_NAME["saturated-outputs"].judge(evidence_of(model, outputs="probabilities"))
    assert "the probability of the class" in found.evidence
    assert found.status == status


def test_random_outputs():
    class Noise(keras.layers.Layer):
        def __init__(self, size):
            super().__init__()
            self.size, self.generator = size, keras.random.SeedGenerator(0)

        def call(self, x):
            return x + self.size * keras.random.normal(ops.shape(x), seed=self.generator)

    check = BY_NAME["random-outputs"]
    for size, status in ((0.1, FAILED), (0.0, PASSED)):
        dense = keras.layers.Dense(2, use_bias=False)
        model = keras.Sequential([keras.Input((FEATURES,)), Noise(size), dense])
        assert check.judge(evidence_of(model)).status == status


def test_every_check_has_a_case():
    tested = {*MUST_FAIL, "planted-examples", "random-outputs"}
    assert tested == set(BY_NAME)


@pytest.mark.parametrize("identifier", ["loss-path", "finite-differences"])
def test_checks_of_the_own_gradient_do_not_judge_surrogates(identifier):
    assert BY_NAME[identifier].judge(good(surrogates=True)).status == NOT_RUN


@pytest.mark.parametrize("identifier", ["one-step", "noise", "gradient-free", "transfer"])
def test_what_gradients_break_too_is_no_news(identifier):
    """More is found only where both attacks along gradients failed."""
    attack = {"one-step": "fgsm", "noise": "noise", "gradient-free": "square"}.get(identifier)
    found = {} if attack is None else {attack: NEAR}
    transfers = {"pgd from other": NEAR if attack is None else FAR}
    for stronger in (JUDGED, TARGETED):
        evidence = evidence_of(found={**found, stronger: NEAR}, transfers=transfers)
        assert BY_NAME[identifier].judge(evidence).status == PASSED


def test_the_numbers_are_of_correctly_classified_images():
    """Rows of misclassified images, the first and some in the middle, belong to no figure."""
    wrong = (0, 1, 7, 20)
    kept = np.setdiff1d(np.arange(COUNT), wrong)
    fmn = np.full(COUNT, 0.01)
    fmn[kept[:10]] = np.inf
    finding = BY_NAME["distances"].judge(evidence_of(found={**GOOD, "fmn-linf": fmn}, wrong=wrong))
    assert set(finding.images) <= set(kept[:10].tolist())
    assert finding.status == FAILED
    assert finding.numbers["median"] == pytest.approx(0.01)
    square = FAR.copy()
    square[[0, 7, 9]] = 0.05
    found = {**GOOD, "square": square}
    finding = BY_NAME["gradient-free"].judge(evidence_of(found=found, wrong=wrong))
    assert finding.images == (9,)
    assert finding.numbers["share"] == pytest.approx(1 / len(kept))


def test_distances_are_those_of_a_straight_line():
    """A linear model: the line to the nearest image of the other class crosses at a known place."""
    finding = BY_NAME["distances"].judge(evidence_of(found=GOOD))
    margin = X.astype("float64") @ (WEIGHTS[:, 1] - WEIGHTS[:, 0]).astype("float64")
    lines = []
    for row in range(COUNT):
        others = np.flatnonzero(np.sign(margin) != np.sign(margin[row]))
        gaps = np.abs(X[others] - X[row])
        end = others[np.lexsort((gaps.mean(1), gaps.max(1)))[0]]
        share = margin[row] / (margin[row] - margin[end])
        step = np.ceil(share * 20 - 1e-6) / 20
        lines.append(step * np.abs(X[end] - X[row]).max())
    assert finding.numbers["line"] == pytest.approx(np.median(lines), rel=1e-3)


def test_the_worst_case_is_over_all_that_was_found():
    """Of attacks, of who knows the defences, and of other models' examples."""
    parts = [FAR.copy() for _ in range(3)]
    for place, part in enumerate(parts):
        part[10 * place : 10 * place + 5] = 0.05
    evidence = evidence_of(
        found={"square": parts[0]}, adaptive_report={"pgd": parts[1]},
        transfers={"pgd from other": parts[2]},
    )  # fmt: skip
    expected = np.zeros(COUNT, bool)
    for place in range(3):
        expected[10 * place : 10 * place + 5] = True
    np.testing.assert_array_equal(evidence.worst, expected)
    assert evidence.sources == ("other",)
    far_away = evidence_of(found={"square": np.full(COUNT, EPSILON * 1.01)})
    assert not far_away.worst.any()
