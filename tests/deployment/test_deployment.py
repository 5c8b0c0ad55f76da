"""Deployed models: files as classifiers, and whether they are what was measured."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pickle

import browser
import keras
import numpy as np
import pytest

import keras_qusec_cli as cli
from keras_qusec import QuSecQuantization, evaluate_robustness
from keras_qusec.deployment import DeployedModel, check_deployment
from keras_qusec.deployment.steps import away_from_steps
from keras_qusec.norms import LInfinity, within

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),  # exporters and runtimes use deprecated names
]

L = keras.layers
SHAPE = (6, 6, 3)
EPSILONS = [0.1, 0.2]


@pytest.fixture(scope="module")
def data():
    """Images of three classes: which channel is bright, with noise, in 256 byte values."""
    generator = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = generator.uniform(0.0, 0.6, (96, *SHAPE))
    x[np.arange(96), ..., y] += 0.35
    return (np.round(255 * np.clip(x, 0, 1)) / 255).astype("float32"), y


@pytest.fixture(scope="module")
def model(data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(SHAPE), QuSecQuantization(2, hard=True, thresholds="bytes"),
         L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(3)]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(*data, epochs=15, verbose=0)
    return model


def converted(model, x, *, kind="float", whole=True):
    """A model in 8-bit numbers, by TensorFlow's converter."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if whole:
        converter.representative_dataset = lambda: ([row[None]] for row in x)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if kind != "float":
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


@pytest.fixture(scope="module")
def files(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    model.save(folder / "model.keras")
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(folder / "saved", verbose=False)
        model.export(folder / "model.onnx", format="onnx", verbose=False)
        model.export(folder / "model.tflite", format="litert", verbose=False)
    (folder / "bytes.tflite").write_bytes(converted(model, data[0], kind="uint8"))
    return folder


def function_of(model, change=lambda logits: logits):
    return DeployedModel(
        lambda x: change(model.predict_on_batch(x)), input_shape=SHAPE, name="function"
    )


class TestDeployedModel:
    @pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "saved"])
    def test_logits_are_those_of_keras(self, model, data, files, name):
        deployed = DeployedModel(files / name)
        x = data[0]
        np.testing.assert_allclose(deployed.logits(x), model.predict(x, verbose=0), atol=1e-4)
        assert (deployed.outputs, deployed.input_shape, deployed.classes) == ("logits", SHAPE, 3)
        assert deployed.counter.queries == len(x)
        again = pickle.loads(pickle.dumps(deployed))
        np.testing.assert_array_equal(again.logits(x[:3]), deployed.logits(x[:3]))
        assert again.digest == deployed.digest

    def test_openvino(self, model, data, files):
        pytest.importorskip("openvino")
        x = data[0]
        deployed = DeployedModel(files / "model.onnx", runtime="openvino", precision="f32")
        assert "f32" in deployed.runtime_name
        np.testing.assert_allclose(deployed.logits(x), model.predict(x, verbose=0), atol=1e-4)

    def test_bytes_go_in_by_the_scale_of_the_file(self, model, data, files):
        x = data[0]
        deployed = DeployedModel(files / "bytes.tflite")
        assert deployed.dtype == "uint8"
        ours = model.predict(x, verbose=0)
        assert (deployed.logits(x).argmax(axis=1) == ours.argmax(axis=1)).mean() > 0.97
        assert np.abs(deployed.logits(x) - ours).max() < 0.05 * np.abs(ours).max()

    def test_probabilities_are_known_by_their_sums(self, model):
        def softmax(logits):
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)

        assert function_of(model, softmax).outputs == "probabilities"
        assert function_of(model).outputs == "logits"

    def test_it_is_evaluated_by_asking(self, data, files):
        x, y = data
        report = evaluate_robustness(
            DeployedModel(files / "model.onnx"), x[:20], y[:20], attacks=["square"],
            epsilons=[0.2],
        )  # fmt: skip
        assert report.threat_models == ("black-box",)
        assert 0 <= report.robust_accuracy() <= report.clean_accuracy()

    def test_errors(self, files, tmp_path, monkeypatch, data):
        with pytest.raises(ValueError, match=r"no.onnx, which does not exist"):
            DeployedModel(tmp_path / "no.onnx")
        for name in ("bad.onnx", "bad.tflite", "bad.xml"):
            (tmp_path / name).write_bytes(b"not a model")
            with pytest.raises(ValueError, match=f"can open. Received: .*{name}"):
                DeployedModel(tmp_path / name)
        (tmp_path / "model.pt").write_bytes(b"")
        with pytest.raises(ValueError, match=r"ends in .onnx, .tflite or .xml"):
            DeployedModel(tmp_path / "model.pt")
        with pytest.raises(ValueError, match="Expected input_shape"):
            DeployedModel(lambda x: x)
        with pytest.raises(ValueError, match=r"outputs \(n, classes\)"):
            DeployedModel(lambda x: x, input_shape=(4, 4))
        deployed = DeployedModel(files / "model.onnx")
        with pytest.raises(ValueError, match="Expected images of shape"):
            deployed.logits(np.moveaxis(data[0], -1, 1))

        real = importlib.import_module

        def missing(name, *rest):
            if name == "onnxruntime":
                raise ImportError("No module named 'onnxruntime'")
            return real(name, *rest)

        monkeypatch.setattr(importlib, "import_module", missing)
        with pytest.raises(ImportError, match=r"keras-qusec\[deploy\]"):
            DeployedModel(files / "model.onnx")

    def test_two_inputs(self, tmp_path):
        first, second = keras.Input((4,)), keras.Input((4,))
        both = keras.Model([first, second], L.Dense(2)(L.Add()([first, second])))
        with contextlib.redirect_stdout(io.StringIO()):
            both.export(tmp_path / "two.tflite", format="litert", verbose=False)
        with pytest.raises(ValueError, match=r"one input. Received: .*with 2"):
            DeployedModel(tmp_path / "two.tflite")


