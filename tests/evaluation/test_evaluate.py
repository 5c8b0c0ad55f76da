"""Robust accuracy against closed forms and plain Foolbox; targets, seeds, other backends."""

from __future__ import annotations

import concurrent.futures
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    EPSILONS,
    FEATURES,
    IMAGES,
    MARGIN,
    NEAREST,
    WEIGHTS,
    X,
    Y,
    predicted,
    small_cnn,
    without_clock,
)

from keras_qusec import QuSecQuantization, evaluate_robustness
from keras_qusec.attacks import PGD, get, names
from keras_qusec.attacks.foolbox import foolbox_model, import_foolbox, to_tensor
from keras_qusec.evaluation.plan import Unit
from keras_qusec.evaluation.unit_progress import Costs
from keras_qusec.norms import distances

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestClosedForms:
    @pytest.mark.parametrize(
        ("attack", "norm"),
        [
            ("fgsm", "linf"),
            ("bim", "linf"),
            ("pgd", "linf"),
            ("fgsm-l2", "l2"),
            ("bim-l2", "l2"),
            ("pgd-l2", "l2"),
        ],
    )
    def test_in_a_ball(self, linear, attack, norm):
        report = evaluate_robustness(
            linear, X, Y, attacks=[attack], epsilons={norm: EPSILONS[norm]},
            threat_models=["white-box"],
        )  # fmt: skip
        for epsilon in EPSILONS[norm]:
            accuracy = report.robust_accuracy(epsilon=epsilon)
            # From a random start L2 PGD only comes close to the exact direction.
            reached = 0.98 * epsilon if attack == "pgd-l2" else epsilon
            assert accuracy >= (NEAREST[norm] > epsilon).mean() - 1e-9
            assert accuracy <= (NEAREST[norm] > reached).mean() + 1e-9

    @pytest.mark.parametrize(
        ("attack", "settings", "norm", "most"),
        [
            ("deepfool", {}, "l2", 1.03),
            ("deepfool-linf", {}, "linf", 1.03),
            ("cw", {"steps": 300, "binary_search_steps": 6}, "l2", 1.1),
        ],
    )
    def test_closest(self, linear, attack, settings, norm, most):
        report = evaluate_robustness(
            linear, X, Y, attacks=[(attack, settings)], threat_models=["white-box"]
        )
        assert report.robust_accuracy(attack=attack, norm=norm, epsilon=10.0) == 0
        found = report.results[0].distances[norm]
        ratio = found / np.maximum(NEAREST[norm], 1e-3)
        assert np.median(ratio) <= most
        assert (found >= NEAREST[norm] * (1 - 1e-3)).all()

    def test_perturbation_sizes(self, linear):
        radius = EPSILONS["linf"][1]
        report = evaluate_robustness(
            linear, X, Y, attacks=["fgsm"], epsilons=[radius], threat_models=["white-box"]
        )
        row = report.rows[0]
        assert row.median_linf == pytest.approx(radius, abs=1e-6)
        assert row.median_l2 == pytest.approx(radius * np.sqrt(FEATURES), abs=1e-5)
        assert row.mean_l0 == FEATURES

    def test_bounds_are_kept(self, linear):
        edge = np.where(WEIGHTS > 0, 1.0, 0.0)  # as far as class 1 can be
        x = np.stack([edge, 1 - edge]).astype("float32")
        report = evaluate_robustness(
            linear, x, predicted(linear, x), attacks=["pgd"], epsilons=[0.01]
        )
        assert report.robust_accuracy() == 1.0


