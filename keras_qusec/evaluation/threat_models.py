"""What each adversary knows: which gradients it follows, and on which model it makes examples.

A threat model of one's own is a subclass of `ThreatModel`, made known with `register`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_qusec.attacks import Attack, AttackedModel
from keras_qusec.registry import Registry


class ThreatModel:
    """An adversary.

    Attributes:
        name: what users write and reports show.
        summary: what the adversary knows, in a few words.
        continues: name of the threat model on whose images it goes on where that one failed,
            with all that was found there; or None.
        uses_source: makes its examples on another model, which is its own, and transfers them.
        asks_only: what attacks without gradients belong to.
        follows_surrogates: follows the surrogate gradients of the attacked model's defences.
        line_style: of its curves in figures, as matplotlib takes it.
    """

    name: str
    summary: str = ""
    continues: str | None = None
    uses_source: bool = False
    asks_only: bool = False
    follows_surrogates: bool = False
    line_style: Any = "-"

    def models(
        self,
        model: AttackedModel,
        attack: Attack,
        hardnesses: Sequence[float],
        continued: bool,
    ) -> list[AttackedModel]:
        """The models whose gradients an attack that uses gradients follows, in turn.

        Args:
            model: the attacked model, or the source if `uses_source`.
            attack: the attack.
            hardnesses: of the surrogate gradients.
            continued: whether the threat model that this one continues ran before.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method models.")


class WhiteBox(ThreatModel):
    """Follows the model's own gradient, which a defence may hide."""

    name, summary, line_style = "white-box", "knows the model, follows its gradient", ":"

    def models(
        self, model: AttackedModel, attack: Attack, hardnesses: Sequence[float], continued: bool
    ) -> list[AttackedModel]:
        return [model]


class Adaptive(ThreatModel):
    """Follows the surrogate gradients of every defence where white-box failed.

    A model without defences offers none; it gets as many more random starts instead.
    """

    name, summary, line_style = "adaptive", "knows the model and its defences", "--"
    continues, follows_surrogates = "white-box", True

    def models(
        self, model: AttackedModel, attack: Attack, hardnesses: Sequence[float], continued: bool
    ) -> list[AttackedModel]:
        surrogates = model.with_surrogates(hardnesses)
        if not surrogates and attack.is_random:
            surrogates = [model] * len(hardnesses)
        return surrogates if continued else [model, *surrogates]


class BlackBox(ThreatModel):
    """Cannot see the model: transfers examples of its own model, or asks for outputs.

    The adversary owns the source, so it also follows the surrogate gradients of its defences.
    """

    name, summary, line_style = "black-box", "does not know the model", "-."
    uses_source = asks_only = True

    def models(
        self, model: AttackedModel, attack: Attack, hardnesses: Sequence[float], continued: bool
    ) -> list[AttackedModel]:
        return [model, *model.with_surrogates(hardnesses)]


_THREAT_MODELS: Registry[ThreatModel] = Registry(
    "threat_models to be some of", others=", each once"
)


def register(threat_model: ThreatModel) -> ThreatModel:
    """Make a threat model known by its name; one of the same name is replaced.

    Threat models run in the order in which they were registered.

    Example:

    >>> from keras_qusec.evaluation import threat_models
    >>> threat_models.register(threat_models.WhiteBox()).name
    'white-box'
    """
    _THREAT_MODELS.add(threat_model.name, threat_model)
    return threat_model


def unregister(name: str) -> None:
    """Forget a threat model."""
    _THREAT_MODELS.remove(name)


def get(name: str) -> ThreatModel:
    """A threat model by its name.

    Raises:
        ValueError: for an unknown name.
    """
    return _THREAT_MODELS.get(name)


def names() -> tuple[str, ...]:
    """The names of all threat models, in the order in which they run."""
    return _THREAT_MODELS.names()


for _threat_model in (WhiteBox(), Adaptive(), BlackBox()):
    register(_threat_model)
