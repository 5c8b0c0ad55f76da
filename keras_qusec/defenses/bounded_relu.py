"""BReLU and Gaussian data augmentation (Zantedeschi et al. 2017)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_qusec import checks

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_qusec")
class BoundedReLU:
    """The activation function ``min(max(0, x), t)``.

    An error that grows from layer to layer cannot grow beyond t. Its gradient is honest: there is
    nothing to go around, and adaptive attacks have no surrogate for it.

    Args:
        bound: t, above 0.

    Raises:
        ValueError: for another bound.

    Source: Zantedeschi et al. 2017, Efficient Defenses Against Adversarial Attacks. How it is
    broken: Carlini and Wagner 2017, MagNet and "Efficient Defenses..." are not Robust.

    Example:

    >>> from keras_qusec.defenses import BoundedReLU
    >>> layer = keras.layers.Dense(2, activation=BoundedReLU(1.0), kernel_initializer="ones")
    >>> keras.ops.convert_to_numpy(layer(np.array([[3.0]], "float32"))).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, bound: float = 1.0) -> None:
        self.bound = checks.number(bound, "bound", above=0, hint="The authors take 1.")

    def __call__(self, x: Tensor) -> Tensor:
        return ops.clip(x, 0.0, self.bound)

    def get_config(self) -> dict[str, Any]:
        return {"bound": self.bound}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BoundedReLU:
        return cls(**config)


def with_bounded_relus(model: keras.Model, bound: float = 1.0) -> keras.Model:
    """A copy of a model whose ReLUs are bounded; weights are copied.

    ReLU is found as a layer (`ReLU`, `Activation`), and as the activation of any layer of Keras.

    Args:
        model: built functional or sequential model.
        bound: t of `BoundedReLU`.

    Raises:
        ValueError: for a model without a graph or without a ReLU.

    Source: Zantedeschi et al. 2017.

    Example:

    >>> from keras_qusec.defenses import with_bounded_relus
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu")])
    >>> with_bounded_relus(model).layers[0].activation.bound
    1.0
    """
    bounded = BoundedReLU(bound)
    if not getattr(model, "outputs", None):
        raise ValueError(
            f"Expected a functional or sequential model, built. Received: {model.name!r}, which "
            "has no graph. Give its layers activation=BoundedReLU() where you write them."
        )
    changed = []

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.ReLU):
            changed.append(layer.name)
            config["max_value"] = bounded.bound
        elif getattr(layer, "activation", None) is keras.activations.relu:
            changed.append(layer.name)
            config["activation"] = keras.activations.serialize(bounded)
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    if not changed:
        raise ValueError(
            f"Expected a model with ReLUs. Received: {model.name!r}, which has none. Other "
            "activations are left as they are."
        )
    copy.set_weights(model.get_weights())
    return copy


def brelu_gda(model: keras.Model, *, bound: float = 1.0, noise: float = 0.3) -> keras.Model:
    """A model with bounded ReLUs that sees images with Gaussian noise while it trains.

    The noise is Keras' own `GaussianNoise`, which rests in inference.

    Args:
        model: built functional or sequential model.
        bound: t of the bounded ReLUs.
        noise: standard deviation, in units of the pixel values; the authors take about 0.3 for
            MNIST and 0.05 for CIFAR-10.

    Returns:
        A model to be compiled and trained.

    Raises:
        ValueError: for unusable arguments.

    Source: Zantedeschi et al. 2017.

    Example:

    >>> from keras_qusec.defenses import brelu_gda
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu")])
    >>> brelu_gda(model, noise=0.1).layers[0].stddev
    0.1
    """
    noise = checks.number(noise, "noise", least=0)
    augmented = keras.layers.GaussianNoise(noise)
    return keras.Sequential(
        [keras.Input(model.input_shape[1:]), augmented, with_bounded_relus(model, bound)]
    )
