"""Models of which it is known whether gradient attacks on them can be trusted.

Positive controls mask their gradient in one way each; of the checks named one must fail.
Negative controls mask nothing; no check may fail. Those of `AFTER_RULES` were written after
the rules of all checks were fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec import AdversarialTraining, QuSecQuantization
from keras_qusec.defenses import (
    QuantizedActivation,
    ThermometerEncoding,
    distill,
    straight_through,
)

IMAGES, TRAINED = 100, 4000


class Control(NamedTuple):
    """A model and what an audit of it must say.

    Attributes:
        make: from data and seed to a trained classifier.
        right: identifiers of the checks of which at least one must fail; none for a
            negative control, of which no check may be.
        epsilon: radius of the audit, in [0, 1].
        adaptive: judged adaptively.
        top: largest pixel value.
    """

    make: Callable[[Any, int], keras.Model]
    right: tuple[str, ...] = ()
    epsilon: float = 0.2
    adaptive: bool = False
    top: float = 1.0


def audited(control: Control, data: Any, seed: int, **more: Any) -> Any:
    """The audit of a control with a seed, on images of its own, with an undefended source."""
    from keras_qusec import audit_robustness

    keras.utils.set_random_seed(seed + 1000)
    scaled = [] if control.top == 1 else [keras.layers.Rescaling(1 / control.top)]
    source = fitted(network(*scaled), data, top=control.top)
    keras.utils.set_random_seed(seed)
    model = control.make(data, seed)
    some = np.random.default_rng(seed).permutation(len(data.x_test))[: more.pop("images", IMAGES)]
    return audit_robustness(
        model, data.x_test[some] * np.float32(control.top), data.y_test[some],
        epsilon=control.epsilon * control.top, value_range=(0.0, control.top), seed=seed,
        threat_models=("white-box", "adaptive") if control.adaptive else ("white-box",),
        source_model={"undefended": source}, progress=False, **more,
    )  # fmt: skip


# Parts of the controls.


def network(*front: Any, shape: tuple[int, ...] = (28, 28, 1), activation: Any = None) -> Any:
    """A small CNN behind layers, with logits."""
    return keras.Sequential(
        [
            keras.Input(shape),
            *front,
            keras.layers.Conv2D(16, 5, strides=2),
            keras.layers.Activation("relu") if activation is None else activation,
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def fitted(model: Any, data: Any, *callbacks: Any, epochs: int = 4, top: float = 1.0) -> Any:
    """A classifier that ends in logits, trained."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss)
    x, y = data.x_train[:TRAINED] * np.float32(top), data.y_train[:TRAINED]
    model.fit(x, y, epochs=epochs, batch_size=64, verbose=0, callbacks=list(callbacks))
    return model


def behind(layer: Any, model: Any) -> Any:
    """A layer in front of a trained classifier."""
    return keras.Sequential([keras.Input(model.input_shape[1:]), layer, *model.layers])


def followed_by(model: Any, *layers: Any) -> Any:
    """Layers behind a trained classifier."""
    return keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers, *layers])


def pgd_training(epsilon: float, seed: int, **more: Any) -> Any:
    """PGD training whose epsilon rises."""
    return AdversarialTraining(
        "pgd", epsilon=epsilon, steps=5, step_size=epsilon / 3, ramp_epochs=5, seed=seed, **more
    )


class HardSteps(keras.layers.Layer):
    """The nearest of some levels, without any gradient and without a word to the attacker."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def call(self, x: Any) -> Any:
        return ops.round(x * (self.levels - 1)) / (self.levels - 1)


class StopGradient(keras.layers.Layer):
    """The image itself, and no gradient."""

    def call(self, x: Any) -> Any:
        return ops.stop_gradient(x)


class Noisy(keras.layers.Layer):
    """Gaussian noise in every call."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, x: Any) -> Any:
        return x + 0.3 * keras.random.normal(ops.shape(x), dtype=x.dtype, seed=self.generator)


class RandomSigns(keras.layers.Layer):
    """The image itself, with a gradient whose signs are of no use."""

    def call(self, x: Any) -> Any:
        # A sign that changes fast and at every pixel with the image's own last digits.
        sign = ops.sign(ops.sin(1e4 * ops.stop_gradient(x) + 1e3 * _ramp(x)))
        return straight_through(x, x * sign)


def _ramp(x: Any) -> Any:
    return ops.cast(ops.reshape(ops.arange(int(np.prod(x.shape[1:]))), (1, *x.shape[1:])), x.dtype)


