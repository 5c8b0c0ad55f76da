"""Problems for other verifiers, and theirs for ours: networks in ONNX, properties in VNN-LIB."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_qusec import checks, files
from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import reachable_box
from keras_qusec.certification.curves import RELU
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.matrices import selection
from keras_qusec.certification.network import Network, Node, node_of
from keras_qusec.certification.pieces import Largest, Linear
from keras_qusec.integer_inputs import whole_images

Array = np.ndarray

# Weights of a layer that is written as a matrix; larger ones make files of gigabytes.
_MOST_WEIGHTS = 50_000_000
# Versions of VNN-LIB.
VERSIONS = ("1.0", "2.0")
# What `read_network` reads.
_READ = (
    "a network of Relu, reshaping, Add and Sub, and of Gemm and MatMul of a value times a constant"
)


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
    version: Literal["1.0", "2.0"] = "1.0",
) -> list[Path]:
    """Write what other verifiers need to prove robustness again.

    Verifiers refuse the steps of a quantizer. So the network is the part behind it, as matrices
    and ReLUs in ``network.onnx`` (a batch of one; the larger of two numbers is a sum with a ReLU),
    and each image has a property ``image-0.vnnlib`` in VNN-LIB: its inputs are all numbers between
    the smallest and the largest reachable output, and the unsafe set, in which another logit is at
    least that of the label. ``unsat`` says that the image is robust in exact arithmetic. ``sat``
    says less, since numbers between two levels cannot be reached.

    Args:
        model: classifier of linear layers, ReLUs and pooling, with or without a quantizer in front.
        x: images ``(n, ...)``.
        y: true classes.
        folder: made if missing.
        epsilon: radius in L-infinity.
        value_range: smallest and largest pixel value.
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say.
        data_format: ``"channels_last"`` or ``"channels_first"``.
        version: of VNN-LIB: ``"1.0"``, which verifiers read, or ``"2.0"``.

    Returns:
        The files.

    Raises:
        ValueError: for a network with other activations, or a layer of more than 50 million
            weights as a matrix.
        ImportError: without onnx.

    Source: The VNN-LIB standard, vnnlib.org.

    Example:

    >>> import tempfile
    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.certification.exchange import export_problems
    >>> model = keras.Sequential([keras.Input((4,)), QuSecQuantization(2, hard=True),
    ...                           keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)])
    >>> paths = export_problems(model, np.zeros((1, 4)), [0], tempfile.mkdtemp(), epsilon=0.1)
    >>> [path.name for path in paths]
    ['network.onnx', 'image-0.vnnlib']
    """
    checks.one_of(version, "version", VERSIONS)
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
            f"Image {image} within L-infinity {epsilon:g}, label {label}.", version,
        )  # fmt: skip
        paths.append(files.write_text(text, folder / f"image-{image}.vnnlib"))
    return paths


def vnnlib_text(
    low: Array, high: Array, label: int, classes: int, title: str, version: str = "1.0"
) -> str:
    """A property in VNN-LIB: a box, and the outputs at which another class is reached."""
    lines = [f"; {title}", "; Asserted is what must not be: sat is a counterexample.", ""]
    if version == "2.0":
        x, y, goal = "X[0,{}]", "Y[0,{}]", "  (>= {} {})"
        lines[:0] = ["(vnnlib-version <2.0>)"]
        lines += [
            "(declare-network network",
            f"  (declare-input X float32 [1,{len(low)}])",
            f"  (declare-output Y float32 [1,{classes}])",
            ")",
        ]
    else:
        x, y, goal = "X_{}", "Y_{}", "  (and (>= {} {}))"
        lines += [f"(declare-const {x.format(i)} Real)" for i in range(len(low))]
        lines += [f"(declare-const {y.format(j)} Real)" for j in range(classes)]
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        name = x.format(i)
        for sign, end in ((">=", least), ("<=", most)):
            lines.append(f"(assert ({sign} {name} {_decimal(end)}))")
    others = [j for j in range(classes) if j != label]
    reached = [goal.format(y.format(j), y.format(label)) for j in others]
    if version == "2.0" and len(reached) == 1:
        # A disjunction has two parts or more.
        return "\n".join([*lines, f"(assert {reached[0].strip()})", ""])
    return "\n".join([*lines, "(assert (or", *reached, "))", ""])


def _decimal(value: float) -> str:
    """A float32 as a decimal number that reads as the same, without an exponent."""
    return np.format_float_positional(np.float32(value), unique=True, trim="0")


def onnx_bytes(network: Network) -> bytes:
    """A network of matrices, ReLUs, sums and maxima as an ONNX file, of a batch of one."""
    onnx = _import_onnx()
    network = _without_maxima(network)
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
                "Expected a network of linear layers, ReLUs and pooling. Received: another "
                "activation, which is not written here. Export the Keras model itself."
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


def _without_maxima(network: Network) -> Network:
    """The same network, whose maxima are sums and ReLUs: max(a, b) = b + ReLU(a - b)."""
    nodes: list[Node] = []
    numbers: list[int] = []
    for node in network.nodes:
        inputs = [numbers[i] for i in node.inputs]
        if isinstance(node.made, Largest):
            numbers.append(_add_maxima(nodes, inputs[0], node.made.windows))
            continue
        nodes.append(node_of(inputs, node.made, node.size) if node.made else node)
        numbers.append(len(nodes) - 1)
    return Network(nodes)


def _add_maxima(nodes: list[Node], source: int, windows: Array) -> int:
    """Append nodes for the largest value of each window, two by two; the last one's number."""

    def append(inputs: list[int], made: Any, size: int) -> int:
        nodes.append(node_of(inputs, made, size))
        return len(nodes) - 1

    def linear(matrices: list[Any], terms: int) -> Linear:
        none = np.zeros(matrices[0].shape[0])
        return Linear(tuple(matrices), none, none, terms)

    # What is missing at an edge is the window's last value once more.
    table = np.where(windows < 0, windows.max(axis=1, keepdims=True), windows).T
    outputs = table.shape[1]
    while len(table) > 1:
        pairs = len(table) // 2
        first, rest = table[:pairs].ravel(), table[pairs:].ravel()
        size = nodes[source].size
        kept = selection(rest, size)
        difference = selection(first, size) - selection(rest[: len(first)], size)
        below = append([source], linear([difference], 2), len(first))
        positive = append([below], RELU, len(first))
        places = np.where(np.arange(len(rest)) < len(first), np.arange(len(rest)), -1)
        added = selection(places, len(first))
        source = append([source, positive], linear([kept, added], 2), len(rest))
        table = np.arange(len(rest)).reshape(-1, outputs)
    if not np.array_equal(table[0], np.arange(nodes[source].size)):
        return append([source], linear([selection(table[0], nodes[source].size)], 0), outputs)
    return source


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
    """A network of dense layers, sums and ReLUs from an ONNX file, also a gzipped one.

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
        if node.op_type == "Constant":
            continue
        sources = [numbers[name] for name in node.input if name in numbers]
        if node.op_type in ("Flatten", "Reshape", "Identity"):
            numbers[node.output[0]] = sources[0]
            continue
        size = nodes[sources[0]].size
        made = _made(node, [known.get(name) for name in node.input], size)
        size = size if made is RELU else made.matrices[0].shape[0]
        nodes.append(node_of(sources, made, size))
        numbers[node.output[0]] = len(nodes) - 1
    last = numbers[graph.output[0].name]
    if last != len(nodes) - 1:
        raise ValueError(
            f"Expected {_READ}, whose last operator gives the output. Received: one with operators "
            "behind it. Remove them."
        )
    return Network(nodes)


def _made(node: Any, operands: Sequence[Array | None], size: int) -> Any:
    """What an operator of an ONNX graph computes; `operands` are None where it is a value."""
    from scipy.sparse import csr_array, eye_array

    settings = {one.name: one.i if one.type == 2 else one.f for one in node.attribute}
    constants = [operand for operand in operands if operand is not None]
    kind = node.op_type
    if kind == "Relu":
        return RELU
    one = csr_array(eye_array(size))
    none = np.zeros(size)
    if kind in ("Add", "Sub") and not constants:
        return Linear((one, -one if kind == "Sub" else one), none, none, 1)
    if kind in ("Add", "Sub"):
        (constant,) = constants
        wide = np.broadcast_to(constant.ravel(), (size,)).astype("float64")
        # A constant less a value, or a value less a constant.
        sign = -1 if kind == "Sub" and operands[0] is not None else 1
        wide = -wide if kind == "Sub" and sign > 0 else wide
        return Linear((sign * one,), wide, np.abs(wide), 2)
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    usual = all(settings.get(name, value) == value for name, value in plain.items())
    given = [operand is not None for operand in operands]
    if kind not in ("Gemm", "MatMul") or given[0] or not all(given[1:]) or not usual:
        which = ", ".join("constant" if one else "value" for one in given)
        raise ValueError(f"Expected {_READ}. Received: {kind} of {which} with {settings}.")
    matrix = constants[0] if settings.get("transB") else constants[0].T
    offset = constants[1].ravel() if len(constants) > 1 else np.zeros(len(matrix))
    wide = np.broadcast_to(offset, (len(matrix),)).astype("float64")
    return Linear((csr_array(matrix.astype("float64")),), wide, np.abs(wide), size + 1)


def read_box(path: str | os.PathLike) -> tuple[Array, Array, int]:
    """The box and the label of a robustness property in VNN-LIB 1.0 or 2.0, also a gzipped one.

    Returns:
        Smallest and largest inputs ``(n,)`` float64, and the class that must stay the largest.

    Raises:
        ValueError: for a property of another form.
    """
    text = re.sub(r";[^\n]*", "", _content(path).decode())
    # Version 2.0 numbers what is in a tensor: X[0,3] is X_3 of version 1.0.
    declared = re.search(r"declare-input\s+X\s+\w+\s*\[([\d,\s]+)\]", text)
    text = re.sub(r"\b([XY])\s*\[(?:\s*0\s*,)?\s*(\d+)\s*\]", r"\1_\2", text)
    ends: dict[str, dict[int, float]] = {"<=": {}, ">=": {}}
    for sign, place, number in re.findall(r"\(assert \((<=|>=) X_(\d+) (\S+)\)\)", text):
        ends[sign][int(place)] = float(number)
    count = len(re.findall(r"declare-const X_\d+", text))
    classes = len(re.findall(r"declare-const Y_\d+", text))
    if declared:
        count = int(np.prod([int(size) for size in declared[1].split(",")]))
        outputs = re.search(r"declare-output\s+Y\s+\w+\s*\[([\d,\s]+)\]", text)
        classes = int(np.prod([int(size) for size in outputs[1].split(",")])) if outputs else 0
    label = _label_of(text, classes)
    if label is None or not len(ends["<="]) == len(ends[">="]) == count:
        raise ValueError(
            f"Expected a property with two ends of each input, and one class that stays the "
            f"largest: a single disjunction, in which each other class reaches it. Received: "
            f"{path}, with {len(ends['<='])} and {len(ends['>='])} ends of {count} inputs."
        )
    low, high = (np.array([ends[s][i] for i in range(count)]) for s in (">=", "<="))
    return low, high, label


def _label_of(text: str, classes: int) -> int | None:
    """The class that must stay the largest; None for a property of another form."""
    compact = re.sub(r"\s+", " ", text)
    compared = r"\( ?(?:>=|<=) Y_\d+ Y_\d+ ?\)"
    term = rf"(?:{compared}|\( ?and {compared} ?\))"
    goals = re.findall(rf"\( ?assert ({term}|\( ?or(?: ?{term})+ ?\)) ?\)", compact)
    pairs = re.findall(r"(>=|<=) Y_(\d+) Y_(\d+)", compact)
    # Outputs are named nowhere else than in the one goal.
    named = re.findall(r"Y_\d+", re.sub(r"\(declare-const Y_\d+ \w+\)", "", compact))
    if len(goals) != 1 or len(re.findall("Y_", goals[0])) != len(named):
        return None
    reached = {(int(a), int(b)) if sign == ">=" else (int(b), int(a)) for sign, a, b in pairs}
    labels, others = {below for _, below in reached}, {above for above, _ in reached}
    if len(labels) != 1 or others != set(range(classes)) - labels:
        return None
    return labels.pop()


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
