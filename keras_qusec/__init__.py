"""keras-qusec: quantization-based defence against adversarial examples, for Keras."""

from keras_qusec.callbacks import HardnessSchedule
from keras_qusec.layers import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.version import __version__

__all__ = [
    "HardnessSchedule",
    "QuSecQuantization",
    "TrainableQuSecQuantization",
    "__version__",
]
