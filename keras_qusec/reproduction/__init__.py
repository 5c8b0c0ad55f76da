"""The paper, measured again: one figure a file, the worst case beside each number."""

from keras_qusec.reproduction.claims import CLAIMS, Claim, Verdict, judged
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.page import best_page, claims_page, figures_page
from keras_qusec.reproduction.plots import picture, pictures
from keras_qusec.reproduction.recipes import Recipe
from keras_qusec.reproduction.registry import FIGURES
from keras_qusec.reproduction.reproduce import reproduce
from keras_qusec.reproduction.results import Reproduction, Row

__all__ = [
    "CLAIMS",
    "FIGURES",
    "Claim",
    "Experiment",
    "Figure",
    "Recipe",
    "Reproduction",
    "Row",
    "Verdict",
    "best_page",
    "claims_page",
    "figures_page",
    "judged",
    "picture",
    "pictures",
    "reproduce",
]
