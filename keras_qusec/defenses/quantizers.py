"""QuSecNets: quantizer layers whose thresholds are kept, checked, trained and saved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import keras
import numpy as np
from keras import ops

from keras_qusec import checks
from keras_qusec.defenses.base import current_surrogate, find_layers, given_output
from keras_qusec.plots import embedded, thresholds_figure
from keras_qusec.quantization import (
    byte_thresholds,
    check_hardness,
    check_levels,
    check_thresholds,
    equal_thresholds,
    hard_quantize,
    soft_quantize,
)

# Raised when a saved config gains or changes a key that an older release cannot read.
CONFIG_VERSION = 1
# Sums of more steps in 8-bit numbers are off by half a step.
_MOST_BYTE_LEVELS = 32
GRANULARITIES = ("pixel", "channel", "shared")

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_qusec")
class EqualThresholds(keras.initializers.Initializer):
    """Initialise thresholds to ``t_k = k / levels`` of the value range.

    Args:
        value_range: darkest and brightest pixel value.

    Returns from a call with ``shape = (levels - 1, ...)``: a tensor of that shape whose
    first axis runs over the thresholds.

    Example:

    >>> from keras_qusec.defenses import EqualThresholds
    >>> np.asarray(EqualThresholds()((3, 2)))[:, 0].tolist()
    [0.25, 0.5, 0.75]
    """

    def __init__(self, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.value_range = checks.value_range(value_range)

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        return _spread(equal_thresholds(shape[0] + 1, self.value_range), shape, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"value_range": list(self.value_range)}


@keras.saving.register_keras_serializable(package="keras_qusec")
class OrderedThresholds(keras.constraints.Constraint):
    """Keep thresholds inside the value range and in increasing order.

    A quantizer is symmetric in its thresholds, so sorting never changes its output;
    clipping moves only thresholds that no pixel could reach.

    Args:
        value_range: darkest and brightest pixel value.

    Example:

    >>> from keras_qusec.defenses import OrderedThresholds
    >>> np.asarray(OrderedThresholds()(np.array([0.7, -0.2], "float32"))).tolist()
    [0.0, 0.699999988079071]
    """

    def __init__(self, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.value_range = checks.value_range(value_range)

    def __call__(self, w: Tensor) -> Tensor:
        return ops.sort(ops.clip(w, *self.value_range), axis=0)

    def get_config(self) -> dict[str, Any]:
        return {"value_range": list(self.value_range)}


class LayerArguments(TypedDict, total=False):
    """What every Keras layer takes; type checkers know by it that anything else is wrong."""

    name: str | None
    dtype: Any
    trainable: bool
    autocast: bool
    activity_regularizer: Any
    input_shape: tuple[int | None, ...]


class _Quantizer(keras.layers.Layer):
    """What both quantizer layers share: settings, the hardness variable, serialisation."""

    def __init__(
        self,
        levels: int,
        hardness: float,
        value_range: tuple[float, float],
        hard: bool,
        gradient_hardness: float | None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        # Casting the images to float16 would move pixels across thresholds.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.levels = check_levels(levels)
        self.value_range = checks.value_range(value_range)
        self.hard = bool(hard)
        self.gradient_hardness = gradient_hardness
        self._initial_hardness = check_hardness(hardness)
        self._hardness: keras.Variable | None = None
        self._has_warned = False

    @property
    def hardness(self) -> float:
        """z, the steepness of the sigmoids. Setting it takes effect without retracing."""
        if self._hardness is None:
            return self._initial_hardness
        return float(ops.convert_to_numpy(self._hardness))

    @hardness.setter
    def hardness(self, value: float) -> None:
        value = check_hardness(value)
        if self._hardness is None:
            self._initial_hardness = value
        else:
            self._hardness.assign(value)

    @property
    def gradient_hardness(self) -> float | None:
        """Hardness of the gradient, or None for `hardness`; compiled functions keep the old one."""
        return self._gradient_hardness

    @gradient_hardness.setter
    def gradient_hardness(self, value: float | None) -> None:
        if value is not None:
            value = check_hardness(value, "gradient_hardness")
        self._gradient_hardness = value

    def surrogates(self, hardnesses: Sequence[float]) -> list[float]:
        """What an adaptive attacker differentiates: softer sigmoids, of each hardness."""
        return [check_hardness(hardness) for hardness in hardnesses]

    def _repr_html_(self) -> str:
        """The layer as a notebook shows it: its settings, curve and thresholds."""
        z = f", z = {self.hardness:g}" + (", in steps" if self.hard else "")
        head = f"<p><b>{type(self).__name__}</b> {self.name}: {self.levels} levels{z}</p>"
        try:
            return head + embedded(thresholds_figure(self), "Curve and thresholds.")
        except ImportError:  # the layer needs no matplotlib
            return head
        except ValueError:
            return head + "<p>Not built yet: it has no thresholds.</p>"

    @property
    def output_grid(self) -> tuple[float, float] | None:
        """Smallest output and the step to the next one; None for a soft quantizer."""
        return (0.0, 1.0 / (self.levels - 1)) if self.hard else None

    @property
    def _weight_dtype(self) -> str:
        # float32 also under float16 policies: rounding a threshold moves pixels across it.
        return "float64" if self.variable_dtype == "float64" else "float32"

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # A weight and not a number: a schedule can then change it inside compiled
        # training steps on every backend, and it is saved with the thresholds.
        self._hardness = self.add_weight(
            name="hardness",
            shape=(),
            initializer=keras.initializers.Constant(self._initial_hardness),
            dtype=self._weight_dtype,
            trainable=False,
            autocast=False,
        )
        super().build(input_shape)

    def _quantize(self, x: Tensor, thresholds: Any, train_thresholds: bool) -> Tensor:
        assert self._hardness is not None  # built before called, by Keras
        given = given_output(self, x)
        if given is not None:
            return ops.cast(given, self.compute_dtype)
        self._warn_of_rounded(keras.backend.standardize_dtype(x.dtype))
        hardness = self._hardness + 0.0
        surrogate = current_surrogate(self)
        gradient_hardness = self.gradient_hardness if surrogate is None else surrogate
        settings: dict[str, Any] = {
            "value_range": self.value_range,
            "differentiate_thresholds": train_thresholds,
            "gradient_hardness": hardness if gradient_hardness is None else gradient_hardness,
        }
        if self.hard:
            y = hard_quantize(x, thresholds, **settings)
        else:
            y = soft_quantize(x, thresholds, hardness=hardness, **settings)
        return ops.cast(y, self.compute_dtype)

    def _warn_of_rounded(self, dtype: str) -> None:
        """One warning if pixels were rounded to 16 bits before they are quantized."""
        if dtype not in ("float16", "bfloat16") or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"{self.name} receives {dtype} values: pixels near a threshold were rounded across it "
            "before they are quantized. Put the quantizer first, or give the layer before it, such "
            'as a Rescaling, dtype="float32".',
            stacklevel=2,
        )

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "hardness": self.hardness,
            "value_range": list(self.value_range),
            "hard": self.hard,
            "gradient_hardness": self.gradient_hardness,
            "config_version": CONFIG_VERSION,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Quantizer:
        config = dict(config)
        version = config.pop("config_version", CONFIG_VERSION)
        if version > CONFIG_VERSION:
            raise ValueError(
                f"Expected a {cls.__name__} saved with config version {CONFIG_VERSION} or "
                f"older. Received: version {version}, written by a newer keras-qusec. "
                "Update with: pip install --upgrade keras-qusec"
            )
        return super().from_config(config)


@keras.saving.register_keras_serializable(package="keras_qusec")
class QuSecQuantization(_Quantizer):
    """Quantize images with constant thresholds (the paper's CQ).

    ``y = 1/(n-1) * sum_k sigmoid(z * (x - t_k) / (high - low))`` for n levels, hardness z
    and n - 1 thresholds t_k; with ``hard=True``, ``y = count(t_k <= x) / (n - 1)``. The
    gradient with respect to the images is that of the sigmoid sum.

    The layer has no trainable weights. It goes where the images enter the model::

        keras.Sequential([keras.Input((28, 28, 1)), QuSecQuantization(2), ...])

    Quantization hides gradients from an attacker who does not look for them. High accuracy
    under a plain white-box attack is not evidence of robustness; attack with
    `gradient_hardness` set to a small value as well.

    Args:
        levels: number of output levels n, an integer from 2 up.
        hardness: z, above 0. In units of the value range: 50 makes 2 levels a step.
        thresholds: n - 1 increasing numbers inside `value_range`; default ``k / n`` of it; or
            ``"bytes"`` for those moved up to the next of 256 byte values (`byte_thresholds`), the
            same for images of bytes, which models of 8-bit and 16-bit numbers keep. Up to 32
            levels.
        value_range: darkest and brightest pixel value. Values outside are legal and
            saturate towards 0 and 1.
        hard: output the step function itself, exactly one of n values.
        gradient_hardness: hardness of the gradient; None means `hardness`. The forward
            values do not depend on it (BPDA with a softer quantizer).
        **kwargs: `name`, `dtype` and the other arguments of every Keras layer.

    Input shape: any, usually ``(batch, height, width, channels)``; floats in `value_range`.

    Output shape: that of the input; values in [0, 1], of the layer's compute dtype.

    Raises:
        ValueError: for unusable arguments, and for integer images.

    Source: Section III, Eq. 1. How it is read: n - 1 thresholds for n levels.

    Example:

    >>> import keras
    >>> from keras_qusec import QuSecQuantization
    >>> model = keras.Sequential([keras.Input((28, 28, 1)), QuSecQuantization(levels=2)])
    >>> model(np.full((1, 28, 28, 1), 0.9, "float32")).shape == (1, 28, 28, 1)
    True
    """

    def __init__(
        self,
        levels: int = 2,
        *,
        hardness: float = 50.0,
        thresholds: Any = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        hard: bool = False,
        gradient_hardness: float | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(levels, hardness, value_range, hard, gradient_hardness, **kwargs)
        self._given = None
        if isinstance(thresholds, str):
            thresholds = self._named(thresholds)
        if thresholds is not None:
            values = check_thresholds(thresholds, self.levels, self.value_range)
            if values.ndim != 1:
                raise ValueError(
                    f"Expected thresholds as a flat sequence of {self.levels - 1} numbers. "
                    f"Received: an array of shape {values.shape}. For thresholds that "
                    "differ between pixels or channels use TrainableQuSecQuantization."
                )
            self._given = values.tolist()

    def _named(self, thresholds: str) -> np.ndarray:
        """The thresholds of a name, of which there is one."""
        checks.one_of(thresholds, "thresholds", ("bytes",), hint="Or give numbers.")
        if self.levels > _MOST_BYTE_LEVELS:
            raise ValueError(
                f'Expected at most {_MOST_BYTE_LEVELS} levels for thresholds="bytes". Received: '
                f"levels={self.levels}. With more, bytes are hardly quantized; leave it out."
            )
        return byte_thresholds(equal_thresholds(self.levels, self.value_range), self.value_range)

    @property
    def thresholds(self) -> np.ndarray:
        """The thresholds, a float32 array of shape ``(levels - 1,)``."""
        if self._given is None:
            return equal_thresholds(self.levels, self.value_range)
        return np.asarray(self._given, "float32")

    def call(self, inputs: Tensor) -> Tensor:
        thresholds = self.levels if self._given is None else self.thresholds
        return self._quantize(inputs, thresholds, train_thresholds=False)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "thresholds": self._given}


@keras.saving.register_keras_serializable(package="keras_qusec")
class TrainableQuSecQuantization(_Quantizer):
    """Quantize images with thresholds that train with the model (the paper's VQ and TQ).

    The formula is that of `QuSecQuantization`; the thresholds are weights, with the exact
    gradient ``dy/dt_k = -z/(n-1) * s_k * (1 - s_k)`` of Eq. 5, s_k the k-th sigmoid.

    Args:
        levels: number of output levels n, an integer from 2 up.
        hardness: z, above 0. The paper uses 5; above 40 the thresholds hardly move. Raise
            it during training with `HardnessSchedule`.
        granularity: ``"pixel"`` gives every input value its own thresholds, as in the
            paper; ``"channel"`` one set a channel; ``"shared"`` one set for all.
        thresholds_initializer: Keras initializer, or n - 1 increasing numbers; default
            ``k / n`` of the value range. What an initializer returns is put in order.
        thresholds_regularizer: Keras regularizer.
        thresholds_constraint: Keras constraint; ``"ordered"`` keeps the thresholds inside
            the value range and increasing, None lets them move freely.
        value_range: darkest and brightest pixel value.
        hard: output the step function itself, exactly one of n values.
        gradient_hardness: hardness of the gradients; None means `hardness`.
        data_format: ``"channels_last"`` or ``"channels_first"``, for "channel".
        **kwargs: `name`, `dtype`, `trainable` and the other arguments of every layer.

    Input shape: ``(batch, ...)``, floats in `value_range`. Batch and image size may be
    unknown, but "pixel" needs a known image size and "channel" a known channel count.

    Output shape: that of the input; values in [0, 1], of the layer's compute dtype.

    Raises:
        ValueError: for unusable arguments, integer images, an input whose shape does not
            fit the thresholds.

    Source: Section III.A, Eq. 3 to 8.

    Example:

    >>> from keras_qusec import TrainableQuSecQuantization
    >>> layer = TrainableQuSecQuantization(levels=3, granularity="channel")
    >>> layer.build((None, 32, 32, 3))
    >>> layer.thresholds.shape
    (2, 3)
    """

    def __init__(
        self,
        levels: int = 2,
        *,
        hardness: float = 5.0,
        granularity: Literal["pixel", "channel", "shared"] = "pixel",
        thresholds_initializer: Any = None,
        thresholds_regularizer: Any = None,
        thresholds_constraint: Any = "ordered",
        value_range: tuple[float, float] = (0.0, 1.0),
        hard: bool = False,
        gradient_hardness: float | None = None,
        data_format: Literal["channels_last", "channels_first"] | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(levels, hardness, value_range, hard, gradient_hardness, **kwargs)
        hint = 'Use "pixel" for the thresholds of the paper.'
        checks.one_of(granularity, "granularity", GRANULARITIES, hint=hint)
        formats = ("channels_last", "channels_first", None)
        checks.one_of(data_format, "data_format", formats, hint="None follows keras.json.")
        self.granularity = granularity
        self.data_format = data_format or keras.config.image_data_format()
        self.thresholds_initializer = self._initializer(thresholds_initializer)
        self.thresholds_regularizer = keras.regularizers.get(thresholds_regularizer)
        self.thresholds_constraint = (
            OrderedThresholds(self.value_range)
            if thresholds_constraint == "ordered"
            else keras.constraints.get(thresholds_constraint)
        )
        self._thresholds: keras.Variable | None = None

    def _initializer(self, initializer: Any) -> Any:
        """A Keras initializer from one, its name or config, given numbers, or None."""
        if initializer is None:
            return EqualThresholds(self.value_range)
        if isinstance(initializer, (list, tuple, np.ndarray)):
            values = check_thresholds(initializer, self.levels, self.value_range)
            return GivenThresholds(values.tolist())
        return keras.initializers.get(initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (self.levels - 1, *self._map_shape(input_shape))
        self._thresholds = self.add_weight(
            name="thresholds",
            shape=shape,
            initializer=self.thresholds_initializer,
            regularizer=self.thresholds_regularizer,
            constraint=self.thresholds_constraint,
            dtype=self._weight_dtype,
            autocast=False,
        )
        if self.thresholds_constraint is not None:
            # Keras applies a constraint after each update but not to the initial values.
            self._thresholds.assign(self.thresholds_constraint(self._thresholds + 0.0))
        super().build(input_shape)

    def _map_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """The shape of one threshold: broadcasts against one image."""
        if self.granularity == "shared":
            return ()
        if self.granularity == "channel":
            image: tuple[int | None, ...] = (input_shape[-1],)
            if self.data_format == "channels_first":
                image = (input_shape[1],) + (1,) * (len(input_shape) - 2)
        else:
            image = tuple(input_shape[1:])
        if any(size is None for size in image):
            raise ValueError(
                f'Expected a known size for granularity="{self.granularity}". '
                f"Received: input_shape={tuple(input_shape)}. Give keras.Input the full "
                'shape, or use granularity="shared".'
            )
        return tuple(int(size) for size in image if size is not None)

    @property
    def thresholds(self) -> np.ndarray:
        """The current thresholds as a NumPy array, threshold index first.

        Shape ``(levels - 1, *image_shape)`` for "pixel", so that ``thresholds[k]`` is an
        image; ``(levels - 1, channels)`` for "channel" (with unit axes behind it for
        channels_first); ``(levels - 1,)`` for "shared".
        """
        if self._thresholds is None:
            raise ValueError(
                f"Expected a built layer. Received: {self.name} before its first call. "
                "Call the model on an image or give it a keras.Input to create its weights."
            )
        return np.array(ops.convert_to_numpy(self._thresholds))

    def call(self, inputs: Tensor) -> Tensor:
        assert self._thresholds is not None  # built before called, by Keras
        built_for = tuple(self._thresholds.shape[1:])
        if self.granularity != "shared" and not _fits(tuple(inputs.shape[1:]), built_for):
            raise ValueError(
                f"Expected images that fit the thresholds of shape {built_for} that "
                f"{self.name} was built with. Received: images of shape "
                f'{tuple(inputs.shape[1:])}. Resize them, or use granularity="shared" '
                "for images of any size."
            )
        return self._quantize(inputs, self._thresholds + 0.0, train_thresholds=True)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "granularity": self.granularity,
            "thresholds_initializer": keras.initializers.serialize(self.thresholds_initializer),
            "thresholds_regularizer": keras.regularizers.serialize(self.thresholds_regularizer),
            "thresholds_constraint": keras.constraints.serialize(self.thresholds_constraint),
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(package="keras_qusec")
class GivenThresholds(keras.initializers.Initializer):
    """Initialise every pixel's or channel's thresholds to the same given numbers.

    Args:
        values: increasing numbers, one fewer than levels.

    Example:

    >>> from keras_qusec.defenses import GivenThresholds
    >>> np.asarray(GivenThresholds([0.25, 0.5])((2, 3)))[:, 0].tolist()
    [0.25, 0.5]
    """

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        return _spread(np.asarray(self.values, "float32"), shape, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"values": self.values}


def _spread(values: np.ndarray, shape: tuple[int, ...], dtype: str | None) -> Tensor:
    """Thresholds repeated over a shape whose first axis runs over them."""
    if values.shape != tuple(shape):
        values = values.reshape((-1,) + (1,) * (len(shape) - 1))
    return ops.cast(np.broadcast_to(values, shape), dtype or "float32")


def _fits(image: tuple[int | None, ...], thresholds: tuple[int, ...]) -> bool:
    """True if thresholds of one shape apply to images of the other (None is unknown)."""
    tail = image[len(image) - len(thresholds) :]
    return len(image) >= len(thresholds) and all(
        size is None or size == expected or expected == 1
        for size, expected in zip(tail, thresholds, strict=True)
    )


def find_quantizers(model: keras.layers.Layer) -> list[Any]:
    """All quantizer layers of a model, also inside nested models and custom layers.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.defenses import find_quantizers
    >>> inner = keras.Sequential([QuSecQuantization(2)])
    >>> len(find_quantizers(keras.Sequential([inner])))
    1
    """
    return find_layers(model, _Quantizer)
