"""Killed evaluations go on where they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import IMAGES, predicted, small_cnn, without_clock

from keras_qusec import evaluate_robustness
from keras_qusec.evaluation import run

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestResume:
    SETTINGS: dict = {  # noqa: RUF012
        "attacks": ["fgsm", ("pgd", {"steps": 4}), "deepfool"],
        "epsilons": [0.02, 0.05],
        "batch_size": 6,
    }

    def test_nothing_runs_twice(self, cnn, tmp_path, monkeypatch):
        y = predicted(cnn, IMAGES)
        whole = evaluate_robustness(cnn, IMAGES, y, **self.SETTINGS)
        ran = []
        original = run.run_unit

        def counted(unit, *rest):
            if len(ran) == 5:
                raise KeyboardInterrupt
            ran.append(unit)
            return original(unit, *rest)

        monkeypatch.setattr(run, "run_unit", counted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        monkeypatch.setattr(
            run, "run_unit", lambda unit, *rest: ran.append(unit) or original(unit, *rest)
        )
        report = evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        assert len(ran) == len(set(ran)) == 12
        assert without_clock(report) == without_clock(whole)
        again = evaluate_robustness(cnn, IMAGES, y, resume_dir=tmp_path / "run", **self.SETTINGS)
        assert len(ran) == 12
        assert again.to_dict() == report.to_dict()

    def test_corrected_labels_are_another_run(self, cnn, tmp_path):
        y = predicted(cnn, IMAGES)
        wrong = y.copy()
        wrong[3] = (wrong[3] + 1) % 4
        settings = {"attacks": ["fgsm"], "epsilons": [0.02], "resume_dir": tmp_path / "run"}
        evaluate_robustness(cnn, IMAGES, wrong, **settings)
        with pytest.raises(ValueError, match="differs in data"):
            evaluate_robustness(cnn, IMAGES, y, **settings)

    @pytest.mark.once
    def test_killed_in_the_middle(self, cnn, tmp_path):
        """SIGKILL, then the same call: the same report as without."""
        y = predicted(cnn, IMAGES)
        cnn.save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", x=IMAGES, y=y)
        code = f"""
import sys, time
import keras, numpy as np
from keras_qusec import evaluate_robustness
folder = {str(tmp_path)!r}
model = keras.saving.load_model(folder + "/model.keras")
data = np.load(folder + "/data.npz")
slow = (lambda text, share: time.sleep(0.3)) if sys.argv[1] == "slow" else False
report = evaluate_robustness(model, data["x"], data["y"], resume_dir=folder + "/run",
    progress=slow, **{self.SETTINGS!r})
report.save(folder + "/" + sys.argv[1] + ".json")
"""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", code]
        child = subprocess.Popen([*command, "slow"], env=environment)
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "run").glob("units/*.json"))) < 3:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("units/*.json")}
        assert 3 <= len(finished) < 12
        subprocess.run([*command, "resumed"], env=environment, check=True)
        assert not (tmp_path / "slow.json").exists()
        for path, written in finished.items():
            assert path.stat().st_mtime_ns == written
        resumed = json.loads((tmp_path / "resumed.json").read_text())
        whole = evaluate_robustness(cnn, IMAGES, y, **self.SETTINGS).to_dict()
        for content in (resumed, whole):
            for part in (*content["rows"], *content["results"]):
                part.pop("seconds")
        assert resumed["rows"] == json.loads(json.dumps(whole["rows"]))

    def test_folder_of_another_run(self, cnn, linear, tmp_path):
        y = predicted(cnn, IMAGES)
        evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run")
        with pytest.raises(ValueError, match="differs in seed"):
            evaluate_robustness(
                cnn, IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run", seed=1
            )
        with pytest.raises(ValueError, match="differs in data"):
            evaluate_robustness(cnn, IMAGES[::-1], y, attacks=["fgsm"], resume_dir=tmp_path / "run")
        with pytest.raises(ValueError, match="differs in models"):
            evaluate_robustness(
                small_cnn(3), IMAGES, y, attacks=["fgsm"], resume_dir=tmp_path / "run"
            )

    def test_foreign_and_damaged_folders(self, cnn, tmp_path):
        y = predicted(cnn, IMAGES)
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        (foreign / "thesis.tex").write_text("important")
        with pytest.raises(ValueError, match="has other files"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=foreign)
        with pytest.raises(ValueError, match="Received: the file"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=foreign / "thesis.tex")
        run = tmp_path / "run"
        evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)
        (unit,) = run.glob("units/*.json")
        unit.write_bytes(unit.read_bytes()[:100])
        with pytest.raises(ValueError, match="Delete this file"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)
        (run / "run.json").write_text("{")
        with pytest.raises(ValueError, match="unreadable"):
            evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], resume_dir=run)
