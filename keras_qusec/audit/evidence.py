"""What the checks of an audit look at: the model, its gradients, and what attacks found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_qusec import norms
from keras_qusec.attacks import Attack, AttackedModel, Goal
from keras_qusec.datasets import spread_rows
from keras_qusec.report import RobustnessReport
from keras_qusec.results import PROVED, Result
from keras_qusec.stored_images import StoredImages, rows_at_a_time

# The attack whose success is judged, and a second one along gradients, towards targets: what both
# miss is no matter of the loss.
JUDGED, TARGETED = "pgd", "apgd-t"
# The judged adaptive attack follows surrogate gradients of these hardnesses.
HARDNESSES = (3.0, 10.0)


class Budget(NamedTuple):
    """How much work an audit may do.

    Attributes:
        name: ``"quick"`` or ``"full"``.
        steps: of PGD when more steps are tried.
        restarts: of PGD when more restarts are tried.
        queries: of the attack without gradients.
        noise: random perturbations of each image.
        minimum_norm_steps: of the search for the closest example.
        looked_at: images whose loss is followed.
        planted: images in which an adversarial example is planted.
        standard: whether the standard evaluation is made too.
        substitute: whether a substitute is trained to transfer from, if no source is given.
        prove: effort of proofs behind a hard quantizer.
    """

    name: str
    steps: int
    restarts: int
    queries: int
    noise: int
    minimum_norm_steps: int
    looked_at: int
    planted: int
    standard: bool
    substitute: bool
    prove: str


BUDGETS = {
    "quick": Budget(
        "quick", 120, 2, 300, 20, 60, 32, 12, standard=False, substitute=False, prove="bounds"
    ),
    "full": Budget(
        "full", 200, 5, 3000, 100, 150, 100, 40, standard=True, substitute=True, prove="standard"
    ),
}


class AtRadius(Attack):
    """An attack at a radius of its own, whatever the epsilons of the evaluation.

    It is one that minimizes for the evaluation, which measures what it finds and knows no radius.

    Args:
        attack: in a ball.
        radius: of the ball.
    """

    minimizes = True

    def __init__(self, attack: Attack, radius: float) -> None:
        self.attack, self.radius = attack, radius
        self.norm, self.uses_gradients = attack.norm, attack.uses_gradients
        self.is_random = False  # once is enough for a comparison of radii
        self.cost = attack.cost

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        search = self.attack.on_batch(model, x, goal)
        return np.asarray(search(np.arange(len(x)), model.reach(self.norm, self.radius), seed))


class Evidence:
    """All that is known of a model.

    Args:
        model: the audited classifier, with its own gradient.
        followed: the models whose gradients the judged attack follows, that one among them.
        x: clean images, in memory or on disk.
        labels: true classes.
        correct: which clean images are classified correctly.
        epsilon: radius.
        threat_models: under which the robustness is judged.
        budget: how much work may be done.
        seed: of all that is random.
        evaluation: what the judged attack and the attacks of the checks found; None if nothing
            was attacked.
        adaptive_report: what an adversary found who knows the defences and follows other
            surrogate gradients than the judged attack, or None.
        transfers: what examples of other models found, or None.
        identities: names of the sources that are the model itself with the identity's gradient for
            layers in front.
        proofs: what was proved, and what the search broke, or None.
        not_proved_because: why nothing was proved, where `proofs` is None.
    """

    def __init__(
        self,
        *,
        model: AttackedModel,
        followed: Sequence[AttackedModel],
        x: np.ndarray | StoredImages,
        labels: np.ndarray,
        correct: np.ndarray,
        epsilon: float,
        threat_models: Sequence[str],
        budget: Budget,
        seed: int,
        evaluation: RobustnessReport | None,
        adaptive_report: RobustnessReport | None,
        transfers: RobustnessReport | None,
        identities: Sequence[str],
        proofs: RobustnessReport | None = None,
        not_proved_because: str = "nothing was proved",
    ) -> None:
        self.model, self.followed = model, list(followed)
        self.x, self.labels, self.correct = x, labels, correct
        self.rows = np.flatnonzero(correct)
        self.epsilon, self.threat_models = epsilon, tuple(threat_models)
        self.budget, self.seed = budget, seed
        self._evaluation, self.adaptive_report, self.transfers = (
            evaluation,
            adaptive_report,
            transfers,
        )
        self.identities = tuple(identities)
        self.proofs, self.not_proved_because = proofs, not_proved_because

    @property
    def has_evaluation(self) -> bool:
        """Whether the model was attacked at all."""
        return self._evaluation is not None

    @property
    def evaluation(self) -> RobustnessReport:
        """What the judged attack and the attacks of the checks found."""
        if self._evaluation is None:
            raise ValueError("Expected a model that was attacked. Received: one that was not.")
        return self._evaluation

    @property
    def width(self) -> float:
        """Width of the value range."""
        low, high = self.model.value_range
        return high - low

    @property
    def follows_surrogates(self) -> bool:
        """Whether the judged attack follows other gradients than the model's own."""
        return len(self.followed) > 1

    def goal(self, rows: np.ndarray) -> Goal:
        """What adversarial examples of some images must reach."""
        return Goal(self.labels[rows])

    def on_each(
        self, rows: np.ndarray, function: Callable[[np.ndarray, Goal], np.ndarray]
    ) -> np.ndarray:
        """What a function of images and their goals says of some rows, a part of them at a time."""
        size = rows_at_a_time(self.x)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([function(self.x[part], self.goal(part)) for part in parts])

    def rng(self) -> np.random.Generator:
        """Random numbers that are the same for the same seed."""
        return np.random.default_rng(self.seed)

    def looked_at(self, count: int) -> np.ndarray:
        """Rows that are classified correctly, spread evenly over the images."""
        return self.rows[spread_rows(len(self.rows), count)]

    @functools.cached_property
    def judged(self) -> np.ndarray:
        """Which images the judged attacks broke within epsilon, ``(n,)`` bool."""
        return np.any([self.found(name) for name in [JUDGED, *self.searches]], axis=0)

    @property
    def searches(self) -> list[str]:
        """Names of the attacks on the quantizer itself, which the judged attack includes."""
        return [name for name in self.evaluation.attacks if name in self._joined]

    @functools.cached_property
    def by_gradients(self) -> np.ndarray:
        """Which images any attack along gradients broke within epsilon, ``(n,)`` bool."""
        return self.judged | self.found(TARGETED)

    @property
    def _joined(self) -> Mapping[str, str]:
        """Attacks on the quantizer itself, which belong to the adaptive threat model."""
        return self.evaluation.provenance["identity"].get("joined attacks", {})

    @functools.cached_property
    def worst(self) -> np.ndarray:
        """Which images anything at all broke within epsilon, ``(n,)`` bool."""
        reports = (self.evaluation, self.adaptive_report, self.transfers, self.proofs)
        return np.any([self._broken(report) for report in reports], axis=0)

    @functools.cached_property
    def proved(self) -> np.ndarray | None:
        """Which images are proved within epsilon, ``(n,)`` bool; None if nothing was tried."""
        if self.proofs is None:
            return None
        states = [certificate.states == PROVED for certificate in self.proofs.certificates]
        return np.any(states, axis=0)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the other models that examples were made on."""
        if self.transfers is None:
            return ()
        named = {str(result.source) for result in self.transfers.results}
        return tuple(sorted(named - set(self.identities)))

    def transferred(self, sources: Sequence[str]) -> np.ndarray:
        """Which images the examples of some sources broke within epsilon, ``(n,)`` bool."""
        return self._broken(self.transfers, sources=sources)

    def results_of(self, sources: Sequence[str]) -> list[Result]:
        """What the examples of some sources found."""
        results = [] if self.transfers is None else self.transfers.results
        return [result for result in results if result.source in sources]

    @property
    def known_defense(self) -> np.ndarray:
        """Which images an adversary broke who knows the defences, ``(n,)`` bool."""
        return self._broken(self.adaptive_report)

    def found(self, attack: str, radius: float | None = None) -> np.ndarray:
        """Which images an attack broke within a radius, by default epsilon, ``(n,)`` bool."""
        return self._broken(self.evaluation, radius, attack)

    def distances(self, attack: str) -> np.ndarray:
        """L-infinity distances ``(n,)`` of what an attack found; infinite where it failed."""
        return np.min(
            [r.distances["linf"] for r in self.evaluation.results if r.attack == attack], axis=0
        )

    def failure(self, attack: str) -> str | None:
        """Why an attack could not be run, or None."""
        messages = [f["message"] for f in self.evaluation.failures if f["attack"] == attack]
        return messages[0] if messages else None

    def _broken(
        self,
        report: RobustnessReport | None,
        radius: float | None = None,
        attack: str | None = None,
        sources: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Which images attacks broke: all, or one of them, or those made on some sources."""
        broken = np.zeros(len(self.x), bool)
        for result in [] if report is None else report.results:
            of_attack = attack is None or result.attack == attack
            if of_attack and (sources is None or result.source in sources):
                within = self.epsilon if radius is None else radius
                broken |= norms.within(result.distances["linf"], within)
        return broken & self.correct
