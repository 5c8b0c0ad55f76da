"""Every runtime that is installed: do levels, accuracy and adversarial examples stay?

    python benchmarks/deployment.py [--images 1000] [--epochs 4]

TensorFlow, one thread. A small CNN behind each quantizer, trained on 4,000 images of MNIST,
seed 0; adversarial examples at epsilon 0.3 by reachable levels and PGD on surrogate gradients,
each verified in Keras. Each row is a deployment: byte values of another level (256 images of one
value each, on a model that ends behind the quantizer), accuracy, and of the misclassified examples
those that stay, before and after they were pushed away from the steps. Last, the time of
`check_deployment` with a report that was made before, beside the runtime's own passes on as many
images and Keras', medians of three rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(KERAS_BACKEND="tensorflow", OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")

import keras
import numpy as np

from keras_qusec import QuSecQuantization, datasets, evaluate_robustness
from keras_qusec.deployment import DeployedModel, check_deployment
from keras_qusec.deployment.steps import away_from_steps

EPSILON = 0.3
FRONTS: dict[str, Callable[[], keras.layers.Layer]] = {
    "hard, 2 levels": lambda: QuSecQuantization(2, hard=True),
    'hard, 2 levels, "bytes"': lambda: QuSecQuantization(2, hard=True, thresholds="bytes"),
    "hard, 4 levels": lambda: QuSecQuantization(4, hard=True),
    'hard, 4 levels, "bytes"': lambda: QuSecQuantization(4, hard=True, thresholds="bytes"),
    "soft, 2 levels": lambda: QuSecQuantization(2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--attacked", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    data = datasets.mnist5k()
    for name, front in FRONTS.items():
        rows(name, trained(front(), data, options.epochs), data, options)
    speed(trained(QuSecQuantization(2, hard=True), data, 1), data)


def trained(front: keras.layers.Layer, data: Any, epochs: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), front,
         keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
         keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"),
         keras.layers.Dense(10)]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    return model


def deployments(model: keras.Model, x: np.ndarray, folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and `DeployedModel` of each deployment; what cannot be made says why."""

    def made(name: str, make: Callable[[], Any]) -> tuple[str, Any]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return name, make()
        except Exception as error:  # noqa: BLE001 - what a runtime refuses is a row
            return name, f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"

    onnx = folder / "model.onnx"
    yield made("SavedModel", lambda: exported(model, folder / "saved", None))
    yield made("ONNX Runtime, float32", lambda: exported(model, onnx, "onnx"))
    yield made("LiteRT, float32", lambda: exported(model, folder / "model.tflite", "litert"))
    for name, settings in LITERT.items():
        yield made(f"LiteRT, {name}", lambda s=settings, n=name: litert(model, x, folder / n, s))
    for name, change in ONNX.items():
        path = folder / f"{name}.onnx"
        yield made(f"ONNX Runtime, {name}", lambda c=change, p=path: c(onnx, p, x))
    yield made("OpenVINO, f32", lambda: DeployedModel(onnx, runtime="openvino", precision="f32"))
    yield made("OpenVINO, its default", lambda: DeployedModel(onnx, runtime="openvino"))
    for mode in ("int8", "int4", "float8"):
        yield made(f"Keras, quantize({mode!r})", lambda m=mode: quantized(model, m))


def exported(model: keras.Model, path: Path, form: str | None) -> DeployedModel:
    model.export(path, verbose=False, **({} if form is None else {"format": form}))
    return DeployedModel(path)


