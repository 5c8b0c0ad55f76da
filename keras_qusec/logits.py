"""What a classifier's outputs are, read from its graph or said by the user, and its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qusec.checks import one_of
from keras_qusec.graphs import Call, has_graph, is_of_keras, made_by
from keras_qusec.integer_inputs import casts_images, part_of

Tensor = Any
Function = Callable[[Tensor], Tensor]

LOGITS, PROBABILITIES = "logits", "probabilities"

_SQUASHING = (keras.activations.softmax, keras.activations.sigmoid)
_SCORING = tuple(
    getattr(keras.activations, name)
    for name in (
        "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "celu", "softplus",
        "softsign", "tanh", "log_softmax", "log_sigmoid", "mish",
    )
    if hasattr(keras.activations, name)
)  # fmt: skip
# By the name of the class of Keras: what gives scores of any size,
_SCORES = {
    "ELU", "Elu", "Gelu", "LeakyReLU", "LeakyRelu", "LogSoftmax", "PReLU", "ReLU", "Relu", "Selu",
    "Silu", "Softplus", "Tanh",
}  # fmt: skip
# what changes no value in inference,
_KEEPING = {
    "ActivityRegularization", "AlphaDropout", "Dropout", "ExpandDims", "Flatten",
    "GaussianDropout", "GaussianNoise", "Identity", "Reshape", "Squeeze",
}  # fmt: skip
# and what weighs, sums or chooses values.
_COMBINING = {
    "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate", "Divide", "Dot",
    "Einsum", "GetItem", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GroupNormalization", "LayerNormalization", "Matmul", "Max",
    "MaxPooling2D", "Maximum", "Mean", "Min", "Minimum", "Multiply", "Negative", "Permute",
    "Rescaling", "Stack", "Subtract", "Sum", "Take", "Tensordot", "Transpose", "TrueDivide",
}  # fmt: skip


class Ending(NamedTuple):
    """What stands at the end of a model.

    Attributes:
        kind: ``"logits"`` or ``"probabilities"``; None if the graph does not say.
        what: it in words, for errors.
        logits: function from images to the numbers that a softmax or sigmoid takes, without it;
            None if the outputs themselves are all that can be had.
    """

    kind: str | None
    what: str
    logits: Function | None = None


def ending_of(model: keras.Model, index: int = 0, *, through_casts: bool = False) -> Ending:
    """Read from a model's graph what makes one of its outputs, also inside nested models.

    Args:
        model: the model.
        index: of the output.
        through_casts: as for `logits_function`.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> ending_of(model).kind
    'logits'
    """
    if not has_graph(model):
        return Ending(None, f"the code of {type(model).__name__}.call, which has no graph")
    return _Reader(model.inputs, through_casts).ending(model.outputs[index])


class _Reader:
    """Reads the endings of tensors of one graph, each once.

    Args:
        inputs: of the graph.
        through_casts: functions of images have a gradient where an Input casts to integers.
    """

    def __init__(self, inputs: list[Tensor], through_casts: bool) -> None:
        self.inputs, self.through_casts = inputs, through_casts
        self.known: dict[int, Ending] = {}

    def ending(self, tensor: Tensor) -> Ending:
        """What makes a tensor."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = self._read(made_by(tensor))
        return self.known[id(tensor)]

    def _read(self, call: Call) -> Ending:
        operation, parents = call.operation, call.parents
        name = type(operation).__name__
        if not parents:
            return Ending(LOGITS, "its inputs")
        if isinstance(operation, keras.Model):
            inner = ending_of(operation, call.place, through_casts=self.through_casts)
            return inner._replace(logits=_chain(self._before(parents), inner.logits))
        if not is_of_keras(operation):
            return Ending(None, f"the layer {operation.name!r} of class {name}")
        if _is_squashing_operation(operation, name, len(call.output.shape)):
            return Ending(PROBABILITIES, name, self._before(parents))
        if hasattr(operation, "activation"):
            return self._read_activation(operation, name, parents)
        above = [self.ending(parent) for parent in parents]
        if name == "Cast":  # logits are wanted in full precision
            return above[0]
        if name in _KEEPING:
            return above[0]._replace(logits=_chain(above[0].logits, operation))
        if name == "Log" and above[0].what in _SOFTMAX:
            return Ending(LOGITS, "log-probabilities", above[0].logits)
        return _combined(name, above)

    def _read_activation(self, layer: Any, name: str, parents: list[Tensor]) -> Ending:
        if layer.activation in _SCORING:
            return Ending(LOGITS, name)
        if layer.activation not in _SQUASHING:
            return Ending(None, f"{name} with an activation of your own or without an inverse")
        before: Function | None = self._before(parents)
        if name != "Activation":
            before = _chain(before, _Bare(layer))
        return Ending(PROBABILITIES, f"a {layer.activation.__name__}", before)

    def _before(self, parents: list[Tensor]) -> Function:
        """The function from images to what an operation takes."""
        return part_of(self.inputs, parents, through_casts=self.through_casts)


