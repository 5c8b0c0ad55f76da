"""The command line on saved models."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_qusec_cli as cli
from keras_qusec import (
    QuSecQuantization,
    RobustnessReport,
    __version__,
    comparison,
    datasets,
    evaluate_robustness,
    reproduction,
)
from keras_qusec.attacks import registry
from keras_qusec.certification.certify import EFFORTS
from keras_qusec.evaluation import inputs, threat_models
from keras_qusec_cli import names
from keras_qusec_cli.quiet import quiet

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestCommandLine:
    @pytest.fixture(scope="class")
    def files(self, measured, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models")
        for name, model in measured[0].items():
            model.save(folder / f"{name}.keras")
        data = datasets.mnist5k()
        np.savez(
            folder / "few.npz", x_train=data.x_train[:4], y_train=data.y_train[:4],
            x_test=data.x_test[:30], y_test=data.y_test[:30],
        )  # fmt: skip
        return folder

    def test_evaluate_and_compare(self, files, tmp_path, capsys, measured):
        names = {"output": "r.json", "html": "r.html", "plot": "c.png", "gallery": "g.png",
                 "markdown": "r.md"}  # fmt: skip
        writes = [
            part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))
        ]
        status = cli.main(
            ["evaluate", str(files / "plain.keras"), "--compare", str(files / "quantized.keras"),
             "--data", str(files / "few.npz"), "--attacks", "fgsm", "--epsilons", "0.1", "0.2",
             "--source", str(files / "plain.keras"), "--images", "0",
             "--resume", str(tmp_path / "run"), *writes]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert status == 0
        assert "plain" in out
        assert "quantized" in out
        report = RobustnessReport.load(tmp_path / "r.json")
        assert report.models == ("plain", "quantized")
        assert report.threat_models == ("white-box", "adaptive", "black-box")
        expected = measured[1].robust_accuracy("fgsm", 0.2, "white-box", model="quantized")
        got = report.robust_accuracy("fgsm", 0.2, "white-box", model="quantized")
        assert got == expected
        for file in names.values():
            assert (tmp_path / file).stat().st_size > 500
        table = out.split("Written")[0]
        assert max(map(len, table.splitlines())) <= 80

    def test_the_standard_evaluation(self, files, tmp_path, capsys):
        status = cli.main(
            ["evaluate", str(files / "quantized.keras"), "--data", str(files / "few.npz"),
             "--attacks", "standard", "--epsilons", "0.1", "--l2-epsilons", "0.5", "--images", "6",
             "--examples", str(tmp_path / "kept.npz")]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert status == 0
        with np.load(tmp_path / "kept.npz") as kept:
            numbers, examples = kept["quantized linf numbers"], kept["quantized linf images"]
        assert 0 < len(numbers) == len(examples) <= 6
        assert examples.shape[1:] == (28, 28, 1)
        assert "standard evidence" in out
        assert "adaptive standard-l2" in out
        assert "adaptive reachable-levels" in out
        assert max(map(len, out.split("Written")[0].splitlines())) <= 80

    def test_a_file_that_cannot_be_written_does_not_lose_the_rest(
        self, files, tmp_path, capsys, monkeypatch
    ):
        def full(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(RobustnessReport, "to_html", full)
        status = cli.main(
            ["evaluate", str(files / "plain.keras"), "--data", str(files / "few.npz"),
             "--attacks", "fgsm", "--html", str(tmp_path / "no.html"),
             "--plot", str(tmp_path / "c.png")]
        )  # fmt: skip
        assert status == 1
        assert "no.html not written: No space left" in capsys.readouterr().err
        assert (tmp_path / "c.png").exists()

    def test_a_reader_who_has_enough_does_not_lose_files(
        self, files, tmp_path, capsys, monkeypatch
    ):
        """As `keras-qusec evaluate ... | head` does when it ends early."""

        def told(text="", **_):
            if str(text).startswith("Written"):
                raise BrokenPipeError

        monkeypatch.setattr("builtins.print", told)
        names = [str(tmp_path / name) for name in ("r.json", "r.md")]
        status = cli.main(
            ["evaluate", str(files / "plain.keras"), "--data", str(files / "few.npz"),
             "--attacks", "fgsm", "--output", names[0], "--markdown", names[1]]
        )  # fmt: skip
        assert status == 0
        assert (tmp_path / "r.json").exists()
        assert (tmp_path / "r.md").exists()
        assert "not written" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "path", "message"),
        [
            ("--html", "FOLDER/few.npz/no.html", "can be written to"),
            ("--html", "FOLDER", "ends in .html or .htm"),
            ("--plot", "curves.gif", "ends in .png or .svg"),
            ("--output", "report.txt", "ends in .json"),
        ],
    )
    def test_paths_are_checked_before_the_work(self, files, capsys, option, path, message):
        path = path.replace("FOLDER", str(files))
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", "absent.keras", option, path])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_audit(self, files, tmp_path, capsys):
        names = {"output": "a.json", "html": "a.html", "plot": "a.png"}
        writes = [
            part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))
        ]
        status = cli.main(
            ["audit", str(files / "quantized.keras"), "--data", str(files / "few.npz"),
             "--epsilon", "0.1", "--images", "0", "--adaptive", "--quick",
             "--source", str(files / "plain.keras"), *writes]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert status == 0
        assert out.startswith("VERDICT: ")
        assert "Judged: white-box and adaptive" in out
        assert max(map(len, out.split("Written")[0].splitlines())) <= 80
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["images"] == 30
        assert content["epsilon"] == 0.1
        for file in names.values():
            assert (tmp_path / file).stat().st_size > 500

    @pytest.mark.parametrize(
        ("values", "expected"),
        [(["0", "255"], 0.3 * 255), (["-1", "1"], 0.6), (None, 0.3)],
    )
    def test_the_audits_epsilon_is_of_the_value_range(self, files, monkeypatch, values, expected):
        asked = {}

        def audited(*_, **settings):
            asked.update(settings)
            raise ValueError("enough")

        monkeypatch.setattr("keras_qusec.audit_robustness", audited)
        range_of = [] if values is None else ["--value-range", *values]
        assert cli.main(["audit", str(files / "plain.keras"), *range_of]) == 2
        assert asked["epsilon"] == pytest.approx(expected)

    @pytest.mark.parametrize("command", ["audit", "evaluate", "certify", "deployed"])
    def test_fractions_are_of_the_range_to_which_images_are_scaled(
        self, files, monkeypatch, capsys, command
    ):
        inputs = keras.Input((28, 28, 1))
        scaled = keras.layers.Rescaling(1 / 255)(inputs)
        model = keras.saving.load_model(files / "plain.keras", compile=False)
        path = str(files / "bytes.keras")
        keras.Model(inputs, model(scaled)).save(path)
        asked = {}

        def taken(*_, **settings):
            asked.update(settings)
            raise ValueError("enough")

        for function in ("audit_robustness", "evaluate_robustness", "deployment.check_deployment"):
            monkeypatch.setattr(f"keras_qusec.{function}", taken)
        option = "--epsilon" if command == "audit" else "--epsilons"
        more = [str(files / "any.onnx")] if command == "deployed" else []
        if more:
            (files / "any.onnx").touch()
            monkeypatch.setattr("keras_qusec.deployment.DeployedModel", lambda *_, **__: None)
        for typed, expected in (("8/255", 8.0), ("8", 8.0)):
            status = cli.main([command, path, *more, "--data", str(files / "few.npz"),
                               option, typed])  # fmt: skip
            assert status == 2
            assert "enough" in capsys.readouterr().err
            got = asked.get("epsilon") or asked["epsilons"]
            got = got["linf"] if isinstance(got, dict) else got
            assert np.ravel(got).tolist() == [expected]  # to the last bit
            asked.clear()

    def test_numbers_are_those_of_python(self, files, measured, tmp_path):
        """Same sample, same seed, same attacks, whatever the model's file is called."""
        path = str(tmp_path / "r.json")
        model = keras.saving.load_model(files / "quantized.keras", compile=False)
        x, y = datasets.mnist5k().sample(20)
        report = evaluate_robustness(model, x, y, attacks=["pgd"], epsilons=[0.1, 0.3])
        status = cli.main(["evaluate", str(files / "quantized.keras"), "--images", "20",
                           "--attacks", "pgd", "--epsilons", "0.1", "0.3", "--output", path])  # fmt: skip
        assert status == 0
        other = RobustnessReport.load(path)
        for one, two in zip(report.results, other.results, strict=True):
            assert one.distances["linf"].tolist() == two.distances["linf"].tolist()

    def test_layers_of_ones_own(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "own_layers.py").write_text(
            "import keras\n\n\nclass Half(keras.layers.Layer):\n"
            "    def call(self, x):\n        return x / 2\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        own = importlib.import_module("own_layers")
        path = str(tmp_path / "own.keras")
        keras.Sequential([keras.Input((28, 28, 1)), own.Half(), keras.layers.Flatten(),
                          keras.layers.Dense(10)]).save(path)  # fmt: skip
        arguments = ["evaluate", path, "--images", "4", "--attacks", "fgsm"]
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert "with the class 'Half'" in error
        assert "--import FILE.py" in error
        assert cli.main([*arguments, "--import", str(tmp_path / "own_layers.py")]) == 0

    def test_images_of_another_size(self, tmp_path, capsys):
        path = str(tmp_path / "large.keras")
        keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten(),
                          keras.layers.Dense(10)]).save(path)  # fmt: skip
        arguments = ["evaluate", path, "--images", "4", "--attacks", "fgsm"]
        assert cli.main(arguments) == 2
        assert "Give --resize" in capsys.readouterr().err
        assert cli.main([*arguments, "--resize"]) == 0
        assert "are resized to 32 x 32" in capsys.readouterr().out

    def test_a_backend_that_is_not_installed(self, monkeypatch, capsys, files):
        def start(_):
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

        monkeypatch.setattr("keras_qusec.commands.start_backend", start)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
        assert cli.main(["evaluate", str(files / "plain.keras")]) == 2
        assert "set KERAS_BACKEND=torch" in capsys.readouterr().err

    def test_a_missing_file_is_said_before_a_backend_is_loaded(self, monkeypatch, capsys):
        monkeypatch.setattr("keras_qusec.commands.start_backend", None)
        for arguments in (["evaluate", "no.keras"], ["report", "no.json"],
                          ["evaluate", __file__, "--source", "no.keras"]):  # fmt: skip
            assert cli.main(arguments) == 2
            assert "which does not exist" in capsys.readouterr().err

    def test_nothing_to_draw_is_no_failure(self, files, tmp_path, capsys):
        gallery, examples = tmp_path / "g.png", tmp_path / "e.npz"
        status = cli.main(["evaluate", str(files / "plain.keras"), "--attacks", "fgsm",
                           "--data", str(files / "few.npz"), "--epsilons", "0.001",
                           "--gallery", str(gallery), "--examples", str(examples)])  # fmt: skip
        assert status == 0
        assert "No image was broken" in capsys.readouterr().out
        assert not gallery.exists()
        assert examples.exists()

    @pytest.mark.parametrize(
        ("loss", "units", "word"),
        [("mse", 1, "regression"), ("binary_crossentropy", 3, "multi-label")],
    )
    def test_files_that_are_no_classifiers(self, tmp_path, capsys, loss, units, word):
        model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(),
                                  keras.layers.Dense(units)])  # fmt: skip
        for given in (loss, keras.losses.get(loss)):
            model.compile("sgd", given)
            model.save(tmp_path / "model.keras")
            assert cli.main(["evaluate", str(tmp_path / "model.keras")]) == 2
            assert word in capsys.readouterr().err

    def test_options_of_evaluate_arrive(self, files, monkeypatch):
        asked = {}

        def evaluated(*_, **settings):
            asked.update(settings)
            raise ValueError("enough")

        monkeypatch.setattr("keras_qusec.evaluate_robustness", evaluated)
        all_epsilons = {"linf": [0.1], "l2": [0.5], "l1": [0.5], "l0": [3.0]}
        options = {
            "--targets": ("next", "targets", "next"), "--seed": ("7", "seed", 7),
            "--batch-size": ("9", "batch_size", 9), "--draws": ("3", "draws", 3),
            "--outputs": ("logits", "outputs", "logits"), "--jobs": ("2", "n_jobs", 2),
            "--resume": ("work", "resume_dir", "work"), "--attacks": ("pgd", "attacks", "pgd"),
            "--threat-models": ("adaptive", "threat_models", ["adaptive"]),
            "--l2-epsilons": ("0.5", "epsilons", all_epsilons),
            "--l1-epsilons": ("0.5", "epsilons", all_epsilons),
            "--l0-epsilons": ("3", "epsilons", all_epsilons),
        }  # fmt: skip
        words = [word for option, (text, *_) in options.items() for word in (option, text)]
        assert cli.main(["evaluate", str(files / "plain.keras"), "--epsilons", "0.1", *words]) == 2
        for _, name, value in options.values():
            assert asked[name] == value, name

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["audit", "absent.keras"], "does not exist"),
            (["audit", "FOLDER/plain.keras", "--epsilon", "8"], "8 / 255"),
            (["evaluate", "absent.keras"], "does not exist"),
            (["evaluate", "FOLDER/few.npz"], "cannot load"),
            (["evaluate", "FOLDER/plain.keras", "--attacks", "pdg"], "Did you mean"),
            (["evaluate", "FOLDER/plain.keras", "--epsilons", "0.3", "0.1"], "rising order"),
            (["evaluate", "FOLDER/plain.keras", "--threat-models", "black-box"], "source_model"),
            (["evaluate", "FOLDER/plain.keras", "--data", "imagenet"], "--data to be mnist5k"),
        ],
    )
    def test_bad_arguments(self, files, capsys, arguments, message):
        assert cli.main([part.replace("FOLDER", str(files)) for part in arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


@pytest.mark.once
class TestFolders:
    """Images in folders by class: the same figures as of arrays, or an error that names folders."""

    @pytest.fixture(scope="class")
    def images(self, measured, tmp_path_factory):
        from PIL import Image

        folder = tmp_path_factory.mktemp("folders")
        measured[0]["plain"].save(folder / "plain.keras")
        data = datasets.mnist5k()
        for part, count in (("train", 1), ("test", 4)):
            for digit in range(10):
                target = folder / part / f"digit {digit}"
                target.mkdir(parents=True)
                rows = np.flatnonzero(data.y_test == digit)[:count]
                for row in rows:
                    pixels = np.round(255 * data.x_test[row, :, :, 0]).astype("uint8")
                    Image.fromarray(pixels).save(target / f"{row}.png")
        rows = np.concatenate([np.flatnonzero(data.y_test == d)[:4] for d in range(10)])
        np.savez(folder / "same.npz", x=data.x_test[rows], y=data.y_test[rows])
        return folder

    def clean(self, folder, capsys, data, *more):
        words = ["evaluate", str(folder / "plain.keras"), "--data", str(folder / data),
                 "--attacks", "fgsm", "--epsilons", "0.05", "--images", "0",
                 "--output", str(folder / "r.json"), *more]  # fmt: skip
        status = cli.main(words)
        error = capsys.readouterr().err
        if status:
            return error
        return RobustnessReport.load(folder / "r.json")

    def test_the_same_as_of_arrays(self, images, capsys):
        (images / "train" / ".ipynb_checkpoints").mkdir(exist_ok=True)
        expected = self.clean(images, capsys, "same.npz")
        for data in (".", "test"):
            found = self.clean(images, capsys, data)
            assert found.clean_accuracy() == expected.clean_accuracy() > 0.7
            assert found.robust_accuracy() == expected.robust_accuracy()
            assert found.provenance["class names"][3] == "digit 3"
        shown = found.gallery[0]
        assert shown.shown_classes == (f"digit {shown.label}", f"digit {shown.prediction}")
        page = found.to_html(images / "r.html").read_text()
        assert f"digit {shown.label} &rarr; digit {shown.prediction}" in page

    def test_a_folder_without_one_class(self, images, capsys):
        import shutil

        expected = self.clean(images, capsys, "same.npz")
        nine = images / "nine"
        shutil.copytree(images / "test", nine)
        shutil.rmtree(nine / "digit 0")
        error = self.clean(images, capsys, "nine")
        assert "classes as the model 'plain' tells apart, 10" in error
        assert "digit 1, digit 2" in error
        assert "--classes" in error
        names = [f"digit {digit}" for digit in range(10)]
        found = self.clean(images, capsys, "nine", "--classes", *names)
        assert found.clean_accuracy() >= expected.clean_accuracy() - 0.1
        status = cli.main(["audit", str(images / "plain.keras"), "--data", str(nine)])
        assert status == 2
        assert "digit 1, digit 2" in capsys.readouterr().err


def run(*arguments):
    """The command in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip


@pytest.mark.once
def test_help_and_version_load_no_backend():
    script = (
        "import sys; from keras_qusec_cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax', 'numpy'} & set(sys.modules)"
    )
    for words in (
        ["--help"], ["evaluate", "--help"], ["--version"], ["evaluate", "--no-such"],
        ["compare", "--help"], ["compare", "--defenses", "thermometre"],
        ["compare", "--attacks", "pdg"], ["reproduce", "figure-99"],
        ["evaluate", __file__, "--threat-models", "gray-box"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines() or [""])) <= 80


@pytest.mark.once
def test_names_said_without_a_backend_are_those_of_the_registries():
    built_in = [name for name in comparison.names() if name in names.DEFENSES]
    assert list(names.DEFENSES) == built_in
    assert tuple(reproduction.FIGURES) == names.REPRODUCTIONS
    assert registry.names() == names.ATTACKS
    assert threat_models.names() == names.THREAT_MODELS
    assert inputs._TARGET_RULES == names.TARGETS
    assert tuple(EFFORTS) == names.EFFORTS
    with pytest.raises(ValueError, match="Expected one of") as error:
        datasets.load("no such data")
    for name in names.DATA_SETS:
        assert name in str(error.value)


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--defenses", "thermometre"], "Did you mean thermometer?"),
        (["compare", "--attacks", "FGSM", "pdg"], "Did you mean pgd"),
        (["compare", "--attacks", "quick"], "Received: 'quick'"),
        (["reproduce", "figure-99"], "one of all, figure-1"),
        (["evaluate", __file__, "--threat-models", "gray-box"], "white-box, adaptive, black-box"),
        (["deployed", __file__, __file__, "--queries", "sqare"], "Did you mean square"),
        (["evaluate", __file__, "--targets", "nearest"], "next, random, second, least-likely"),
        (["evaluate", __file__, "--data", "mnist5"], "Did you mean mnist5k?"),
        (["demo", "--data", "absent.npz"], "does not exist. Check the path."),
        (["evaluate", __file__, "--epsilons", "0.3", "0.1"], "--epsilons in rising order"),
        (["certify", __file__, "--epsilons", "2/255", "2/255"], "in rising order"),
        (["evaluate", __file__, "--l2-epsilons", "1", "0.5"], "--l2-epsilons in rising order"),
    ],
)
def test_a_wrong_name_is_told_before_a_backend_is_loaded(words, message, capsys, monkeypatch):
    # With the package loaded its registries tell, where names of a user's own may be.
    monkeypatch.delitem(sys.modules, "keras_qusec")
    monkeypatch.setattr(cli, "quiet", lambda: pytest.fail("a backend is loaded"))
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "m.keras", "--jobs", "0"], "-1 for as many as there are cores"),
        (["evaluate", "m.keras", "--images", "-3"], "0 or more; received '-3'"),
        (["evaluate", "m.keras", "--time-limit", "-1"], "seconds above 0"),
        (["compare", "--epochs", "many"], "1 or more; received 'many'"),
    ],
)
def test_a_wrong_number_is_told_by_the_parser(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.once
def test_a_file_that_keras_did_not_save_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "quiet", lambda: pytest.fail("a backend is loaded"))
    path = tmp_path / "m.keras"
    path.write_text("hello")
    assert cli.main(["evaluate", str(path)]) == 2
    assert "a zip file. Received" in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize("command", ["demo", "evaluate", "report", "certify", "audit", "deployed",
                                     "compare", "reproduce", "attacks"])  # fmt: skip
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.once
def test_help_takes_little_more_than_an_empty_program():
    def fastest(*words):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    # Any backend takes a hundred times as long.
    assert fastest("-m", "keras_qusec_cli", "--help") < 20 * fastest("-c", "pass")


@pytest.mark.once
def test_version():
    done = run("keras_qusec_cli", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    # The package's own name works too, though it loads a backend first, which may greet.
    other = run("keras_qusec", "--version")
    assert (other.returncode, other.stdout) == (0, done.stdout)
    assert done.stdout == f"keras-qusec {__version__}\n"


def test_attacks_are_listed_without_noise():
    done = run("keras_qusec_cli", "attacks")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listed = {line.split()[0]: line.split()[1] for line in lines[2:] if not line.startswith(" ")}
    assert set(registry.names()) <= set(listed)
    assert (listed["pgd-l2"], listed["sigma-zero"]) == ("l2", "l0")


def test_what_libraries_print_is_shown_after_an_error(capfd):
    with quiet():
        os.write(2, b"greeting\n")
    assert capfd.readouterr().err == ""

    @quiet()
    def fails():
        os.write(2, b"cannot open shared object\n")
        raise ImportError

    with pytest.raises(ImportError):
        fails()
    assert capfd.readouterr().err == "cannot open shared object\n"


class TestCertify:
    """The command certify, and --prove of evaluate."""

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((28, 28, 1)), QuSecQuantization(2, hard=True),
             keras.layers.AveragePooling2D(4), keras.layers.Flatten(),
             keras.layers.Dense(10, activation="softmax")]
        )  # fmt: skip
        data = datasets.mnist5k()
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(data.x_train[:500], data.y_train[:500], epochs=2, verbose=0)
        path = tmp_path_factory.mktemp("certify") / "model.keras"
        model.save(path)
        return str(path)

    @pytest.mark.once
    def test_certify(self, model, tmp_path, capsys):
        pytest.importorskip("onnx")
        html, folder = tmp_path / "proof.html", tmp_path / "problems"
        given = ["certify", model, "--images", "12", "--epsilons", "0.01", "--effort", "bounds"]
        assert (
            cli.main(
                [
                    *given,
                    "--html",
                    str(html),
                    "--output",
                    str(tmp_path / "p.json"),
                    "--export",
                    str(folder),
                ]
            )
            == 0
        )
        text = capsys.readouterr().out
        assert "  proved" in text
        assert "were not attacked" not in text  # nothing is attacked here
        assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Written"))
        assert "proved" in html.read_text()
        assert len(list((folder / "epsilon-0.01").glob("*.vnnlib"))) == 12
        assert (
            cli.main(
                ["evaluate", model, "--images", "12", "--epsilons", "0.01", "--prove", "bounds"]
            )
            == 0
        )
        assert "were not attacked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"), [([], "--resume FOLDER keeps"), (["--resume", "run"], "goes on from run")]
)
def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, more, words):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_qusec.commands.start_backend", interrupted)
    assert cli.main(["evaluate", __file__, *more]) == 130
    assert words in capsys.readouterr().err
