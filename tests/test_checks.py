"""Arguments: the same rule and wording wherever they are given."""

from __future__ import annotations

import numpy as np
import pytest

from keras_qusec import HardnessSchedule, QuSecQuantization, checks, demo, evaluate_robustness
from keras_qusec.attacks import BIM, JSMA, PGD, LocalSearch, Pointwise, SinglePixel, registry
from keras_qusec.training import AdversarialTraining

PLACES = {
    "steps": lambda n: PGD(0.1, steps=n),
    "BIM steps": lambda n: BIM(0.1, steps=n),
    "restarts": lambda n: PGD(0.1, restarts=n),
    "restarts by name": lambda n: registry.get("deepfool", restarts=n),
    "JSMA targets": lambda n: JSMA(targets=n),
    "max_pixels": lambda n: SinglePixel(max_pixels=n),
    "draws": lambda n: Pointwise(draws=n),
    "radius": lambda n: LocalSearch(radius=n),
    "epochs": lambda n: HardnessSchedule(epochs=n),
    "demo": lambda n: demo.run_demo(images=n, data=0),
    "levels": lambda n: QuSecQuantization(n + n),
}


@pytest.mark.parametrize("place", PLACES)
def test_whole_numbers_are_the_same_everywhere(place):
    for good in (2, np.int64(2), np.uint8(2)):
        if place == "demo":  # stops later, at the data
            with pytest.raises(AttributeError):
                PLACES[place](good)
        else:
            PLACES[place](good)
    for bad in (0, -1, 2.5, "3", None if place == "steps" else -2):
        with pytest.raises(ValueError, match="Expected"):
            PLACES[place](bad)
    if place != "levels":
        for bad in (True, np.True_, 2.0):
            with pytest.raises(ValueError, match="Expected"):
                PLACES[place](bad)


@pytest.mark.parametrize("name", ["batch_size", "seed"])
def test_numbers_of_an_evaluation(linear, name):
    x, y = np.full((2, 10), 0.5, "float32"), [0, 1]
    for bad in (True, 2.5, -1):
        with pytest.raises(ValueError, match=f"Expected {name} to be a whole number"):
            evaluate_robustness(linear, x, y, **{name: bad})
    evaluate_robustness(linear, x, y, attacks=["fgsm"], **{name: np.int64(3)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": 0}, "a number 0 or more. Received: size=-1"),
        ({"above": 0, "most": 1}, "a number above 0 and at most 1. Received: size=-1. Try 0.5."),
    ],
)
def test_numbers(settings, message):
    with pytest.raises(ValueError, match=message):
        checks.number(-1, "size", hint="Try 0.5." if "most" in settings else "", **settings)
    assert checks.number(np.float32(0.5), "size", **settings) == 0.5
    for bad in (float("nan"), float("inf"), True, "1", None):
        with pytest.raises(ValueError, match="Expected size"):
            checks.number(bad, "size", **settings)


def test_options_name_the_one_that_was_meant():
    with pytest.raises(
        ValueError, match=r"'pixel', 'row'\. Received: g='pixle'\. Did you mean 'pi"
    ):
        checks.one_of("pixle", "g", ("pixel", "row"))
    with pytest.raises(ValueError, match="objective to be one of"):
        AdversarialTraining("fgsm", epsilon=0.1, objective=True)


def test_labels_become_integers_in_one_way():
    expected = [2, 0, 1]
    for form in (
        expected,
        np.array(expected, "uint8"),
        np.array(expected)[:, None],
        np.eye(3)[expected],
        np.eye(3, dtype=bool)[expected],
    ):
        labels = checks.class_labels(form, 3, classes=3)
        assert labels.dtype == np.int64
        assert labels.tolist() == expected
    for bad, message in [
        (np.array([0.0, 1.0, 2.0]), "dtype float64"),
        ([0, 1], "Expected 3 labels"),
        ([0, 1, 3], "from 0 to 2"),
        ([0, -1, 2], "from 0 to 2"),
        (np.full((3, 3), 1 / 3), "argmax"),
        (np.ones((3, 3)), "single one"),
    ]:
        with pytest.raises(ValueError, match=message):
            checks.class_labels(bad, 3, classes=3)
