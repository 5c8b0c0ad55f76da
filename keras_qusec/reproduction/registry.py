"""The one list of figures, in the order of the paper."""

from __future__ import annotations

from keras_qusec.reproduction.equation_9 import Equation9
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.figure_1 import Figure1
from keras_qusec.reproduction.figure_5 import Figure5
from keras_qusec.reproduction.figure_6 import Figure6
from keras_qusec.reproduction.figure_7 import Figure7
from keras_qusec.reproduction.figure_9 import Figure9
from keras_qusec.reproduction.figure_10 import Figure10
from keras_qusec.reproduction.figure_11 import Figure11

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure1(), Figure5(), Figure6(), Equation9(), Figure7(), Figure9(), Figure10(), Figure11(),
    )
}  # fmt: skip
