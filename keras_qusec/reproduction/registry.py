"""The one list of figures, in the order of the paper."""

from __future__ import annotations

from keras_qusec.reproduction.abstract import Abstract
from keras_qusec.reproduction.best import Best
from keras_qusec.reproduction.equation_9 import Equation9
from keras_qusec.reproduction.explanations import Explanations
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.figure_1 import Figure1
from keras_qusec.reproduction.figure_5 import Figure5
from keras_qusec.reproduction.figure_6 import Figure6
from keras_qusec.reproduction.figure_7 import Figure7
from keras_qusec.reproduction.figure_8 import Figure8
from keras_qusec.reproduction.figure_9 import Figure9
from keras_qusec.reproduction.figure_10 import Figure10
from keras_qusec.reproduction.figure_11 import Figure11
from keras_qusec.reproduction.headline import Headline
from keras_qusec.reproduction.table_1 import Table1

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure1(), Figure5(), Figure6(), Equation9(), Figure7(), Figure8(), Figure9(), Figure10(),
        Figure11(), Abstract(), Table1(), Headline(), Explanations(), Best(),
    )
}  # fmt: skip