class NearestImage(keras.layers.Layer):
    """A purifier: of some training images the one that is nearest to the input."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images = ops.convert_to_tensor(images.reshape(len(images), -1))

    def call(self, x: Any) -> Any:
        flat = ops.reshape(x, (ops.shape(x)[0], -1))
        # Squared distances, less what is the same for all images.
        products = ops.matmul(flat, ops.transpose(self.images))
        nearest = ops.argmin(ops.sum(self.images**2, axis=1) - 2 * products, axis=1)
        return ops.reshape(ops.take(self.images, nearest, axis=0), ops.shape(x))


def _saturated_softmax(data: Any, _: int) -> Any:
    model = fitted(network(), data)
    return followed_by(model, keras.layers.Rescaling(30.0), keras.layers.Softmax())


POSITIVE: dict[str, Control] = {
    "hard quantizer, no surrogate": Control(
        lambda data, _: behind(HardSteps(2), fitted(network(), data)),
        ("gradient-values", "gradient-path"),
    ),
    "hard QuSecQuantization, white-box": Control(
        lambda data, _: fitted(network(QuSecQuantization(2, hard=True)), data),
        ("surrogates", "distances", "planted-examples", "finite-differences", "loss-path"),
    ),
    "hardness 1000, white-box": Control(
        lambda data, _: fitted(network(QuSecQuantization(2, hardness=1000)), data),
        ("surrogates", "distances", "planted-examples", "finite-differences", "loss-path"),
    ),
    "saturated softmax": Control(_saturated_softmax, ("saturated-outputs",)),
    "logits x 10,000": Control(
        lambda data, _: followed_by(fitted(network(), data), keras.layers.Rescaling(1e4)),
        ("saturated-outputs",),
    ),
    "noise layer": Control(
        lambda data, seed: behind(Noisy(seed), fitted(network(), data)), ("random-outputs",)
    ),
    "stop_gradient": Control(
        lambda data, _: behind(StopGradient(), fitted(network(), data)), ("gradient-path",)
    ),
    "path cut by rounding": Control(
        lambda data, _: behind(HardSteps(16), fitted(network(), data)), ("gradient-path",)
    ),
}

NEGATIVE: dict[str, Control] = {
    "undefended": Control(lambda data, _: fitted(network(), data), epsilon=0.1),
    "PGD training": Control(
        lambda data, seed: fitted(network(), data, pgd_training(0.2, seed), epochs=12)
    ),
    "quantized, PGD training, adaptive": Control(
        lambda data, seed: fitted(
            network(QuSecQuantization(2)), data,
            pgd_training(0.3, seed, gradient_hardness=10.0), epochs=12,
        ),
        epsilon=0.3, adaptive=True,
    ),
    "linear": Control(
        lambda data, seed: fitted(
            keras.Sequential(
                [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
            ),
            data,
        ),
        epsilon=0.05,
    ),
    "pixels from 0 to 255": Control(
        lambda data, seed: fitted(
            network(keras.layers.Rescaling(1 / 255)), data, top=255.0
        ),
        epsilon=0.1, top=255.0,
    ),
}  # fmt: skip


def _distilled(data: Any, _: int) -> Any:
    return distill(
        network(), data.x_train[:TRAINED], data.y_train[:TRAINED], temperature=40.0,
        optimizer=keras.optimizers.Adam(0.002), epochs=10, batch_size=64, verbose=0,
    )  # fmt: skip


def _mixed_precision(data: Any, _: int) -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return fitted(network(), data)
    finally:
        keras.config.set_dtype_policy(before)


def _normalised(data: Any, seed: int) -> Any:
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.3, seed=seed),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3, seed=seed + 1),
            keras.layers.Dense(10),
        ]
    )
    return fitted(model, data)


def _pooled(data: Any, _: int) -> Any:
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, activation="tanh"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(16, 3, activation="sigmoid"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(10),
        ]
    )
    return fitted(model, data, epochs=12)


AFTER_RULES: dict[str, Control] = {
    "defensive distillation": Control(_distilled, ("saturated-outputs",)),
    "thermometer encoding, white-box": Control(
        lambda data, _: fitted(network(ThermometerEncoding(16)), data),
        ("gradient-values", "gradient-path"),
    ),
    "DQA, white-box": Control(
        lambda data, _: fitted(network(activation=QuantizedActivation(2)), data),
        ("gradient-values", "gradient-path"),
    ),
    "gradients of random sign": Control(
        lambda data, _: behind(RandomSigns(), fitted(network(), data)),
        ("finite-differences", "loss-path"),
    ),
    "nearest training image": Control(
        lambda data, _: behind(NearestImage(data.x_train[:TRAINED]), fitted(network(), data)),
        ("gradient-values", "gradient-path"),
    ),
    "TRADES": Control(
        lambda data, seed: fitted(
            network(), data, pgd_training(0.2, seed, objective="trades"), epochs=12
        )
    ),
    "mixed precision": Control(_mixed_precision, epsilon=0.1),
    "batch normalisation and dropout": Control(_normalised, epsilon=0.1),
    "pooling and sigmoids": Control(_pooled, epsilon=0.1),
}

# Written after two of the rules were changed because of the controls above.


class FlippedGradient(keras.layers.Layer):
    """The image itself, with the gradient of its mirror image."""

    def call(self, x: Any) -> Any:
        return straight_through(x, ops.flip(x, axis=2))


class HalfCut(keras.layers.Layer):
    """The image itself, with no gradient on its left half."""

    def call(self, x: Any) -> Any:
        half = x.shape[2] // 2
        return ops.concatenate([ops.stop_gradient(x[:, :, :half]), x[:, :, half:]], axis=2)


def _mean_of_two(data: Any, _: int) -> Any:
    images = keras.Input((28, 28, 1))
    both = [fitted(network(), data)(images), fitted(network(), data)(images)]
    return keras.Model(images, keras.layers.Average()(both))


def _pgd_normalised(data: Any, seed: int) -> Any:
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("gelu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    return fitted(model, data, pgd_training(0.1, seed), epochs=8)


AFTER_CHANGE: dict[str, Control] = {
    "mirrored gradient": Control(
        lambda data, _: behind(FlippedGradient(), fitted(network(), data)),
        ("finite-differences", "loss-path"),
    ),
    "gradient of half the image": Control(
        lambda data, _: behind(HalfCut(), fitted(network(), data)),
        ("finite-differences", "gradient-free", "planted-examples"),
        epsilon=0.15,
    ),
    "softmax": Control(
        lambda data, _: followed_by(fitted(network(), data), keras.layers.Softmax()), epsilon=0.1
    ),
    "mean of two networks": Control(_mean_of_two, epsilon=0.1),
    "batch normalisation, PGD training": Control(_pgd_normalised, epsilon=0.1),
}

CONTROLS = POSITIVE | NEGATIVE | AFTER_RULES | AFTER_CHANGE