class TestAgainstFoolbox:
    def plain(self, model, attack, x, y, epsilons):
        wrapped = foolbox_model(model)
        _, found, success = attack(wrapped, to_tensor(x), to_tensor(y), epsilons=epsilons)
        if epsilons is None:
            return keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(success)
        return keras.ops.convert_to_numpy(success)

    def test_fgsm_and_bim_give_the_same_accuracies(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        epsilons = [0.01, 0.03, 0.1]
        peers = {
            "fgsm": foolbox.attacks.LinfFastGradientAttack(random_start=False),
            "bim": foolbox.attacks.LinfBasicIterativeAttack(
                steps=10, rel_stepsize=0.1, random_start=False
            ),
        }
        report = evaluate_robustness(
            cnn, IMAGES, y, attacks=["fgsm", "bim"], epsilons=epsilons,
            threat_models=["white-box"],
        )  # fmt: skip
        for name, peer in peers.items():
            # An image that a smaller epsilon breaks is broken, also if a larger one fails.
            success = np.logical_or.accumulate(self.plain(cnn, peer, IMAGES, y, epsilons))
            ours = [report.robust_accuracy(name, epsilon) for epsilon in epsilons]
            theirs = 1 - success.mean(axis=1)
            assert 0 < min(ours) < max(ours)
            if name == "fgsm":
                np.testing.assert_allclose(ours, theirs)
            else:  # we also count the images on the way
                assert (np.array(ours) <= theirs + 1e-9).all()

    def test_attack_objects_give_the_same_distances(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        attack = foolbox.attacks.L2DeepFoolAttack()
        found, success = self.plain(cnn, attack, IMAGES, y, None)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=[attack], threat_models=["white-box"])
        ours = report.results[0].distances
        for norm, theirs in distances(IMAGES, found).items():
            np.testing.assert_array_equal(np.isfinite(ours[norm]), success)
            np.testing.assert_allclose(ours[norm][success], theirs[success], rtol=2e-2, atol=1e-4)

    def test_ball_attack_objects(self, cnn):
        foolbox = import_foolbox()
        y = predicted(cnn, IMAGES)
        attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25).repeat(2)
        report = evaluate_robustness(
            cnn, IMAGES, y, attacks={"theirs": attack, "ours": ("pgd", {"steps": 10})},
            epsilons=[0.03],
        )  # fmt: skip
        assert report.results[0].gradients.sum() > 0
        theirs, ours = report.robust_accuracy("theirs"), report.robust_accuracy("ours")
        assert abs(theirs - ours) <= 2 / len(y)


class TestTargets:
    def test_rules(self, cnn):
        y = predicted(cnn, IMAGES)
        for rule in ("next", "random", "second", "least-likely", (y + 2) % 4):
            report = evaluate_robustness(
                cnn, IMAGES, y, attacks=["pgd", "cw-paper", "jsma"], epsilons=[0.1, 0.5],
                targets=rule, threat_models=["white-box"],
            )  # fmt: skip
            assert not report.failures
            assert report.robust_accuracy("pgd", 0.5) < report.clean_accuracy()

    def test_a_target_is_harder_than_any_class(self, cnn):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["pgd"], "epsilons": [0.03], "threat_models": ["white-box"]}
        untargeted = evaluate_robustness(cnn, IMAGES, y, **settings)
        least = evaluate_robustness(cnn, IMAGES, y, targets="least-likely", **settings)
        second = evaluate_robustness(cnn, IMAGES, y, targets="second", **settings)
        assert untargeted.robust_accuracy() <= second.robust_accuracy() < least.robust_accuracy()

    def test_two_classes_targeted_is_untargeted(self, linear):
        radius = EPSILONS["linf"][1]
        reports = [
            evaluate_robustness(linear, X, Y, attacks=["pgd"], epsilons=[radius], targets=targets)
            for targets in (None, "next", 1 - Y)
        ]
        assert len({report.robust_accuracy() for report in reports}) == 1

    def test_deepfool_cannot_be_targeted_but_the_others_stand(self, cnn):
        y = predicted(cnn, IMAGES)
        report = evaluate_robustness(cnn, IMAGES, y, attacks=["deepfool", "fgsm"], targets="next")
        assert report.attacks == ("fgsm",)
        assert "deepfool" in report.notes[0]
        assert "targeted" in report.failures[0]["message"]


