"""keras-qusec: quantization-based defence against adversarial examples, for Keras."""

from keras_qusec.audit import AuditReport, audit_robustness
from keras_qusec.certification import RobustnessProof, certify_robustness
from keras_qusec.defenses import QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.plots import plot_thresholds
from keras_qusec.report import RobustnessReport
from keras_qusec.suggestion import QuantizerSuggestion, suggest_quantizer
from keras_qusec.training import AdversarialTraining, CertifiedTraining, HardnessSchedule
from keras_qusec.version import __version__

__all__ = [
    "AdversarialTraining",
    "AuditReport",
    "CertifiedTraining",
    "HardnessSchedule",
    "QuSecQuantization",
    "QuantizerSuggestion",
    "RobustnessProof",
    "RobustnessReport",
    "TrainableQuSecQuantization",
    "__version__",
    "audit_robustness",
    "certify_robustness",
    "evaluate_robustness",
    "plot_thresholds",
    "suggest_quantizer",
]
