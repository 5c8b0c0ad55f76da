"""certify_robustness: what users give and get."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, certify_robustness

L = keras.layers
X = np.array([[0.9, 0.2], [0.4, 0.7], [0.9, 0.9], [0.1, 0.8]], "float32")
Y = np.array([0, 1, 1, 0])


def linear(*, levels=2, hard=True, head=None, weights=((1, 0), (0, 1))):
    layers = [QuSecQuantization(levels, hard=hard), L.Dense(2, use_bias=False, activation=head)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.set_weights([np.array(50.0), np.array(weights, "float32")])
    return model


def test_states_numbers_and_text():
    proof = certify_robustness(linear(), X, Y, epsilons=[0.2, 0.05], progress=False)
    assert proof.epsilons == (0.05, 0.2)
    assert proof.status(0.05).tolist() == ["proved", "proved", "broken", "broken"]
    assert proof.status(0.2).tolist() == ["proved", "broken", "broken", "broken"]
    assert proof.status(np.float32(0.2)).tolist() == proof.status().tolist()
    assert proof.certified_accuracy(0.05) == 0.5
    assert proof.how(0.05).tolist() == ["intervals", "intervals", "clean", "clean"]
    numbers, examples = proof.examples(0.2)
    assert numbers.tolist() == [1]
    assert np.abs(examples - X[1]).max() <= 0.2
    text = str(proof)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "0.2" in text
    with pytest.raises(ValueError, match=r"epsilon of the proof: 0.05, 0.2\. Received: 0.3"):
        proof.status(0.3)


@pytest.mark.parametrize("head", ["softmax", None])
def test_a_softmax_changes_nothing(head):
    proof = certify_robustness(linear(head=head), X, Y, epsilons=[0.2])
    assert proof.status().tolist() == ["proved", "broken", "broken", "broken"]


def test_a_tie_of_logits_is_not_proved():
    """Behind the quantizer both logits may be equal; argmax then takes the first."""
    proof = certify_robustness(linear(), X[:1], Y[:1], epsilons=[0.35])
    assert proof.status().tolist() == ["open"]


def test_one_logit_of_two_classes():
    model = keras.Sequential([keras.Input((2,)), QuSecQuantization(2, hard=True), L.Dense(1)])
    model.set_weights(
        [np.array(50.0), np.array([[1], [1]], "float32"), np.array([-0.5], "float32")]
    )
    x = np.array([[0.9, 0.2], [0.1, 0.45], [0.9, 0.9]], "float32")
    proof = certify_robustness(model, x, np.array([1, 0, 1]), epsilons=[0.1])
    assert proof.status().tolist() == ["proved", "broken", "proved"]


def test_effort_and_time():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((40,)), QuSecQuantization(2, hard=True), L.Dense(60, activation="relu"),
         L.Dense(60, activation="relu"), L.Dense(3)]
    )  # fmt: skip
    x = np.random.default_rng(0).random((12, 40)).astype("float32")
    y = model.predict(x, verbose=0).argmax(axis=1)
    found = {
        effort: certify_robustness(model, x, y, epsilons=[0.15], effort=effort).status()
        for effort in ("bounds", "standard")
    }
    decided = {effort: (status != "open").sum() for effort, status in found.items()}
    assert decided["bounds"] < decided["standard"]
    both = (found["bounds"] != "open") & (found["standard"] != "open")
    assert (found["bounds"] == found["standard"])[both].all()
    short = certify_robustness(model, x, y, epsilons=[0.15], time_limit=0.0)
    assert (short.status() == found["bounds"]).all()


def test_a_larger_epsilon_takes_over_what_is_known():
    proof = certify_robustness(linear(), X, Y, epsilons=[0.01, 0.05, 0.2, 0.29])
    rank = {"proved": 0, "open": 1, "broken": 2}
    ranks = np.array([[rank[state] for state in proof.status(e)] for e in proof.epsilons])
    assert (np.diff(ranks, axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": "strong"}, "effort to be one of"),
        ({"epsilons": [-0.1]}, "epsilons"),
        ({"epsilons": []}, "at least one"),
        ({"x": 255 * X}, "inside value_range"),
        ({"y": Y + 5}, "Expected y from 0 to 1"),
        ({"time_limit": -1}, "time_limit"),
    ],
)
def test_errors(change, message):
    given = {"x": X, "y": Y, "epsilons": [0.1]} | change
    with pytest.raises(ValueError, match=message):
        certify_robustness(linear(), given.pop("x"), given.pop("y"), **given)


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    """A rule that is wrong, or hardware of lower precision, is noticed before anything is proved."""
    from keras_qusec.certification.pieces import Matrix

    good = Matrix.exact

    def wrong(self, shapes):
        made = good(self, shapes)
        return made._replace(offset=made.offset + 0.01)

    monkeypatch.setattr(Matrix, "exact", wrong)
    with pytest.raises(ValueError, match="compute what its layers say"):
        certify_robustness(linear(), X, Y)


def test_whole_numbers():
    model = keras.Sequential(
        [keras.Input((2,), dtype="uint8"), L.Rescaling(1 / 255), QuSecQuantization(2, hard=True),
         L.Dense(2, use_bias=False)]
    )  # fmt: skip
    model.set_weights([np.array(50.0), np.eye(2, dtype="float32")])
    x = np.array([[230, 51], [102, 178]])
    proof = certify_robustness(model, x, [0, 1], epsilons=[10, 50], value_range=(0, 255))
    assert proof.status(10).tolist() == ["proved", "proved"]
    assert proof.status(50).tolist() == ["proved", "broken"]
    assert (proof.examples(50)[1] == np.round(proof.examples(50)[1])).all()
