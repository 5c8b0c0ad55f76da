"""Defense-GAN (Samangouei et al. 2018): images replaced by the nearest that a generator makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.backends import backend
from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.base import current_surrogate
from keras_qusec.defenses.gan import held, networks_config, networks_of

Tensor = Any


def wgan_generator(
    image_shape: tuple[int, int, int],
    *,
    latent: int = 32,
    units: Sequence[int] = (256, 256),
    seed: int | None = None,
) -> keras.Model:
    """A generator of dense layers, from latent vectors to images in [0, 1].

    Smaller than the authors' convolutional one, so that a projection of many steps is affordable.

    Args:
        image_shape: height, width and channels.
        latent: length of a latent vector; the authors take 100.
        units: units of the hidden layers.
        seed: seed of the initial weights.

    Example:

    >>> from keras_qusec.defenses import wgan_generator
    >>> wgan_generator((28, 28, 1), latent=16).output_shape
    (None, 28, 28, 1)
    """
    return keras.Sequential(
        [
            keras.Input((latent,)),
            *_hidden(units, seed),
            keras.layers.Dense(math.prod(image_shape), activation="sigmoid"),
            keras.layers.Reshape(tuple(image_shape)),
        ],
        name="generator",
    )


def wgan_critic(
    image_shape: tuple[int, int, int],
    *,
    units: Sequence[int] = (256, 256),
    seed: int | None = None,
) -> keras.Model:
    """A critic of dense layers, from images to one score.

    Args:
        image_shape: height, width and channels.
        units: units of the hidden layers.
        seed: seed of the initial weights.

    Example:

    >>> from keras_qusec.defenses import wgan_critic
    >>> wgan_critic((28, 28, 1)).output_shape
    (None, 1)
    """
    return keras.Sequential(
        [
            keras.Input(tuple(image_shape)),
            keras.layers.Flatten(),
            *_hidden(units, None if seed is None else seed + 1),
            keras.layers.Dense(1),
        ],
        name="critic",
    )


def _hidden(units: Sequence[int], seed: int | None) -> list[keras.layers.Layer]:
    layers: list[keras.layers.Layer] = []
    for number, size in enumerate(units):
        start = keras.initializers.HeNormal(seed=None if seed is None else 100 * seed + number)
        layers += [
            keras.layers.Dense(size, kernel_initializer=start),
            keras.layers.LeakyReLU(0.2),
        ]
    return layers


@keras.saving.register_keras_serializable(package="keras_qusec")
class WGANGP(keras.Model):
    """Train a generator of images: a Wasserstein GAN with a gradient penalty.

    Critic: ``mean D(G(z)) - mean D(x) + penalty * mean (||grad D|| - 1)^2`` at points between
    both; generator: ``-mean D(G(z))``. Both take a step at each batch. Compile it without a loss,
    with a small beta_1 such as ``keras.optimizers.Adam(1e-4, beta_1=0.5, beta_2=0.9)``, and call
    ``fit(x)``.

    Args:
        generator: from latent vectors ``(n, latent)`` to images, such as `wgan_generator`.
        critic: from images to one score, such as `wgan_critic`.
        penalty: weight of the gradient penalty; the authors take 10.
        seed: seed of the latent vectors.
        **kwargs: `name` and the other arguments of every Keras model.

    Raises:
        ValueError: for unusable arguments.

    Source: Gulrajani et al. 2017, Improved Training of Wasserstein GANs.

    Example:

    >>> from keras_qusec.defenses import WGANGP, wgan_critic, wgan_generator
    >>> gan = WGANGP(wgan_generator((4, 4, 1), units=(8,)), wgan_critic((4, 4, 1), units=(8,)))
    >>> gan.compile("adam")
    >>> sorted(gan.fit(np.random.rand(8, 4, 4, 1).astype("float32"), verbose=0).history)
    ['loss']
    """

    def __init__(
        self,
        generator: keras.Model,
        critic: keras.Model,
        *,
        penalty: float = 10.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generator, self.critic = generator, critic
        self.penalty = checks.number(penalty, "penalty", least=0)
        self.seed = checks.whole_number(seed, "seed", least=0)
        self.random = keras.random.SeedGenerator(self.seed)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """As many generated images as there are inputs."""
        shape = (ops.shape(inputs)[0], self.generator.input_shape[-1])
        return self.generator(keras.random.normal(shape, seed=self.random), training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The losses of both networks; each part reaches one of them."""
        with held(self.critic):
            fooled = -ops.mean(self.critic(y_pred, training=training))
        made, real = ops.stop_gradient(y_pred), ops.cast(x, y_pred.dtype)
        told_apart = ops.mean(self.critic(made, training=training)) - ops.mean(
            self.critic(real, training=training)
        )
        share = keras.random.uniform(
            (ops.shape(real)[0],) + (1,) * (len(real.shape) - 1), seed=self.random
        )
        between = real + ops.cast(share, real.dtype) * (made - real)

        def score(images: Tensor) -> tuple[Tensor, Any]:
            return ops.sum(self.critic(images, training=training)), ()

        slope, _ = backend().input_gradient(score, between, differentiable=True)
        axes = list(range(1, len(real.shape)))
        length = ops.sqrt(ops.sum(ops.square(slope), axis=axes) + 1e-12)
        return fooled + told_apart + self.penalty * ops.mean(ops.square(length - 1.0))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **networks_config(self, "generator", "critic"),
            "penalty": self.penalty,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WGANGP:
        networks, rest = networks_of(config, "generator", "critic")
        return cls(*networks, **rest)


