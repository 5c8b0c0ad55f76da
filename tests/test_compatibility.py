"""Files written by version 0.1.0 can still be read, and say the same."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, RobustnessReport, TrainableQuSecQuantization

DATA = Path(__file__).parent / "data"


def test_a_model():
    model = keras.saving.load_model(DATA / "model-0.1.keras", safe_mode=True)
    constant, trained = model.layers[:2]
    assert isinstance(constant, QuSecQuantization)
    assert isinstance(trained, TrainableQuSecQuantization)
    np.testing.assert_array_equal(constant.thresholds, np.array([0.3, 0.6], "float32"))
    assert (constant.hardness, constant.gradient_hardness) == (40.0, 5.0)
    assert trained.hardness == 9.5
    with np.load(DATA / "model-0.1.npz") as saved:
        outputs = model.predict(saved["x"], verbose=0)
        np.testing.assert_allclose(outputs, saved["outputs"], atol=1e-5)


def test_a_report(tmp_path):
    report = RobustnessReport.load(DATA / "report-0.1.json")
    saved = json.loads((DATA / "report-0.1.json").read_text())
    assert saved["version"] == 1
    assert len(report.rows) == len(saved["rows"])
    for row, expected in zip(report.rows, saved["rows"], strict=True):
        assert row.as_dict() == pytest.approx(expected)
    assert [example.number for example in report.gallery] == [
        example["number"] for example in saved["gallery"]
    ]
    assert report.gallery[0].distances["linf"] == saved["gallery"][0]["distances"][2]
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    assert str(again) == str(report)
    assert report.to_html(tmp_path / "report.html").stat().st_size > 10_000
