"""Reports: measurements for any question, tables, plots, pages, files."""

from keras_qusec.report.measurements import Bracket, Measurement, Measurements, Share
from keras_qusec.report.report import RobustnessReport
from keras_qusec.results import Certificate

__all__ = ["Bracket", "Certificate", "Measurement", "Measurements", "RobustnessReport", "Share"]
