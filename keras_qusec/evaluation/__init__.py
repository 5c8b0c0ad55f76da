"""An evaluation: checked inputs, a plan, its units run, what they found verified and gathered."""

from keras_qusec.evaluation.evaluate import evaluate_robustness

__all__ = ["evaluate_robustness"]
