"""Claims of the paper, judged by made-up numbers."""

from __future__ import annotations

import math

import pytest

from keras_qusec.reproduction import CLAIMS, FIGURES, Reproduction, Row, judged
from keras_qusec.reproduction.claims import (
    FAILS,
    HOLDS,
    WEAK,
    compared,
    higher,
    measured,
    number,
)
from keras_qusec.reproduction.page import claims_page, figures_page

pytestmark = pytest.mark.once


def row(series, ours, worst=None, *, measure="fgsm", value=0.3, images=1000, seed=0):
    return Row(series, value, measure, ours, ours, ours, None, worst, None, images, seed)


def figure(*rows, name="figure-1"):
    return Reproduction(name, "a title", "a claim", "epsilon", rows, {"data": "some"})


def test_a_series_above_another():
    def verdict(*pairs):
        rows = [row(name, *pair) for name, pair in zip(("CQ", "none"), pairs, strict=True)]
        return compared(figure(*rows), "CQ", "none", "fgsm").verdict

    assert verdict((0.8, 0.7), (0.1, 0.0)) == HOLDS
    assert verdict((0.8, 0.0), (0.1, 0.0)) == WEAK
    assert verdict((0.1, 0.1), (0.1, 0.0)) == FAILS
    # Within chance of 1,000 images.
    assert verdict((0.52, 0.5), (0.5, 0.0)) == FAILS
    # Without a worst case the paper's attack decides.
    assert verdict((0.8,), (0.1,)) == HOLDS


def test_a_number():
    def verdict(ours, worst):
        return number(figure(row("CQ", ours, worst)), "CQ", "fgsm", 0.9).verdict

    assert verdict(0.88, 0.87) == HOLDS
    assert verdict(0.88, 0.5) == WEAK
    assert verdict(0.8, 0.8) == FAILS
    assert verdict(0.99, 0.9) == FAILS


def test_seeds_are_put_together():
    rows = [row("CQ", 0.5, 0.4, images=10), row("CQ", 0.7, 0.2, images=10, seed=1)]
    found = measured(figure(*rows), "CQ", "fgsm")
    assert found.ours == pytest.approx(0.6)
    assert found.worst == pytest.approx(0.3)
    assert found.images == 20
    with pytest.raises(KeyError, match="no 'fgsm' of 'VQ'"):
        measured(figure(*rows), "VQ", "fgsm")


def test_the_last_value_counts():
    rows = [row("CQ", 0.5, value=1.0), row("CQ", 0.9, value=2.0)]
    assert measured(figure(*rows), "CQ", "fgsm").ours == 0.9
    assert measured(figure(*rows), "CQ", "fgsm", 1.0).ours == 0.5


def test_intervals():
    assert higher(0.6, 0.5, 1000)
    assert not higher(0.6, 0.5, 50)
    assert not higher(0.5, 0.6, 1000)


def made_up(name):
    """A figure in which each series and measure that a claim could ask for has a number."""
    share = {"none": 0.01, "CQ": 0.9751, "VQ": 0.1, "BReLU + GDA": 0.6, "DQA": 0.97}
    trained = {"none, FGSM training": 0.5, "CQ, FGSM training": 0.8, "VQ, FGSM training": 0.7}
    rows = {
        "figure-1": [
            row("no quantization", 0.09, 0.0), row("n = 2", 0.25, 0.0), row("n = 3", 0.19, 0.0),
        ],
        "figure-5": [row(s, v, 0.1, measure="FGSM, white-box") for s, v in trained.items()],
        "figure-6": [
            row("DQA", 1.0, measure="zero gradients"),
            row("DQA", 0.97, 0.0, measure="FGSM, white-box"),
        ],
        "equation-9": [
            row("VQ, n = 2", moved, measure="thresholds moved by", value=z)
            for z, moved in ((1.0, 0.01), (5.0, 0.05), (40.0, 0.03), (100.0, 0.001))
        ],
        "figure-7": [row("CQ, n = 2", 0.8, 0.7), row("CQ, n = 16", 0.1, 0.0)],
        "figure-8": [
            row(s, v, measure="median L2 distance", value=math.inf)
            for s, v in {"none": 1.4, "CQ": 1.3, "VQ": 1.9}.items()
        ],
        "figure-9": [
            row(s, v, v / 2, measure="FGSM, white-box") for s, v in {**share, **trained}.items()
        ],
        "headline": [row(s, share[s], 0.0, measure="FGSM, white-box") for s in ("none", "CQ")],
        "figure-10": [
            row("CQ", v, measure=f"{a}, untargeted, {t}", value=math.inf)
            for t in ("white-box", "black-box") for a, v in {"cw-paper": 0.88, "cw": 0.0}.items()
        ],
        "figure-11": [row(s, 0.1, measure="JSMA, targeted", value=math.inf) for s in share],
        "abstract": [row("CQ", 0.8, 0.6, measure="FGSM, white-box")],
    }  # fmt: skip
    return figure(*rows[name], name=name)


FIGURES_MADE_UP = {claim.figure: made_up(claim.figure) for claim in CLAIMS}


def test_every_claim_is_judged_by_a_figure_of_the_list():
    assert {claim.figure for claim in CLAIMS} <= set(FIGURES)
    for data in ("MNIST", "CIFAR-10"):
        table = judged(data, FIGURES_MADE_UP)
        assert len(table.rows) == sum(claim.data in (None, data) for claim in CLAIMS)
        assert {row[1] for row in table.rows} <= {HOLDS, WEAK, FAILS}


@pytest.mark.parametrize(
    ("start", "verdict"),
    [
        ("DQA masks", HOLDS),
        ("Variable quantization trains", HOLDS),
        ("Variable quantization highly", WEAK),
        ("More levels", HOLDS),
        ("Constant quantization makes", FAILS),
        ("... and so does", HOLDS),
        ("... from 1.48", WEAK),
        # CQ 97.5 and DQA 97 are within chance of each other.
        ("... and outperforms", FAILS),
        ("With adversarial training", FAILS),
        ("Under CW-L2", WEAK),
        ("QuSecNets help little", HOLDS),
        ("Gains of 50", HOLDS),
    ],
)
def test_verdicts(start, verdict):
    rows = judged("MNIST", FIGURES_MADE_UP).rows
    assert next(row[1] for row in rows if row[0].startswith(start)) == verdict


def test_pages():
    page = claims_page({"MNIST": FIGURES_MADE_UP, "CIFAR-10": FIGURES_MADE_UP})
    assert "## MNIST" in page
    assert f"| **{WEAK}** |" in page
    figures = figures_page("MNIST", {"figure-1: it": FIGURES_MADE_UP["figure-1"]},
                           {"figure-1: it": ["mnist/figure-1.png"]})  # fmt: skip
    assert "![figure-1: it](mnist/figure-1.png)" in figures
    assert "| n = 3 |" in figures
