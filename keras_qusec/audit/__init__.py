"""Is this robustness real? One check a file, a rule each, and a verdict."""

from keras_qusec.audit.audit import audit_robustness
from keras_qusec.audit.check import Check, Finding
from keras_qusec.audit.registry import CHECKS
from keras_qusec.audit.report import AuditReport, CheckResult

__all__ = ["CHECKS", "AuditReport", "Check", "CheckResult", "Finding", "audit_robustness"]
