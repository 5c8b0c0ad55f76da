"""Catastrophic overfitting: training on one step that stops to help against many."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.attacks import FGSM, PGD, AttackedModel, GradientAttack
from keras_qusec.logits import known_kind

Reaction = Literal["warn", "stop", "restore"]
REACTIONS = ("warn", "stop", "restore", None)

# Images of a probe, and the gap between one step and many that is called a collapse.
_IMAGES = 256
_GAP = 0.3


class CollapseProbe:
    """Compares after each epoch the accuracy under one step with that under PGD of ten.

    Networks that are trained on one step may learn to bend the gradient there: accuracy under one
    step rises, and under PGD it falls to zero within an epoch (Wong et al. 2020).

    Args:
        attack: that of the training.
        outputs: ``"logits"``, ``"probabilities"`` or None.
        hardnesses: of the surrogate gradients of defences; empty for own gradients.
        reaction: what to do after a collapse.
        seed: of PGD.
    """

    def __init__(
        self,
        attack: GradientAttack,
        outputs: str | None,
        hardnesses: list[float],
        reaction: Reaction,
        seed: int,
    ) -> None:
        same: dict[str, Any] = {"norm": attack.norm, "value_range": attack.value_range}
        self.one_step = FGSM(attack.epsilon, **same)
        self.many_steps = PGD(attack.epsilon, steps=10, **same)
        self.outputs, self.hardnesses, self.seed = outputs, hardnesses, seed
        self.reaction = reaction
        self.collapsed = False
        self._model: AttackedModel | None = None
        self._compiled: tuple[keras.Model, AttackedModel] | None = None
        self._parts: list[tuple[Any, Any]] = []
        self._good_weights: list[np.ndarray] | None = None

    def begin(self, model: keras.Model) -> None:
        """Get ready for a fit; models that are no classifiers of one input are not probed."""
        self.collapsed, self._model, self._good_weights = False, None, None
        symbols = [getattr(model, name, None) or [] for name in ("inputs", "outputs")]
        several = any(len(part) > 1 for part in symbols)
        if several or known_kind(model, self.outputs) is None:
            return
        # What was compiled serves the next fit of the same model.
        if self._compiled is None or self._compiled[0] is not model:
            attacked = AttackedModel(model, self.one_step.value_range, outputs=self.outputs)
            attacked = [*attacked.with_surrogates(self.hardnesses), attacked][0]
            self._compiled = (model, attacked)
        self._model = self._compiled[1]

    def begin_epoch(self) -> None:
        """Forget the images of the epoch before."""
        self._parts = []

    def take(self, images: Any, labels: Any) -> None:
        """Images and labels of a batch that is trained on; the first ones of an epoch are kept."""
        if keras.tree.is_nested(labels) or self._model is None:
            return
        if sum(len(part) for part, _ in self._parts) < _IMAGES:
            self._parts.append(tuple(map(ops.convert_to_numpy, (images, labels))))

    def measure(self, model: keras.Model) -> dict[str, float]:
        """What is logged of an epoch, at its end; nothing where it has no meaning."""
        if self._model is None or not self._parts:
            return {}
        x, y = (np.concatenate(parts)[:_IMAGES] for parts in zip(*self._parts, strict=True))
        try:
            classes = self._model.logits(x[:1]).shape[1]
            labels = checks.class_labels(y, len(x), classes=classes)
        except ValueError:
            # No classifier after all, such as a regression with several numbers.
            self._model = None
            return {}
        under = []
        for attack in (self.one_step, self.many_steps):
            images = attack(self._model, x, labels, seed=self.seed, batch_size=_IMAGES)
            under.append(float((self._model.predictions(images) == labels).mean()))
        one, many = under
        collapsed = one - many >= _GAP and many < one / 3
        if self.reaction == "restore" and not collapsed and not self.collapsed:
            self._good_weights = model.get_weights()
        if collapsed:
            self._react(model, one, many)
        return {
            "probe_fgsm_accuracy": one,
            "probe_pgd_accuracy": many,
            "catastrophic_overfitting": float(collapsed),
        }

    def _react(self, model: keras.Model, one: float, many: float) -> None:
        if self.reaction in ("stop", "restore"):
            model.stop_training = True
        if self.collapsed:
            return
        self.collapsed = True
        then = {"stop": " The training stops.", "restore": " The training stops; the weights "
                "of the last epoch without it come back."}  # fmt: skip
        if self.reaction == "restore" and self._good_weights is None:
            then["restore"] = " The training stops; no earlier epoch was without it."
        warnings.warn(
            f"AdversarialTraining: catastrophic overfitting. Accuracy under one step is {one:.0%}, "
            f"and under PGD of ten {many:.0%}: the network learned to mislead single steps. Use "
            '"n-fgsm", "fgsm-mep" or "pgd", a smaller epsilon, or a lower learning rate.'
            + then.get(self.reaction, ""),
            stacklevel=3,
        )

    def end(self, model: keras.Model) -> None:
        """Give the model the weights of the last good epoch, if that is asked for."""
        if self.collapsed and self._good_weights is not None:
            model.set_weights(self._good_weights)
        self._parts, self._good_weights = [], None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: not the attacks that were compiled for a model."""
        return {**vars(self), "_model": None, "_compiled": None, "_parts": []}