class TestEveryAttack:
    SMALL: dict = {  # noqa: RUF012
        "cw": {"binary_search_steps": 3, "steps": 40, "stepsize": 0.1, "initial_const": 1.0},
        "cw-paper": {"steps": 20},
        "salt-and-pepper": {"steps": 50},
        "boundary": {"steps": 20},
        "hopskipjump": {"steps": 1, "initial_gradient_eval_steps": 20},
        "local-search": {"rounds": 10},
        "local-search-paper": {"rounds": 3},
        "pgd": {"restarts": 2, "steps": 5, "relative_step_size": 0.3},
        "gaussian": {"repeats": 3},
        **{name: {"steps": 10, "targets": 2} for name in ("apgd-t", "apgd-t-l2")},
        **{name: {"steps": 10} for name in ("apgd-ce", "apgd-dlr", "apgd-ce-l2", "apgd-ce-l1")},
        **{name: {"steps": 5, "targets": 2} for name in ("fab", "fab-l2", "fab-l1")},
        **{name: {"steps": 40} for name in ("fmn-linf", "fmn-l2", "fmn-l1", "fmn-l0")},
        "sigma-zero": {"steps": 100},
        "square": {"queries": 30},
        "square-l2": {"queries": 30},
    }
    # Tested with their parts' own small settings, or on quantizers.
    ELSEWHERE = ("standard", "strong", "autoattack", "reachable", "cheapest")

    def test_all_run_and_are_checked(self, cnn):
        y = predicted(cnn, IMAGES)
        run = [name for name in names() if not name.startswith(self.ELSEWHERE)]
        report = evaluate_robustness(
            cnn, IMAGES[:12], y[:12], attacks=[(name, self.SMALL.get(name, {})) for name in run],
            epsilons={"linf": [0.05, 0.3], "l2": [0.5, 3.0], "l1": [2.0]},
            threat_models=["white-box"],
        )  # fmt: skip
        assert not report.failures, report.failures
        assert report.attacks == tuple(run)
        for result in report.results:
            for index, image in result.examples.items():
                assert predicted(cnn, image[None])[0] != y[index]
                sizes = distances(IMAGES[index : index + 1], image[None])
                for norm, size in sizes.items():
                    np.testing.assert_allclose(result.distances[norm][index], size, rtol=1e-5)
        strong = ("pgd", "cw", "deepfool", "jsma", "boundary", "hopskipjump", "pointwise",
                  "apgd-ce", "apgd-t", "fab", "fmn-linf", "fmn-l2", "fmn-l0", "sigma-zero")  # fmt: skip
        for name in strong:
            result = next(r for r in report.results if r.attack == name)
            assert np.isfinite(result.distances["l0"]).mean() > 0.7, name

    @pytest.mark.parametrize("name", ["hopskipjump", "pgd", "deepfool", "pointwise"])
    def test_other_value_ranges(self, cnn, name):
        """The same images in bytes' units: the same figures."""
        scaled = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), cnn])
        y = predicted(cnn, IMAGES)
        settings = {"attacks": [(name, self.SMALL.get(name, {}))]}
        small = evaluate_robustness(cnn, IMAGES, y, epsilons=[0.05], **settings)
        large = evaluate_robustness(
            scaled, IMAGES * 255, y, epsilons=[0.05 * 255], value_range=(0, 255), **settings
        )
        assert not large.failures, large.failures
        a, b = (r.results[0].distances["l2"] for r in (small, large))
        both = np.isfinite(a) & np.isfinite(b)
        assert both.mean() >= np.isfinite(a).mean() - 0.1
        assert np.median(b[both]) / 255 == pytest.approx(np.median(a[both]), rel=0.3)

    def test_starting_points_without_another_class(self, linear):
        """All images of one class: starts are noise, or the image is left alone."""
        one = np.flatnonzero(Y == 1)[:6]
        report = evaluate_robustness(linear, X[one], Y[one], attacks=[("boundary", {"steps": 5})])
        assert not report.failures


class TestSeedsAndBatches:
    def test_same_seed_same_report_and_user_generators_untouched(self, cnn):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["pgd", ("boundary", {"steps": 10})], "epsilons": [0.02, 0.05]}
        np.random.seed(7)
        expected = np.random.random()
        np.random.seed(7)
        first = evaluate_robustness(cnn, IMAGES, y, seed=3, **settings)
        assert np.random.random() == expected
        again = evaluate_robustness(cnn, IMAGES, y, seed=3, **settings)
        other = evaluate_robustness(cnn, IMAGES, y, seed=4, **settings)
        assert without_clock(first) == without_clock(again)
        assert without_clock(first)["results"] != without_clock(other)["results"]

    def test_batches_change_only_the_random_starts(self, linear):
        radii = EPSILONS["linf"]
        settings = {"attacks": ["fgsm", "deepfool"], "epsilons": radii}
        whole = evaluate_robustness(linear, X, Y, **settings)
        parts = evaluate_robustness(linear, X, Y, batch_size=7, **settings)
        for a, b in zip(whole.results, parts.results, strict=True):
            for norm in a.distances:
                np.testing.assert_allclose(
                    a.distances[norm], b.distances[norm], rtol=1e-3, atol=1e-5
                )

    def test_backends_agree(self):
        """Figures of a small CNN with fixed weights, the same on every backend."""
        models = {"plain": small_cnn(2), "quantized": small_cnn(2, QuSecQuantization(2))}
        y = predicted(models["plain"], IMAGES)
        report = evaluate_robustness(
            models, IMAGES, y, attacks=["fgsm", "bim", "deepfool", "jsma", "single-pixel"],
            epsilons=[0.02, 0.05, 0.1],
        )  # fmt: skip
        for (model, threat_model, attack), expected in AGREED.items():
            wanted = (model, threat_model, attack)
            got = [
                round(row.robust_accuracy * 24)
                for row in report.rows
                if (row.model, row.threat_model, row.attack) == wanted
            ]
            assert got == list(expected), wanted


