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
import keras_qusec_cli as cli
from keras_qusec import datasets
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


@pytest.mark.once
def test_import_brings_none_of_the_extras_and_little_time():
    code = f"""
import sys, time
start = time.perf_counter()
import keras
middle = time.perf_counter()
before = set(sys.modules)
import keras_qusec
share = (time.perf_counter() - middle) / (middle - start)
new = set(sys.modules) - before
print(share, [name for name in {EXTRAS!r} if name in new])
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(1)
    ]
    outputs = [run.stdout.strip().splitlines()[-1].split(" ", 1) for run in runs]
    assert {extras for _, extras in outputs} == {"[]"}
    # Beside the import of Keras, since machines differ.
    assert min(float(share) for share, _ in outputs) < 0.06


def _modules():
    names = [info.name for info in pkgutil.walk_packages(keras_qusec.__path__, "keras_qusec.")]
    return [importlib.import_module(name) for name in ["keras_qusec", *names]]


@pytest.mark.parametrize("module", _modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failures, _ = doctest.testmod(module, extraglobs={"np": np, "keras": keras})
    assert failures == 0


@pytest.mark.once  # what the examples call is tested on every backend
@pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow
@pytest.mark.parametrize(
    "page",
    [
        "docs/adversarial_training.md",
        "docs/evaluation.md",
        "docs/certification.md",
        "docs/quantizer.md",
        "docs/index.md",
        "docs/defenses/index.md",
        "docs/defenses/feature_squeezing.md",
        "docs/defenses/brelu_gda.md",
        "docs/defenses/distillation.md",
        "docs/defenses/quantized_activation.md",
        "docs/defenses/ape_gan.md",
        "docs/defenses/defense_gan.md",
        "docs/defenses/thermometer.md",
    ],
)
def test_examples_of_the_pages_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # examples write files
    data = datasets.mnist5k()
    few = datasets.Dataset(data.name, *(part[:20] for part in data[1:]))
    monkeypatch.setattr(datasets, "mnist5k", lambda: few)
    text = (pathlib.Path(__file__).parent.parent / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    # A page's examples share their names; those of the second page have a model and data.
    names = {"x": few.x_train, "y": few.y_train, "model": paper_cnn(), "keras": keras}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_bad_arguments_say_what_to_do(capsys):
    assert cli.main(["demo", "--data", "imagenet"]) == 2
    assert "Expected --data to be mnist5k" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--images", "0"])
    assert "expected a whole number of 1 or more" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "evaluate" in out
