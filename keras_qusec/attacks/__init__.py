"""Attacks on Keras models, compiled, for training and for use alone."""

from keras_qusec.attacks.gradient_attacks import BIM, FGSM, PGD, GradientAttack, get

__all__ = ["BIM", "FGSM", "PGD", "GradientAttack", "get"]
