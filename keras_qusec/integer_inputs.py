"""Models whose Input is of whole numbers, as one exports them for phones: computed with floats.

Keras casts what such a model is given to the type of its Input, and a cast has no gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.custom_gradients import straight_through
from keras_qusec.graphs import calls_of, has_graph, node_of

Tensor = Any
Function = Callable[[Tensor], Tensor]


def integer_input(model: Any, index: int = 0) -> str | None:
    """The integer dtype of a model's Input, or None for floats and for models without a graph.

    Example:

    >>> integer_input(keras.Sequential([keras.Input((2,), dtype="uint8"), keras.layers.Dense(1)]))
    'uint8'
    """
    if not has_graph(model):
        return None
    dtype = keras.backend.standardize_dtype(model.inputs[index].dtype)
    return dtype if _is_integer(dtype) else None


def casts_images(model: Any) -> bool:
    """Whether an Input of whole numbers is in a model, or in a model inside it."""
    if not has_graph(model):
        return False
    if any(_is_integer(keras.backend.standardize_dtype(one.dtype)) for one in model.inputs):
        return True
    return any(casts_images(call.operation) for call in calls_of(model))


def part_of(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, through_casts: bool
) -> Function:
    """The part of a graph between its inputs and some tensors, in inference mode.

    Through casts, what follows an Input of integers is computed with floats of the same values, so
    that it has a gradient. That is not always what the model computes: integers overflow.

    Args:
        inputs: symbolic inputs of a model.
        outputs: symbolic tensors of the same graph.
        through_casts: whether to compute with floats where an Input casts to integers.

    Returns:
        A function of one tensor, or of a list where there are several inputs; it returns a tensor,
        or a list where there are several outputs.
    """
    part = keras.Model(_single(inputs), _single(outputs))
    if not (through_casts and casts_images(part)):
        return lambda images: part(images, training=False)
    return lambda images: _run(inputs, outputs, images)


def whole(images: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial images in whole numbers: the nearest, and the nearest towards clean ones.

    Args:
        images: adversarial images, floats.
        x: clean images, in whole numbers.
    """
    return np.round(images), (x + np.trunc(images - x)).astype("float32")


# Factors of a perturbation, of whose whole numbers the best inside a ball are taken.
_FACTORS = np.linspace(0.5, 3.0, 51)


def whole_inside(
    images: np.ndarray, x: np.ndarray, epsilon: float, power: int, values: tuple[float, float]
) -> np.ndarray:
    """Adversarial images in whole numbers, inside a ball whose norm is a sum of powers.

    The nearest whole numbers mostly lie outside, and those towards the clean image are too near it.
    So the perturbation is made larger and smaller before it is rounded: of what is inside, the
    image that goes farthest in the perturbation's direction.

    Args:
        images: adversarial images, floats in the ball.
        x: clean images, in whole numbers.
        epsilon: radius.
        power: 1 for L1, 2 for L2.
        values: smallest and largest pixel value.
    """
    change = (images - x).reshape(len(x), -1).astype("float64")
    clean = x.reshape(len(x), -1)
    limit = (epsilon * (1 + 1e-6)) ** power
    best = np.trunc(change)
    farthest = (best * change).sum(axis=1)
    for factor in _FACTORS:
        moved = np.clip(np.round(clean + factor * change), *values) - clean
        inside = (np.abs(moved) ** power).sum(axis=1) <= limit
        gained = (moved * change).sum(axis=1)
        better = inside & (gained > farthest)
        best[better], farthest[better] = moved[better], gained[better]
    return (x + best.reshape(x.shape)).astype("float32")


def whole_images(x: Any, models: Sequence[Any]) -> np.ndarray:
    """Images as floats in whole numbers, where a model takes nothing else; others as they are.

    Args:
        x: images of an integer dtype, or floats in whole numbers but for rounding.
        models: models that get these images.

    Raises:
        ValueError: for fractions and a model whose Input is of integers.
    """
    x = np.asarray(x)
    casting = [model for model in models if integer_input(model) is not None]
    if not casting:
        return x
    if np.issubdtype(x.dtype, np.integer) and len(casting) == len(models):
        return x.astype("float32")
    nearest = np.round(x)
    if np.issubdtype(x.dtype, np.floating) and not np.allclose(
        x, nearest, rtol=0, atol=1e-3, equal_nan=True
    ):
        raise ValueError(
            f"Expected images in whole numbers, since the Input of {casting[0].name!r} has "
            f"dtype={integer_input(casting[0])!r} and Keras cuts fractions off. Received: values "
            f"such as {x.ravel()[np.nanargmax(np.abs(x - nearest))]:g}. Give pixel values such as "
            "0 to 255 with value_range=(0, 255), or a model with a float Input."
        )
    return nearest.astype(x.dtype)


def check_reachable(epsilon: float, models: Sequence[Any]) -> None:
    """Raise a ValueError for an L-infinity radius in which no whole number lies.

    Args:
        epsilon: the smallest radius.
        models: models that get the images; only those with an Input of integers matter.
    """
    casting = [model for model in models if integer_input(model) is not None]
    if casting and epsilon * (1 + 1e-6) < 1:
        raise ValueError(
            f"Expected epsilons of 1 or more in L-inf, since the Input of {casting[0].name!r} has "
            f"dtype={integer_input(casting[0])!r} and no other whole number lies nearer. Received: "
            f"{epsilon:g}. They are in units of the pixel values: 8, and not 8 / 255."
        )


def rounded(images: Tensor) -> Tensor:
    """The nearest whole numbers, with the gradient of the images."""
    return straight_through(ops.round(images), images)


def _is_integer(dtype: str) -> bool:
    return "int" in dtype


def _single(tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else list(tensors)


def _run(inputs: Sequence[Tensor], outputs: Sequence[Tensor], given: Any) -> Any:
    """What a graph computes, one call after the other."""
    values = {}
    for symbol, value in zip(inputs, keras.tree.flatten(given), strict=True):
        values[id(symbol)] = _cast(value, keras.backend.standardize_dtype(symbol.dtype))
    waiting = list(outputs)
    while waiting:
        tensor = waiting[-1]
        if id(tensor) in values:
            waiting.pop()
            continue
        node = node_of(tensor)
        missing = [one for one in node.input_tensors if id(one) not in values]
        if missing:
            waiting += missing
            continue
        results = keras.tree.flatten(_called(node, values))
        for symbol, value in zip(node.output_tensors, results, strict=True):
            values[id(symbol)] = value
    return _single([values[id(tensor)] for tensor in outputs])


def _cast(value: Tensor, dtype: str) -> Tensor:
    """What an Input makes of a value: floats keep their gradient, whatever they are cast to."""
    value = ops.convert_to_tensor(value)
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
    if _is_integer(dtype) and is_float:
        return straight_through(ops.cast(ops.cast(value, dtype), value.dtype), value)
    return ops.cast(value, dtype)


def _called(node: Any, values: dict[int, Tensor]) -> Any:
    def filled(argument: Any) -> Any:
        return values[id(argument)] if isinstance(argument, keras.KerasTensor) else argument

    arguments, keywords = (
        keras.tree.map_structure(filled, part)
        for part in (node.arguments.args, node.arguments.kwargs)
    )
    operation = node.operation
    if casts_images(operation):
        given = arguments[0] if arguments else keywords["inputs"]
        return part_of(operation.inputs, operation.outputs, through_casts=True)(given)
    if "training" in inspect.signature(operation.call).parameters:
        keywords["training"] = False
    return operation(*arguments, **keywords)
