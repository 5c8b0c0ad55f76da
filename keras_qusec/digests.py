"""Hashes by which models and data are told apart."""

from __future__ import annotations

import hashlib
import json
import types
from typing import Any

import keras
import numpy as np

from keras_qusec.stored_images import StoredImages, parts_of
from keras_qusec.sublayers import inside


def digest(*parts: bytes | np.ndarray | StoredImages) -> str:
    """A hash of some bytes, or of the values of arrays, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)
            continue
        total.update(part.nbytes.to_bytes(8, "big"))
        for rows in parts_of(part) if isinstance(part, StoredImages) else [part]:
            total.update(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
    return total.hexdigest()[:16]


def seed_from(words: str) -> int:
    """A seed below 2**31 that words give, the same in any process."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") % 2**31


def model_digest(model: keras.Model) -> str:
    """A hash of a model's classes, settings and weights, of all layers at any depth.

    The names of layers are not in it, which Keras numbers, nor what a class does beyond its
    settings; an evaluation compares the outputs on its images as well.
    """
    layers = inside(model, keras.layers.Layer)
    config = [
        # The settings of a graph of layers are those of its layers, and their names.
        type(layer).__qualname__ if isinstance(layer, keras.Model) and layer.layers
        else settings_of(layer, without="name")
        for layer in layers
    ]  # fmt: skip
    weights = [np.ascontiguousarray(weight) for weight in model.get_weights()]
    return digest(
        *(part.encode() for part in config),
        *(f"{w.dtype}{w.shape}".encode() + w.tobytes() for w in weights),
    )


def settings_of(layer: keras.layers.Layer, *, without: str = "") -> str:
    """A layer's class and configuration in words, all settings but one."""
    name = type(layer).__qualname__
    try:
        config = {key: value for key, value in layer.get_config().items() if key != without}
        return name + json.dumps(config, sort_keys=True, default=str)
    except Exception:  # noqa: BLE001  layers without a configuration still have weights
        return name


def code_digest(thing: Any) -> str:
    """A hash of the code and the values of a function or object, of a user's own classes too.

    Two functions of one name that do something else differ in it. What they call in other modules
    is not looked into.
    """
    return digest(*(part.encode() for part in _parts_of(thing, set())))


def _parts_of(thing: Any, seen: set[int]) -> list[str]:
    if id(thing) in seen or isinstance(thing, (str, int, float, bool, type(None), bytes)):
        return [repr(thing)]
    if isinstance(thing, np.ndarray):
        return [digest(repr((thing.shape, thing.dtype)).encode(), thing.tobytes())]
    seen.add(id(thing))
    if isinstance(thing, types.CodeType):
        own = [thing.co_code.hex(), repr(thing.co_names)]
        return own + [part for one in thing.co_consts for part in _parts_of(one, seen)]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        values = [thing.__code__, thing.__defaults__, thing.__kwdefaults__, *cells]
        return [part for one in values for part in _parts_of(one, seen)]
    if isinstance(thing, dict):
        return [part for key, one in thing.items() for part in [repr(key), *_parts_of(one, seen)]]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [part for one in thing for part in _parts_of(one, seen)]
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    parts = [name, *_parts_of(dict(getattr(thing, "__dict__", {})), seen)]
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package not in ("keras_qusec", "builtins", "keras", "foolbox", "abc", "typing"):
            methods = [one for one in vars(kind).values() if isinstance(one, types.FunctionType)]
            parts += [part for one in methods for part in _parts_of(one, seen)]
    return parts
