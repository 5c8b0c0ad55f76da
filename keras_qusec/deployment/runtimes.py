"""Files of other runtimes, opened: one function from images to outputs each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Runtime(NamedTuple):
    """An open model.

    Attributes:
        run: from images as the model takes them, float32 in its value range, to outputs.
        input_shape: of one image as the model takes it, None for sizes that are free.
        batch_size: of a model that takes no other, or None.
        dtype: numbers that the model takes.
        name: of the runtime, with its version.
    """

    run: Callable[[Array], Array]
    input_shape: tuple[int | None, ...]
    batch_size: int | None
    dtype: str
    name: str


def opened(path: Path, runtime: str, precision: str | None, grid: tuple[float, float]) -> Runtime:
    """A file, opened by a runtime.

    Args:
        path: of the file, or of the folder of a SavedModel.
        runtime: one of `RUNTIMES`.
        precision: numbers that OpenVINO computes with, or None for its choice.
        grid: pixel values of byte 0 and byte 255, for models that take bytes without a scale.
    """
    if runtime == "openvino":
        return _openvino(path, precision, grid)
    return {"onnxruntime": _onnx, "litert": _litert, "tensorflow": _saved_model}[runtime](
        path, grid
    )


RUNTIMES = {
    ".onnx": "onnxruntime", ".tflite": "litert", ".xml": "openvino", "": "tensorflow",
}  # fmt: skip


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Expected {package} to be installed for such a file. Received: {error}. Install it "
            f'with: pip install "keras-qusec[deploy]", or pip install {package}'
        ) from error


def _one(entries: Any, kind: str, path: Path) -> Any:
    if len(entries) != 1:
        raise ValueError(
            f"Expected a classifier with one {kind}. Received: {path}, with {len(entries)}. Export "
            "a model that takes images alone and gives logits or probabilities alone."
        )
    return entries[0]


def _unreadable(path: Path, runtime: str, error: Exception) -> ValueError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"Expected a model that {runtime} can open. Received: {path}, of which it says: {first}. "
        "Check the path, or export the model again."
    )


def _size(dimension: Any) -> int | None:
    return dimension if isinstance(dimension, int) and dimension > 0 else None


def _as(dtype: Any, grid: tuple[float, float]) -> Callable[[Array], Array]:
    """From float images to what a model without a scale of its own takes."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return lambda x: x.astype(kind)
    if kind == np.uint8:
        low, high = grid
        return lambda x: np.clip(np.round((x - low) * (255 / (high - low))), 0, 255).astype(kind)
    raise ValueError(
        f"Expected a model that takes float numbers or bytes (uint8). Received: one that takes "
        f"{kind.name}. Export it with a float input."
    )


def _onnx(path: Path, grid: tuple[float, float]) -> Runtime:
    runtime = _imported("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unreadable(path, "ONNX Runtime", error) from error
    entry, output = (
        _one(session.get_inputs(), "input", path), _one(session.get_outputs(), "output", path)
    )  # fmt: skip
    kinds = {"float": "float32", "float16": "float16", "double": "float64"}
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    dtype = kinds.get(kind, kind)
    convert = _as(dtype, grid)

    def run(x: Array) -> Array:
        return np.asarray(session.run([output.name], {entry.name: convert(x)})[0])

    batch, *shape = (_size(d) for d in entry.shape)
    return Runtime(run, tuple(shape), batch, dtype, f"ONNX Runtime {runtime.__version__}")


def _litert(path: Path, grid: tuple[float, float]) -> Runtime:
    module = _imported("ai_edge_litert.interpreter", "ai-edge-litert")
    try:
        interpreter = module.Interpreter(str(path))
        entry = _one(interpreter.get_input_details(), "input", path)
        output = _one(interpreter.get_output_details(), "output", path)
    except (ValueError, RuntimeError) as error:
        if "Expected" in str(error):
            raise
        raise _unreadable(path, "LiteRT", error) from error
    scale, zero = entry["quantization"]
    sizes: list[int] = []

    def received(x: Array) -> Array:
        if not scale:
            return _as(entry["dtype"], grid)(x)
        ends = np.iinfo(entry["dtype"])
        return np.clip(np.round(x / scale + zero), ends.min, ends.max).astype(entry["dtype"])

    def run(x: Array) -> Array:
        if sizes != [len(x)]:
            interpreter.resize_tensor_input(entry["index"], x.shape)
            interpreter.allocate_tensors()
            sizes[:] = [len(x)]
        interpreter.set_tensor(entry["index"], received(x))
        interpreter.invoke()
        found = interpreter.get_tensor(output["index"])
        factor, offset = output["quantization"]
        return (found.astype("float32") - offset) * factor if factor else found

    signature = entry.get("shape_signature", entry["shape"])
    shape = tuple(_size(int(d)) for d in signature[1:])
    batch = None if signature[0] < 0 else int(signature[0])
    version = importlib.import_module("importlib.metadata").version("ai-edge-litert")
    return Runtime(run, shape, batch, np.dtype(entry["dtype"]).name, f"LiteRT {version}")


def _openvino(path: Path, precision: str | None, grid: tuple[float, float]) -> Runtime:
    module = _imported("openvino", "openvino")
    settings = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    try:
        compiled = module.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:
        raise _unreadable(path, "OpenVINO", error) from error
    entry = _one(compiled.inputs, "input", path)
    output = _one(compiled.outputs, "output", path)
    dtype = np.dtype(entry.get_element_type().to_dtype())
    convert = _as(dtype, grid)
    batch, *shape = (d.get_length() if d.is_static else None for d in entry.get_partial_shape())
    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    version = module.__version__.split("-")[0]
    return Runtime(
        lambda x: np.array(compiled({entry: convert(x)})[output]), tuple(shape), batch,
        dtype.name, f"OpenVINO {version}, {used.to_string()}",
    )  # fmt: skip


def _saved_model(path: Path, grid: tuple[float, float]) -> Runtime:
    module = _imported("tensorflow", "tensorflow")
    try:
        loaded = module.saved_model.load(str(path))
        served = loaded.signatures["serving_default"]
    except Exception as error:
        raise _unreadable(path, "TensorFlow", error) from error
    ((name, entry),) = [_one(list(served.structured_input_signature[1].items()), "input", path)]
    output = _one(list(served.structured_outputs), "output", path)
    dtype = entry.dtype.as_numpy_dtype
    convert = _as(dtype, grid)

    def run(x: Array) -> Array:
        # What is loaded lives as long as this function.
        return loaded.signatures["serving_default"](**{name: module.constant(convert(x))})[
            output
        ].numpy()

    batch, *shape = entry.shape.as_list()
    return Runtime(
        run, tuple(shape), batch, np.dtype(dtype).name, f"TensorFlow {module.__version__}"
    )
