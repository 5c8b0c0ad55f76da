"""The paper, measured again: one figure a file, the worst case beside each number."""

from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.plots import picture
from keras_qusec.reproduction.registry import FIGURES
from keras_qusec.reproduction.reproduce import reproduce
from keras_qusec.reproduction.results import Reproduction, Row

__all__ = ["FIGURES", "Figure", "Laboratory", "Reproduction", "Row", "picture", "reproduce"]
