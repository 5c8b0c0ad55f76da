"""What an evaluation will do: the attacks, the images, and the units that the work is cut into."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from keras_qusec.attacks import Attack, Classifier, Ensemble, Goal
from keras_qusec.digests import seed_from
from keras_qusec.evaluation.threat_models import ThreatModel


class Unit(NamedTuple):
    """One attack on one batch: on a model itself, or made on a source for several models.

    Attributes:
        attack: name of the attack.
        models: names of the attacked models.
        source: name of the source model, or None.
        batch: index of the batch.
    """

    attack: str
    models: tuple[str, ...]
    source: str | None
    batch: int

    @property
    def maker(self) -> str:
        """Name of the model that examples are made on."""
        return self.models[0] if self.source is None else self.source

    @property
    def key(self) -> str:
        """A file name that is this unit's alone."""
        identity = json.dumps([self.attack, self.models, self.source])
        maker = self.maker if self.source is None else f"from-{self.source}"
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{maker}-{self.attack}")[:60]
        return f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}-{self.batch:05d}"

    def seed(self, seed: int, *, alone: bool = False) -> int:
        """A seed of the unit's own, whichever process runs it and when.

        Args:
            seed: seed of the evaluation.
            alone: there is one attacked model, whose name changes no figure.
        """
        models = ("model",) if alone else self.models
        return seed_from(f"{seed} {models} {self.source}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """An evaluation, all but the models.

    Attributes:
        attacks: by name.
        radii: of each attack, in rising order, or ``(None,)``: as close as can be.
        threat_models: in the order in which they run.
        hardnesses: of the surrogate gradients.
        value_range: smallest and largest pixel value.
        x: clean images, ``(n, ...)`` float32.
        goal: what adversarial examples must reach.
        correct: by attacked model, which images it classifies correctly when clean.
        batch_size: images in a unit.
        seed: seed of all that is random.
        alone: there is one attacked model, whose name changes no figure.
        joined: attacks that joined by themselves, for the sake of some of the models.
        without_gradients: names of the attacked models that give no gradients.
        kept_norms: norms in which the closest example of every broken image is kept.
        proved: by model and epsilon in L-infinity, which images are proved and not attacked.
    """

    attacks: Mapping[str, Attack]
    radii: Mapping[str, tuple[float | None, ...]]
    threat_models: tuple[ThreatModel, ...]
    hardnesses: tuple[float, ...]
    value_range: tuple[float, float]
    x: np.ndarray
    goal: Goal
    correct: Mapping[str, np.ndarray]
    batch_size: int
    seed: int
    alone: bool = False
    joined: tuple[str, ...] = ()
    without_gradients: tuple[str, ...] = ()
    kept_norms: tuple[str, ...] = ()
    proved: Mapping[str, Mapping[float, np.ndarray]] = dataclasses.field(default_factory=dict)

    def can_be_made(self, attack: Attack, model: Classifier) -> bool:
        """Whether an attack can be made on a model itself."""
        if isinstance(attack, Ensemble) and not model.has_gradients:
            return any(self.can_be_made(part, model) for part in attack.parts.values())
        if attack.uses_gradients and not model.has_gradients:
            return False
        return attack.applies_to(model, self.x)

    def threat_models_for(self, attack: Attack, model: str) -> list[ThreatModel]:
        """The threat models under which an attack is made on an attacked model itself.

        Args:
            attack: the attack.
            model: name of the model.
        """
        if attack.attacks_defense:
            return [t for t in self.threat_models if t.follows_surrogates and not t.uses_source]
        if attack.uses_gradients and model not in self.without_gradients:
            return [threat for threat in self.threat_models if not threat.uses_source]
        asking = [threat for threat in self.threat_models if threat.asks_only]
        return [*asking, *self.threat_models][:1]

    def units(self, transfers: Mapping[str, tuple[str, ...]]) -> Iterator[Unit]:
        """The units of work, batch after batch.

        Args:
            transfers: for each source the attacked models that its examples are tried on.
        """
        for batch in range(-(-len(self.x) // self.batch_size)):
            for name, attack in self.attacks.items():
                yield from (
                    Unit(name, (model,), None, batch)
                    for model in self.correct
                    if self.threat_models_for(attack, model)
                )
                if attack.uses_gradients and not attack.attacks_defense:
                    for source, models in transfers.items():
                        if models:
                            yield Unit(name, models, source, batch)

    def batch(self, unit: Unit) -> Plan:
        """The plan for the images and the attack of one unit, with a seed of its own."""
        rows = np.arange(len(self.x))[unit.batch * self.batch_size :][: self.batch_size]
        return dataclasses.replace(
            self,
            attacks={unit.attack: self.attacks[unit.attack]},
            x=self.x[rows],
            goal=self.goal.take(rows),
            correct={name: self.correct[name][rows] for name in unit.models},
            seed=unit.seed(self.seed, alone=self.alone),
            proved={
                name: {radius: states[rows] for radius, states in self.proved[name].items()}
                for name in unit.models
                if name in self.proved
            },
        )
