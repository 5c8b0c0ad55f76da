"""The network of the paper."""

from __future__ import annotations

import keras
import numpy as np


def paper_cnn(
    quantizer: keras.layers.Layer | None = None,
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    first_activation: keras.layers.Layer | None = None,
    seed: int | None = None,
) -> keras.Sequential:
    """The basic CNN of CleverHans that the paper uses, with an optional quantizer in front.

    Conv 64 8x8 stride 2 same, Conv 128 6x6 stride 2 valid, Conv 128 5x5 valid, ReLU after
    each, Dense. The output is logits: compile it with a loss that has
    ``from_logits=True``. A softmax in the model would mask gradients from attacks.

    Args:
        quantizer: layer put in front of the first convolution, or None for undefended.
        input_shape: image height, width and channels; at least 26x26 for the kernels.
        classes: number of classes.
        first_activation: layer in place of the ReLU after the first convolution, or None.
        seed: seed of the initial weights; the same seed gives the same network.

    Returns:
        A `keras.Sequential`, not compiled. Input ``(batch, *input_shape)`` floats, output
        ``(batch, classes)`` logits.

    Raises:
        ValueError: for images too small for the kernels.

    Source: Section IV, "CNN"; Papernot et al., CleverHans v2.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.models import paper_cnn
    >>> paper_cnn(QuSecQuantization(2)).output_shape
    (None, 10)
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 26:
        raise ValueError(
            "Expected input_shape=(height, width, channels) with height and width from 26 "
            f"up, because three convolutions shrink it. Received: {input_shape!r}. "
            "Resize the images, or build your own network behind the quantizer."
        )
    # A seed of its own for each layer: one for all would give equal shapes equal weights.
    seeds = iter(np.random.SeedSequence(seed).generate_state(4).tolist())

    def initializer() -> keras.initializers.Initializer:
        return keras.initializers.GlorotUniform(seed=next(seeds))

    def conv(
        filters: int, size: int, strides: int, padding: str, activation: str = "relu"
    ) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding=padding,
            activation=activation,
            kernel_initializer=initializer(),
        )

    return keras.Sequential(
        [
            keras.Input(input_shape),
            *([] if quantizer is None else [quantizer]),
            conv(64, 8, 2, "same", "relu" if first_activation is None else "linear"),
            *([] if first_activation is None else [first_activation]),
            conv(128, 6, 2, "valid"),
            conv(128, 5, 1, "valid"),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, kernel_initializer=initializer()),
        ]
    )
