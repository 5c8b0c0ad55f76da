"""certify_robustness: which images no attack can break within epsilon, proved one by one."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import Box, reachable_box
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Bounds, Network
from keras_qusec.certification.reduced import Reduced

Array = np.ndarray

# Seconds that the search has for one image; of "bounds" it has none.
EFFORTS = {"bounds": 0.0, "standard": 1.0, "exact": 60.0}
# Images whose bounds are computed together.
_AT_A_TIME = 64


class Prover:
    """Proofs for one classifier.

    Args:
        model: the classifier.
        x: images, of which the shape matters; on some of them the network in float64 is compared
            with the model.

    Raises:
        ValueError: for a model without rules for its layers, or that computes something else.
    """

    def __init__(self, model: AttackedModel, x: Array) -> None:
        self.model = model
        box = reachable_box(model, x[:1], 0.0)
        start = None if box.quantizer is None else box.quantizer.layer
        self.network = Network(pieces_between(model.model, start))
        self._check_network(x)

    def _check_network(self, x: Array) -> None:
        """Raise a ValueError if the network in float64 and the model differ by more than rounding.

        A rule may be wrong, or the hardware may compute with fewer digits than float32.
        """
        low, high = self.model.value_range
        random = np.random.default_rng(0).uniform(low, high, (8, *x.shape[1:])).astype("float32")
        if self.model.takes_whole_numbers:
            random = np.round(random)
        images = np.concatenate([x[:8], random])
        box = reachable_box(self.model, images, 0.0)
        inputs = box.low.reshape(len(images), -1)
        if box.quantizer is not None:
            inputs = box.quantizer.outputs(images)
            inputs = np.moveaxis(inputs, -1, 1) if self.model.channels_first else inputs
            inputs = inputs.reshape(len(images), -1)
        bounds = self.network.bounds(inputs, inputs)[-1]
        given = self.model.logits(images).astype("float64")
        gap = np.maximum(bounds.low - given, given - bounds.high) - 2 * bounds.error
        if given.shape != bounds.low.shape or (gap > 0).any():
            worst = "" if given.shape != gap.shape else f" by up to {gap.max():.3g}"
            raise ValueError(
                f"Expected {self.model.model.name!r} to compute what its layers say, in float32. "
                f"Received: logits that differ{worst} from those in float64, by more than "
                "rounding explains. A rule for a layer is wrong, or the model computes with lower "
                "precision than float32; nothing can be proved of it."
            )

    def bounds(self, box: Box, rows: Array) -> list[Bounds]:
        """Bounds of all nodes by intervals, for some images of a box."""
        low, high = (part[rows].reshape(len(rows), -1) for part in (box.low, box.high))
        # Levels between the ends are known but for their last bit.
        error = 0.0
        if box.grid is not None:
            error = 2.0**-22 * float(max(np.abs(low).max(), np.abs(high).max()))
        return self.network.bounds(low, high, error)

    def margins(self, network: Reduced, error: Array, label: int) -> tuple[Reduced, Array]:
        """The logits of other classes minus that of the label, and their rounding."""
        others = np.delete(np.arange(self.network.classes), label)
        matrices = [matrix[others] - matrix[label] for matrix in network.matrices]
        offset = network.offset[others] - network.offset[label]
        gaps = Reduced(network.low, network.high, network.groups, matrices, offset)
        # Doubled for what the search itself rounds in float64, which is far less.
        return gaps, (error[others] + error[label]) * (1 + 1e-3)


def certify(
    prover: Prover, x: Array, labels: Array, box: Box, wanted: Array, seconds: float
) -> tuple[Array, Array, Array, dict[int, Array], float]:
    """Decide some images within one epsilon.

    Args:
        prover: of the classifier.
        x: clean images.
        labels: true classes.
        box: what reaches the network from the images.
        wanted: rows of the images to decide.
        seconds: time of the search for one image.

    Returns:
        States and seconds of all images, `wanted` or not; how each was decided; adversarial
        examples by image; and the largest margin for rounding.
    """
    raise NotImplementedError
