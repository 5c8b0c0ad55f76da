"""Claims of the paper, judged by made-up numbers."""

from __future__ import annotations

import math

import pytest

from keras_qusec.reproduction import CLAIMS, FIGURES, Reproduction, Row, judged
from keras_qusec.reproduction.claims import (
    FAILS,
    HOLDS,
    OPEN,
    UNMEASURED,
    WEAK,
    compared,
    higher,
    measured,
    number,
)
from keras_qusec.reproduction.page import best_page, claims_page, figures_page

pytestmark = pytest.mark.once


def row(series, ours, worst=None, *, measure="fgsm", value=0.3, images=1000, seed=0):
    return Row(series, value, measure, ours, images, seed, ours, ours, worst=worst)


def figure(*rows, name="figure-1"):
    return Reproduction(name, "a title", "a claim", "epsilon", rows, {"data": "some"})


def test_a_series_above_another():
    def verdict(*pairs):
        rows = [row(name, *pair) for name, pair in zip(("CQ", "none"), pairs, strict=True)]
        return compared(figure(*rows), "CQ", "none", "fgsm").verdict

    assert verdict((0.8, 0.7), (0.1, 0.0)) == HOLDS
    assert verdict((0.8, 0.0), (0.1, 0.0)) == WEAK
    assert verdict((0.1, 0.1), (0.2, 0.0)) == FAILS
    # Within chance of 1,000 images.
    assert verdict((0.52, 0.5), (0.5, 0.0)) == OPEN
    assert verdict((0.5, 0.5), (0.52, 0.0)) == OPEN
    # Without a worst case the paper's attack decides.
    assert verdict((0.8,), (0.1,)) == HOLDS


def test_a_number():
    def verdict(ours, worst):
        return number(figure(row("CQ", ours, worst)), "CQ", "fgsm", 0.9).verdict

    assert verdict(0.88, 0.87) == HOLDS
    assert verdict(0.88, 0.5) == WEAK
    assert verdict(0.8, 0.8) == FAILS
    # More than the paper is no failure.
    assert verdict(0.99, 0.9) == HOLDS


def test_seeds_are_put_together():
    rows = [row("CQ", 0.5, 0.4, images=10), row("CQ", 0.7, 0.2, images=10, seed=1)]
    found = measured(figure(*rows), "CQ", "fgsm")
    assert found.ours == pytest.approx(0.6)
    assert found.worst == pytest.approx(0.3)
    # They share the images.
    assert found.images == 10
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
            row(series, share, 0.0, measure="FGSM, black-box") for series, share in
            {"no quantization": 0.09, "n = 2": 0.25, "n = 3": 0.15}.items()
        ],
        "figure-5": [row(s, v, 0.1, measure="FGSM, white-box") for s, v in trained.items()],
        "figure-6": [
            row("DQA", 1.0, measure="gradients of zero"),
            row("DQA", 0.97, measure="clean"),
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
            row(s, v, v / 2, measure=f"FGSM, {threat}") for s, v in {**share, **trained}.items()
            for threat in ("white-box", "black-box")
        ],
        "headline": [
            row(s, v, 0.0, measure=m) for s in ("none", "CQ")
            for m, v in {"FGSM, white-box": share[s], "clean": 0.99}.items()
        ],
        "figure-10": [
            row(s, v * (s == "CQ"), measure=f"{a}, untargeted, {t}", value=math.inf)
            for s in ("none", "CQ")
            for t in ("white-box", "black-box") for a, v in {"cw-paper": 0.88, "cw": 0.0}.items()
        ],
        "figure-11": [
            row(s, 0.1, 0.0, measure=f"JSMA, targeted{near}", value=math.inf) for s in share
            for near in ("", ", within 20 pixels")
        ],
        "abstract": gains(0.8, 0.6, 0.55),
    }  # fmt: skip
    return figure(*rows[name], name=name)


