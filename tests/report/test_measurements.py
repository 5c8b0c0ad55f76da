"""The figures of results made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from keras_qusec.report.plots import magnification
from keras_qusec.results import Example
from keras_qusec.statistics import wilson_interval

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestFigures:
    def test_clean(self, report):
        assert report.clean_accuracy() == 0.75
        assert report.main_norm == "linf"
        assert report.attacks == ("pgd", "cw")
        assert report.threat_models == ("white-box", "adaptive", "black-box")

    @pytest.mark.parametrize(
        ("question", "share"),
        [
            ({}, 0.0),  # worst case at 0.2: PGD breaks two, CW the third
            ({"epsilon": 0.1}, 0.25),
            ({"attack": "pgd"}, 0.25),
            ({"attack": "pgd", "epsilon": 0.1}, 0.25),
            ({"attack": "pgd", "epsilon": 0.1, "threat_model": "white-box"}, 0.5),
            ({"attack": "pgd", "threat_model": "black-box"}, 0.5),
            ({"attack": "pgd", "threat_model": "black-box", "source": "s"}, 0.5),
            ({"attack": "cw"}, 0.0),  # at any distance
            ({"attack": "cw", "epsilon": np.inf}, 0.0),
            ({"attack": "cw", "epsilon": 0.2}, 0.5),  # within L-infinity 0.2
            ({"attack": "cw", "epsilon": 0.3, "norm": "l2"}, 0.25),
            ({"norm": "l2", "epsilon": 0.25}, 0.5),
            ({"threat_model": "white-box", "epsilon": 0.2}, 0.0),
        ],
    )
    def test_robust_accuracy(self, report, question, share):
        assert report.robust_accuracy(**question) == pytest.approx(share)

    def test_an_epsilon_may_be_rounded(self, report):
        """To float32, as epsilons of an array are; a report is not asked for the bits of one."""
        for epsilon in (0.1, 0.2):
            rounded = np.float32(epsilon)
            assert float(rounded) != epsilon
            for question in ({"attack": "pgd"}, {}):
                expected = report.robust_accuracy(epsilon=epsilon, **question)
                assert report.robust_accuracy(epsilon=rounded, **question) == expected
        exact, near = (
            report.worst_case("m", "linf", epsilon) for epsilon in (0.1, float(np.float32(0.1)))
        )
        assert near == exact
        with pytest.raises(ValueError, match=r"ran: 0.1, 0.2 in linf. Received: epsilon=0.1001"):
            report.robust_accuracy("pgd", 0.1001)

    def test_robust_images(self, report):
        robust = report.robust_images("pgd", 0.1, "white-box")
        assert robust.tolist() == [False, True, True, False]

    def test_an_image_without_an_example_is_within_no_epsilon(self, report):
        # Black-box PGD found nothing on the second and third; the fourth is misclassified.
        report.results = [one for one in report.results if one.threat_model == "black-box"]
        report.norms["pgd"] = "l0"  # whose attacks were run at no epsilon that is asked for
        assert report.robust_images("pgd", np.inf, norm="linf").tolist() == [
            False, True, True, False,
        ]  # fmt: skip

    def test_never_above_clean(self, report):
        for row in report.rows:
            assert row.low <= row.robust_accuracy <= row.high
            assert row.robust_accuracy <= 0.75

    def test_rows(self, report):
        rows = {(r.attack, r.threat_model, r.epsilon): r for r in report.rows}
        assert len(rows) == 3 * 2 + 1 + 2
        cw = rows["cw", "white-box", None]
        assert (cw.norm, cw.robust_accuracy) == ("l2", 0.0)
        assert cw.median_l2 == pytest.approx(0.25)
        assert rows["pgd", "white-box", 0.1].gradients == 10
        assert rows["pgd", "white-box", 0.2].gradients == 20
        worst = rows["worst case", "all", 0.2]
        assert worst.robust_accuracy == 0.0
        assert worst.seconds == 10.5
        # Of each image the closest example of the row's norm.
        assert worst.mean_linf == pytest.approx(np.mean([0.1, 0.1, 0.15, 0.1]))

    @pytest.mark.parametrize(
        ("question", "message"),
        [
            ({"attack": "fgsm"}, "attack to be one of 'pgd', 'cw'"),
            ({"threat_model": "grey"}, "threat_model"),
            ({"model": "x"}, "model to be one of 'm'"),
            ({"norm": "l7"}, "norm"),
            ({"epsilon": -1.0}, "0 or more"),
            ({"epsilon": 0.15}, "at which pgd ran: 0.1, 0.2 in linf. Received: epsilon=0.15"),
            ({"epsilon": 0.05}, "at which pgd ran"),
            ({"attack": "pgd", "epsilon": 0.3}, "at which pgd ran"),
            ({"attack": "cw", "threat_model": "black-box"}, "not run together"),
        ],
    )
    def test_questions_that_have_no_answer(self, report, question, message):
        with pytest.raises(ValueError, match=message):
            report.robust_accuracy(**question)

    def test_transfer_matrix(self, report):
        assert report.transfer_matrix() == {"s": {"m": 0.5}}

    def test_interval_against_scipy(self):
        stats = pytest.importorskip("scipy.stats")
        for successes, count in [(0, 10), (3, 7), (50, 50), (120, 200)]:
            expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
            np.testing.assert_allclose(wilson_interval(successes, count), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("gaps", "factor"),
    [
        ([0.6], 1),
        ([0.5], 2),
        ([-0.11], 5),
        ([0.02], 50),
        ([0.02, 0.3], 2),
        ([1e-9], 500),
        ([], 500),
    ],
)
def test_small_differences_are_magnified_alike(gaps, factor):
    def example(gap):
        images = [np.full((4, 4), 128.0), np.full((4, 4), 128 + 255 * gap)]
        return Example("m", "fgsm", "white-box", 0, 1, 2, {"linf": abs(gap)}, np.stack(images))

    assert magnification([example(gap) for gap in gaps], (0, 255)) == factor


def test_classes_as_a_reader_sees_them():
    def shown(label, prediction, names=()):
        example = Example(
            "m", "pgd", "white-box", 0, label, prediction, {}, np.zeros((2, 1)), names
        )
        return example.shown_classes

    assert shown(0, 3) == ("0", "3")
    assert shown(3, 0) == ("3", "0")
    assert shown(3, -2) == ("3", "no class (NaN)")
    assert shown(0, 1, ("cat", "dog")) == ("cat", "dog")
