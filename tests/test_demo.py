"""The demonstration on a few images."""

from __future__ import annotations

import browser
import numpy as np
import pytest

import keras_qusec_cli as cli
from keras_qusec import datasets, demo
from keras_qusec.attacks import FGSM, PGD
from keras_qusec.defenses import find_quantizers

# Each model costs seconds; these have a part in all that is drawn and written.
MODELS = ("undefended", "constant quantizer", "trainable + FGSM training", demo.PROVED)


def tiny():
    data = datasets.mnist5k()
    return data._replace(x_train=data.x_train[:256], y_train=data.y_train[:256])


@pytest.fixture(scope="module")
def result():
    seen = []

    def some(*arguments):
        return {name: model for name, model in contenders(*arguments).items() if name in MODELS}

    contenders = demo.contenders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "contenders", some)
        result = demo.run_demo(
            data=tiny(), epochs=1, images=8, progress=lambda *step: seen.append(step)
        )
    return result, seen


def test_models():
    """The paper's network without and with both quantizers, plain and trained on FGSM; and PGD."""
    x, y = np.zeros((2, 28, 28, 1), "float32"), np.zeros(2, "int64")
    models = demo.contenders(x, y)
    assert len(models) == 6
    attacks = [None if m.training is None else type(m.training.attack) for m in models.values()]
    assert attacks == [None, None, None, FGSM, FGSM, PGD]
    fronts = [find_quantizers(m.model) for m in models.values()]
    assert [len(found) for found in fronts] == [0, 1, 1, 0, 1, 1]


# What it puts together is tested on every backend.
@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow
class TestDemo:
    def test_report(self, result):
        outcome, seen = result
        report = outcome.report
        assert tuple(report.models) == tuple(outcome.models) == MODELS
        assert {name: len(curve) for name, curve in outcome.curves.items()} == {
            "trainable + FGSM training": 1
        }
        assert report.threat_models == ("white-box", "adaptive", "black-box")
        for model in report.models:
            clean = report.clean_accuracy(model)
            for attack in ("fgsm", "standard"):
                white = report.robust_accuracy(attack, 0.3, "white-box", model=model)
                adaptive = report.robust_accuracy(attack, 0.3, "adaptive", model=model)
                assert clean >= white >= adaptive >= report.robust_accuracy(model=model)
            proved = report.certified_accuracy(0.1, model=model)
            assert (proved is None) == (model != demo.PROVED)
            # Nothing was tried there, which is not the same as nothing proved.
            assert report.certified_accuracy(0.2, model=model) is None
        shares = [share for _, share in seen]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)

    def test_text_fits_a_terminal(self, result):
        outcome = result[0]
        for text in (str(outcome.report), demo.summary(outcome)):
            assert max(len(line) for line in text.splitlines()) <= 80
        # The answer is in sight: table and meaning last, the rest on the page.
        lines = demo.summary(outcome).splitlines()
        assert len(lines) < 40
        assert lines[0].startswith("Robust accuracy in %, worst case")
        assert lines[-1].endswith("nothing else.")

    def test_figures_and_page(self, result, tmp_path):
        path = demo.save_figure(result[0], tmp_path / "new folder" / "demo.png")
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 20_000
        curves = demo.save_curves(result[0], tmp_path / "curves.png")
        assert curves.read_bytes()[:4] == b"\x89PNG"
        page = demo.save_page(result[0], tmp_path / "demo.html").read_text()
        browser.check(tmp_path / "demo.html")
        for words in ("every attack tried", "What the numbers mean", "Training", "Quantizers"):
            assert words in page
        assert "constant + PGD training" in page


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow
def test_quick(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(datasets._LOADERS, "mnist5k", tiny)
    page, figure = tmp_path / "q.html", tmp_path / "q.png"
    status = cli.main(["demo", "--quick", "--images", "4", "--epochs", "1",
                       "--html", str(page), "--figure", str(figure)])  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0
    assert "1 epoch on 256 images" in out
    assert "constant + PGD training" in out
    # No model was trained on FGSM.
    assert "Training</h2>" not in page.read_text()
    assert "teaches a model FGSM" not in out
    assert figure.exists()
