"""The quantizer as pure functions: thresholds, soft and hard forward, analytic gradient."""

from keras_qusec.quantization.quantize import hard_quantize, soft_quantize
from keras_qusec.quantization.thresholds import (
    byte_thresholds,
    check_hardness,
    check_levels,
    check_thresholds,
    equal_thresholds,
)

__all__ = [
    "byte_thresholds",
    "check_hardness",
    "check_levels",
    "check_thresholds",
    "equal_thresholds",
    "hard_quantize",
    "soft_quantize",
]
