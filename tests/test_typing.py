"""Mistakes in a user's file, as mypy and pyright see them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_qusec

USER_FILE = """\
from keras_qusec import AdversarialTraining, QuSecQuantization, TrainableQuSecQuantization

QuSecQuantization(3, hardness=20.0, name="front", dtype="float32")
TrainableQuSecQuantization(levels=2, granularity="channel")
AdversarialTraining("pgd", epsilon=0.3, steps=4, step_size=0.1, norm="l2", random_start=False)
QuSecQuantization(level=3)
TrainableQuSecQuantization(granularity="row")
AdversarialTraining(epsilon="0.3")
AdversarialTraining(norm="l7")
AdversarialTraining(steps=2.5)
"""
WRONG = [6, 7, 8, 9, 10]


@pytest.mark.once
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_users_mistakes_are_seen(checker, tmp_path):
    (tmp_path / "user.py").write_text(USER_FILE)
    root = str(Path(keras_qusec.__file__).parents[1])
    words = ["mypy", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.basedpyright]\ntypeCheckingMode = "standard"\nextraPaths = ["{root}"]\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", *(words if checker == "mypy" else [checker]), "user.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": root},
    )  # fmt: skip
    found = {int(n) for n in re.findall(r"user\.py:(\d+):.*error", done.stdout)}
    assert sorted(found) == WRONG, done.stdout + done.stderr
