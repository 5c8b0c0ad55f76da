"""What an evaluation is made of: hashes of models and data, settings, versions."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from typing import Any

import keras

from keras_qusec.attacks import Classifier
from keras_qusec.attacks.base import EVIDENCE
from keras_qusec.digests import code_digest, digest
from keras_qusec.evaluation.plan import Plan
from keras_qusec.version import __version__

# Raised when the same inputs give other results, so that old resume folders are refused.
RESULTS_VERSION = 5


def evidence_of(plan: Plan, models: Mapping[str, Classifier]) -> str:
    """The class of the evidence: that of the strongest attack, if it sees through the defences."""
    hides = any(model.defenses or model.rejects for model in models.values())
    sees = any(threat.follows_surrogates for threat in plan.threat_models)
    own = any(not threat.uses_source for threat in plan.threat_models)
    if plan.without_gradients:
        return "queries" if len(plan.without_gradients) == len(models) else EVIDENCE[0]
    if not own or (hides and not sees):
        return EVIDENCE[0]
    if not plan.attacks:
        return "proof"
    return max((attack.evidence for attack in plan.attacks.values()), key=EVIDENCE.index)


def provenance_of(
    plan: Plan,
    models: Mapping[str, Classifier],
    sources: Mapping[str, Classifier],
    targets: str | None,
    prove: Mapping[str, str],
) -> dict[str, Any]:
    """What the figures are made of: ``"identity"``, and what does not change them.

    Args:
        plan: the plan.
        models: attacked models by name.
        sources: source models by name.
        targets: how targets were chosen, or None for untargeted attacks.
        prove: effort of proofs, by model.
    """
    backend = keras.backend.backend()
    x, goal = plan.x, plan.goal
    packages = ("keras", backend, "foolbox", "numpy")
    asked = {name: attack for name, attack in plan.attacks.items() if name not in plan.joined}
    return {
        "identity": {
            "results version": RESULTS_VERSION,
            "models": {name: model.digest for name, model in models.items()},
            "sources": {name: model.digest for name, model in sources.items()},
            "data": digest(str(x.shape).encode(), x, goal.labels.tobytes()),
            "images": len(x),
            "targets": "untargeted" if goal.targets is None else digest(goal.targets.tobytes()),
            "attacks": {name: repr(attack) for name, attack in asked.items()},
            "joined attacks": {name: repr(plan.attacks[name]) for name in plan.joined},
            "code of attacks": {name: code_digest(attack) for name, attack in asked.items()},
            "radii": {name: list(plan.radii[name]) for name in asked},
            "threat models": [threat.name for threat in plan.threat_models],
            "code of threat models": [code_digest(threat) for threat in plan.threat_models],
            "surrogate hardnesses": list(plan.hardnesses),
            "value range": list(plan.value_range),
            "batch size": plan.batch_size,
            "seed": plan.seed,
            **({"kept examples": list(plan.kept_norms)} if plan.kept_norms else {}),
            **({"proofs": dict(prove)} if prove else {}),
            "backend": backend,
            "versions": {
                "keras-qusec": __version__,
                **{package: importlib.import_module(package).__version__ for package in packages},
            },
        },
        "evidence": evidence_of(plan, models),
        "threat models": {
            threat.name: {"summary": threat.summary, "line style": threat.line_style}
            for threat in plan.threat_models
        },
        "goal": "untargeted" if targets is None else f"targeted, {targets}",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