_SOFTMAX = ("Softmax", "a softmax")
# What makes scores vanish together with the probabilities that it weighs by.
_WEIGHING = ("Multiply", "Divide", "TrueDivide")


def _combined(name: str, above: list[Ending]) -> Ending:
    """The ending of scores that are weighed, summed or chosen from others."""
    kinds = {end.kind for end in above}
    weighs = name in _WEIGHING and any(end.what in _SOFTMAX for end in above)
    if name in _SCORES or (name in _COMBINING and LOGITS in kinds and not weighs):
        return Ending(LOGITS, name)
    if name in _COMBINING and PROBABILITIES in kinds:
        return Ending(None, f"{name}, computed from probabilities")
    return Ending(None, name if above[0].kind else f"{name} after {above[0].what}")


def _is_squashing_operation(operation: Any, name: str, rank: int) -> bool:
    if isinstance(operation, keras.layers.Layer) and name != "Softmax":
        return False
    if name == "Softmax":
        return operation.axis in (-1, rank - 1)
    return name == "Sigmoid"


def _chain(first: Function | None, second: Function | None) -> Function | None:
    """One function after the other; None if there is none of the two."""
    if first is None or second is None:
        return None
    return lambda images: second(first(images))


class _Bare(keras.layers.Layer):
    """What a layer computes without its activation; the layer itself is not touched."""

    def __init__(self, layer: Any) -> None:
        super().__init__(
            name=f"{layer.name}_without_activation",
            dtype=layer.compute_dtype,  # a policy of quantized weights would want code for them
            autocast=layer.autocast,
            trainable=False,
        )
        twin = object.__new__(type(layer))
        vars(twin).update({**vars(layer), "activation": keras.activations.linear})
        quantized = getattr(layer, "quantization_mode", None) is not None
        # Hidden in a tuple from Keras, which would count the layer's weights a second time.
        self._hidden = ((twin.quantized_call if quantized else twin.call),)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        return self._hidden[0](inputs)


def said_kind(model: keras.Model, said: str | None) -> str | None:
    """What the user says of a model's outputs, or else its author, without a look at its graph."""
    return getattr(model, "output_kind", None) if said is None else said


def known_kind(model: keras.Model, said: str | None = None) -> str | None:
    """What the graph of a model or else the user says of its outputs; None if neither does.

    The author of a subclassed model may say it by an attribute `output_kind`.

    Args:
        model: the model.
        said: ``"logits"``, ``"probabilities"`` or None.

    Raises:
        ValueError: if graph and user contradict each other.
    """
    said = said_kind(model, said)
    if said is not None:
        one_of(said, "outputs", (LOGITS, PROBABILITIES))
    ending = ending_of(model)
    if ending.kind is not None and said not in (None, ending.kind):
        raise ValueError(
            f"Expected outputs={ending.kind!r} for {model.name!r}, which ends in {ending.what}. "
            f"Received: outputs={said!r}. Leave the argument out; the model's graph is read."
        )
    return ending.kind or said


def output_kind(model: keras.Model, said: str | None = None) -> str:
    """``"logits"`` or ``"probabilities"``; see `known_kind`.

    Raises:
        ValueError: if neither graph nor user says it, or if they contradict each other.

    Example:

    >>> output_kind(keras.Sequential([keras.Input((2,)), keras.layers.Softmax()]))
    'probabilities'
    """
    kind = known_kind(model, said)
    if kind is None:
        raise ValueError(
            f"Expected a model whose end says what its outputs are. Received: {model.name!r}, "
            f'which ends in {ending_of(model).what}. Say outputs="logits" or '
            'outputs="probabilities". Gradients of probabilities vanish where they are near 0 or '
            "1, so that attacks fail; a model that ends in logits is the safe choice."
        )
    return kind