# Robust images of 24, by model, threat model, attack: at 0.02, 0.05, 0.1, or any distance.
AGREED = {
    ("plain", "white-box", "fgsm"): (19, 6, 2),
    ("plain", "white-box", "bim"): (19, 6, 2),
    ("plain", "white-box", "deepfool"): (0,),
    ("plain", "adaptive", "jsma"): (0,),
    ("plain", "white-box", "single-pixel"): (5,),
    ("plain", "all", "worst case"): (19, 6, 2),
    ("quantized", "white-box", "fgsm"): (14, 9, 6),
    ("quantized", "adaptive", "bim"): (14, 9, 5),
    ("quantized", "adaptive", "deepfool"): (0,),
    ("quantized", "white-box", "jsma"): (0,),
    ("quantized", "white-box", "single-pixel"): (9,),
    ("quantized", "adaptive", "reachable-levels"): (14, 9, 4),
    ("quantized", "all", "worst case"): (14, 9, 4),
}


def test_progress(cnn, capsys):
    seen = []
    y = predicted(cnn, IMAGES)
    evaluate_robustness(
        cnn, IMAGES, y, attacks=["fgsm"], batch_size=6, progress=lambda *step: seen.append(step)
    )
    shares = [share for _, share in seen]
    assert sorted({round(share, 9) for share in shares}) == [0, 0.25, 0.5, 0.75, 1.0]
    assert shares == sorted(shares)
    evaluate_robustness(cnn, IMAGES, y, attacks=["fgsm"], progress=True)
    assert "100 %" in capsys.readouterr().err


def test_progress_follows_the_cost_of_attacks_and_never_falls(cnn):
    y, seen = predicted(cnn, IMAGES), []
    evaluate_robustness(
        cnn, IMAGES, y, attacks=["fgsm", ("pgd", {"steps": 60})], epsilons=[0.05],
        threat_models=["white-box"], progress=lambda *step: seen.append(step),
    )  # fmt: skip
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    after_fgsm = next(share for text, share in seen if "pgd" in text)
    assert after_fgsm < 0.2


def test_what_was_measured_counts_more_than_what_was_guessed():
    attacks = {"quick": PGD(steps=1), "slow": PGD(steps=9)}
    plan = SimpleNamespace(attacks=attacks, radii={"quick": (0.1,), "slow": (0.1,)})
    units = [Unit(name, ("m",), None, batch) for name in attacks for batch in (0, 1)]
    costs = Costs(units, plan, [])
    assert costs.share() == 0.0
    costs.measured(units[0], 1.0)
    assert costs.share() == pytest.approx(0.05)
    costs.measured(units[2], 1.0)  # as long as the quick one: guessed nine times as much
    assert costs.share() == pytest.approx(0.5)
    assert costs.share(0.5) == pytest.approx(0.625)
    assert costs.share() == pytest.approx(0.625)  # it never falls
    costs.measured(units[1], 1.0)
    costs.measured(units[3], 1.0)
    assert costs.share() == 1.0


def test_each_radius_is_guessed_to_cost_the_same_again():
    attacks = {"pgd": PGD(), "standard": get("standard")}
    plan = SimpleNamespace(attacks=attacks, radii=dict.fromkeys(attacks, (0.1,)))
    more = SimpleNamespace(attacks=attacks, radii=dict.fromkeys(attacks, (0.1, 0.2, 0.3)))
    for name, times in {"pgd": 3, "standard": 1}.items():  # which begins with the largest
        unit = Unit(name, ("m",), None, 0)
        assert (
            Costs([unit], more, []).guesses[unit] == times * Costs([unit], plan, []).guesses[unit]
        )


