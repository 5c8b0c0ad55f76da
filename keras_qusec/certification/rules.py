"""Which pieces each layer is made of: the one list, which users can make longer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qusec.certification import matrices
from keras_qusec.certification.curves import (
    CURVES,
    Curve,
    Steps,
    bounded_ramp,
    elu,
    leaky,
    relu_family,
)
from keras_qusec.certification.matrices import Places, Window
from keras_qusec.certification.pieces import (
    Activation,
    Affine,
    Matrix,
    Maximum,
    Mean,
    Piece,
    Scaling,
    Selection,
    Squashing,
    WeightedSum,
    numbers,
)
from keras_qusec.defenses import BoundedReLU, QuantizedActivation, ValueQuantizer
from keras_qusec.graphs import Call, is_of_keras

Tensor = Any
Rule = Callable[[Any, Call], list[Piece]]

_RULES: dict[Any, Rule] = {}


def register(*kinds: Any) -> Callable[[Rule], Rule]:
    """Make the rule of a layer known: which pieces it is made of, one after the other.

    The rule is a function of the layer and of its call in the graph. All but the first piece take
    the output of the one before.

    Args:
        *kinds: classes of layers; one with a rule already gets the new one.

    Returns:
        A decorator of the rule.

    Example:

    >>> from keras_qusec.certification import pieces, rules
    >>> class Halved(keras.layers.Layer):
    ...     def call(self, x):
    ...         return 0.5 * x
    >>> @rules.register(Halved)
    ... def halved(layer, call):
    ...     return [pieces.Scaling(lambda: (0.5, 0.0))]
    """

    def keep(rule: Rule) -> Rule:
        for kind in kinds:
            _RULES[kind] = rule
        return rule

    return keep


def pieces_of(call: Call) -> list[Piece]:
    """The pieces that a call of a graph is made of.

    Raises:
        ValueError: for a layer without a rule, which it names.
    """
    layer = call.operation
    name = type(layer).__name__
    for kind in type(layer).__mro__:
        # A user's layer that inherits from one of Keras may compute something else.
        of_keras = kind.__module__.partition(".")[0] == "keras"
        if kind in _RULES and (not of_keras or is_of_keras(layer)):
            _check_precision(layer)
            return _RULES[kind](layer, call)
    if isinstance(layer, ValueQuantizer):
        return _quantizer(layer)
    if is_of_keras(layer) and name in _OPERATIONS:
        return _OPERATIONS[name](layer, call)
    raise ValueError(
        f"Expected layers whose bounds are known. Received: {getattr(layer, 'name', name)!r} of "
        f"class {name}, which has no rule. Write one: keras_qusec.certification.rules.register"
        f"({name}) says which pieces it is made of."
    )


def _check_precision(layer: Any) -> None:
    """Raise a ValueError for a layer that does not compute with float32 weights."""
    if getattr(layer, "quantization_mode", None) is not None or (
        getattr(layer, "compute_dtype", "float32") not in ("float32", "float64")
    ):
        raise ValueError(
            f"Expected layers that compute in float32. Received: {layer.name!r} with "
            f"{layer.dtype_policy.name!r}. A proof in float32 says nothing of it; make a float32 "
            "model with the same weights."
        )


def activation_pieces(given: Any, call: Call) -> list[Piece]:
    """The pieces of the activation function of a call's layer.

    Raises:
        ValueError: for one without a rule.
    """
    function: Any = keras.activations.linear if given is None else given
    if function is keras.activations.linear:
        return []
    if isinstance(function, keras.layers.Layer):
        return pieces_of(Call(function, [], (), call.output, 0))
    if isinstance(function, BoundedReLU):
        return [Activation(function, bounded_ramp(function.bound))]
    name = getattr(function, "__name__", type(function).__name__)
    if function is keras.activations.softmax:
        return [Squashing("softmax")]
    known: Any = getattr(keras.activations, name, None)
    if name in CURVES and function == known:
        return [Activation(function, CURVES[name])]
    raise ValueError(
        f"Expected an activation function whose bounds are known: one of {', '.join(CURVES)}. "
        f"Received: {name}. Write it as a layer, and register a rule for that with "
        "keras_qusec.certification.rules.register."
    )


@register(QuantizedActivation)
def _quantized_activation(layer: Any, call: Call) -> list[Piece]:
    return _quantizer(layer)


def _quantizer(layer: Any) -> list[Piece]:
    """A quantizer inside a network rises with each value, and may jump."""

    def curve(shape: tuple[int, ...]) -> Curve:
        def function(values: np.ndarray) -> np.ndarray:
            rows = values.reshape(-1, *shape).astype("float32")
            outputs = layer(ops.convert_to_tensor(rows))
            return numbers(outputs).reshape(values.shape)

        return Steps(function, roundings=0, size=math.prod(shape))

    return [Activation(layer, curve)]


# Layers with weights.


@register(keras.layers.Dense)
def _dense(layer: Any, call: Call) -> list[Piece]:
    matrix = Matrix(
        lambda: ops.convert_to_tensor(layer.kernel),
        lambda: layer.bias + 0.0 if layer.use_bias else None,
    )
    return [matrix, *activation_pieces(layer.activation, call)]


def _window(layer: Any) -> Window:
    return Window(
        tuple(layer.kernel_size), tuple(layer.strides), layer.padding, tuple(layer.dilation_rate)
    )


def _bias(layer: Any, rank: int) -> Tensor | None:
    """The bias of a convolution, broadcast over its output."""
    if not layer.use_bias:
        return None
    if layer.data_format == "channels_first":
        return ops.reshape(layer.bias, (1, -1, *([1] * rank)))
    return layer.bias + 0.0


@register(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _convolution(layer: Any, call: Call) -> list[Piece]:
    window = _window(layer)
    first = layer.data_format == "channels_first"

    def matrix(shape: tuple[int, ...], kernel: np.ndarray) -> Any:
        places = Places.of(shape, layer.data_format)
        return matrices.convolution(kernel, window, places, groups=layer.groups, first=first)

    def linear(x: Tensor, kernel: Tensor) -> Tensor:
        if layer.padding == "causal":
            before = [(window.size[0] - 1) * window.dilation[0], 0]
            none = [0, 0]
            x = ops.pad(x, [none, none, before] if first else [none, before, none])
            return ops.conv(
                x, kernel, strides=list(layer.strides), padding="valid",
                dilation_rate=layer.dilation_rate, data_format=layer.data_format,
            )  # fmt: skip
        return layer.convolution_op(x, kernel)

    affine = Affine(
        linear,
        lambda: [ops.convert_to_tensor(layer.kernel)],
        lambda: _bias(layer, len(window.size)),
        matrix,
        math.prod(layer.kernel.shape[:-1]),
    )
    return [affine, *activation_pieces(layer.activation, call)]


def _depthwise(layer: Any, kernel: Any, offset: Callable[[], Any]) -> Affine:
    window = _window(layer)
    first = layer.data_format == "channels_first"

    def matrix(shape: tuple[int, ...], weights: np.ndarray) -> Any:
        places = Places.of(shape, layer.data_format)
        channels, multiplier = weights.shape[-2:]
        as_groups = weights.reshape(*weights.shape[:-2], 1, channels * multiplier)
        return matrices.convolution(as_groups, window, places, groups=channels, first=first)

    return Affine(
        lambda x, weights: ops.depthwise_conv(
            x, weights, strides=_strides(layer), padding=layer.padding,
            dilation_rate=layer.dilation_rate, data_format=layer.data_format,
        ),
        lambda: [ops.convert_to_tensor(kernel())],
        offset,
        matrix,
        math.prod(window.size),
    )  # fmt: skip


def _strides(layer: Any) -> Any:
    """The strides as a number where they are equal, which every backend takes."""
    strides = tuple(layer.strides)
    return strides[0] if len(set(strides)) == 1 else strides


@register(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def _depthwise_layer(layer: Any, call: Call) -> list[Piece]:
    affine = _depthwise(layer, lambda: layer.kernel, lambda: _bias(layer, len(layer.kernel_size)))
    return [affine, *activation_pieces(layer.activation, call)]


@register(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable(layer: Any, call: Call) -> list[Piece]:
    rank = len(layer.kernel_size)
    window = Window((1,) * rank, (1,) * rank, "valid", (1,) * rank)
    first = layer.data_format == "channels_first"

    def matrix(shape: tuple[int, ...], kernel: np.ndarray) -> Any:
        return matrices.convolution(
            kernel, window, Places.of(shape, layer.data_format), first=first
        )

    pointwise = Affine(
        lambda x, kernel: ops.conv(
            x, kernel, strides=1, padding="valid", data_format=layer.data_format
        ),
        lambda: [ops.convert_to_tensor(layer.pointwise_kernel)],
        lambda: _bias(layer, rank),
        matrix,
        math.prod(layer.pointwise_kernel.shape[:-1]),
    )
    before = _depthwise(layer, lambda: layer.depthwise_kernel, lambda: None)
    output, channels = tuple(call.output.shape[1:]), int(layer.pointwise_kernel.shape[-2])
    before.shape = (channels, *output[1:]) if first else (*output[:-1], channels)
    return [before, pointwise, *activation_pieces(layer.activation, call)]


@register(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
def _transposed(layer: Any, call: Call) -> list[Piece]:
    window = _window(layer)

    def matrix(shape: tuple[int, ...], kernel: np.ndarray) -> Any:
        output = layer.compute_output_shape((1, *shape))[1:]
        # It is the transposed matrix of the convolution that leads from its output to its input.
        backward = matrices.convolution(
            kernel, window, Places.of(output, layer.data_format),
            first=layer.data_format == "channels_first",
        )  # fmt: skip
        return backward.T.tocsr()

    def linear(x: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv_transpose(
            x, kernel, strides=list(layer.strides), padding=layer.padding,
            output_padding=layer.output_padding, dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )  # fmt: skip

    affine = Affine(
        linear,
        lambda: [ops.convert_to_tensor(layer.kernel)],
        lambda: _bias(layer, len(window.size)),
        matrix,
        math.prod(window.size) * layer.kernel.shape[-1],
    )
    return [affine, *activation_pieces(layer.activation, call)]


@register(keras.layers.BatchNormalization)
def _batch_normalization(layer: Any, call: Call) -> list[Piece]:
    rank = len(call.output.shape)
    shape = [1] * rank
    shape[layer.axis] = -1
    axes = [axis for axis in range(rank) if axis != layer.axis % rank]

    def affine(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        factor = ops.rsqrt(variance + layer.epsilon)
        if layer.scale:
            factor = factor * ops.reshape(layer.gamma, shape)
        offset = -mean * factor
        return factor, (offset + ops.reshape(layer.beta, shape) if layer.center else offset)

    def moving() -> tuple[Tensor, Tensor]:
        return affine(
            ops.reshape(layer.moving_mean, shape), ops.reshape(layer.moving_variance, shape)
        )

    def of_batch(middle: Tensor) -> tuple[Tensor, Tensor]:
        if not layer.trainable:
            return moving()
        return affine(*ops.moments(middle, axes, keepdims=True))

    def offset_size() -> Tensor:
        factor, _ = moving()
        size = ops.absolute(factor * ops.reshape(layer.moving_mean, shape))
        return size + ops.absolute(ops.reshape(layer.beta, shape)) if layer.center else size

    return [Scaling(moving, of_batch=of_batch, offset_size=offset_size)]


@register(keras.layers.Normalization)
def _normalization(layer: Any, call: Call) -> list[Piece]:
    def numbers_of() -> tuple[Tensor, Tensor]:
        deviation = ops.maximum(ops.sqrt(layer.variance), 1e-7)
        if layer.invert:
            return deviation, layer.mean
        return 1.0 / deviation, -layer.mean / deviation

    return [Scaling(numbers_of)]


@register(keras.layers.Rescaling)
def _rescaling(layer: Any, call: Call) -> list[Piece]:
    return [Scaling(lambda: (np.asarray(layer.scale), np.asarray(layer.offset)))]


@register(keras.layers.PReLU)
def _prelu(layer: Any, call: Call) -> list[Piece]:
    def curve(shape: tuple[int, ...]) -> Curve:
        return leaky(np.broadcast_to(numbers(layer.alpha), shape).ravel())

    return [Activation(layer, curve, turns=(0.0,))]


# Layers without weights.


def _unchanged(layer: Any, call: Call) -> list[Piece]:
    return []


register(
    keras.layers.Identity, keras.layers.Dropout, keras.layers.AlphaDropout,
    keras.layers.GaussianDropout, keras.layers.GaussianNoise, keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D,
    keras.layers.ActivityRegularization,
)(_unchanged)  # fmt: skip


def _moved(layer: Any, call: Call) -> list[Piece]:
    return [Selection(layer)]


register(
    keras.layers.Flatten, keras.layers.Reshape, keras.layers.Permute, keras.layers.RepeatVector,
    keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D,
    keras.layers.Cropping1D, keras.layers.Cropping2D, keras.layers.Cropping3D,
    keras.layers.UpSampling1D, keras.layers.UpSampling3D,
)(_moved)  # fmt: skip


@register(keras.layers.UpSampling2D)
def _up_sampling(layer: Any, call: Call) -> list[Piece]:
    if layer.interpolation != "nearest":
        raise ValueError(
            f"Expected interpolation='nearest'. Received: {layer.interpolation!r} of "
            f"{layer.name!r}, which has no rule."
        )
    return [Selection(layer)]


@register(keras.layers.Concatenate)
def _concatenated(layer: Any, call: Call) -> list[Piece]:
    return [Selection(lambda *tensors: layer(list(tensors)))]


@register(keras.layers.Add)
def _added(layer: Any, call: Call) -> list[Piece]:
    return [WeightedSum([1.0] * len(call.parents))]


@register(keras.layers.Average)
def _averaged(layer: Any, call: Call) -> list[Piece]:
    return [WeightedSum([1.0 / len(call.parents)] * len(call.parents))]


@register(keras.layers.Subtract)
def _subtracted(layer: Any, call: Call) -> list[Piece]:
    return [WeightedSum([1.0, -1.0])]


def _pool(layer: Any) -> Callable[[tuple[int, ...]], np.ndarray]:
    rank = len(layer.pool_size)
    window = Window(tuple(layer.pool_size), tuple(layer.strides), layer.padding, (1,) * rank)
    return lambda shape: matrices.pooling_windows(window, Places.of(shape, layer.data_format))


@register(
    keras.layers.AveragePooling1D, keras.layers.AveragePooling2D, keras.layers.AveragePooling3D
)
def _average_pooling(layer: Any, call: Call) -> list[Piece]:
    return [Mean(layer, _pool(layer))]


@register(keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)
def _max_pooling(layer: Any, call: Call) -> list[Piece]:
    return [Maximum(layer, _pool(layer))]


def _whole(layer: Any) -> Callable[[tuple[int, ...]], np.ndarray]:
    """For each channel the indices of all of its positions."""

    def windows(shape: tuple[int, ...]) -> np.ndarray:
        places = Places.of(shape, layer.data_format)
        return places.place(np.arange(places.positions)[None], np.arange(places.channels)[:, None])

    return windows


@register(
    keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)  # fmt: skip
def _global_average(layer: Any, call: Call) -> list[Piece]:
    return [Mean(layer, _whole(layer))]


@register(
    keras.layers.GlobalMaxPooling1D, keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)  # fmt: skip
def _global_max(layer: Any, call: Call) -> list[Piece]:
    return [Maximum(layer, _whole(layer))]


# Activations that are layers.


@register(keras.layers.Activation)
def _activation(layer: Any, call: Call) -> list[Piece]:
    return activation_pieces(layer.activation, call)


@register(keras.layers.ReLU)
def _relu(layer: Any, call: Call) -> list[Piece]:
    if layer.threshold:
        raise ValueError(
            f"Expected a ReLU without a threshold, where it jumps. Received: {layer.name!r} with "
            f"threshold={layer.threshold}."
        )
    maximum = None if layer.max_value is None else float(layer.max_value)
    return [Activation(layer, relu_family(float(layer.negative_slope), maximum))]


@register(keras.layers.LeakyReLU)
def _leaky_relu(layer: Any, call: Call) -> list[Piece]:
    return [Activation(layer, leaky(float(layer.negative_slope)))]


@register(keras.layers.ELU)
def _elu(layer: Any, call: Call) -> list[Piece]:
    return [Activation(layer, elu(float(layer.alpha)))]


@register(keras.layers.Softmax)
def _softmax(layer: Any, call: Call) -> list[Piece]:
    return [Squashing("softmax")]


# Operations of `keras.ops` in a graph, by the name of their class.


def _constant(call: Call) -> tuple[Any, bool] | None:
    """The number or array beside the one tensor of an operation, and whether it comes first."""
    if len(call.parents) != 1:
        return None
    first, second = call.arguments[:2]
    if first is call.parents[0]:
        return np.asarray(second, "float32"), False
    return np.asarray(first, "float32"), True


def _sum_operation(second_sign: float) -> Rule:
    def rule(layer: Any, call: Call) -> list[Piece]:
        constant = _constant(call)
        if constant is None:
            if len({tuple(parent.shape[1:]) for parent in call.parents}) > 1:
                raise ValueError(
                    f"Expected tensors of one shape for {type(layer).__name__}. Received: "
                    f"{[tuple(p.shape) for p in call.parents]}. Broadcast them before."
                )
            return [WeightedSum([1.0, second_sign])]
        value, comes_first = constant
        if comes_first:
            return [Scaling(lambda: (second_sign, value))]
        return [Scaling(lambda: (1.0, second_sign * value))]

    return rule


def _product(layer: Any, call: Call) -> list[Piece]:
    constant = _constant(call)
    if constant is None:
        raise ValueError(
            "Expected products of a tensor and a constant. Received: a product of two tensors, "
            "which has no rule."
        )
    return [Scaling(lambda: (constant[0], 0.0))]


def _quotient(layer: Any, call: Call) -> list[Piece]:
    constant = _constant(call)
    if constant is None or constant[1]:
        raise ValueError(
            "Expected quotients of a tensor and a constant. Received: a division by a tensor, "
            "which has no rule."
        )
    return [Scaling(lambda: (1.0 / constant[0], 0.0))]


def _by_arguments(layer: Any, call: Call) -> list[Piece]:
    """An operation that moves values, with whatever arguments it has in the graph."""
    others = [None if argument is call.parents[0] else argument for argument in call.arguments]
    place = others.index(None) if None in others else 0

    def function(tensor: Tensor) -> Tensor:
        arguments = list(others) or [None]
        arguments[place] = tensor
        return layer(*arguments)

    return [Selection(function)]


def _curve_operation(name: str) -> Rule:
    def rule(layer: Any, call: Call) -> list[Piece]:
        return [Activation(layer, CURVES[name])]

    return rule


_OPERATIONS: dict[str, Rule] = {
    "Add": _sum_operation(1.0),
    "Subtract": _sum_operation(-1.0),
    "Multiply": _product,
    "TrueDivide": _quotient,
    "Divide": _quotient,
    "Negative": lambda layer, call: [Scaling(lambda: (-1.0, 0.0))],
    "GetItem": _by_arguments,
    "Reshape": _by_arguments,
    "Transpose": _by_arguments,
    "Squeeze": _by_arguments,
    "ExpandDims": _by_arguments,
    "Identity": _unchanged,
    "Softmax": lambda layer, call: [Squashing("softmax")],
    "Relu": _curve_operation("relu"),
    "Relu6": _curve_operation("relu6"),
    "Sigmoid": _curve_operation("sigmoid"),
    "Tanh": _curve_operation("tanh"),
    "Softplus": _curve_operation("softplus"),
    "Silu": _curve_operation("silu"),
}