class TestCheck:
    @pytest.fixture(scope="class")
    def same(self, model, data, files):
        return check_deployment(
            model, files / "model.onnx", *data, epsilons=EPSILONS, attacks=["reachable-levels"],
            queries=[], prove="standard", progress=False,
        )  # fmt: skip

    def test_the_same_model(self, same, data):
        assert same.is_what_was_measured
        assert same.differences == []
        assert same.verdict.startswith("the deployed model is what was measured")
        assert same.levels.changed == ()
        assert same.levels.different == 2
        assert same.proofs_hold
        assert all(one.stay == one.examples > 0 for one in same.radii[1:])
        for epsilon in EPSILONS:
            ours, theirs = same.robust_accuracy(epsilon)
            assert theirs <= ours
        with pytest.raises(ValueError, match=r"radii 0\.1, 0\.2"):
            same.robust_accuracy(0.3)

    def test_it_is_shown_and_saved(self, same, tmp_path):
        assert max(map(len, str(same).splitlines())) <= 80
        content = json.loads(same.save(tmp_path / "check.json").read_text())
        assert content["verdict"] == same.verdict
        assert content["radii"][1]["examples"] == same.radii[1].examples
        page = same.to_html(tmp_path / "check.html").read_text()
        browser.check(tmp_path / "check.html")
        assert "Is the deployed model what was measured?" in page
        assert "Adversarial examples of the Keras model" in page

    def test_bytes(self, model, data, files):
        found = check_deployment(
            model, files / "bytes.tflite", *data, epsilons=[0.2], attacks=["reachable-levels"],
            queries=[], prove="bounds", progress=False,
        )  # fmt: skip
        assert found.levels.changed == ()
        assert found.proofs_hold is False
        (one,) = found.radii
        # Rounding undoes examples at the steps, and not those away from them.
        assert one.stay < one.examples
        assert one.pushed_stay > one.stay
        assert abs(np.subtract(*found.clean_accuracy)) <= 0.03

    def planted(self, model, data, deployed):
        return check_deployment(
            model, deployed, *data, epsilons=[0.2], attacks=["reachable-levels"], queries=[],
            progress=False,
        )  # fmt: skip

    def test_a_threshold_moved_by_a_byte_is_found(self, model, data):
        front = QuSecQuantization(2, hard=True, thresholds=[(129 - 1e-3) / 255])
        other = keras.Sequential([keras.Input(SHAPE), front, *model.layers[1:]])
        found = self.planted(model, data, function_of(other))
        assert found.levels.changed == (128,)
        assert not found.is_what_was_measured
        assert "1 of 256 byte values have another level (128)" in found.verdict

    def test_a_proved_image_that_breaks_where_it_is_deployed(self, model):
        """A threshold moved by less than a byte, and images that only then can cross it."""
        y = np.arange(12) % 3
        x = np.full((12, *SHAPE), 103 / 255, "float32")
        x[np.arange(12), ..., y] = 200 / 255
        front = QuSecQuantization(2, hard=True, thresholds=[0.4985])
        other = keras.Sequential([keras.Input(SHAPE), front, *model.layers[1:]])
        y = model.predict(x, verbose=0).argmax(axis=1)  # whatever the model says there
        found = check_deployment(
            model, function_of(other), x, y, epsilons=[0.0955], attacks=["reachable-levels"],
            queries=[("square", {"queries": 100})], prove="bounds", progress=False,
        )  # fmt: skip
        assert found.levels.changed == ()
        ours, theirs = found.robust_accuracy(0.0955)
        assert ours == 1.0
        assert theirs < 1.0
        assert not found.is_what_was_measured
        assert found.proofs_hold is False
        assert found.proved_and_broken == np.flatnonzero(found.radii[0].broken).tolist() != []
        assert "proved in Keras" in found.verdict

    def test_what_breaks_the_file_is_tried_on_the_model(self, data):
        """Square on the same function: both figures fall, and nothing is different."""
        plain = keras.Sequential([keras.Input(SHAPE), L.Flatten(), L.Dense(3)])
        kernel = np.tile(np.eye(3, dtype="float32"), (36, 1))
        plain.set_weights([kernel, np.zeros(3, "float32")])
        x, y = data[0][:30], data[1][:30]
        found = check_deployment(
            plain, function_of(plain), x, y, epsilons=[0.1, 0.2], attacks=["gaussian"],
            queries=[("square", {"queries": 100})], progress=False,
        )  # fmt: skip
        assert found.is_what_was_measured
        for one in found.radii:
            ours, theirs = found.robust_accuracy(one.epsilon)
            assert ours == theirs
        assert found.robust_accuracy(0.2)[0] < found.report.robust_accuracy(epsilon=0.2)

    def test_the_same_classes_with_other_numbers(self, model, data):
        softened = function_of(model, lambda z: keras.ops.convert_to_numpy(
            keras.ops.softmax(keras.ops.convert_to_tensor(z / 10))))  # fmt: skip
        found = self.planted(model, data, softened)
        assert found.levels.changed == ()
        assert found.is_what_was_measured
        assert not found.has_same_numbers
        assert "with other numbers" in found.verdict

    def test_a_class_that_changes_at_a_corner_is_a_difference(self, model, data):
        logits = np.sort(model.predict(data[0], verbose=0), axis=1)
        limit = 0.9 * (logits[:, -1] - logits[:, -2]).min()

        def swapped(z):
            order = np.sort(z, axis=1)
            near = order[:, -1] - order[:, -2] < limit
            return np.where(near[:, None], -z, z)

        found = self.planted(model, data, function_of(model, swapped))
        assert found.classes_differ == 0
        assert "random corners of the balls change class" in found.verdict

    def test_levels_that_are_one_are_found(self, model, data):
        """As of a converter that makes every pixel dark."""
        front = keras.layers.Rescaling(0.0)
        other = keras.Sequential([keras.Input(SHAPE), front, *model.layers[1:]])
        found = self.planted(model, data, function_of(other))
        assert found.levels.changed == tuple(range(128, 256))

    def test_channels_swapped_are_found(self, model, data):
        swapped = DeployedModel(
            lambda x: model.predict_on_batch(x[..., ::-1].copy()), input_shape=SHAPE
        )
        found = self.planted(model, data, swapped)
        assert "clean images change class" in found.verdict

    def test_logits_swapped_are_found(self, model, data):
        found = self.planted(model, data, function_of(model, lambda z: z[:, [1, 0, 2]]))
        assert "clean images change class" in found.verdict
        assert found.classes_differ > 0
        assert found.largest_logit_difference > 0.1

    def test_asking_goes_on_where_examples_failed(self, model, data):
        """A deployed model that no example of Keras fools, and yet gets noise wrong."""
        x, y = data
        clean = {row.tobytes() for row in x}

        def outputs(images):
            logits = np.zeros((len(images), 3), "float32")
            known = np.array([row.tobytes() in clean for row in images])
            rows = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
            for place, row in enumerate(images):
                label = rows.get(row.tobytes(), 0)
                logits[place, label if known[place] else (label + 1) % 3] = 1.0
            return logits

        deployed = DeployedModel(outputs, input_shape=SHAPE, outputs="logits")
        few = x[:12], y[:12]
        found = check_deployment(
            model, deployed, *few, epsilons=[0.2], attacks=["fgsm"], queries=["square"],
            progress=False,
        )  # fmt: skip
        assert found.robust_accuracy(0.2)[1] <= found.clean_accuracy[1]
        assert found.robust_accuracy(0.2)[1] < 0.5

    def test_an_evaluation_made_before_is_taken(self, model, data, files):
        x, y = data
        settings = {"epsilons": [0.2], "attacks": ["reachable-levels"], "progress": False}
        report = evaluate_robustness(model, x, y, keep_examples=True, **settings)
        deployed = DeployedModel(files / "model.onnx")
        again = check_deployment(
            model, deployed, x, y, epsilons=[0.2], report=report, queries=[], progress=False
        )
        made = check_deployment(model, deployed, x, y, queries=[], **settings)
        assert again.to_dict() == made.to_dict()
        with pytest.raises(ValueError, match="of other data"):
            check_deployment(model, deployed, x[:9], y[:9], report=report, progress=False)
        without = evaluate_robustness(model, x, y, **settings)
        with pytest.raises(ValueError, match="without examples"):
            check_deployment(model, deployed, x, y, report=without, progress=False)

    def test_it_resumes(self, model, data, files, tmp_path):
        settings = {
            "epsilons": [0.2], "attacks": ["reachable-levels"], "queries": ["square"],
            "resume_dir": tmp_path / "work", "progress": False,
        }  # fmt: skip
        x, y = data[0][:16], data[1][:16]
        first = check_deployment(model, DeployedModel(files / "model.onnx"), x, y, **settings)
        again = DeployedModel(files / "model.onnx")
        second = check_deployment(model, again, x, y, **settings)
        assert second.to_dict() == first.to_dict()
        assert (tmp_path / "work" / "keras").exists()

    def test_errors(self, model, data, files):
        x, y = data
        other = DeployedModel(files / "model.onnx", value_range=(0, 255))
        with pytest.raises(ValueError, match="Say the same range"):
            check_deployment(model, other, x, y, value_range=(0, 1), progress=False)
        with pytest.raises(ValueError, match="models of one value range"):
            check_deployment(model, other, x, y, progress=False)
        two = DeployedModel(lambda x: x.reshape(len(x), -1)[:, :2], input_shape=SHAPE)
        with pytest.raises(ValueError, match="with 3 classes"):
            check_deployment(model, two, x, y, progress=False)