def test_progress_says_what_runs_and_moves_within_an_attack(cnn, monkeypatch):
    monkeypatch.setattr("keras_qusec.evaluation.unit_progress._SECONDS_BETWEEN", 0.0)
    seen = []
    evaluate_robustness(
        {"mine": cnn}, IMAGES, predicted(cnn, IMAGES), attacks=["standard"], epsilons=[0.01],
        batch_size=100, progress=lambda *step: seen.append(step),
    )  # fmt: skip
    texts, shares = zip(*seen, strict=True)
    assert shares == tuple(sorted(shares))
    parts = dict.fromkeys(text.split(",")[0] for text in texts)
    assert {"mine: standard pgd", "mine: standard apgd", "mine: standard square"} <= set(parts)
    of_square = [text for text in texts if "square" in text]
    assert len(set(of_square)) > 3


@pytest.mark.skipif(BACKEND != "torch", reason="one backend is enough for a slow test")
@pytest.mark.slow
def test_the_papers_cw_and_a_strong_one_side_by_side():
    """On the paper's CNN behind a quantizer the strong settings find closer examples."""
    from keras_qusec import datasets
    from keras_qusec.models import paper_cnn

    data = datasets.mnist5k()
    model = paper_cnn(QuSecQuantization(2), seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, epochs=3, verbose=0)
    report = evaluate_robustness(
        model, data.x_test[:20], data.y_test[:20], attacks=["cw-paper", "cw"],
    )  # fmt: skip
    sizes = {(row.attack, row.threat_model): row for row in report.rows if row.epsilon is None}
    assert sizes["cw", "adaptive"].robust_accuracy <= sizes["cw-paper", "white-box"].robust_accuracy
    assert sizes["cw", "adaptive"].median_l2 < sizes["cw-paper", "adaptive"].median_l2


def test_the_name_of_a_model_changes_no_result():
    """Keras numbers the names of models that have none."""

    def report(name):
        model = keras.models.clone_model(small_cnn())
        model.set_weights(small_cnn().get_weights())
        model.name = name
        settings = {"attacks": [("pgd", {"steps": 3})], "epsilons": [0.02, 0.05]}
        return evaluate_robustness(model, IMAGES, predicted(model, IMAGES), **settings)

    one, two = report("sequential"), report("sequential_1")
    for a, b in zip(one.results, two.results, strict=True):
        np.testing.assert_array_equal(a.distances["linf"], b.distances["linf"])


def test_several_threads_leave_a_model_as_it_was():
    """The softmax is left out by a graph of its own, not by changing the layer."""
    model = small_cnn(activation="softmax")
    y, before = predicted(model, IMAGES), keras.ops.convert_to_numpy(model(IMAGES))
    settings = {"attacks": ["fgsm"], "epsilons": [0.02, 0.05]}
    expected = evaluate_robustness(model, IMAGES, y, **settings).robust_accuracy()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(evaluate_robustness, model, IMAGES, y, **settings) for _ in range(3)]
        assert {job.result().robust_accuracy() for job in jobs} == {expected}
    assert model.layers[-1].activation is keras.activations.softmax
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(IMAGES)), before)


@pytest.mark.once
def test_l1_attacks_are_listed_as_l1(linear):
    attack = import_foolbox().attacks.SparseL1DescentAttack(steps=20)
    radius = float(np.median(np.abs(MARGIN) / np.abs(WEIGHTS).max()))
    report = evaluate_robustness(linear, X, Y, attacks=[attack], epsilons={"l1": [radius]})
    assert {row.norm for row in report.rows} == {"l1"}
    assert report.robust_accuracy() < 1
    ours = evaluate_robustness(
        linear, X, Y, attacks=[("pgd", {"norm": "l1", "random_start": False})],
        epsilons={"l1": [radius]},
    )  # fmt: skip
    exact = (np.abs(MARGIN) / np.abs(WEIGHTS).max() > radius).mean()
    assert exact <= ours.robust_accuracy() <= exact + 0.05
