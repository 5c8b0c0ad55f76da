"""Which wrong classes a targeted attack tries first."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.backends import backend

ORDERS = ("malt", "logits")
# Classes that are ranked by their gradients, the likeliest; a gradient each.
_RANKED = 20


def target_order(
    model: AttackedModel, x: np.ndarray, labels: np.ndarray, count: int, order: str, norm: str
) -> np.ndarray:
    """The first `count` wrong classes of each image, ``(n, count)`` or fewer.

    ``"logits"``: the likeliest first. ``"malt"``: by the difference of logits over the dual norm
    of its gradient, the distance to the boundary if the model were linear (Melamed et al. 2024);
    this costs a gradient for each class, of at most 20 likely ones.

    Args:
        model: the classifier.
        x: clean images.
        labels: their classes.
        count: how many targets.
        order: one of `ORDERS`.
        norm: name of the norm, for "malt".
    """
    logits = model.logits(x)
    own = np.arange(logits.shape[1]) == labels[:, None]
    likely = np.argsort(-np.where(own, -np.inf, logits), axis=1, kind="stable")[:, :-1]
    if order == "logits" or likely.shape[1] < 2:
        return likely[:, :count]
    ranked = likely[:, :_RANKED]
    distance = np.empty(ranked.shape)
    for place in range(ranked.shape[1]):
        gap, slope = _gap_and_slope(model, x, labels, ranked[:, place], norm)
        far = gap / np.maximum(slope, 1e-300)
        distance[:, place] = np.nan_to_num(far, nan=np.inf, posinf=np.inf)
    best = np.argsort(distance, axis=1, kind="stable")
    nearest = np.take_along_axis(ranked, best, axis=1)
    return np.concatenate([nearest, likely[:, _RANKED:]], axis=1)[:, :count]


def _gap_and_slope(
    model: AttackedModel, x: np.ndarray, labels: np.ndarray, aims: np.ndarray, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """How far the label's logit is above the target's, and the dual norm of the gradient."""

    def run(mapping: Any, x: Any, labels: Any, aims: Any) -> tuple[Any, Any]:
        def difference(images: Any) -> tuple[Any, Any]:
            logits = model.traced_logits(mapping, images)
            size = logits.shape[-1]
            sign = ops.one_hot(aims, size, dtype=logits.dtype) - ops.one_hot(
                labels, size, dtype=logits.dtype
            )
            gap = ops.sum(logits * sign, axis=-1)
            return ops.sum(gap), gap

        gradient, gap = backend().input_gradient(difference, x)
        return gap, norms.get(norm).dual(gradient)

    model.counter.count(len(x))
    compiled = model.compiled(("gap and slope", norm), run, batches=3)
    gap, slope = model.on_rows(compiled, x, labels, aims)
    return -gap.astype("float64"), slope.astype("float64")
