"""The paper's figures, measured again on few images."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

import keras_qusec_cli as cli
from keras_qusec.datasets import Dataset
from keras_qusec.models import paper_cnn
from keras_qusec.reproduction import FIGURES, Reproduction, Row, picture, pictures, reproduce
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.results import Example

FOLDER = "work"


def result(*rows):
    return Reproduction("figure-0", "a | title", "a claim.", "epsilon", [*rows], {"data": "some"})


ROW = Row("CQ", 0.3, "FGSM", 0.5, 100, 0, 0.4, 0.6, 0.9751, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduction")


@pytest.fixture(scope="module")
def figure_7(folder):
    told = []
    found = reproduce(
        "figure-7", "mnist5k", quick=True, folder=folder, progress=lambda *step: told.append(step)
    )
    # What is running, with the share of an attack; how much is left nobody knows.
    assert any("attacking" in text and text.endswith("100 %") for text, _ in told)
    assert {share for _, share in told[:-1]} == {None}
    assert told[-1] == ("figure-7: done", 1.0)
    return found


# Its parts are tested on every backend, and `make reproduce` puts them together.
@pytest.mark.slow
def test_figure_7(figure_7, tmp_path):
    found = {(row.series, row.value): row for row in figure_7.rows}
    assert set(found) == {(s, e) for s in ("CNN", "CQ, n = 2", "CQ, n = 4") for e in (0.1, 0.3)}
    for row in figure_7.rows:
        assert row.worst <= row.ours
        assert row.low <= row.ours <= row.high
        assert row.images == 20
    # Two levels keep what few pixels near the threshold leave; the network alone keeps nothing.
    assert found["CQ, n = 2", 0.3].ours > 0.3 > found["CNN", 0.3].ours
    assert "too little" in figure_7.made_with["quick"]
    assert picture(figure_7, tmp_path / "f.png").stat().st_size > 10_000
    assert max(map(len, str(figure_7).splitlines())) <= 80


@pytest.mark.slow
def test_models_are_kept(figure_7, folder, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("keras_qusec.comparison.contenders.Training.fitted", never)
    again = reproduce("figure-7", "mnist5k", quick=True, folder=folder, progress=False)
    assert again.rows == figure_7.rows


@pytest.mark.slow
def test_training_curve_is_kept(folder, monkeypatch):
    first = reproduce("figure-5", "mnist5k", quick=True, folder=folder, progress=False)
    assert [row.value for row in first.rows] == [1.0] * 6
    assert [row.worst is None for row in first.rows] == [True, False] * 3
    monkeypatch.setattr(
        "keras_qusec.comparison.contenders.Training.fitted", lambda *_: pytest.fail("again")
    )
    again = reproduce("figure-5", "mnist5k", quick=True, folder=folder, progress=False)
    assert again.rows == first.rows


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name, folder, tmp_path):
    found = reproduce(name, "mnist5k", quick=True, folder=folder, progress=False)
    assert found.rows
    assert Reproduction.load(found.save(tmp_path / "f.json")).rows == found.rows
    written = pictures(found, tmp_path)
    assert len(written) == 1 + bool(found.gallery) + bool(found.logs)
    assert all(path.stat().st_size > 10_000 for path in written)


def test_file(tmp_path):
    saved = result(ROW, ROW._replace(value=math.inf, low=None, high=None, worst=None))
    assert Reproduction.load(saved.save(tmp_path / "new" / "f.json")) == saved
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"saved by Reproduction\.save"):
        Reproduction.load(tmp_path / "other.json")


def test_gallery_and_logs_are_kept(tmp_path):
    images = np.random.default_rng(0).random((4, 28, 28, 1), dtype="float32")
    example = Example("CQ", "fgsm", "white-box", 3, 1, 7, {"linf": 0.3, "l2": 2.0}, images)
    log = {"CQ": {"adversarial_accuracy": [0.5, 0.75]}}
    saved = result(ROW)._replace(gallery=[example], logs=log)
    loaded = Reproduction.load(saved.save(tmp_path / "f.json"))
    np.testing.assert_array_equal(loaded.gallery[0].images, images)
    assert loaded.gallery[0]._replace(images=None) == example._replace(images=None)
    assert loaded.logs == log
    names = [path.name for path in pictures(loaded, tmp_path)]
    assert names == ["figure-0.png", "figure-0-examples.png", "figure-0-training.png"]


def test_table_shows_means_and_spread_of_seeds():
    table = result(ROW, ROW._replace(ours=0.7, worst=0.35, seed=1)).table()
    assert table.rows == [["CQ", "0.3", "FGSM", "97.5", "60.0 ±10.0", "50-69", "30.0"]]
    one = result(ROW._replace(value=math.inf)).table()
    assert one.rows == [["CQ", "any", "FGSM", "97.5", "50.0", "40-60", "25.0"]]
    # Columns that no row has are left out.
    assert result(ROW._replace(paper=None)).table().columns[3:] == ["ours", "95 %", "worst"]
    # How many images, where that differs.
    more = result(ROW, ROW._replace(series="VQ", images=500)).table()
    assert more.columns[-1] == "images"
    assert [row[-1] for row in more.rows] == ["100", "500"]
    text = result(ROW).to_markdown()
    assert "The paper: a claim." in text
    assert "data: some" in text


def test_settings_of_the_paper():
    grey = Experiment(_data((28, 28, 1)), FOLDER, 0, quick=False, tell=print)
    assert (grey.epochs, grey.images, grey.epsilon) == (6, 1000, 0.3)
    colour = Experiment(_data((32, 32, 3)), FOLDER, 0, quick=True, tell=print)
    assert (colour.epochs, colour.images, colour.epsilon) == (1, 20, 0.1)


@pytest.fixture
def drawn(monkeypatch):
    """The figures of matplotlib that are drawn, instead of files."""
    figures = []
    monkeypatch.setattr(
        "keras_qusec.reproduction.plots.save", lambda figure, _: figures.append(figure)
    )
    return figures


def test_a_loss_is_not_cut_off(drawn, tmp_path):
    loss = ROW._replace(ours=-0.12, low=-0.2, high=0.02, worst=None)
    picture(result(loss, ROW._replace(measure="CW")), tmp_path / "f.png")
    (figure,) = drawn
    (gains, shares) = (axis.get_ylim() for axis in figure.axes)
    assert gains[0] < -20
    assert shares == (0, 102)


def test_lines_are_drawn_through_several_values_of_a_series(drawn, tmp_path):
    single = [ROW._replace(series="a"), ROW._replace(series="b", value=0.15)]
    sweep = [ROW._replace(measure="sweep", value=value) for value in (0.1, 0.3)]
    picture(result(*single, *sweep), tmp_path / "f.png")
    bars, lines = (len(axis.patches) for axis in drawn[0].axes)
    assert (bars > 0, lines) == (True, 0)


def test_networks_of_another_backend_are_said(tmp_path, monkeypatch):
    class OneNetwork(Figure):
        name, title, claim = "one", "a title", "a claim."

        def rows(self, experiment):
            experiment.model("small", lambda _: paper_cnn())
            return [ROW._replace(seed=experiment.seed, images=int(experiment.first))]

    monkeypatch.setitem(FIGURES, "figure-1", OneNetwork())

    def made_with():
        return reproduce("figure-1", "mnist5k", folder=tmp_path, progress=False).made_with

    assert "networks trained with" not in made_with()
    path = tmp_path / "seed-0" / "small.json"
    path.write_text(path.read_text().replace(keras.backend.backend(), "another"))
    assert made_with()["networks trained with"] == "another"
    assert made_with()["backend"] == keras.backend.backend()
    # The strong evaluation is made of the first seed, whichever it is.
    rows = reproduce("figure-1", "mnist5k", seeds=(3, 0), folder=tmp_path, progress=False).rows
    assert [(row.seed, row.images) for row in rows] == [(3, 1), (0, 0)]


def _data(shape):
    x, y = np.zeros((1000, *shape), "float32"), np.zeros(1000, "int64")
    return Dataset("none", x, y, x, y)


@pytest.mark.slow  # `make reproduce` runs it on more figures
def test_command_line(folder, figure_7, tmp_path, capsys):
    work = tmp_path / "mnist5k-quick"
    work.mkdir()
    (work / "work").symlink_to(folder)
    status = cli.main(
        ["reproduce", "figure-7", "--data", "mnist5k", "--quick", "--folder", str(tmp_path)]
    )
    out = capsys.readouterr().out
    assert status == 0
    assert "CQ, n = 4" in out
    assert max(map(len, out.split("Written")[0].splitlines())) <= 80
    assert Reproduction.load(work / "figure-7.json").rows == figure_7.rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"figure": "figure-77"}, "Did you mean 'figure-7'"),
        ({"figure": "figure-7", "seeds": ()}, "at least one of seeds"),
        ({"figure": "figure-7", "data": "imagenet"}, "mnist5k"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=r"Expected") as error:
        reproduce(**{"data": "mnist5k", **arguments})
    assert words in str(error.value)