def logits_function(
    model: keras.Model, outputs: str | None = None, *, through_casts: bool = False
) -> Function:
    """A function from images to a classifier's logits, in inference mode, as float32.

    A softmax or sigmoid at the end of a model saturates in float32: its gradient is then exactly
    zero, and attacks fail for no good reason. It is left out, by a graph that shares the model's
    layers; the model itself is not touched. A single output is the logit of class 1 of two.

    Args:
        model: built Keras classifier with outputs ``(n, classes)``, ``(n, 1)`` or ``(n,)``.
        outputs: ``"logits"`` or ``"probabilities"`` for a model whose graph does not say. Of
            such probabilities the logarithm is taken.
        through_casts: where an Input of the model casts to integers, compute with floats, so that
            there is a gradient.

    Raises:
        ValueError: if it is not known what the outputs are.

    Example:

    >>> softmax = keras.layers.Dense(2, activation="softmax", kernel_initializer="ones")
    >>> model = keras.Sequential([keras.Input((1,)), softmax])
    >>> logits = logits_function(model)(np.array([[300.0]], "float32"))
    >>> keras.ops.convert_to_numpy(logits).tolist()
    [[300.0, 300.0]]
    """
    check_one_of_each(model)
    kind = output_kind(model, outputs)
    reached = ending_of(model, through_casts=through_casts).logits
    if reached is not None:
        return lambda images: class_logits(reached(images), LOGITS)
    called: Function = lambda images: model(images, training=False)  # noqa: E731
    if through_casts and casts_images(model):
        called = part_of(model.inputs, model.outputs, through_casts=True)
    return lambda images: class_logits(_single(called(images), model), kind)


def check_one_of_each(model: keras.Model) -> None:
    """Raise a ValueError for a model with several inputs or several outputs."""
    for kind in ("inputs", "outputs"):
        count = len(getattr(model, kind, None) or [0])
        if count > 1:
            raise ValueError(
                f"Expected a classifier with one {kind[:-1]}. Received: {model.name!r} with "
                f"{count} {kind}. Make a model of the classifier alone, from images to classes: "
                "keras.Model(model.inputs[0], model.outputs[0])."
            )


def _single(outputs: Any, model: keras.Model) -> Tensor:
    """The one output of a model, whatever structure it is in."""
    flat = keras.tree.flatten(outputs)
    if len(flat) != 1:
        raise ValueError(
            f"Expected a classifier with one output. Received: {model.name!r} with {len(flat)}. "
            "Make a model of the classifier alone: keras.Model(model.inputs, model.outputs[0])."
        )
    return flat[0]


def class_logits(outputs: Tensor, kind: str) -> Tensor:
    """Logits ``(n, classes)``, two classes or more, as float32, from what a model gave.

    Attacks leave a final softmax out and need not call this on probabilities; training has the
    outputs of the model's own training step and no others.

    Args:
        outputs: ``(n, classes)``; ``(n, 1)`` or ``(n,)`` of a classifier of two classes.
        kind: ``"logits"`` or ``"probabilities"``.

    Example:

    >>> ops.convert_to_numpy(class_logits(ops.convert_to_tensor([[3.0]]), "logits")).tolist()
    [[0.0, 3.0]]
    """
    outputs = ops.cast(outputs, "float32")  # losses of attacks need more than half precision
    if len(outputs.shape) == 1:
        outputs = ops.expand_dims(outputs, -1)
    if kind == PROBABILITIES:
        if outputs.shape[-1] == 1:
            outputs = ops.concatenate([1.0 - outputs, outputs], axis=-1)
        return ops.log(ops.maximum(outputs, 1e-30))
    if outputs.shape[-1] == 1:
        outputs = ops.concatenate([ops.zeros_like(outputs), outputs], axis=-1)
    return outputs


def log_probabilities(outputs: Tensor, kind: str) -> Tensor:
    """Log-probabilities ``(n, classes)`` from outputs that a model has already given."""
    return ops.log_softmax(class_logits(outputs, kind), axis=-1)


