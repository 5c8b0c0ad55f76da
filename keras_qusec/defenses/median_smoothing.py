"""Median smoothing, the second of the squeezers of feature squeezing (Xu et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate

Tensor = Any


def median_filter(x: Tensor, size: int) -> Tensor:
    """Each pixel replaced by the median of a square of pixels around it, channel by channel.

    The same as ``scipy.ndimage.median_filter(x, (1, size, size, 1), mode="reflect")``: an even
    square reaches one pixel farther up and left, and of an even number of values the upper of the
    two in the middle counts.

    Args:
        x: float tensor ``(n, height, width, channels)``.
        size: side of the square.

    Source: Xu et al. 2018, Section III.B.

    Example:

    >>> from keras_qusec.defenses import median_filter
    >>> x = np.zeros((1, 4, 4, 1), "float32")
    >>> x[0, 1, 1] = 1  # a single bright pixel
    >>> float(np.asarray(median_filter(x, 2)).max())
    0.0
    """
    if size == 1:
        return x
    before, after = size // 2, size - 1 - size // 2
    height, width = x.shape[1:3]
    padded = mirrored(x, before, after)
    if size == 2:
        # The second largest of four, cheaper than a sort, which no backend does fast: each pair of
        # neighbours in a row is compared once, and serves two rows.
        left, right = padded[:, :, :-1], padded[:, :, 1:]
        low, high = ops.minimum(left, right), ops.maximum(left, right)
        return ops.maximum(
            ops.maximum(low[:, :-1], low[:, 1:]), ops.minimum(high[:, :-1], high[:, 1:])
        )
    values = [
        padded[:, dy : dy + height, dx : dx + width] for dy in range(size) for dx in range(size)
    ]
    return ops.sort(ops.stack(values), axis=0)[size * size // 2]


def mirrored(x: Tensor, before: int, after: int) -> Tensor:
    """Images ``(n, height, width, channels)`` continued beyond their edges, as in a mirror.

    Written here since Keras pads so on PyTorch by one pixel only.
    """
    if max(before, after) <= 1:
        edges = [before, after]
        return ops.pad(x, [[0, 0], edges, edges, [0, 0]], mode="symmetric")
    for axis in (1, 2):
        turned = ops.flip(x, axis=axis)
        size = x.shape[axis]
        first = ops.take(turned, range(size - before, size), axis=axis)
        last = ops.take(turned, range(after), axis=axis)
        x = ops.concatenate([first, x, last], axis=axis)
    return x


@keras.saving.register_keras_serializable(package="keras_qusec")
class MedianSmoothing(keras.layers.Layer):
    """Replace each pixel by the median of its surroundings, in front of a classifier.

    It takes away changes of single pixels (JSMA, salt and pepper). Its derivative passes to one
    pixel of each square; adaptive attacks also take the identity instead (BPDA).

    Args:
        size: side of the square, from 2 up; the authors take 2 for MNIST and CIFAR-10.
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: ``(batch, height, width, channels)`` of known height and width, at least `size`.

    Output shape: that of the input.

    Raises:
        ValueError: for unusable arguments, and for images of another form.

    Source: Xu et al. 2018, Feature Squeezing, Section III.B. How it is broken: He et al. 2017.

    Example:

    >>> from keras_qusec.defenses import MedianSmoothing
    >>> MedianSmoothing(2)(np.ones((1, 28, 28, 1), "float32")).shape == (1, 28, 28, 1)
    True
    """

    def __init__(self, size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = checks.whole_number(size, "size", least=2, hint="1 would change nothing.")

    def surrogates(self, hardnesses: Sequence[float]) -> list[str]:
        """What an adaptive attacker differentiates instead: the identity."""
        return ["identity"]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        check_image_shape(input_shape, self.size, self.name)
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        y = median_filter(inputs, self.size)
        return y if current_surrogate(self) is None else straight_through(y, inputs)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


def check_image_shape(shape: tuple[int | None, ...], least: int, name: str) -> None:
    """Raise a ValueError for inputs that are no images of a known size, at least `least`."""
    known = len(shape) == 4 and all(size is not None and size >= least for size in shape[1:3])
    if not known:
        raise ValueError(
            f"Expected images (batch, height, width, channels) of known height and width, {least} "
            f"or more, for the layer {name!r}. Received: shape {tuple(shape)}. Give keras.Input "
            "the full shape."
        )
