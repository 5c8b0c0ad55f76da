"""Attacks one after the other, each on the images that are not broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.base import EVIDENCE, Attack
from keras_qusec.attacks.goal import Goal
from keras_qusec.checks import one_of, whole_number


class Ensemble(Attack):
    """Attacks in an order, cheap ones first; each attacks only the images that are not broken.

    An evaluation makes the parts under each threat model and reports what each one found: at
    the smallest radius first, as each alone, or at the largest with `skip_smaller`, for `sampled`
    parts, and for parts that minimize. A model with defences hides its gradient, so with surrogate
    gradients to come only the parts in `first` follow its own gradient under white-box; the others
    follow it and every surrogate later. Without defences all parts are white-box.

    Args:
        parts: attacks by name, of one norm, none of them an ensemble.
        first: names of the parts that are also made where a defence hides the gradient.
        skip_smaller: an image that withstood a part at a radius is not attacked by it at
            smaller ones, whose balls lie inside.
        sampled: parts that are made on so many of the images left in a batch first, at all radii
            together, and on the others only if one of these falls: for what is hardly ever needed.
        evidence: class of the evidence, one of ``"quick"``, ``"standard"``, ``"strong"``.
        draws: how many draws of a random model are averaged unless the user says.

    Raises:
        ValueError: for parts that do not go together.

    Example:

    >>> from keras_qusec import evaluate_robustness
    >>> from keras_qusec.attacks import APGD, Ensemble, PGD
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1, 0], [0, 1]], "float32")])
    >>> both = Ensemble({"pgd": PGD(steps=5), "apgd": APGD(steps=20)})
    >>> x, y = np.array([[0.6, 0.5], [0.9, 0.1]], "float32"), np.array([0, 0])
    >>> report = evaluate_robustness(model, x, y, attacks={"both": both}, epsilons=[0.1])
    >>> report.robust_accuracy()
    0.5
    """

    is_random = True

    def __init__(
        self,
        parts: Mapping[str, Attack],
        *,
        first: Sequence[str] = (),
        skip_smaller: bool = False,
        sampled: Mapping[str, int] | None = None,
        evidence: str = EVIDENCE[0],
        draws: int = 1,
    ) -> None:
        of_parts = {part.norm for part in parts.values()}
        nested = [name for name, part in parts.items() if isinstance(part, Ensemble)]
        sampled = {} if sampled is None else dict(sampled)
        if len(of_parts) != 1 or nested or not {*first, *sampled} <= set(parts):
            raise ValueError(
                "Expected attacks of one norm by name, none of them an ensemble, and `first` and "
                f"`sampled` among them. Received: {dict(parts)}, first={list(first)}, "
                f"sampled={sampled}. Make an ensemble for each norm."
            )
        for part in parts.values():
            part.check_for_evaluation()
        self.parts = dict(parts)
        self.norm = of_parts.pop()
        self.first = tuple(first)
        self.skip_smaller = bool(skip_smaller)
        self.sampled = {name: whole_number(n, "sampled") for name, n in sampled.items()}
        self.evidence = one_of(evidence, "evidence", EVIDENCE)
        self.draws = draws
        self.can_be_targeted = all(part.can_be_targeted for part in parts.values())
        self.cost = "; ".join(f"{name}: {part.cost}" for name, part in parts.items())

    @property
    def to_transfer(self) -> Attack:
        """The part whose examples are tried on other models: the first that follows gradients."""
        follow = [p for p in self.parts.values() if p.uses_gradients and not p.attacks_defense]
        return (follow or list(self.parts.values()))[0]

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        """All parts on one model, without its surrogate gradients."""
        best, rows = x.copy(), np.arange(len(x))
        for part in self.parts.values():
            if not len(rows) or not part.applies_to(model, x):
                continue
            search = part.on_batch(model, x, goal)
            for restart in range(part.restarts):
                found = np.clip(search(rows, epsilon, seed + restart), *model.value_range)
                if epsilon is not None:
                    # The closest example of a minimizing part may lie outside.
                    found = norms.get(self.norm).into_ball(x[rows], found, epsilon)
                best[rows] = found
                rows = rows[~model.is_adversarial(best[rows], goal.take(rows))]
        return best

    def settings(self) -> dict[str, Any]:
        return {
            **self.parts,
            "skip_smaller": self.skip_smaller or None,
            "sampled": self.sampled or None,
        }
