"""What importing costs and brings, the command line, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_qusec
from keras_qusec import cli, datasets, demo
from keras_qusec.models import paper_cnn

EXTRAS = (
    "foolbox",
    "matplotlib",
    "rich.progress",
    "joblib",
    "pandas",
    "mlxtend",
    "sklearn",
)


def test_public_names():
    for name in keras_qusec.__all__:
        assert getattr(keras_qusec, name)


def test_import_brings_none_of_the_extras_and_little_time():
    code = f"""
import sys, time
import keras
before = set(sys.modules)
start = time.perf_counter()
import keras_qusec
seconds = time.perf_counter() - start
new = set(sys.modules) - before
print(seconds, [name for name in {EXTRAS!r} if name in new])
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    outputs = [run.stdout.strip().splitlines()[-1].split(" ", 1) for run in runs]
    assert {extras for _, extras in outputs} == {"[]"}
    assert min(float(seconds) for seconds, _ in outputs) < 0.2


def _modules():
    names = [info.name for info in pkgutil.walk_packages(keras_qusec.__path__, "keras_qusec.")]
    return [importlib.import_module(name) for name in ["keras_qusec", *names]]


@pytest.mark.parametrize("module", _modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failures, _ = doctest.testmod(module, extraglobs={"np": np, "keras": keras})
    assert failures == 0


@pytest.mark.parametrize("page", ["README.md", "docs/adversarial_training.md"])
def test_examples_of_the_pages_run(page, monkeypatch):
    data = datasets.mnist5k()
    few = datasets.Dataset(data.name, *(part[:64] for part in data[1:]))
    monkeypatch.setattr(datasets, "mnist5k", lambda: few)
    text = (pathlib.Path(__file__).parent.parent / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    # A page's examples share their names; those of the second page have a model and data.
    names = {"x": few.x_train, "y": few.y_train, "model": paper_cnn(), "keras": keras}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.fixture(scope="module")
def result():
    data = datasets.mnist5k()
    tiny = data._replace(x_train=data.x_train[:256], y_train=data.y_train[:256])
    seen = []
    result = demo.run_demo(
        data=tiny, epochs=1, images=8, steps=3, progress=lambda *step: seen.append(step)
    )
    return result, seen


@pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow
class TestDemo:
    def test_rows(self, result):
        outcome, seen = result
        assert len(outcome.rows) == 6
        assert [len(row.curve) for row in outcome.rows] == [0, 0, 0, 1, 1, 0]
        for row in outcome.rows:
            clean, fgsm, pgd, adaptive = row.accuracies
            assert clean >= pgd >= adaptive
            assert clean >= fgsm
            assert np.abs(row.adversarial - outcome.images).max() <= demo.EPSILON + 1e-6
            assert row.adversarial.min() >= 0
            assert row.adversarial.max() <= 1
        shares = [share for _, share in seen]
        assert shares == sorted(shares)
        assert shares[-1] == 1

    def test_table_fits_a_terminal(self, result):
        text = demo.render(result[0]) + "\n" + demo.MEANING
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "adaptive" in text

    def test_figure(self, result, tmp_path):
        path = demo.save_figure(result[0], tmp_path / "new folder" / "demo.png")
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 20_000
        curves = demo.save_curves(result[0], tmp_path / "curves.png")
        assert curves.read_bytes()[:4] == b"\x89PNG"


def test_bad_arguments_say_what_to_do(capsys):
    assert cli.main(["demo", "--data", "imagenet"]) == 2
    assert "Expected one of mnist5k" in capsys.readouterr().err
    assert cli.main(["demo", "--images", "0"]) == 2
    assert "Expected images to be 1 or more" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "demo" in capsys.readouterr().out
