"""Reports: figures for any question, tables, plots, pages, files."""

from keras_qusec.report.figures import Certificate, Figures, Row
from keras_qusec.report.report import RobustnessReport

__all__ = ["Certificate", "Figures", "RobustnessReport", "Row"]
