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


def test_what_cannot_be_written_or_read(tmp_path):
    pytest.importorskip("onnx")
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, activation="tanh"), L.Dense(2)])
    with pytest.raises(ValueError, match="linear layers and ReLUs"):
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
