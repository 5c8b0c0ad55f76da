"""Problems for other verifiers, and theirs for ours: networks in ONNX, properties in VNN-LIB."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qusec import checks, files
from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import reachable_box
from keras_qusec.certification.curves import RELU
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Network, Node, node_of
from keras_qusec.certification.pieces import Linear
from keras_qusec.integer_inputs import whole_images

Array = np.ndarray

# Weights of a layer that is written as a matrix; larger ones make files of gigabytes.
_MOST_WEIGHTS = 50_000_000


def export_problems(
    model: keras.Model,
    x: Any,
    y: Any,
    folder: str | os.PathLike,
    *,
    epsilon: float,
    value_range: tuple[float, float] = (0.0, 1.0),
    outputs: str | None = None,
    data_format: str = "channels_last",
) -> list[Path]:
    """Write what other verifiers need to prove robustness again.

    Verifiers refuse the steps of a quantizer. So the network is the part behind it, as matrices
    and ReLUs in ``network.onnx`` (a batch of one), and each image has a property
    ``image-0.vnnlib`` (VNN-LIB 1.0): its inputs are all numbers between the smallest and the
    largest reachable output, and the unsafe set, in which another logit is at least that of the
    label. ``unsat`` says that the image is robust in exact arithmetic. ``sat`` says less, since
    numbers between two levels cannot be reached.

    Args:
        model: classifier of linear layers, ReLUs and pooling by means, with or without a
            quantizer in front.
        x: images ``(n, ...)``.
        y: true classes.
        folder: made if missing.
        epsilon: radius in L-infinity.
        value_range: smallest and largest pixel value.
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say.
        data_format: ``"channels_last"`` or ``"channels_first"``.

    Returns:
        The files.

    Raises:
        ValueError: for a network with other activations, or a layer of more than 50 million
            weights as a matrix.
        ImportError: without onnx.

    Source: VNN-LIB, Tacchella et al. 2023, version 1.0.
    """
    attacked = AttackedModel(
        model, checks.value_range(value_range), outputs=outputs, data_format=data_format
    )
    images = np.asarray(whole_images(x, [model]), "float32")
    labels = checks.class_labels(
        y, len(images), classes=attacked.logits(images[:1]).shape[1], name="y"
    )
    box = reachable_box(attacked, images, checks.number(epsilon, "epsilon", least=0))
    start = None if box.quantizer is None else box.quantizer.layer
    network = Network.of(pieces_between(model, start))
    folder = Path(folder)
    paths = [files.write_bytes(onnx_bytes(network), folder / "network.onnx")]
    for image, label in enumerate(labels):
        text = vnnlib_text(
            box.low[image].ravel(), box.high[image].ravel(), int(label), network.classes,
            f"Image {image} within L-infinity {epsilon:g}, label {label}.",
        )  # fmt: skip
        paths.append(files.write_text(text, folder / f"image-{image}.vnnlib"))
    return paths


def vnnlib_text(low: Array, high: Array, label: int, classes: int, title: str) -> str:
    """A property in VNN-LIB 1.0: a box, and the outputs at which another class is reached."""
    lines = [f"; {title}", "; Asserted is what must not be: sat is a counterexample.", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(low))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(least)}))", f"(assert (<= X_{i} {_decimal(most)}))"]
    others = [j for j in range(classes) if j != label]
    reached = "\n".join(f"  (and (>= Y_{j} Y_{label}))" for j in others)
    return "\n".join([*lines, f"(assert (or\n{reached}\n))", ""])


def _decimal(value: float) -> str:
    """A float32 as a decimal number that reads as the same, without an exponent."""
    return np.format_float_positional(np.float32(value), unique=True, trim="0")


def onnx_bytes(network: Network) -> bytes:
    """A network of matrices, ReLUs and sums as an ONNX file, of a batch of one."""
    onnx = _import_onnx()
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights: list[Any] = []
    steps: list[Any] = []

    def constant(name: str, values: Array) -> str:
        weights.append(numpy_helper.from_array(values.astype("float32"), name))
        return name

    for number, node in enumerate(network.nodes[1:], 1):
        output = f"value_{number}"
        if isinstance(node.made, Linear):
            steps += _linear_steps(node, node.made, number, constant, helper)
        elif node.made is RELU:
            steps.append(helper.make_node("Relu", [f"value_{node.inputs[0]}"], [output]))
        else:
            raise ValueError(
                "Expected a network of linear layers and ReLUs. Received: another activation, or "
                "pooling by maxima, which is not written here. Export the Keras model itself."
            )
    last = len(network.nodes) - 1
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        steps, "network",
        [value("value_0", onnx.TensorProto.FLOAT, [1, network.nodes[0].size])],
        [value(f"value_{last}", onnx.TensorProto.FLOAT, [1, network.classes])],
        weights,
    )  # fmt: skip
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _linear_steps(node: Node, made: Linear, number: int, constant: Any, helper: Any) -> list[Any]:
    steps, parts = [], []
    for place, (matrix, source) in enumerate(zip(made.matrices, node.inputs, strict=True)):
        rows, columns = matrix.shape
        if rows * columns > _MOST_WEIGHTS:
            raise ValueError(
                f"Expected layers of at most {_MOST_WEIGHTS:,} weights as matrices. Received: one "
                f"of {rows * columns:,}. Export the Keras model itself, without its quantizer."
            )
        name = constant(f"matrix_{number}_{place}", matrix.toarray().T)
        parts.append(f"part_{number}_{place}")
        steps.append(helper.make_node("MatMul", [f"value_{source}", name], [parts[-1]]))
    parts.append(constant(f"offset_{number}", made.offset[None]))
    total = parts[0]
    for place, part in enumerate(parts[1:], 1):
        output = f"value_{number}" if place == len(parts) - 1 else f"sum_{number}_{place}"
        steps.append(helper.make_node("Add", [total, part], [output]))
        total = output
    return steps


def read_network(path: str | os.PathLike) -> Network:
    """A network of Gemm, MatMul, Add, Relu and reshaping from an ONNX file, also a gzipped one.

    Raises:
        ValueError: for other operators.
        ImportError: without onnx.
    """
    onnx = _import_onnx()
    graph = onnx.load_from_string(_content(path)).graph
    known = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            known[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    (given,) = [one for one in graph.input if one.name not in known]
    size = int(np.prod([d.dim_value or 1 for d in given.type.tensor_type.shape.dim]))
    nodes, numbers = [Node((), None, size)], {given.name: 0}
    for node in graph.node:
        tensors = [name for name in node.input if name in numbers]
        constants = [known[name] for name in node.input if name in known]
        if node.op_type == "Constant":
            continue
        if node.op_type in ("Flatten", "Reshape", "Identity"):
            numbers[node.output[0]] = numbers[tensors[0]]
            continue
        source = numbers[tensors[0]]
        made = _made(node, constants, nodes[source].size)
        size = nodes[source].size if made is RELU else made.matrices[0].shape[0]
        nodes.append(node_of([source], made, size))
        numbers[node.output[0]] = len(nodes) - 1
    return Network(nodes)


def _made(node: Any, constants: Sequence[Array], size: int) -> Any:
    """What an operator of an ONNX graph computes."""
    from scipy.sparse import csr_array, eye_array

    none = np.zeros(size)
    if node.op_type == "Relu":
        return RELU
    if node.op_type == "Gemm":
        settings = {one.name: one for one in node.attribute}
        transposed = "transB" in settings and settings["transB"].i
        matrix = constants[0] if transposed else constants[0].T
        offset = constants[1].ravel() if len(constants) > 1 else np.zeros(len(matrix))
        wide = offset.astype("float64")
        return Linear((csr_array(matrix.astype("float64")),), wide, np.abs(wide), size + 1)
    if node.op_type == "MatMul":
        matrix = constants[0].T.astype("float64")
        none = np.zeros(len(matrix))
        return Linear((csr_array(matrix),), none, none, size)
    if node.op_type in ("Add", "Sub"):
        wide = np.broadcast_to(constants[0].ravel(), (size,)).astype("float64")
        wide = wide if node.op_type == "Add" else -wide
        return Linear((csr_array(eye_array(size)),), wide, np.abs(wide), 2)
    raise ValueError(
        f"Expected a network of Gemm, MatMul, Add, Sub, Relu and reshaping. Received: "
        f"{node.op_type}."
    )


def read_box(path: str | os.PathLike) -> tuple[Array, Array, int]:
    """The box and the label of a robustness property in VNN-LIB 1.0, also a gzipped one.

    Returns:
        Smallest and largest inputs ``(n,)`` float64, and the class that must stay the largest.

    Raises:
        ValueError: for a property of another form.
    """
    text = re.sub(r";[^\n]*", "", _content(path).decode())
    ends: dict[str, dict[int, float]] = {"<=": {}, ">=": {}}
    for sign, place, number in re.findall(r"\(assert \((<=|>=) X_(\d+) (\S+)\)\)", text):
        ends[sign][int(place)] = float(number)
    pairs = re.findall(r"\(\s*(>=|<=)\s+Y_(\d+)\s+Y_(\d+)\s*\)", text)
    labels = {int(second if sign == ">=" else first) for sign, first, second in pairs}
    count = len(re.findall(r"declare-const X_\d+", text))
    if len(labels) != 1 or not len(ends["<="]) == len(ends[">="]) == count:
        raise ValueError(
            f"Expected a property with two ends of each input, and one class that stays the "
            f"largest. Received: {path}, with {len(ends['<='])} and {len(ends['>='])} ends of "
            f"{count} inputs, and classes {sorted(labels)}."
        )
    low, high = (np.array([ends[s][i] for i in range(count)]) for s in (">=", "<="))
    return low, high, labels.pop()


def _content(path: str | os.PathLike) -> bytes:
    content = Path(path).read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "Files for other verifiers need the package onnx. Install it with: pip install onnx"
        ) from error
    return onnx
