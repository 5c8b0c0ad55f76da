"""The ball that an attack searches, and random numbers inside compiled functions."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.draws import ImageDraws

Tensor = Any


class Ball(NamedTuple):
    """The images that an attack may reach: near the clean ones and inside the value range.

    Attributes:
        x: clean images, a tensor ``(n, ...)``.
        epsilon: radius, a scalar tensor or number.
        norm: norm of the radius.
        value_range: smallest and largest pixel value.
    """

    x: Tensor
    epsilon: Tensor
    norm: norms.Norm
    value_range: tuple[float, float]

    def project(self, images: Tensor) -> Tensor:
        """Images moved into the ball."""
        return self.norm.project_inside(images, self.x, self.epsilon, self.value_range)

    def random_image(self, state: Tensor) -> Tensor:
        """Random images of the ball, from two integers such as a seed and the training step."""
        random = _Random(state, self.x.dtype)
        images = self.norm.random_start(self.x, self.epsilon, random.uniform, random.normal)
        return self.project(images)


def ball_around(x: Tensor, epsilon: Tensor, norm: str, value_range: tuple[float, float]) -> Ball:
    """A ball of a norm of this name."""
    return Ball(x, ops.cast(epsilon, x.dtype), norms.get(norm), value_range)


def random_images(
    model: AttackedModel, x: np.ndarray, norm: str, epsilon: float, seed: int
) -> np.ndarray:
    """Random images of the balls around `x`, as NumPy; each depends on its own image alone.

    Args:
        model: of the value range.
        x: clean images.
        norm: name of the norm.
        epsilon: radius.
        seed: see `ImageDraws`.
    """
    if not len(x):
        return x.copy()
    asked = model.kept(("random numbers", norm), lambda: _numbers_asked(norms.get(norm), x[:1]))

    def run(_: Any, x: Tensor, *rest: Tensor) -> Tensor:
        *numbers, epsilon = rest
        drawn = iter(numbers)
        ball = ball_around(x, epsilon, norm, model.value_range)

        def uniform(_: Any, low: Any = 0.0, high: Any = 1.0) -> Tensor:
            return low + (high - low) * next(drawn)

        return ball.project(ball.norm.random_start(x, ball.epsilon, uniform, lambda _: next(drawn)))

    draws, rows = ImageDraws(x, seed), np.arange(len(x))
    arrays = [one.draw(draws, rows).astype("float32") for one in asked]
    compiled = model.compiled(("random images", norm, asked), run, batches=1 + len(arrays))
    return model.on_rows(compiled, x, *arrays, scalars=(np.float32(epsilon),))


class _Numbers(NamedTuple):
    """Random numbers that the random start of a norm asks for: uniform in [0, 1), or normal."""

    shape: tuple[int, ...]
    normal: bool

    def draw(self, draws: ImageDraws, rows: np.ndarray) -> np.ndarray:
        drawn = draws.normal if self.normal else draws.uniform
        return drawn(rows, *self.shape)


def _numbers_asked(norm: norms.Norm, x: np.ndarray) -> tuple[_Numbers, ...]:
    """What a norm's random start asks for, seen at one image."""
    asked: list[_Numbers] = []

    def told(normal: bool) -> Any:
        def ask(shape: Any, *_: Any, **__: Any) -> Tensor:
            asked.append(_Numbers(tuple(int(size) for size in shape[1:]), normal))
            return ops.ones(shape)

        return ask

    norm.random_start(ops.convert_to_tensor(x), ops.ones(()), told(False), told(True))
    return tuple(asked)


@functools.cache
def random_generator() -> keras.random.SeedGenerator:
    """The one generator, first asked for before tracing: TensorFlow makes no variables inside."""
    return keras.random.SeedGenerator(0)


class _Random:
    """Random numbers from two integers, which may be tensors such as the training step.

    Keras takes numbers and generators as seeds. A generator whose state is set for a while is
    a seed on every backend, also inside compiled functions.
    """

    def __init__(self, state: Tensor, dtype: Any) -> None:
        self.generator = random_generator()
        self.state, self.dtype = ops.cast(state, self.generator.state.dtype), dtype

    def uniform(self, shape: Any, low: float, high: float) -> Tensor:
        return self._draw(keras.random.uniform, shape, low, high)

    def normal(self, shape: Any) -> Tensor:
        return self._draw(keras.random.normal, shape)

    def _draw(self, distribution: Any, shape: Any, *limits: float) -> Tensor:
        mapping = [(self.generator.state, self.state)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            numbers = distribution(shape, *limits, dtype=self.dtype, seed=self.generator)
        # The next draw goes on where this one left the generator.
        self.state = scope.get_current_value(self.generator.state)
        return numbers


def noise(like: Tensor, state: Tensor) -> Tensor:
    """Numbers uniform in [-1, 1), of the shape and dtype of a tensor, from two integers."""
    return _Random(state, like.dtype).uniform(ops.shape(like), -1.0, 1.0)
