"""Attacks on Keras models: one file each, one registry, and Foolbox's through an adapter."""

from keras_qusec.attacks.apgd import APGD
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.ball import Ball
from keras_qusec.attacks.base import Attack, attack_from
from keras_qusec.attacks.bim import BIM
from keras_qusec.attacks.cheapest_levels import CheapestLevels
from keras_qusec.attacks.classifier import Classifier, FunctionClassifier
from keras_qusec.attacks.ensemble import Ensemble
from keras_qusec.attacks.fab import FAB
from keras_qusec.attacks.fgsm import FGSM
from keras_qusec.attacks.fmn import FMN
from keras_qusec.attacks.goal import REJECTED, Goal
from keras_qusec.attacks.gradient_attack import GradientAttack
from keras_qusec.attacks.jsma import JSMA
from keras_qusec.attacks.local_search import LocalSearch
from keras_qusec.attacks.pgd import PGD
from keras_qusec.attacks.pointwise import Pointwise
from keras_qusec.attacks.reachable_levels import ReachableLevels
from keras_qusec.attacks.registry import get, names, register, unregister
from keras_qusec.attacks.sigma_zero import SigmaZero
from keras_qusec.attacks.single_pixel import SinglePixel
from keras_qusec.attacks.square import Square

__all__ = [
    "APGD",
    "BIM",
    "FAB",
    "FGSM",
    "FMN",
    "JSMA",
    "PGD",
    "REJECTED",
    "Attack",
    "AttackedModel",
    "Ball",
    "CheapestLevels",
    "Classifier",
    "Ensemble",
    "FunctionClassifier",
    "Goal",
    "GradientAttack",
    "LocalSearch",
    "Pointwise",
    "ReachableLevels",
    "SigmaZero",
    "SinglePixel",
    "Square",
    "attack_from",
    "get",
    "names",
    "register",
    "unregister",
]
