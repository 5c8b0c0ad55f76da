"""What an evaluation proves before it attacks: certificates, and what the search broke."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.certification import RobustnessProof
from keras_qusec.certification.certify import EFFORTS, proof_of
from keras_qusec.checks import one_of
from keras_qusec.evaluation.plan import Plan
from keras_qusec.results import PROVED, Certificate, Kept, Result

# The search of a proof as an attack: it knows the model and its quantizer.
SEARCH, THREAT_MODEL = "exact search", "adaptive"


class Proofs(NamedTuple):
    """What was proved and broken of each model.

    Attributes:
        certificates: one for each model and epsilon.
        results: the search as an attack, one for each model.
    """

    certificates: Sequence[Certificate] = ()
    results: Sequence[Result] = ()

    def proved(self) -> dict[str, dict[float, np.ndarray]]:
        """By model and epsilon in L-infinity which images are proved, ``(n,)``."""
        found: dict[str, dict[float, np.ndarray]] = {}
        for certificate in self.certificates:
            states = certificate.states == PROVED
            found.setdefault(certificate.model, {})[certificate.epsilon] = states
        return found


def efforts_of(
    prove: str | Mapping[str, str] | None,
    models: Mapping[str, Classifier],
    epsilons: Mapping[str, object],
    plan: Plan,
) -> dict[str, str]:
    """The effort of proofs by model, of those of which something is to be proved.

    Args:
        prove: one for all models, one for some of them by name, or None.
        models: all by name.
        epsilons: by norm.
        plan: of the evaluation.

    Raises:
        ValueError: for models or settings of which nothing can be proved.
    """
    if prove is None:
        return {}
    efforts = dict(prove) if isinstance(prove, Mapping) else dict.fromkeys(models, prove)
    for name, effort in efforts.items():
        one_of(name, "a name in prove", tuple(models))
        one_of(effort, "prove", tuple(EFFORTS), hint="None proves nothing.")
    if "linf" not in epsilons:
        raise ValueError(
            f"Expected epsilons in linf for prove={prove!r}. Received: {', '.join(epsilons)}. "
            "Proofs are about L-infinity alone."
        )
    if plan.goal.targeted:
        raise ValueError(
            f"Expected untargeted attacks for prove={prove!r}: an image is proved if no class "
            "but its own can be reached. Received: targets. Leave one of the two out."
        )
    for name in efforts:
        model = models[name]
        if not isinstance(model, AttackedModel) or model.draws > 1:
            kind = "an average of draws" if isinstance(model, AttackedModel) else "no Keras model"
            raise ValueError(
                f"Expected Keras models without random draws for prove={prove!r}. Received: "
                f"{name!r}, {kind}, of which nothing can be proved. Prove its Keras model, or "
                "leave prove out."
            )
    return efforts


def proofs_of(
    prove: str,
    name: str,
    model: Classifier,
    radii: Sequence[float],
    plan: Plan,
    tell: Callable[[str, float], None],
) -> Proofs:
    """Prove what can be proved of a model, and break what the search breaks.

    Args:
        prove: one of `EFFORTS`.
        name: name of the model.
        model: it.
        radii: in L-infinity.
        plan: of the images and of what is kept.
        tell: told what is proved, and the share done.
    """
    assert isinstance(model, AttackedModel)  # by `efforts_of`

    def say(text: str, share: float) -> None:
        tell(f"{name}: {text}", share)

    proof = proof_of(model, plan.x, plan.goal.labels, radii, EFFORTS[prove], prove, say)
    certificates = [certificate._replace(model=name) for certificate in proof.certificates]
    return Proofs(certificates, [_result(name, proof, plan)])


def _result(name: str, proof: RobustnessProof, plan: Plan) -> Result:
    """The search as the result of an attack."""
    found: dict[int, np.ndarray] = {}
    # From the largest radius, so that what is broken within a smaller one stays.
    for radius in reversed(proof.epsilons):
        found.update(zip(*proof.examples(radius), strict=True))
    rows = np.array(sorted(found), "int64")
    closest = np.array([found[row] for row in rows], "float32")
    closest = closest.reshape(len(rows), *plan.x.shape[1:])
    distances = {norm: np.full(len(plan.x), np.inf, "float32") for norm in norms.names()}
    for start in range(0, len(rows), plan.batch_size):
        part = slice(start, start + plan.batch_size)
        for norm, values in norms.distances(plan.x[rows[part]], closest[part]).items():
            distances[norm][rows[part]] = values
    none = np.zeros(len(proof.epsilons), "int64")
    return Result(
        model=name,
        source=None,
        threat_model=THREAT_MODEL,
        attack=SEARCH,
        radii=proof.epsilons,
        distances=distances,
        gradients=none,
        queries=none,
        seconds=np.array([c.seconds.sum() for c in proof.certificates]),
        examples={int(row): image for row, image in zip(rows[:3], closest, strict=False)},
        kept={norm: Kept(rows, closest) for norm in plan.kept_norms},
    )


def notes_on(proofs: Proofs, radii: Sequence[float]) -> list[str]:
    """What a reader must know of the proofs."""
    notes = []
    for name, by_radius in proofs.proved().items():
        counts = ", ".join(
            f"{int(by_radius[r].sum())} at {norms.radius_text(r)}" for r in radii if r in by_radius
        )
        notes.append(
            f"Images of {name} that are proved were not attacked in L-inf at that epsilon: "
            f"{counts} of {len(next(iter(by_radius.values())))}. Rows of single attacks count "
            "them as robust."
        )
    return notes
