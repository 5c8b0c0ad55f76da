"""Attacks by name, by object and in a dictionary."""

from __future__ import annotations

import pytest

from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.attacks.registry import for_evaluation

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


def test_attacks_by_name_object_and_mapping():
    foolbox = import_foolbox()
    attacks = for_evaluation(
        {"mine": ("pgd", {"steps": 3}), "theirs": foolbox.attacks.L0FMNAttack()}
    )
    assert attacks["mine"].norm == "linf"
    assert attacks["theirs"].norm == "l0"
    assert attacks["theirs"].minimizes
    assert attacks["theirs"].uses_gradients
    assert list(for_evaluation("fgsm")) == ["fgsm"]
    assert list(for_evaluation(("pgd", {"steps": 3}))) == ["pgd"]
    flexible = foolbox.attacks.GaussianBlurAttack(distance=foolbox.distances.linf)
    assert for_evaluation([flexible])["GaussianBlurAttack"].norm == "linf"
    assert for_evaluation([foolbox.attacks.GaussianBlurAttack()])["GaussianBlurAttack"].norm == "l2"
