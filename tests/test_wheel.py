"""What users get: the README's examples from the built wheel, on this backend."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parent.parent

RUNNER = """
import sys, types
import keras
import keras_qusec
from keras_qusec import datasets

assert keras_qusec.__file__.startswith(sys.argv[1]), keras_qusec.__file__
whole = datasets.mnist5k()
# Few images, so that it takes seconds.
few = datasets.Dataset(whole.name, *(part[:40] for part in whole[1:5]), *whole[5:])
datasets.mnist5k = lambda: few
names = {}
for number, block in enumerate(sys.argv[2:]):
    exec(compile(block, f"README.md, block {number}", "exec"), names)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package as installed from its wheel, and no other."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("keras_qusec", "keras_qusec_cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True
    )
    return folder / "site"


def run(site, folder, *words):
    environment = {
        **os.environ, "PYTHONPATH": str(site), "KERAS_BACKEND": keras.backend.backend(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_readme(site, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    done = run(site, tmp_path, "-c", RUNNER, str(site), *blocks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Robust accuracy in %, worst case over all attacks") == 2
    assert "  proved" in done.stdout
    # The second block saves the model that the command line then proves.
    words = ["certify", "model.keras", "--epsilons", "0.1", "0.3", "--images", "5"]
    done = run(site, tmp_path, "-m", "keras_qusec_cli", *words)
    assert done.returncode == 0, done.stderr
    assert "  proved" in done.stdout
