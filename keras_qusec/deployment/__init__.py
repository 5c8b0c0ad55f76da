"""Deployed models: files of other runtimes, judged; and whether they are what was measured."""

from keras_qusec.deployment.check import check_deployment
from keras_qusec.deployment.model import DeployedModel
from keras_qusec.deployment.result import DeploymentCheck

__all__ = ["DeployedModel", "DeploymentCheck", "check_deployment"]
