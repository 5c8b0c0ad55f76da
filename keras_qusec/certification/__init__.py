"""Proofs: which images no attack can break, decided one by one; exact behind a hard quantizer."""

from keras_qusec.certification.certify import certify_robustness
from keras_qusec.certification.proof import RobustnessProof

__all__ = ["RobustnessProof", "certify_robustness"]
