"""Defences side by side: the same network, data, seed and attacks, one table."""

from keras_qusec.comparison.compare import compare
from keras_qusec.comparison.contenders import Training, names, register, unregister
from keras_qusec.comparison.results import Comparison, Measured

__all__ = ["Comparison", "Measured", "Training", "compare", "names", "register", "unregister"]
