"""The graph of a functional or sequential model: what makes a tensor, and what takes it.

The only module that reads how Keras keeps its graphs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

Tensor = Any


class Call(NamedTuple):
    """One call of an operation or layer in a graph.

    Attributes:
        operation: what is called.
        parents: the symbolic tensors that it takes; none for an input.
        arguments: its positional arguments, tensors and others.
        output: the tensor of its result that was asked for.
        place: which of its results that is.
    """

    operation: Any
    parents: list[Tensor]
    arguments: tuple[Any, ...]
    output: Tensor
    place: int


def node_of(tensor: Tensor) -> Any:
    """What Keras keeps of the call that makes a symbolic tensor: arguments and all results."""
    operation, number, _ = tensor._keras_history
    return operation._inbound_nodes[number]


def made_by(tensor: Tensor) -> Call:
    """The call that makes a symbolic tensor."""
    operation, _, place = tensor._keras_history
    node = node_of(tensor)
    return Call(operation, list(node.input_tensors), tuple(node.arguments.args), tensor, place)


def has_graph(model: Any) -> bool:
    """Whether a model is a graph that Keras itself runs, and no code of a user's."""
    return bool(getattr(model, "outputs", None)) and is_of_keras(model)


def is_of_keras(operation: Any) -> bool:
    """Whether what an operation computes is written in Keras and not by a user."""
    return str(type(operation).call.__module__).partition(".")[0] == "keras"


def calls_of(model: keras.Model) -> list[Call]:
    """All calls between a model's inputs and its outputs, each once."""
    calls: dict[int, Call] = {}
    waiting, inputs = list(model.outputs), {id(tensor) for tensor in model.inputs}
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in calls or id(tensor) in inputs:
            continue
        calls[id(tensor)] = made_by(tensor)
        waiting.extend(calls[id(tensor)].parents)
    return list(calls.values())