def quantized(model: keras.Model, mode: str) -> DeployedModel:
    """Keras' own weights of few bits, in dense layers; the other layers stay in float32."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.quantize(mode)
    shape = model.input_shape[1:]
    return DeployedModel(lambda x: twin.predict_on_batch(x), input_shape=shape, outputs="logits")


LITERT = {
    "float16 weights": {"types": ["float16"]},
    "dynamic range": {},
    "int8, float input": {"whole": True},
    "int8, uint8 input": {"whole": True, "input": "uint8"},
}


def litert(model: keras.Model, x: np.ndarray, path: Path, settings: dict) -> DeployedModel:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if "types" in settings:
        converter.target_spec.supported_types = [getattr(tf, t) for t in settings["types"]]
    if settings.get("whole"):
        converter.representative_dataset = lambda: ([image[None]] for image in x[:200])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if "input" in settings:
        kind = getattr(tf, settings["input"])
        converter.inference_input_type = converter.inference_output_type = kind
    path = path.with_name(path.name.replace(" ", "-").replace(",", "") + ".tflite")
    path.write_bytes(converter.convert())
    return DeployedModel(path)


def _dynamic(source: Path, path: Path, _: np.ndarray) -> DeployedModel:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, path)
    return DeployedModel(path)


def _static(source: Path, path: Path, x: np.ndarray) -> DeployedModel:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    name = InferenceSession(str(source)).get_inputs()[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(x[:200])

        def get_next(self) -> Any:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

    quantize_static(source, path, Reader())
    return DeployedModel(path)


def _half(source: Path, path: Path, _: np.ndarray) -> DeployedModel:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(half, path)
    return DeployedModel(path)


ONNX = {"float16": _half, "int8, dynamic": _dynamic, "int8, static": _static}


def rows(name: str, model: keras.Model, data: Any, options: argparse.Namespace) -> None:
    """A table of one quantizer."""
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    few, labels = x[: options.attacked], y[: options.attacked]
    report = evaluate_robustness(
        model, few, labels, attacks=["reachable-levels", "pgd"], epsilons=[EPSILON],
        keep_examples=True, progress=False,
    )  # fmt: skip
    found = report.examples(EPSILON)
    front = keras.Sequential([keras.Input((28, 28, 1)), model.layers[0]])
    thresholds = model.layers[0].thresholds.reshape(-1, 1, 1, 1)
    pushed = away_from_steps(found.images, few[found.numbers], EPSILON, thresholds, (0.0, 1.0))
    values = (np.arange(256) / 255).astype("float32").reshape(256, 1, 1, 1)
    plain = np.broadcast_to(values, (256, 28, 28, 1)).copy()
    levels = model.layers[0].levels
    ours = front.predict(plain, verbose=0)[:, 0, 0, 0]
    accuracy = (model.predict(x, verbose=0).argmax(axis=1) == y).mean()
    print(f"\n{name}: Keras {100 * accuracy:.1f} % of {len(x)}; {len(found.numbers)} examples\n")
    print("| deployment | bytes of another level | accuracy, % | stay | stay, pushed |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        pairs = zip(
            deployments(model, data.x_train, Path(one)),
            deployments(behind_nothing(front), data.x_train, Path(two)), strict=True,
        )  # fmt: skip
        for (label, whole), (_, alone) in pairs:
            if isinstance(whole, str):
                print(f"| {label} | {whole} | | | |", flush=True)
                continue
            changed = "?"
            if not isinstance(alone, str):
                theirs = alone.function(plain)[:, 0]
                changed = f"{int((np.abs(theirs - ours) > 0.5 / (levels - 1)).sum())}"
            right = 100 * (whole.predictions(x) == y).mean()
            wrong = [
                int((whole.predictions(images) != labels[found.numbers]).sum())
                for images in (found.images, pushed)
            ]
            print(f"| {label} | {changed} | {right:.1f} | {wrong[0]} | {wrong[1]} |", flush=True)


def behind_nothing(front: keras.Model) -> keras.Model:
    """The quantizer with outputs of the shape that a classifier has."""
    return keras.Sequential([keras.Input((28, 28, 1)), *front.layers, keras.layers.Flatten()])


def speed(model: keras.Model, data: Any) -> None:
    """`check_deployment` without attacks of its own beside the runtime's passes."""
    x, y = data.x_test[:1000], data.y_test[:1000]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        deployed = exported(model, Path(folder) / "model.onnx", "onnx")
        report = evaluate_robustness(
            model, x, y, attacks=["fgsm"], epsilons=[0.1], keep_examples=True, progress=False
        )
        times: tuple[list[float], list[float], list[float]] = ([], [], [])
        for _ in range(3):
            deployed.counter.queries = 0
            spent = _timed(lambda: check_deployment(
                model, deployed, x, y, epsilons=[0.1], report=report, queries=[],
                progress=False))  # fmt: skip
            passes = deployed.counter.queries
            bare = _timed(lambda n=passes: [deployed.function(x) for _ in range(n // 1000)])
            keras_passes = _timed(
                lambda n=passes: [model.predict(x, batch_size=1000, verbose=0)
                                  for _ in range(n // 1000)])  # fmt: skip
            for part, value in zip(times, (spent, bare, keras_passes), strict=True):
                part.append(value)
    middle = [statistics.median(part) for part in times]
    print(f"\ncheck_deployment {middle[0]:.2f} s; its {passes} images passed through the runtime "
          f"{middle[1]:.2f} s, as many through Keras' predict {middle[2]:.2f} s")  # fmt: skip


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
