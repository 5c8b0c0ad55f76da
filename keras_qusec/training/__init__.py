"""Training: the adversarial callback and its objectives, the hardness schedule."""

from keras_qusec.training.callback import AdversarialTraining
from keras_qusec.training.certified import CertifiedTraining
from keras_qusec.training.initializer import IBPNormal
from keras_qusec.training.objectives import ModelLoss, Trades, TrainingObjective
from keras_qusec.training.schedule import HardnessSchedule

__all__ = [
    "AdversarialTraining",
    "CertifiedTraining",
    "HardnessSchedule",
    "IBPNormal",
    "ModelLoss",
    "Trades",
    "TrainingObjective",
]
