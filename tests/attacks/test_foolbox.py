"""Foolbox on our models: logits, counts; its attacks through the adapter."""

from __future__ import annotations

import pytest
from helpers import IMAGES, predicted

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import AttackedModel
from keras_qusec.attacks.foolbox import foolbox_model, import_foolbox, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestBridge:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
    def test_labels_of_any_integer_type(self, cnn, dtype):
        y = predicted(cnn, IMAGES).astype(dtype)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=["deepfool"])
        assert report.clean_accuracy() == 1.0

    def test_counts_forward_and_backward_passes(self, cnn):
        foolbox = import_foolbox()
        attacked = AttackedModel(cnn)
        counter, wrapped = attacked.counter, foolbox_model(attacked)
        y = to_tensor(predicted(cnn, IMAGES))
        attack = foolbox.attacks.LinfPGD(steps=5)
        attack.run(wrapped, to_tensor(IMAGES), foolbox.criteria.Misclassification(y), epsilon=0.1)
        assert (counter.gradients, counter.queries) == (5 * len(IMAGES), 5 * len(IMAGES))
        wrapped(to_tensor(IMAGES[:7]))
        assert (counter.gradients, counter.queries) == (5 * len(IMAGES), 5 * len(IMAGES) + 7)