def gains(fgsm, worst, near):
    """Rows of the abstract: under attacks, and in the worst case within radii."""
    rows = [
        row("CQ", fgsm, measure="FGSM, white-box"),
        row("CQ", 0.9, measure="CW of the paper, white-box", value=math.inf),
        row("CQ", worst, measure="worst case within L-infinity epsilon"),
        row("CQ", near, measure="worst case within L2 epsilon", value=1.0),
    ]
    return [one._replace(low=one.ours - 0.02, high=one.ours + 0.02) for one in rows]


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
        ("Clean accuracy", HOLDS),
        ("Constant quantization outperforms", HOLDS),
        ("Black-box, quantization", HOLDS),
        ("Variable quantization alone", HOLDS),
        ("With adversarial training", FAILS),
        ("Under CW-L2", WEAK),
        ("QuSecNets help little", HOLDS),
        ("Gains of 50", HOLDS),
        ("Gains of 1 point", HOLDS),
    ],
)
def test_verdicts(start, verdict):
    rows = judged("MNIST", FIGURES_MADE_UP).rows
    assert next(row[1] for row in rows if row[0].startswith(start)) == verdict


@pytest.mark.parametrize(
    ("fgsm", "worst", "near", "verdict"),
    [
        (0.8, 0.6, 0.55, HOLDS),
        (0.8, 0.6, 0.07, WEAK),
        (0.8, 0.2, 0.55, WEAK),
        (0.3, 0.2, 0.55, FAILS),
        # The lower end, less five points, is 45.
        (0.46, 0.55, 0.55, OPEN),
        (0.8, 0.55, 0.44, OPEN),
        (0.46, 0.2, 0.55, OPEN),
        (0.8, 0.44, 0.07, WEAK),
    ],
)
def test_gains_hold_in_every_norm(fgsm, worst, near, verdict):
    figures = {"abstract": figure(*gains(fgsm, worst, near), name="abstract")}
    rows = judged("MNIST", figures).rows
    judgement = next(row for row in rows if row[0].startswith("Gains of 50"))
    assert judgement[1] == verdict
    assert f"; L-infinity 0.3), {100 * near:.0f} (" in judgement[3]
    assert f"in the worst case {100 * worst:.0f} (" in judgement[3]


@pytest.mark.parametrize(
    ("ours", "worst", "verdict"),
    [(0.95, 0.9, HOLDS), (0.95, 0.0, WEAK), (0.6, 0.5, FAILS), (0.3, 0.0, FAILS)],
)
def test_training_gains_much_or_the_claim_fails(ours, worst, verdict):
    trained = {"none": (0.5, 0.0), "VQ": (ours, worst)}
    rows = [row(f"{s}, FGSM training", *v, measure="FGSM, white-box") for s, v in trained.items()]
    figures = {"figure-5": figure(*rows, name="figure-5")}
    (judgement,) = (r for r in judged("MNIST", figures).rows if r[2] == "figure-5")
    assert judgement[1] == verdict


@pytest.mark.parametrize(
    ("ours", "worst", "verdict"),
    [(0.9, 0.8, HOLDS), (0.51, 0.0, HOLDS), (0.9, 0.0, WEAK), (0.3, 0.2, FAILS)],
)
def test_a_defence_competes_unless_it_is_below(ours, worst, verdict):
    share = {"CQ": (ours, worst), "BReLU + GDA": (0.5, 0.1), "none": (0.1, 0.0), "VQ": (0.1, 0.0)}
    share |= {f"{s}, FGSM training": (0.5, 0.0) for s in ("CQ", "VQ")}
    rows = [
        row(s, *v, measure=f"FGSM, {threat}") for s, v in share.items()
        for threat in ("white-box", "black-box")
    ]  # fmt: skip
    rows = judged("MNIST", {"figure-9": figure(*rows, name="figure-9")}).rows
    assert next(r[1] for r in rows if r[0].startswith("Black-box")) == verdict


def test_thresholds_that_move_with_adam_decide_nothing():
    rows = [
        row("VQ, n = 2", moved, measure="thresholds moved by", value=z)
        for z, moved in ((5.0, 0.05), (100.0, 0.04))
    ]
    figures = {"equation-9": figure(*rows, name="equation-9")}
    (judgement,) = (r for r in judged("MNIST", figures).rows if r[2] == "equation-9")
    assert judgement[1] == OPEN
    assert "Adam" in judgement[3]


