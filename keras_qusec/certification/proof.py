"""RobustnessProof: what is proved, broken and open, at each epsilon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_qusec.norms import radius_text
from keras_qusec.results import BROKEN, OPEN, PROVED, Certificate
from keras_qusec.statistics import wilson_interval

Array = np.ndarray


class RobustnessProof:
    """What `certify_robustness` found out of each image.

    Args:
        model: name of the model.
        correct: which images it classifies correctly when clean, ``(n,)``.
        certificates: one for each epsilon, in rising order.
        examples: by epsilon and image, adversarial examples of the search, verified.
        how: by epsilon, how each image was decided: ``"intervals"``, ``"linear"`` (bounds),
            ``"search"``, ``"clean"`` (misclassified), or empty.
        image_shape: of one image.
        details: what it was made from, in words.

    Example: see `certify_robustness`.
    """

    def __init__(
        self,
        *,
        model: str,
        correct: Array,
        certificates: Sequence[Certificate],
        examples: Mapping[float, Mapping[int, Array]],
        how: Mapping[float, Array],
        image_shape: Sequence[int],
        details: Mapping[str, Any],
    ) -> None:
        self.model, self.correct = model, correct
        self.certificates = list(certificates)
        self._examples, self._how = dict(examples), dict(how)
        self.image_shape = tuple(image_shape)
        self.details = dict(details)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The radii in L-infinity, in rising order."""
        return tuple(certificate.epsilon for certificate in self.certificates)

    def certificate(self, epsilon: float | None = None) -> Certificate:
        """The certificate of an epsilon.

        Args:
            epsilon: radius; left out, the largest.

        Raises:
            ValueError: for one that was not asked for.
        """
        if epsilon is None:
            return self.certificates[-1]
        for certificate in self.certificates:
            if math.isclose(certificate.epsilon, epsilon, rel_tol=1e-6):
                return certificate
        raise ValueError(
            f"Expected an epsilon of the proof: {', '.join(map(radius_text, self.epsilons))}. "
            f"Received: {epsilon:g}. Certify again with it among epsilons."
        )

    def status(self, epsilon: float | None = None) -> Array:
        """``"proved"``, ``"broken"`` or ``"open"`` for each image, ``(n,)``.

        Args:
            epsilon: radius; left out, the largest.

        Raises:
            ValueError: for one that was not asked for.
        """
        return self.certificate(epsilon).states

    def certified_accuracy(self, epsilon: float | None = None) -> float:
        """The share of images that are proved, in [0, 1].

        Args:
            epsilon: radius; left out, the largest.

        Raises:
            ValueError: for one that was not asked for.
        """
        return float((self.status(epsilon) == PROVED).mean())

    def examples(self, epsilon: float | None = None) -> tuple[Array, Array]:
        """The adversarial examples that the search found.

        Args:
            epsilon: radius; left out, the largest.

        Returns:
            Which images of the data ``(k,)``, and the examples ``(k, ...)`` float32.

        Raises:
            ValueError: for an epsilon that was not asked for.
        """
        found = self._examples[self.certificate(epsilon).epsilon]
        numbers = np.array(sorted(found), "int64")
        images = [found[number] for number in numbers]
        return numbers, np.array(images, "float32").reshape(-1, *self.image_shape)

    def how(self, epsilon: float | None = None) -> Array:
        """How each image was decided, ``(n,)``; empty for what is open.

        Args:
            epsilon: radius; left out, the largest.

        Raises:
            ValueError: for one that was not asked for.
        """
        return self._how[self.certificate(epsilon).epsilon]

    def __str__(self) -> str:
        count = len(self.correct)
        lines = [
            f"Proofs for {self.model}: {count} images, L-inf, quantizer "
            f"{self.details['quantizer']}, effort {self.details['effort']}",
            f"{'epsilon':<9}{'proved':>8}{'broken':>8}{'open':>7}   robust, in % (95 % interval)"
            f"{'s/image':>11}",
            "-" * 72,
        ]
        for certificate in self.certificates:
            states = certificate.states
            proved, open_ = (int((states == state).sum()) for state in (PROVED, OPEN))
            least, most = proved / count, (proved + open_) / count
            low, high = wilson_interval(proved, count)[0], wilson_interval(proved + open_, count)[1]
            share = f"{100 * least:.1f}"
            if open_:
                share += f" to {100 * most:.1f}"
            robust = f"{share} ({100 * low:.1f} to {100 * high:.1f})"
            lines.append(
                f"{radius_text(certificate.epsilon):<9}{proved:>8}"
                f"{int((states == BROKEN).sum()):>8}{open_:>7}   {robust:<30}"
                f"{certificate.seconds.mean():>10.3f}"
            )
        margin = max(certificate.margin for certificate in self.certificates)
        lines.append(
            f"Proofs leave a margin of {margin:.2g} between logits for the rounding of float32."
        )
        return "\n".join(lines)

    __repr__ = __str__
