"""Generative adversarial networks that train in `fit`, with one step for both networks.

Keras' `fit` has one loss and one optimizer. Both networks of a GAN train with them, on every
backend, since each part of the loss reaches one network alone: the other one is held by giving it
values of its weights that carry no gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

Tensor = Any


@contextlib.contextmanager
def held(network: keras.Model) -> Iterator[None]:
    """Give a network's weights no gradient inside the block; its inputs keep theirs."""
    weights = [(v, ops.stop_gradient(v.value)) for v in network.variables]
    with keras.StatelessScope(state_mapping=weights):
        yield


def binary_cross_entropy(scores: Tensor, real: bool) -> Tensor:
    """The mean cross-entropy of scores (logits) that images are real, or that they are made."""
    return ops.mean(ops.softplus(-scores if real else scores))


def networks_config(model: keras.Model, *names: str) -> dict[str, Any]:
    """The networks of a model by the names of its attributes, as Keras serialises them."""
    return {name: keras.saving.serialize_keras_object(getattr(model, name)) for name in names}


def networks_of(config: dict[str, Any], *names: str) -> tuple[list[Any], dict[str, Any]]:
    """The networks of a configuration, and what else is in it."""
    rest = {key: value for key, value in config.items() if key not in names}
    return [keras.saving.deserialize_keras_object(config[name]) for name in names], rest
