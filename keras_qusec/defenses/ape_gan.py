"""APE-GAN (Shen et al. 2017): a generator that takes perturbations off images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_qusec import checks
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate
from keras_qusec.defenses.gan import binary_cross_entropy, held, networks_config, networks_of

Tensor = Any


def ape_generator(
    image_shape: tuple[int, int, int], *, filters: int = 64, seed: int | None = None
) -> keras.Model:
    """The authors' generator: conv, conv, deconv, deconv to an image in [0, 1].

    Args:
        image_shape: height, width (multiples of 4) and channels.
        filters: filters of the first layer; twice as many in the second. The authors take 64.
        seed: seed of the initial weights.

    Raises:
        ValueError: for images of another size.

    Source: Shen et al. 2017, Table 1.

    Example:

    >>> from keras_qusec.defenses import ape_generator
    >>> ape_generator((28, 28, 1)).output_shape
    (None, 28, 28, 1)
    """
    height, width, channels = _checked_shape(image_shape)
    start = _initializers(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((height, width, channels)),
            layers.Conv2D(filters, 3, 2, "same", kernel_initializer=next(start)),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Conv2D(2 * filters, 3, 2, "same", kernel_initializer=next(start)),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(filters, 3, 2, "same", kernel_initializer=next(start)),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(channels, 3, 2, "same", kernel_initializer=next(start)),
            layers.Activation("sigmoid"),
        ],
        name="generator",
    )


def ape_discriminator(
    image_shape: tuple[int, int, int], *, filters: int = 64, seed: int | None = None
) -> keras.Model:
    """The authors' discriminator: three convolutions and one score, a logit.

    Args:
        image_shape: height, width and channels.
        filters: filters of the first layer, twice and four times as many in the next.
        seed: seed of the initial weights.

    Source: Shen et al. 2017, Table 1.

    Example:

    >>> from keras_qusec.defenses import ape_discriminator
    >>> ape_discriminator((28, 28, 1)).output_shape
    (None, 1)
    """
    start = _initializers(seed)
    layers = keras.layers
    convolutions = []
    for factor in (1, 2, 4):
        size = factor * filters
        convolutions += [
            layers.Conv2D(size, 3, 2, "same", kernel_initializer=next(start)),
            layers.LeakyReLU(0.2),
        ]
    last = layers.Dense(1, kernel_initializer=next(start))
    return keras.Sequential(
        [keras.Input(tuple(image_shape)), *convolutions, layers.Flatten(), last],
        name="discriminator",
    )


@keras.saving.register_keras_serializable(package="keras_qusec")
class APEGAN(keras.Model):
    """Train a generator to take adversarial perturbations off images.

    ``loss of G = 0.7 * mse(G(x_adv), x) + 0.3 * adversarial``; the discriminator D tells x from
    G(x_adv). Compile it without a loss and call ``fit(x_adv, x)`` with adversarial and clean
    images; then put ``Purifier(gan.generator)`` in front of a classifier.

    Args:
        generator: from images to images, such as `ape_generator`.
        discriminator: from images to one logit, such as `ape_discriminator`.
        mse_weight: weight of the squared error, in [0, 1]; the adversarial loss has the rest.
        **kwargs: `name` and the other arguments of every Keras model.

    Raises:
        ValueError: for unusable arguments.

    Source: Shen et al. 2017, APE-GAN, Section 3.

    Example:

    >>> from keras_qusec.defenses import APEGAN, ape_discriminator, ape_generator
    >>> shape = (8, 8, 1)
    >>> gan = APEGAN(ape_generator(shape, filters=2), ape_discriminator(shape, filters=2))
    >>> gan.compile("adam")
    >>> x = np.random.rand(4, *shape).astype("float32")
    >>> sorted(gan.fit(x, x, verbose=0).history)
    ['loss']
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        *,
        mse_weight: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator
        self.mse_weight = checks.number(mse_weight, "mse_weight", least=0, most=1)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.generator(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The losses of both networks; each part reaches one of them."""
        with held(self.discriminator):
            fooled = binary_cross_entropy(self.discriminator(y_pred, training=training), True)
        error = ops.mean(ops.square(y_pred - ops.cast(y, y_pred.dtype)))
        made = self.discriminator(ops.stop_gradient(y_pred), training=training)
        real = self.discriminator(ops.cast(y, y_pred.dtype), training=training)
        told_apart = binary_cross_entropy(real, True) + binary_cross_entropy(made, False)
        return self.mse_weight * error + (1 - self.mse_weight) * fooled + told_apart

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **networks_config(self, "generator", "discriminator"),
            "mse_weight": self.mse_weight,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> APEGAN:
        networks, rest = networks_of(config, "generator", "discriminator")
        return cls(*networks, **rest)


@keras.saving.register_keras_serializable(package="keras_qusec")
class Purifier(keras.layers.Layer):
    """A generator as a layer in front of a classifier, such as that of `APEGAN`.

    Its own gradient goes through the generator; adaptive attacks also take the identity (BPDA).

    Args:
        generator: from images to images of the same shape.
        **kwargs: `name` and the other arguments of every Keras layer.

    Input shape: that of the generator. Output shape: the same.

    Raises:
        ValueError: for something else than a model.

    Source: Shen et al. 2017. How it is broken: Athalye et al. 2018 (BPDA).

    Example:

    >>> from keras_qusec.defenses import Purifier, ape_generator
    >>> defended = keras.Sequential([keras.Input((8, 8, 1)), Purifier(ape_generator((8, 8, 1)))])
    >>> defended.output_shape
    (None, 8, 8, 1)
    """

    def __init__(self, generator: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(generator, keras.Model):
            raise ValueError(
                f"Expected a Keras model from images to images. Received: {generator!r}. Give the "
                "generator of a trained APEGAN."
            )
        self.generator = generator

    def surrogates(self, hardnesses: Sequence[float]) -> list[str]:
        """What an adaptive attacker differentiates instead: the identity."""
        return ["identity"]

    def call(self, inputs: Tensor) -> Tensor:
        y = self.generator(inputs, training=False)
        return y if current_surrogate(self) is None else straight_through(y, inputs)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **networks_config(self, "generator")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Purifier:
        networks, rest = networks_of(config, "generator")
        return cls(*networks, **rest)


def _checked_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(image_shape) != 3 or image_shape[0] % 4 or image_shape[1] % 4:
        raise ValueError(
            "Expected image_shape=(height, width, channels) with height and width multiples of 4, "
            f"since two layers halve them. Received: {image_shape!r}. Pad or resize the images."
        )
    return image_shape


def _initializers(seed: int | None) -> Any:
    """Initializers of one seed each, without end."""
    return (
        keras.initializers.GlorotUniform(seed=None if seed is None else 1000 * seed + number)
        for number in itertools.count()
    )
