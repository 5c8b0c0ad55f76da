"""Training: the adversarial callback, the hardness schedule."""

from keras_qusec.training.callback import AdversarialTraining
from keras_qusec.training.schedule import HardnessSchedule

__all__ = ["AdversarialTraining", "HardnessSchedule"]
