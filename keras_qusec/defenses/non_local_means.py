"""Non-local means, the third of the squeezers of feature squeezing (Xu et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate
from keras_qusec.defenses.median_smoothing import check_image_shape, mirrored

Tensor = Any


def non_local_means(x: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Each pixel replaced by a mean of the pixels whose surroundings look alike.

    ``y_p = sum_q w_pq x_q / sum_q w_pq`` with ``w_pq = exp(-d_pq / strength^2)``, q in a square of
    side `search` around p, and d_pq the mean squared difference of the squares of side `patch`
    around p and q, over all channels. Beyond its edges the image is mirrored.

    Args:
        x: float tensor ``(n, height, width, channels)``.
        search: side of the square in which pixels are looked for, odd.
        patch: side of the squares that are compared, odd.
        strength: h, in units of the pixel values.

    Source: Buades et al. 2005; Xu et al. 2018, Section III.B.

    Example:

    >>> from keras_qusec.defenses import non_local_means
    >>> x = np.full((1, 8, 8, 1), 0.5, "float32")
    >>> bool(np.allclose(non_local_means(x, 5, 3, 0.1), x))
    True
    """
    reach, radius = search // 2, patch // 2
    height, width, channels = x.shape[1:]
    count = ops.shape(x)[0]
    edge = reach + radius
    padded = mirrored(x, edge, edge)
    tall, wide = height + 2 * radius, width + 2 * radius
    centre = padded[:, reach : reach + tall, reach : reach + wide]

    def add(place: Any, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        total, weights = sums
        # A loop and not a list: a 13 x 13 search would be 169 copies of this in the graph.
        start = [0, place // search, place % search, 0]
        moved = ops.slice(padded, start, (count, tall, wide, channels))
        gap = ops.mean(ops.square(moved - centre), axis=-1, keepdims=True)
        distance = ops.average_pool(gap, patch, strides=1, padding="valid")
        weight = ops.exp(-distance / strength**2)
        inner = moved[:, radius : radius + height, radius : radius + width]
        return total + weight * inner, weights + weight

    zero = ops.zeros_like(x)
    total, weights = ops.fori_loop(0, search * search, add, (zero, zero[..., :1]))
    return total / weights


@keras.saving.register_keras_serializable(package="keras_qusec")
class NonLocalMeans(keras.layers.Layer):
    """Smooth images by non-local means, in front of a classifier.

    Inside the graph, so that attacks can differentiate it and it is saved with the model. Adaptive
    attacks also take the identity instead (BPDA).

    Args:
        search: side of the square in which alike pixels are looked for, odd.
        patch: side of the squares that are compared, odd.
        strength: h, in units of the pixel values. The authors' "13-3-2" for CIFAR-10 is
            ``NonLocalMeans(13, 3, 2 / 255)``.
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: ``(batch, height, width, channels)`` of known height and width, at least half of
    `search` and `patch` together.

    Output shape: that of the input.

    Raises:
        ValueError: for unusable arguments, and for images of another form.

    Source: Xu et al. 2018, Feature Squeezing, Section III.B. How it is broken: He et al. 2017.

    Example:

    >>> from keras_qusec.defenses import NonLocalMeans
    >>> NonLocalMeans(5, 3, 0.1)(np.ones((1, 8, 8, 3), "float32")).shape == (1, 8, 8, 3)
    True
    """

    def __init__(
        self, search: int = 13, patch: int = 3, strength: float = 2 / 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.search = _odd(search, "search")
        self.patch = _odd(patch, "patch")
        self.strength = checks.number(strength, "strength", above=0)

    def surrogates(self, hardnesses: Sequence[float]) -> list[str]:
        """What an adaptive attacker differentiates instead: the identity."""
        return ["identity"]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        check_image_shape(input_shape, self.search // 2 + self.patch // 2, self.name)
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        y = non_local_means(inputs, self.search, self.patch, self.strength)
        return y if current_surrogate(self) is None else straight_through(y, inputs)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"search": self.search, "patch": self.patch, "strength": self.strength}
        return {**super().get_config(), **own}


def _odd(value: Any, name: str) -> int:
    value = checks.whole_number(value, name, hint="A square around a pixel has an odd side.")
    if value % 2 == 0:
        raise ValueError(
            f"Expected {name} to be odd, the side of a square around a pixel. Received: "
            f"{name}={value}. Use {value + 1}."
        )
    return value
