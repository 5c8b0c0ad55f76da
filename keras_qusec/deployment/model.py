"""DeployedModel: a file of another runtime as a classifier that can be judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec import checks
from keras_qusec.attacks.classifier import FunctionClassifier
from keras_qusec.deployment.runtimes import RUNTIMES, Runtime, opened
from keras_qusec.digests import code_digest, digest
from keras_qusec.logits import LOGITS, PROBABILITIES

Array = np.ndarray

# Images in one call, where a model takes any number.
_AT_A_TIME = 256
# How far rows of probabilities of few bits may be from a sum of 1.
_NEAR_ONE = 0.05


class DeployedModel(FunctionClassifier):
    """A classifier in the file that is deployed, run by its own runtime.

    It gives no gradients: attacks ask it for outputs, or are made on a Keras model and
    transferred. Images are float32 in `value_range`, as everywhere; a model that takes 8-bit
    numbers gets them by its own scale, or as the bytes from 0 to 255 where it has none.

    Args:
        path: a file of ONNX (``.onnx``), LiteRT (``.tflite``) or OpenVINO (``.xml``), or the
            folder of a SavedModel; or a function from images ``(n, ...)`` to outputs.
        outputs: ``"logits"`` or ``"probabilities"``; None: probabilities if all rows of a few
            outputs lie from 0 to 1 and sum to 1.
        runtime: ``"onnxruntime"``, ``"litert"``, ``"openvino"`` (for ONNX and LiteRT files, too)
            or ``"tensorflow"``; default by the name of the file.
        precision: numbers that OpenVINO computes with, such as ``"f32"``; default its choice,
            which can be bfloat16.
        value_range: smallest and largest pixel value.
        data_format: ``"channels_first"`` for a model that takes ``(n, channels, height, width)``;
            images are given that way, then.
        input_shape: of one image; needed for a function alone.
        name: name in the report; default that of the file.

    Attributes:
        runtime_name: the runtime with its version.

    Raises:
        ValueError: for a file that cannot be opened, or with several inputs or outputs.
        ImportError: without the runtime: ``pip install "keras-qusec[deploy]"``.

    Example:

    >>> from keras_qusec.deployment import DeployedModel
    >>> deployed = DeployedModel(lambda x: np.stack([1 - x[:, 0], x[:, 0]], 1), input_shape=(2,))
    >>> deployed.predictions(np.array([[0.9, 0.2], [0.1, 0.3]], "float32")).tolist()
    [1, 0]
    """

    def __init__(
        self,
        path: str | os.PathLike | Callable[[Array], Any],
        *,
        outputs: str | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        data_format: str = "channels_last",
        input_shape: Sequence[int] | None = None,
        name: str | None = None,
    ) -> None:
        pixels = checks.value_range(value_range)
        self._source: Any = path
        self._settings = (runtime, precision, pixels)
        self._opened: Runtime | None = None
        if callable(path):
            if input_shape is None:
                raise ValueError(
                    "Expected input_shape, the shape of one image, for a function. Received: none."
                )
            identity, own = code_digest(path), getattr(path, "__name__", "function")
            self._opened = Runtime(path, tuple(input_shape), None, "float32", "a function")
        else:
            identity, own = _identity(Path(path), runtime, precision), Path(path).stem
        found = self._runtime
        self.runtime_name, self.dtype = found.name, found.dtype
        shape = found.input_shape
        if data_format == "channels_first" and len(shape) == 3:
            shape = (*shape[1:], shape[0])
        probe = self._probed(found, pixels)
        if outputs is None:
            sums = probe.sum(axis=1)
            likely = (probe >= 0).all() and (np.abs(sums - 1) < _NEAR_ONE).all()
            outputs = PROBABILITIES if likely else LOGITS
        super().__init__(
            self._run, classes=probe.shape[1], outputs=outputs, input_shape=shape,
            name=own if name is None else name, value_range=pixels, data_format=data_format,
            batch_size=found.batch_size, identity=f"{identity} {found.name}",
        )  # fmt: skip

    @property
    def _runtime(self) -> Runtime:
        if self._opened is None:
            runtime, precision, pixels = self._settings
            path = Path(self._source)
            self._opened = opened(path, _runtime_of(path, runtime), precision, pixels)
        return self._opened

    def _probed(self, found: Runtime, pixels: tuple[float, float]) -> Array:
        """Outputs for a few random images, from which the number of classes is known."""
        count = found.batch_size or 4
        shape = tuple(size or 32 for size in found.input_shape)
        images = np.random.default_rng(0).uniform(*pixels, (count, *shape)).astype("float32")
        probe = np.asarray(found.run(images), "float32")
        if probe.ndim != 2 or len(probe) != count or probe.shape[1] < 2:
            raise ValueError(
                f"Expected a classifier with outputs (n, classes), 2 classes or more. Received: "
                f"{self._source}, whose outputs for {count} images have shape {probe.shape}. "
                "Export the classifier with its logits or probabilities as the only output."
            )
        return probe

    def _run(self, x: Array) -> Array:
        found = self._runtime
        wanted = found.input_shape
        fits = len(wanted) == x.ndim - 1 and all(
            size in (None, given) for size, given in zip(wanted, x.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"Expected images of shape {wanted} for {self.name!r}. Received: {x.shape[1:]}. "
                'Check the images, and data_format="channels_first" if the model takes the '
                "channels first."
            )
        if found.batch_size is not None:
            return np.asarray(found.run(x))
        parts = [found.run(x[i : i + _AT_A_TIME]) for i in range(0, len(x), _AT_A_TIME)]
        return np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it opens the file itself."""
        return {**vars(self), "_opened": self._opened if callable(self._source) else None}


def _runtime_of(path: Path, runtime: str | None) -> str:
    if not path.exists():
        raise ValueError(f"Expected a model file. Received: {path}, which does not exist.")
    if runtime is not None:
        return checks.one_of(runtime, "runtime", tuple(RUNTIMES.values()))
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix not in RUNTIMES or (suffix == "" and not path.is_dir()):
        raise ValueError(
            "Expected a file that ends in .onnx, .tflite or .xml, or the folder of a SavedModel. "
            f"Received: {path}. Export the model, or say which runtime=..."
        )
    return RUNTIMES[suffix]


def _identity(path: Path, runtime: str | None, precision: str | None) -> str:
    """A text that changes with the contents of a file or folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    contents = [file.read_bytes() for file in files if file.exists()]
    return digest(*contents, f"{runtime} {precision}".encode())
