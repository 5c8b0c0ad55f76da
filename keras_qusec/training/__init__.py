"""Training: the adversarial callback and its objectives, the hardness schedule."""

from keras_qusec.training.callback import AdversarialTraining
from keras_qusec.training.certified import CertifiedTraining
from keras_qusec.training.initializer import IBPNormal
from keras_qusec.training.objectives import (
    ModelLoss,
    PriorGuidedLoss,
    Trades,
    TrainingObjective,
)
from keras_qusec.training.one_step import FGSMMEP, NFGSM
from keras_qusec.training.schedule import HardnessSchedule

__all__ = [
    "FGSMMEP",
    "NFGSM",
    "AdversarialTraining",
    "CertifiedTraining",
    "HardnessSchedule",
    "IBPNormal",
    "ModelLoss",
    "PriorGuidedLoss",
    "Trades",
    "TrainingObjective",
]