def test_examples_go_away_from_the_steps():
    """They stay in the ball and on their level, and are as far from steps as the ball allows."""
    random = np.random.default_rng(0)
    x = random.random((50, 40)).astype("float32")
    thresholds = np.array([0.3, 0.305, 0.6])[:, None]
    darkest, brightest = LInfinity().ends(x, 0.1, (0.0, 1.0))
    examples = np.where(random.random(x.shape) < 0.5, darkest, brightest)
    near = np.where(random.random(x.shape) < 0.5, np.float32(0.3), np.float32(0.6))
    reachable = (near >= darkest) & (near <= brightest)
    examples = np.where(reachable, near, examples).astype("float32")
    moved = away_from_steps(examples, x, 0.1, thresholds, (0.0, 1.0))
    assert within(np.abs(moved.astype("float64") - x), 0.1).all()

    def level(image):
        return (image[None] >= thresholds[:, None]).sum(axis=0)

    np.testing.assert_array_equal(level(moved), level(examples))

    def room(image):
        return np.abs(image[None] - thresholds[:, None]).min(axis=0)

    assert (room(moved) >= np.minimum(room(examples), 2 / 255) - 1e-6).all()
    free = (brightest - darkest > 0.19) & (np.abs(x - 0.6) < 0.05) & (examples == np.float32(0.6))
    assert free.any()
    assert (room(moved)[free] >= 2 / 255 - 1e-6).all()


class TestCommandLine:
    def test_deployed(self, files, data, tmp_path, capsys):
        np.savez(tmp_path / "data.npz", x_test=data[0], y_test=data[1])
        arguments = [
            "deployed", str(files / "model.keras"), str(files / "model.tflite"), "--data",
            str(tmp_path / "data.npz"), "--images", "24", "--epsilons", "0.2", "--attacks",
            "reachable-levels", "--queries", "--output", str(tmp_path / "d.json"), "--html",
            str(tmp_path / "d.html"),
        ]  # fmt: skip
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert "VERDICT: the deployed model is what was measured" in text
        assert json.loads((tmp_path / "d.json").read_text())["is what was measured"]
        assert (tmp_path / "d.html").exists()

    def test_evaluate_of_a_file(self, files, data, tmp_path, capsys):
        np.savez(tmp_path / "data.npz", x_test=data[0], y_test=data[1])
        arguments = [
            "evaluate", str(files / "model.onnx"), "--data", str(tmp_path / "data.npz"), "--images",
            "12", "--epsilons", "0.2", "--attacks", "square",
        ]  # fmt: skip
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert "It gives no gradients, so it is asked for outputs alone" in text
        assert "black-box" in text
