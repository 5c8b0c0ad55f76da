"""Units of work: names and seeds of their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import X, Y

from keras_qusec import evaluate_robustness
from keras_qusec.evaluation.plan import Unit

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


def test_each_unit_has_a_name_of_its_own_and_models_have_a_seed():
    """The seed of an image does not depend on its batch, nor on who else attacks it."""
    units = [
        Unit(attack, models, source, batch)
        for attack, models, source, batch in itertools.product(
            ("pgd", "pgd-l2"), (("a",), ("a", "b"), ("b",)), (None, "a", "s"), (0, 1, 11)
        )
    ]
    assert len({unit.key for unit in units}) == len(units)
    assert len({unit.seed(0) for unit in units}) == 3 * 3
    assert units[0].seed(0) == Unit("fgsm", ("a",), None, 5).seed(0)
    assert units[0].seed(0) == units[0].seed(0) != units[0].seed(1)


def test_random_starts_differ_between_attacks_and_models_and_not_between_batches(linear):
    """The same images in two batches, the same attack under two names, one model twice."""
    x, y = np.concatenate([X[:20], X[:20]]), np.concatenate([Y[:20], Y[:20]])
    start = {"steps": 1, "relative_step_size": 1e-5}
    report = evaluate_robustness(
        {"one": linear, "two": linear}, x, y, epsilons=[0.3], batch_size=20,
        attacks={"a": ("pgd", start), "b": ("pgd", start)}, threat_models=["white-box"],
    )  # fmt: skip
    pairs = [np.split(result.distances["l2"], 2) for result in report.results]
    for first, second in pairs:
        np.testing.assert_allclose(first, second, rtol=1e-6)
    halves = [first for first, _ in pairs]
    assert len(halves) == 4
    for one, two in itertools.combinations(halves, 2):
        both = np.isfinite(one) & np.isfinite(two)
        assert not np.isfinite(one).all() or both.any()
        assert (np.isfinite(one) != np.isfinite(two)).any() or (one[both] != two[both]).all()
