"""The losses that attacks raise, against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_qusec.attacks import REJECTED, Goal
from keras_qusec.attacks.objective import LOSSES

RNG = np.random.default_rng(2)
CLASSES = 6
LOGITS = RNG.normal(0, 2, (40, CLASSES)).astype("float32")
LABELS = RNG.integers(0, CLASSES, 40)
TARGETS = (LABELS + RNG.integers(1, CLASSES, 40)) % CLASSES
ROWS = np.arange(40)


def expected(name, targets):
    z = LOGITS.astype("float64")
    label = z[ROWS, LABELS]
    others = z.copy()
    others[ROWS, LABELS] = -np.inf
    margin = others.max(axis=1) - label
    ranked = -np.sort(-z, axis=1)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    if targets is None:
        return {
            "ce": -log_p[ROWS, LABELS],
            "margin": margin,
            "dlr": margin / (ranked[:, 0] - ranked[:, 2]),
            "log-odds": np.log(np.exp(others).sum(axis=1)) - label,
        }[name]
    aim = z[ROWS, targets]
    rest = z.copy()
    rest[ROWS, targets] = -np.inf
    return {
        "ce": log_p[ROWS, targets],
        "margin": aim - label,
        "dlr": (aim - label) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2),
        "log-odds": aim - np.log(np.exp(rest).sum(axis=1)),
    }[name]


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("targets", [None, TARGETS], ids=["away", "towards"])
def test_formulas(name, targets):
    objective = Goal(LABELS, targets).objective(name)
    aims = LABELS if targets is None else targets
    tensors = [ops.convert_to_tensor(part) for part in (LABELS, aims, LOGITS)]
    found = ops.convert_to_numpy(objective.value(*tensors))
    np.testing.assert_allclose(found, expected(name, targets), rtol=1e-4, atol=1e-5)
    reached = ops.convert_to_numpy(objective.reached(*tensors))
    predicted = LOGITS.argmax(axis=1)
    wanted = predicted != LABELS if targets is None else predicted == targets
    np.testing.assert_array_equal(reached, wanted)
    np.testing.assert_array_equal(Goal(LABELS, targets).reached(predicted), wanted)


def test_a_rejected_image_is_no_success():
    rejected = np.full(40, REJECTED)
    assert not Goal(LABELS).reached(rejected).any()
    assert not Goal(LABELS, TARGETS).reached(rejected).any()
