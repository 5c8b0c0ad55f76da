"""What is inside a model: its layers and random generators, at any depth."""

from __future__ import annotations

from typing import Any

import keras


def inside(model: keras.layers.Layer, kind: Any, *, deeper: bool = True) -> list[Any]:
    """All objects of a class or protocol in a model, also in nested models and custom layers.

    The model itself may be one.

    Args:
        model: model or layer.
        kind: class or protocol of layers, or `keras.random.SeedGenerator`.
        deeper: also look inside objects of the kind.

    Example:

    >>> inner = keras.Sequential([keras.layers.Dense(2)])
    >>> len(inside(keras.Sequential([inner]), keras.layers.Dense))
    1
    """
    objects: list[Any] = []
    waiting: list[Any] = [model]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (keras.layers.Layer, keras.random.SeedGenerator)):
            is_one = isinstance(item, kind)
            if is_one:
                objects.append(item)
            if deeper or not is_one:
                waiting.extend(vars(item).values())
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
    return objects
