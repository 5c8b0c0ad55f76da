"""Where progress is shown."""

from __future__ import annotations

import io

import pytest

from keras_qusec import progress

pytestmark = pytest.mark.once


def test_a_log_gets_a_line_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    tell = progress._Lines(stream)
    for second in range(0, 150, 10):
        now[0] = second
        tell("model: pgd", second / 200)
    assert stream.getvalue().splitlines() == [
        "model: pgd: 30 % in 60 s, about 140 s left",
        "model: pgd: 60 % in 120 s, about 80 s left",
    ]


def test_no_share_is_told_where_nobody_knows_it(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    tell = progress.share_of(progress._Lines(stream), 0.5, 1.0)
    now[0] = 61
    tell("figure-7: attacking plain 40 %", None)
    assert stream.getvalue() == "figure-7: attacking plain 40 %: 61 s so far\n"
    with progress.shown(True, "starting") as tell:
        tell("training plain", None)
    assert "100 %" not in capsys.readouterr().err


def test_quiet_without_a_terminal(capfd):
    for given in (None, False):
        with progress.shown(given) as tell:
            tell("training", 0.5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("width", [80])
def test_the_bar_fits_and_stays_where_it_is(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with progress.shown(True, "starting") as tell:
        for text in ("a", "a model of a very long name: standard apgd-t, 12,345 passes"):
            tell(text, 0.5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "%" in line]
    assert lines
    assert max(map(len, lines)) <= width
    assert len({line.index("%") for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("attacks", "attacks"),
        ("constant quantizer: standard square, 13,460 passes", "constant quantizer: standard square"),
        ("constant + PGD training: standard reachable-levels, 15 passes",
         "constant + PGD…: standard reachable-levels"),
        ("my_long_named_resnet_model_v2: strong fab-t", "my_long_named_resnet_model_…: strong fab-t"),
        ("x" * 50, "x" * 41 + "…"),
    ],
)  # fmt: skip
def test_texts_fit_and_numbers_stay_whole(text, short):
    assert progress.shortened(text) == short
    assert len(short) <= 42
