"""The one list of checks, in the order in which they are shown."""

from __future__ import annotations

from keras_qusec.audit.check import Check
from keras_qusec.audit.distances import Distances
from keras_qusec.audit.finite_differences import FiniteDifferences
from keras_qusec.audit.gradient_free import GradientFree
from keras_qusec.audit.gradient_path import GradientPath
from keras_qusec.audit.gradient_values import GradientValues
from keras_qusec.audit.half_range import HalfRange
from keras_qusec.audit.loss_path import LossPath
from keras_qusec.audit.more_effort import MoreEffort
from keras_qusec.audit.noise import NoiseBeatsGradients
from keras_qusec.audit.one_step import OneStep
from keras_qusec.audit.planted_examples import PlantedExamples
from keras_qusec.audit.proofs import Proofs
from keras_qusec.audit.random_outputs import RandomOutputs
from keras_qusec.audit.rising_accuracy import RisingAccuracy
from keras_qusec.audit.saturated_outputs import SaturatedOutputs
from keras_qusec.audit.surrogate_gradients import SurrogateGradients
from keras_qusec.audit.transfer import Transfer
from keras_qusec.audit.unbounded_attack import UnboundedAttack

CHECKS: tuple[Check, ...] = (
    GradientValues(),
    GradientPath(),
    SaturatedOutputs(),
    RandomOutputs(),
    OneStep(),
    MoreEffort(),
    RisingAccuracy(),
    UnboundedAttack(),
    HalfRange(),
    NoiseBeatsGradients(),
    GradientFree(),
    Transfer(),
    SurrogateGradients(),
    LossPath(),
    PlantedExamples(),
    Distances(),
    FiniteDifferences(),
    Proofs(),
)
