"""keras-qusec: quantization-based defence against adversarial examples, for Keras."""

from keras_qusec.callbacks import AdversarialTraining, HardnessSchedule
from keras_qusec.evaluation.evaluate import evaluate_robustness
from keras_qusec.evaluation.report import RobustnessReport
from keras_qusec.layers import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.version import __version__

__all__ = [
    "AdversarialTraining",
    "HardnessSchedule",
    "QuSecQuantization",
    "RobustnessReport",
    "TrainableQuSecQuantization",
    "__version__",
    "evaluate_robustness",
]