def test_little_is_not_claimed_of_few_images():
    def verdict(none, cq, images):
        rows = [
            row(series, 0.9, share, measure=f"JSMA, targeted{near}", value=math.inf, images=images)
            for series, share in {"none": none, "CQ": cq}.items()
            for near in ("", ", within 20 pixels")
        ]
        figures = {"figure-11": figure(*rows, name="figure-11")}
        (verdict,) = (r[1] for r in judged("MNIST", figures).rows if r[2] == "figure-11")
        return verdict

    assert verdict(0.0, 0.18, 100) == OPEN
    assert verdict(0.0, 0.18, 10_000) == HOLDS
    assert verdict(0.0, 0.5, 100) == FAILS


def test_more_levels():
    def verdict(*shares):
        rows = [row(f"CQ, n = {n}", *pair) for n, pair in zip((2, 4, 16), shares, strict=True)]
        figures = {"figure-7": figure(*rows, name="figure-7")}
        (verdict,) = (r[1] for r in judged("MNIST", figures).rows if r[2] == "figure-7")
        return verdict

    assert verdict((0.8, 0.7), (0.5, 0.3), (0.1, 0.0)) == HOLDS
    assert verdict((0.8, 0.0), (0.5, 0.0), (0.1, 0.0)) == WEAK
    assert verdict((0.5, 0.4), (0.8, 0.7), (0.1, 0.0)) == FAILS
    assert verdict((0.5, 0.4), (0.5, 0.4), (0.5, 0.4)) == OPEN
    # Nothing is left to be compared.
    assert verdict((0.01, 0.0), (0.0, 0.0), (0.0, 0.0)) == OPEN


def test_what_is_not_measured_is_said():
    verdicts = {row[1] for row in judged("MNIST", {}).rows}
    assert verdicts == {UNMEASURED}
    assert "18 claims; not measured yet: 18." in claims_page({"MNIST": {}})


def test_pages():
    page = claims_page({"MNIST": FIGURES_MADE_UP, "CIFAR-10": FIGURES_MADE_UP})
    assert "## MNIST" in page
    assert f"| **{WEAK}** |" in page
    figures = figures_page("MNIST", {"figure-1: it": FIGURES_MADE_UP["figure-1"]},
                           {"figure-1: it": ["mnist/figure-1.png"]})  # fmt: skip
    assert "![figure-1: it](mnist/figure-1.png)" in figures
    assert "| n = 3 |" in figures


def best(shares, clean):
    """The figure ``best``, of a share for each seed; shares of images have an interval."""
    rows = [
        row(series, share, measure=measure, value=8 / 255, seed=seed)
        for series, own in shares.items() for seed, share in enumerate(own)
        for measure, share in (("robust accuracy", share), ("clean", clean[series]))
    ]  # fmt: skip
    rows = [one._replace(low=one.ours - 0.03, high=one.ours + 0.03) for one in rows]
    return best_page({"CIFAR-10": figure(*rows, name="best")}, {"CIFAR-10": ["best.png"]})


def test_the_best_model_is_named_first():
    page = best(
        {"no quantizer": [0.335], "CQ, n = 2": [0.404], "n = 4": [0.38]},
        {"no quantizer": 0.6, "CQ, n = 2": 0.5, "n = 4": 0.55},
    )
    assert (
        "**CQ, n = 2**: at most 40.4 % (37.4-43.4) of 1,000 test images are robust at L-infinity "
        "0.0314 against the standard evaluation, 50.0 % clean. No quantizer: 33.5 % (30.5-36.5), "
        "60.0 % clean; n = 4: 38.0 % (35.0-41.0), 55.0 % clean. The intervals of n = 4 overlap "
        "with the best one's. Which is best was seen on these test images."
    ) in page
    assert page.index("40.4 %") < page.index("best.png")


def test_of_several_seeds_the_best_model_is_the_one_with_the_best_mean():
    page = best(
        {"CQ, n = 2": [0.40, 0.42], "CQ, n = 4": [0.35, 0.43]}, {"CQ, n = 2": 0.5, "CQ, n = 4": 0.5}
    )
    # The interval is of the images, which the seeds share.
    assert "**CQ, n = 2**: at most 41.0 % (38.0-44.1; 2 seeds: 40.0-42.0) of 1,000 test" in page
    assert "CQ, n = 4: 39.0 % (36.0-42.1; 2 seeds: 35.0-43.0), 50.0 % clean." in page