def log_odds_against(classes: Tensor, logits: Tensor) -> Tensor:
    """The log-odds that each image is not of a class, ``(n,)``.

    The gradient is that of the cross-entropy but for a positive factor, 1 / (1 - p), an image;
    so steps along its sign or its direction are the same. But where p rounds to 1 in float32
    the gradient of the cross-entropy is exactly zero, and an attack stands still.

    Args:
        classes: ``(n,)`` integers.
        logits: ``(n, classes)`` float.

    Example:

    >>> from keras import ops
    >>> logits = ops.convert_to_tensor([[500.0, 100.0]])
    >>> ops.convert_to_numpy(log_odds_against(ops.convert_to_tensor([0]), logits)).tolist()
    [-400.0]
    """
    own = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    others = ops.logsumexp(logits - 1e9 * own, axis=-1)
    return others - ops.sum(logits * own, axis=-1)


def log_odds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same as `log_odds_against` in NumPy and float64, for figures and not for gradients.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` integers.

    Returns:
        ``(n,)`` float64.
    """
    logits = logits.astype("float64")
    rows = np.arange(len(logits))
    own = logits[rows, labels].copy()
    logits[rows, labels] = -np.inf
    largest = logits.max(axis=1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - own


def check_logits(logits: np.ndarray, name: str) -> None:
    """Raise a ValueError for outputs on clean images that are no logits of a classifier."""
    if logits.ndim != 2:
        raise ValueError(
            f"Expected a classifier with outputs (n, classes). Received: {name!r} with outputs "
            f"{logits.shape}. Pool or flatten them before the last layer."
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            f"Expected finite outputs. Received: {name!r}, which gives NaN or infinity on clean "
            "images. Check its training."
        )


def check_logits_reached(logits: np.ndarray, outputs: np.ndarray, name: str) -> None:
    """Raise a ValueError if what is attacked is not the logits that make a model's outputs.

    Args:
        logits: what is attacked, on some images, ``(n, classes)``.
        outputs: what the model itself gives on them.
        name: name of the model.
    """
    logits, outputs = logits.astype("float64"), outputs.astype("float64")
    outputs = outputs.reshape(len(outputs), -1)
    check_classes_told(logits, outputs, name)
    if outputs.shape[1] == 1:
        outputs = np.concatenate([1 - outputs, outputs], axis=1)
        logits_as_given = np.stack([1 - logits[:, 1], logits[:, 1]], axis=1)
    else:
        logits_as_given = logits
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    sigmoid = 0.5 + 0.5 * np.tanh(logits / 2)
    spread = np.exp(np.minimum(logits, 0.0))
    log_shares = np.log(np.maximum(shares, 1e-300))
    made = (logits_as_given, shares, sigmoid, spread, log_shares)
    # bfloat16 has three digits, of the largest numbers that were added up.
    rounding = 2e-2 * max(1.0, np.abs(outputs).max())
    if not any(np.allclose(outputs, one, rtol=0, atol=rounding) for one in made):
        raise ValueError(
            f"Expected logits that make a model's outputs. Received: {name!r}, whose outputs are "
            "probabilities made in another way than its graph says, or other scores. Make a model "
            "that ends in logits, and evaluate that."
        )
    check_not_probabilities(logits, name)


# In fewer cases outputs that are equal are accidents of rounding.
_SAME_CLASS = 0.75


def check_classes_told(logits: np.ndarray, outputs: np.ndarray, name: str) -> None:
    """Raise a ValueError if outputs tell the classes apart less than the logits before them.

    Args:
        logits: before a softmax or sigmoid, on some images, ``(n, classes)``.
        outputs: what the model itself gives on them.
        name: name of the model.
    """
    if outputs.shape != logits.shape:
        return  # a single output of two classes
    same = outputs.argmax(axis=1) == logits.argmax(axis=1)
    if same.mean() < _SAME_CLASS:
        raise ValueError(
            f"Expected outputs that tell the classes apart as their logits do. Received: {name!r}, "
            f"whose outputs saturate in float32: on {int((~same).sum())} of {len(same)} images "
            "several classes have the same output, of which the first is taken, and not that "
            "of the largest logit. Make a model that ends in logits, and evaluate that."
        )


def check_not_probabilities(logits: np.ndarray, name: str) -> None:
    """Raise a ValueError for logits, ``(n, classes)`` on some images, that look like shares."""
    # A single row of logits may happen to be shares, but not all rows.
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-2):
        raise ValueError(
            f"Expected logits, or a softmax that can be left out. Received: {name!r}, whose "
            "outputs are probabilities made in another way. Their gradients vanish; make a model "
            "that ends before them, and evaluate that."
        )