@keras.saving.register_keras_serializable(package="keras_qusec")
class DefenseGAN(keras.layers.Layer):
    """Replace each image by the nearest one that a generator makes, in front of a classifier.

    ``z <- z - rate * d/dz mean (G(z) - x)^2``, with momentum, for some steps from each of several
    starts; the nearest ``G(z)`` of all goes on to the classifier. Starts are drawn once, by a seed,
    so that the same image always gives the same result.

    It costs ``steps * restarts`` forward and backward passes of the generator an image. Its own
    derivative is cut: attacks that follow it fail. Adaptive attacks take the identity (BPDA), and
    then the derivative of the last few steps of the projection.

    Args:
        generator: from latent vectors to images in the value range, such as that of `WGANGP`.
        steps: gradient steps L; the authors take 200.
        restarts: starts R; the authors take 10.
        rate: length of a step; a tenth of it for the last fifth of the steps.
        momentum: of the steps.
        unrolled: last steps that the second surrogate gradient goes through.
        seed: seed of the starts.
        **kwargs: `name` and the other arguments of every Keras layer.

    Input shape: that of the generator's output. Output shape: the same.

    Raises:
        ValueError: for unusable arguments.

    Source: Samangouei et al. 2018, Defense-GAN. How it is broken: Athalye et al. 2018, Section 5.

    Example:

    >>> from keras_qusec.defenses import DefenseGAN, wgan_generator
    >>> layer = DefenseGAN(wgan_generator((4, 4, 1), units=(8,)), steps=3, restarts=2)
    >>> layer(np.zeros((5, 4, 4, 1), "float32")).shape == (5, 4, 4, 1)
    True
    """

    def __init__(
        self,
        generator: keras.Model,
        *,
        steps: int = 200,
        restarts: int = 10,
        rate: float = 10.0,
        momentum: float = 0.7,
        unrolled: int = 5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(generator, keras.Model) or not generator.built:
            raise ValueError(
                f"Expected a built generator, a Keras model. Received: {generator!r}. Train a "
                "WGANGP, and give its generator."
            )
        self.generator = generator
        self.steps = checks.whole_number(steps, "steps", hint="The authors take 200.")
        self.restarts = checks.whole_number(restarts, "restarts", hint="The authors take 10.")
        self.rate = checks.number(rate, "rate", above=0)
        self.momentum = checks.number(momentum, "momentum", least=0, most=0.999)
        self.unrolled = min(checks.whole_number(unrolled, "unrolled"), self.steps)
        self.seed = checks.whole_number(seed, "seed", least=0)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        wanted = tuple(self.generator.output_shape[1:])
        if tuple(input_shape[1:]) != wanted:
            raise ValueError(
                f"Expected images like those of the generator, {wanted}. Received: "
                f"{tuple(input_shape[1:])}. Train a generator on such images."
            )
        shape = (self.restarts, self.generator.input_shape[-1])
        starts = np.random.default_rng(self.seed).normal(size=shape)
        self._starts = self.add_weight(
            name="starts", shape=shape, initializer="zeros", trainable=False, autocast=False
        )
        self._starts.assign(starts)
        super().build(input_shape)

    def surrogates(self, hardnesses: Sequence[float]) -> list[str]:
        """What an adaptive attacker differentiates instead: the identity, then the last steps."""
        return ["identity", "unrolled"]

    def call(self, inputs: Tensor) -> Tensor:
        images = ops.cast(inputs, "float32")
        target = ops.repeat(ops.stop_gradient(images), self.restarts, axis=0)
        count = ops.shape(images)[0]
        latent = ops.tile(self._starts + 0.0, (count, 1))
        surrogate = current_surrogate(self)
        early = self.steps - (self.unrolled if surrogate == "unrolled" else 0)
        state = (latent, ops.zeros_like(latent))
        state = ops.fori_loop(0, early, lambda i, s: self._step(i, s, target, False), state)
        state = tuple(map(ops.stop_gradient, state))
        if surrogate == "unrolled":
            target = ops.repeat(images, self.restarts, axis=0)
            for step in range(early, self.steps):
                state = self._step(step, state, target, True)
        made = self._nearest(self.generator(state[0], training=False), target, count)
        output = ops.cast(ops.stop_gradient(made), self.compute_dtype)
        if surrogate is None:
            return output
        stand_in = made if surrogate == "unrolled" else images
        return straight_through(output, ops.cast(stand_in, output.dtype))

    def _step(
        self, step: Any, state: tuple[Tensor, Tensor], target: Tensor, differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        """One step of the projection: the latent vectors, and their velocity."""
        latent, velocity = state
        axes = list(range(1, len(target.shape)))

        def error(latent: Tensor) -> tuple[Tensor, Any]:
            made = ops.cast(self.generator(latent, training=False), "float32")
            return ops.sum(ops.mean(ops.square(made - target), axis=axes)), ()

        slope, _ = backend().input_gradient(error, latent, differentiable=differentiable)
        late = ops.cast(ops.cast(step, "float32") >= 0.8 * self.steps, "float32")
        velocity = self.momentum * velocity - self.rate * (1.0 - 0.9 * late) * slope
        return latent + velocity, velocity

    def _nearest(self, made: Tensor, target: Tensor, count: Any) -> Tensor:
        """Of the images made from all starts, the one nearest to each image."""
        made = ops.cast(made, "float32")
        axes = list(range(1, len(target.shape)))
        error = ops.stop_gradient(ops.mean(ops.square(made - target), axis=axes))
        best = ops.argmin(ops.reshape(error, (count, self.restarts)), axis=1)
        chosen = ops.one_hot(best, self.restarts, dtype="float32")
        rows = ops.reshape(made, (count, self.restarts, math.prod(target.shape[1:])))
        picked = ops.sum(rows * ops.expand_dims(chosen, -1), axis=1)
        return ops.reshape(picked, (count, *target.shape[1:]))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **networks_config(self, "generator"),
            "steps": self.steps,
            "restarts": self.restarts,
            "rate": self.rate,
            "momentum": self.momentum,
            "unrolled": self.unrolled,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DefenseGAN:
        networks, rest = networks_of(config, "generator")
        return cls(*networks, **rest)
