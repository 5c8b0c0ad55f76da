"""Files for other verifiers: what is written is the network, and it is read back."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, certify_robustness
from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import reachable_box
from keras_qusec.certification.exchange import export_problems, read_box, read_network

L = keras.layers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6, 6, 1)), QuSecQuantization(2, hard=True),
         L.Conv2D(3, 3, activation="relu"), L.AveragePooling2D(2), L.Flatten(),
         L.Dense(5, activation="relu"), L.Dense(3, activation="softmax")]
    )  # fmt: skip


def test_the_part_behind_the_quantizer(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(0).random((4, 6, 6, 1)).astype("float32")
    y = np.array([0, 1, 2, 0])
    paths = export_problems(model, x, y, tmp_path, epsilon=0.1)
    assert [p.name for p in paths] == ["network.onnx", *(f"image-{i}.vnnlib" for i in range(4))]
    attacked = AttackedModel(model)
    box = reachable_box(attacked, x, 0.1)
    session = onnxruntime.InferenceSession(paths[0])
    network = read_network(paths[0])
    for image in range(4):
        low, high, label = read_box(paths[1 + image])
        assert label == y[image]
        np.testing.assert_array_equal(low.astype("float32"), box.low[image].ravel())
        np.testing.assert_array_equal(high.astype("float32"), box.high[image].ravel())
        outputs = box.quantizer.outputs(x[image : image + 1]).reshape(1, -1)
        (found,) = session.run(None, {"value_0": outputs})
        np.testing.assert_allclose(found, attacked.logits(x[image : image + 1]), atol=1e-5)
        np.testing.assert_allclose(network.forward(outputs), found, atol=1e-5)


def test_maxima_are_written_as_relus(tmp_path):
    """Windows that overlap, with an edge: what is read back is what Keras computes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = keras.Sequential(
        [keras.Input((7, 7, 1)), L.Conv2D(2, 2), L.MaxPooling2D(3, 2, padding="same"),
         L.Conv2D(2, 2, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dense(3)]
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(5, 7, 7, 1)).astype("float32")
    path, *_ = export_problems(model, x[:1], [0], tmp_path, epsilon=0.1)
    expected = model.predict(x, verbose=0)
    session, network = onnxruntime.InferenceSession(path), read_network(path)
    for image, logits in zip(x, expected, strict=True):
        (found,) = session.run(None, {"value_0": image.reshape(1, -1)})
        np.testing.assert_allclose(found[0], logits, atol=1e-5)
        np.testing.assert_allclose(network.forward(image.reshape(1, -1))[0], logits, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_both_versions_of_vnnlib_say_the_same(classes, tmp_path):
    """The parser of the standard reads the second; ours reads both to the last bit."""
    model = keras.Sequential([keras.Input((3,)), QuSecQuantization(3), L.Dense(classes)])
    x, y = np.array([[0.1, 0.4, 0.9]], "float32"), [1]
    boxes = []
    for version in ("1.0", "2.0"):
        _, path = export_problems(model, x, y, tmp_path / version, epsilon=0.1, version=version)
        boxes.append(read_box(path))
    assert boxes[0][2] == boxes[1][2] == 1
    np.testing.assert_array_equal(boxes[0][:2], boxes[1][:2])
    vnnlib = pytest.importorskip("vnnlib")
    query = vnnlib.parse_query_file(str(path))
    (network,) = query.networks
    assert [one.shape for one in (*network.inputs, *network.outputs)] == [[1, 3], [1, classes]]
    assert len(query.assertions) == 2 * 3 + 1
    with pytest.raises(ValueError, match=r"2\.0"):
        export_problems(model, x, y, tmp_path, epsilon=0.1, version="3.0")


def saved(path, nodes, constants, output="y"):
    """A graph of three values in ONNX."""
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, given, [out], **more) for kind, given, out, more in nodes],
        "graph", [value("x", 1, [1, 3])], [value(output, 1, [1, 3])],
        [onnx.numpy_helper.from_array(np.asarray(v, "float32"), n) for n, v in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


MATRIX = np.arange(9).reshape(3, 3) - 3.5


@pytest.mark.parametrize(
    ("nodes", "is_read"),
    [
        ([("Sub", ["c", "x"], "y", {})], True),
        ([("Sub", ["x", "c"], "y", {})], True),
        ([("Add", ["c", "x"], "y", {})], True),
        ([("Relu", ["x"], "r", {}), ("Sub", ["x", "r"], "y", {})], True),
        ([("Relu", ["x"], "r", {}), ("Sub", ["r", "x"], "y", {})], True),
        ([("Gemm", ["x", "m", "c"], "y", {"transB": 1})], True),
        ([("Gemm", ["x", "m"], "y", {})], True),
        ([("Gemm", ["x", "m", "c"], "y", {"alpha": 2.0})], False),
        ([("Gemm", ["x", "m", "x"], "y", {})], False),
        ([("MatMul", ["x", "m"], "y", {})], True),
        ([("Relu", ["x"], "y", {}), ("MatMul", ["x", "m"], "z", {})], False),
    ],
)
def test_a_network_is_read_as_others_run_it_or_not_at_all(nodes, is_read, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = saved(tmp_path / "g.onnx", nodes, {"m": MATRIX, "c": [[1.0, -2.0, 0.5]]})
    if not is_read:
        with pytest.raises(ValueError, match="Expected a network of Relu"):
            read_network(path)
        return
    x = np.array([[0.3, -1.0, 2.0]], "float32")
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_allclose(read_network(path).forward(x), found, atol=1e-6)


@pytest.mark.parametrize(
    ("goal", "label"),
    [
        ("(assert (or (>= Y_0 Y_1) (>= Y_2 Y_1)))", 1),
        ("(assert (or (and (>= Y_0 Y_1)) (and (<= Y_1 Y_2))))", 1),
        ("(assert (>= Y_1 Y_0)) (assert (>= Y_2 Y_0))", None),
        ("(assert (or (and (>= Y_1 Y_0) (>= Y_2 Y_0))))", None),
        ("(assert (or (>= Y_1 Y_0)))", None),
        ("(assert (or (>= Y_1 Y_0) (>= Y_2 Y_0))) (assert (<= Y_0 0.5))", None),
    ],
)
def test_a_property_of_another_form_is_not_read_as_robustness(goal, label, tmp_path):
    path = tmp_path / "p.vnnlib"
    declared = "".join(f"(declare-const Y_{place} Real)\n" for place in range(3))
    ends = "(declare-const X_0 Real)\n(assert (>= X_0 0.0))\n(assert (<= X_0 1.0))\n"
    path.write_text(declared + ends + goal)
    if label is None:
        with pytest.raises(ValueError, match="single disjunction"):
            read_box(path)
    else:
        assert read_box(path)[2] == label


def test_what_cannot_be_written_or_read(tmp_path):
    pytest.importorskip("onnx")
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, activation="tanh"), L.Dense(2)])
    with pytest.raises(ValueError, match="linear layers, ReLUs and pooling"):
        export_problems(model, np.zeros((1, 3)), [0], tmp_path, epsilon=0.1)
    wrong = tmp_path / "wrong.vnnlib"
    wrong.write_text("(declare-const X_0 Real)\n(assert (<= X_0 1.0))\n")
    with pytest.raises(ValueError, match="two ends of each input"):
        read_box(wrong)


def test_real_inputs_are_split_at_units():
    """Without a quantizer ReLUs are split; what is decided is what a fine grid says."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((2,)), L.Dense(12, activation="relu"), L.Dense(8, activation="relu"), L.Dense(2)]
    )  # fmt: skip
    model.set_weights([1.5 * w for w in model.get_weights()])
    generator = np.random.default_rng(0)
    x = generator.random((40, 2)).astype("float32")
    y = model.predict(x, verbose=0).argmax(axis=1)
    status = certify_robustness(model, x, y, epsilons=[0.15]).status()
    assert (status != "open").mean() > 0.9
    side = np.linspace(-0.15, 0.15, 41)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    for image in range(40):
        points = np.clip(x[image] + grid, 0, 1).astype("float32")
        agree = (model.predict(points, verbose=0).argmax(axis=1) == y[image]).all()
        if status[image] == "proved":
            assert agree
        if not agree:
            assert status[image] == "broken"
