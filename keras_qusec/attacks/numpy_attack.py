"""A base for Foolbox attacks whose bookkeeping is in NumPy: they ask the model and no more.

This module and those that build on it import Foolbox (the extra "evaluate").
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

import numpy as np

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # see `evaluation.bridge.import_foolbox`

import eagerpy as ep
from foolbox.attacks.base import MinimizationAttack, get_criterion, raise_if_kwargs
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.distances import l0


class Oracle:
    """A Foolbox model that takes and gives NumPy, and knows when an attack has won.

    Args:
        model: Foolbox model.
        like: a tensor of the model's framework, for its type and device.
        classes: labels to leave, or targets to reach, ``(n,)``.
        targeted: whether `classes` are targets.
    """

    def __init__(self, model: Any, like: Any, classes: np.ndarray, targeted: bool) -> None:
        self.model, self.like, self.classes, self.targeted = model, like, classes, targeted

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits of images, ``(n, classes)``."""
        return self.model(ep.from_numpy(self.like, images)).numpy()

    def won(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which logits, of the images in some rows, are adversarial."""
        reached = logits.argmax(axis=1) == self.classes[rows]
        return reached if self.targeted else ~reached

    def is_adversarial(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which images, that belong to some rows, are adversarial."""
        return self.won(self.logits(images), rows)

    def log_probability_gradient(
        self, images: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The gradient of the log-probability of classes, and the logits."""
        index = ep.from_numpy(self.like, classes.astype(np.int64))

        def objective(x: Any) -> tuple[Any, Any]:
            logits = self.model(x)
            return -ep.crossentropy(logits, index).sum(), logits

        gradient = ep.value_and_grad_fn(self.like, objective, has_aux=True)
        _, logits, slope = gradient(ep.from_numpy(self.like, images))
        return slope.numpy(), logits.numpy()


class NumpyAttack(MinimizationAttack):
    """A Foolbox attack that changes few pixels; subclasses write `search`."""

    distance = l0

    @abstractmethod
    def search(self, oracle: Oracle, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        """Images like `x` that are adversarial and as close as can be, or `x` for failures."""

    def run(
        self,
        model: Any,
        inputs: Any,
        criterion: Any,
        *,
        early_stop: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the attack; see `foolbox.attacks.base.MinimizationAttack.run`.

        Raises:
            ValueError: for a criterion that is not (targeted) misclassification.
        """
        raise_if_kwargs(kwargs)
        x, restore_type = ep.astensor_(inputs)
        criterion = get_criterion(criterion)
        if isinstance(criterion, Misclassification):
            classes, targeted = criterion.labels, False
        elif isinstance(criterion, TargetedMisclassification):
            classes, targeted = criterion.target_classes, True
        else:
            raise ValueError(
                "Expected the criterion Misclassification or TargetedMisclassification. "
                f"Received: {criterion!r}. Other criteria are not supported by this attack."
            )
        oracle = Oracle(model, x, np.asarray(classes.numpy()), targeted)
        low, high = model.bounds
        found = self.search(oracle, np.array(x.numpy()), (float(low), float(high)))
        return restore_type(ep.from_numpy(x, found.astype(x.numpy().dtype)))


def thinned(working: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The rows to go on with: fewer only once half are done, to keep shapes few.

    JAX compiles for each batch size anew; rows that are done cost little until they go.
    """
    return working[active] if active.sum() <= len(working) // 2 else working
