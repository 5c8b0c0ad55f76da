"""keras-qusec: quantization-based defence against adversarial examples, for Keras."""

from keras_qusec.callbacks import AdversarialTraining, HardnessSchedule
from keras_qusec.layers import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.version import __version__

__all__ = [
    "AdversarialTraining",
    "HardnessSchedule",
    "QuSecQuantization",
    "TrainableQuSecQuantization",
    "__version__",
]
