"""Ensembles: order, what still stands, threat models, evidence, failures, resumption."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from helpers import IMAGES, predicted, small_cnn, without_clock

from keras_qusec import QuSecQuantization, RobustnessReport, evaluate_robustness
from keras_qusec.attacks import (
    APGD,
    FAB,
    PGD,
    AttackedModel,
    Ensemble,
    Goal,
    Square,
    attack_from,
    get,
)
from keras_qusec.attacks.registry import for_evaluation

SETTINGS = {"epsilons": [0.02, 0.05, 0.1], "progress": False}


def small(**settings):
    """An ensemble of few steps, with all kinds of parts."""
    parts = {
        "pgd": PGD(steps=3),
        "own": get("reachable-levels", steps=5, rounds=1),
        "apgd-t": APGD(steps=8, targets=2, loss="dlr", order="malt"),
        "fab": FAB(steps=5, targets=2),
        "square": Square(queries=30),
    }
    return Ensemble(parts, **{"first": ("pgd",), "evidence": "standard", **settings})


@pytest.fixture(scope="module")
def models():
    return {"plain": small_cnn(2), "quantized": small_cnn(2, QuSecQuantization(2, hard=True))}


@pytest.fixture(scope="module")
def labels(models):
    return predicted(models["plain"], IMAGES)


@pytest.fixture(scope="module")
def report(models, labels):
    return evaluate_robustness(models, IMAGES, labels, attacks={"all": small()}, **SETTINGS)


def parts_of(report, model, threat_model):
    (result,) = [r for r in report.results if (r.model, r.threat_model) == (model, threat_model)]
    return {part.attack: part for part in result.parts}


def test_each_part_is_made_on_what_still_stands(report, models, labels):
    for model, threat in (("plain", "white-box"), ("quantized", "adaptive")):
        parts = list(parts_of(report, model, threat).values())
        clean = (predicted(models[model], IMAGES) == labels).sum()
        assert parts[0].tried[-1] <= clean
        # At the largest radius, the first to be played; FAB spares smaller ones.
        for before, after in itertools.pairwise(parts):
            assert after.tried[-1] == before.tried[-1] - before.broken[-1]
        left = parts[-1].tried[-1] - parts[-1].broken[-1]
        assert left == round(report.robust_accuracy(model=model) * len(IMAGES))
        assert not any(part.failure for part in parts)


def test_parts_wait_for_the_threat_model_that_sees_through_a_defence(report):
    assert list(parts_of(report, "plain", "white-box")) == ["pgd", "apgd-t", "fab", "square"]
    assert not parts_of(report, "plain", "adaptive")
    assert list(parts_of(report, "quantized", "white-box")) == ["pgd"]
    assert list(parts_of(report, "quantized", "adaptive")) == [
        "pgd", "own", "apgd-t", "fab", "square"
    ]  # fmt: skip
    for model in ("plain", "quantized"):
        white, adaptive = (
            report.robust_accuracy(model=model, threat_model=threat)
            for threat in ("white-box", "adaptive")
        )
        assert adaptive <= white


def test_white_box_alone_has_all_parts(models, labels):
    alone = evaluate_robustness(
        models["quantized"], IMAGES, labels, attacks={"all": small()},
        threat_models=["white-box"], **SETTINGS,
    )  # fmt: skip
    assert list(parts_of(alone, models["quantized"].name, "white-box")) == [
        "pgd", "apgd-t", "fab", "square"
    ]  # fmt: skip
    assert alone.evidence == "quick"  # a defence that nobody saw through


def test_costs_are_the_sums_of_the_parts(report):
    for result in report.results:
        if result.parts and result.threat_model != "adaptive":
            for cost in ("gradients", "queries"):
                total = sum(getattr(part, cost) for part in result.parts)
                np.testing.assert_array_equal(total, getattr(result, cost))


def test_what_stood_at_a_radius_is_spared_at_smaller_ones(models, labels):
    spared, made = (
        evaluate_robustness(
            models["plain"], IMAGES, labels, attacks={"all": small(skip_smaller=skip)},
            threat_models=["white-box"], **SETTINGS,
        )
        for skip in (True, False)
    )  # fmt: skip
    cost = [sum(r.results[0].gradients) for r in (spared, made)]
    assert cost[0] < cost[1]
    for epsilon in SETTINGS["epsilons"]:
        gap = spared.robust_accuracy(epsilon=epsilon) - made.robust_accuracy(epsilon=epsilon)
        assert abs(gap) <= 2 / len(IMAGES)


@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_what_is_tried_on_a_sample_first(models, labels, radius):
    """On the others where one of the sample falls, and then all that falls without a sample."""
    square = {"square": Square(queries=20)}
    sampled, whole = (
        evaluate_robustness(
            models["plain"], IMAGES, labels, attacks={"e": Ensemble(square, sampled=first, skip_smaller=True)},
            epsilons=[radius / 2, radius], threat_models=["white-box"], progress=False,
        )
        for first in ({"square": 4}, None)
    )  # fmt: skip
    parts = [parts_of(r, models["plain"].name, "white-box")["square"] for r in (sampled, whole)]
    assert parts[1].tried[1] == len(IMAGES)
    fell = parts[1].broken.any()
    assert fell == (radius == 0.2)
    if fell:
        np.testing.assert_array_equal(sampled.robust_images(), whole.robust_images())
        assert parts[0].tried.tolist() == parts[1].tried.tolist()
    else:
        # At the largest radius, and nowhere else.
        assert parts[0].tried.tolist() == [0, 4]


def test_a_sample_is_of_a_part():
    with pytest.raises(ValueError, match="`sampled` among them"):
        Ensemble({"pgd": PGD(steps=2)}, sampled={"square": 4})


@pytest.mark.once  # its parts are tested on every backend
def test_it_never_finds_less_than_one_of_its_parts_alone(models, labels):
    parts = {"pgd": PGD(steps=10, random_start=False), "fab": FAB(steps=20, targets=3)}
    for model in models.values():
        both = evaluate_robustness(
            model, IMAGES, labels, attacks={"both": Ensemble(parts, first=tuple(parts))}, **SETTINGS
        )
        for part in parts.values():
            alone = evaluate_robustness(model, IMAGES, labels, attacks=[part], **SETTINGS)
            for epsilon in SETTINGS["epsilons"]:
                assert both.robust_accuracy(epsilon=epsilon) <= alone.robust_accuracy(
                    epsilon=epsilon
                )


def test_a_part_that_fails_is_told_and_the_others_stand(models, labels):
    def broken(*_, **__):
        raise RuntimeError("no luck")

    ensemble = Ensemble(
        {"pgd": PGD(steps=5), "broken": attack_from(broken), "square": Square(queries=5)}
    )
    report = evaluate_robustness(
        models["plain"], IMAGES, labels, attacks={"e": ensemble}, threat_models=["white-box"],
        **SETTINGS,
    )  # fmt: skip
    parts = parts_of(report, models["plain"].name, "white-box")
    assert parts["broken"].failure == "RuntimeError: no luck"
    assert parts["square"].tried.any()
    assert any("broken, part of e, failed" in note for note in report.notes)
    assert "broken (failed)" in str(report)


def test_an_interrupted_ensemble_goes_on_in_the_middle(models, labels, tmp_path):
    """Killed within its third part, it repeats neither the first nor the second."""

    class Interrupted(BaseException):
        pass

    # A file and no variable, since an attack's code and values are the identity of a run.
    def stopping(_, x, *__, **___):
        if (tmp_path / "stop").exists():
            raise Interrupted
        return x

    def once(folder):
        last = attack_from(stopping, uses_gradients=False)
        ensemble = Ensemble({"pgd": PGD(steps=3), "apgd": APGD(steps=5), "last": last})
        return evaluate_robustness(
            models["plain"], IMAGES, labels, attacks={"e": ensemble}, resume_dir=folder,
            threat_models=["white-box"], **SETTINGS,
        )  # fmt: skip

    expected = once(tmp_path / "whole")
    folder = tmp_path / "run"
    (tmp_path / "stop").touch()
    with pytest.raises(Interrupted):
        once(folder)
    (partial,) = (folder / "units").glob("*-partial.json")
    (tmp_path / "stop").unlink()
    again = once(folder)
    assert not partial.exists()
    same = [without_clock(r)["results"][0] for r in (expected, again)]
    for content in same:
        for part in content["parts"]:
            part.pop("seconds")
    assert same[0]["distances"] == same[1]["distances"]
    assert same[0]["parts"] == same[1]["parts"]
    assert same[0]["gradients"] == same[1]["gradients"]


def test_a_report_keeps_its_parts(report, tmp_path):
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    assert str(again) == str(report)
    assert again.evidence == "standard"
    assert "Evidence: standard" in str(report)
    assert max(map(len, str(report).splitlines())) <= 80
    assert "images that each attack of all broke" in report.to_markdown()


def test_only_the_first_part_that_follows_gradients_is_transferred(models, labels):
    report = evaluate_robustness(
        {"quantized": models["quantized"]}, IMAGES, labels, attacks={"all": small()},
        threat_models=["black-box"], source_model={"plain": models["plain"]}, **SETTINGS,
    )  # fmt: skip
    transferred = [r for r in report.results if r.source == "plain"]
    assert [r.attack for r in transferred] == ["all"]
    assert report.robust_accuracy() < 1
    assert report.evidence == "quick"


class TestByName:
    def test_presets_follow_the_norms_of_the_epsilons(self):
        assert list(for_evaluation("quick")) == ["fgsm", "pgd"]
        assert list(for_evaluation("standard", ["l2", "linf"])) == ["standard-l2", "standard"]
        assert list(for_evaluation("strong", ["l1", "l0"])) == ["strong-l1"]
        with pytest.raises(ValueError, match="linf, l2, l1"):
            for_evaluation("standard", ["l0"])

    def test_autoattack_is_the_published_one(self):
        parts = get("autoattack").parts
        assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert (parts["apgd-ce"].steps, parts["apgd-ce"].loss) == (100, "ce")
        apgd_t = parts["apgd-t"]
        assert (apgd_t.steps, apgd_t.loss, apgd_t.targets, apgd_t.order) == (
            100, "dlr", 9, "logits"
        )  # fmt: skip
        assert (parts["fab-t"].steps, parts["fab-t"].targets) == (100, 9)
        assert parts["square"].queries == 5000
        assert not get("autoattack").skip_smaller

    def test_strong_contains_autoattack_and_the_standard_evaluation(self):
        for suffix in ("", "-l2"):
            strong, auto = get(f"strong{suffix}").parts, get(f"autoattack{suffix}").parts
            for name, part in auto.items():
                assert repr(strong[name]) == repr(part)
            assert set(get(f"standard{suffix}").parts) <= set(strong)

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize(
        # Strong takes minutes on JAX, and has the parts of the other two.
        "name",
        ["standard", pytest.param("strong", marks=pytest.mark.once), "autoattack"],
    )
    def test_all_run_on_a_small_network(self, name, norm, models, labels):
        if (name, norm) == ("autoattack", "l1"):
            pytest.skip("made for L-infinity and L2")
        attack = get(name if norm == "linf" else f"{name}-{norm}")
        for part in attack.parts.values():
            if hasattr(part, "steps"):
                part.steps = min(part.steps, 6)
            if hasattr(part, "queries"):
                part.queries = 10
            if getattr(part, "targets", None):
                part.targets = 2
        report = evaluate_robustness(
            models["quantized"], IMAGES[:8], labels[:8], attacks={name: attack},
            epsilons={norm: [{"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]]}, progress=False,
        )  # fmt: skip
        assert not report.failures
        assert not any(part.failure for r in report.results for part in r.parts)
        assert report.evidence == attack.evidence


def test_settings_are_checked():
    with pytest.raises(ValueError, match="one norm"):
        Ensemble({"a": PGD(steps=2), "b": PGD(steps=2, norm="l2")})
    with pytest.raises(ValueError, match="one norm"):
        Ensemble({"a": PGD(steps=2)}, first=["b"])
    with pytest.raises(ValueError, match="without an epsilon"):
        Ensemble({"a": PGD(0.3, steps=2)})
    with pytest.raises(ValueError, match="norm"):
        get("autoattack", norm="l1")


def test_alone_on_a_model(models, labels):
    attacked = AttackedModel(models["plain"])
    images = small().run(attacked, IMAGES, Goal(labels), epsilon=0.1, seed=0)
    assert np.abs(images - IMAGES).max() <= 0.1 + 1e-6
    pgd = PGD(0.1, steps=3)(models["plain"], IMAGES, labels)
    found = [attacked.is_adversarial(x, Goal(labels)).sum() for x in (images, pgd)]
    assert found[0] >= found[1]


class Noisy(keras.layers.Layer):
    """Adds noise in inference too."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), stddev=0.1, seed=self.generator)


@pytest.mark.once  # takes a minute on JAX, which compiles each part
def test_autoattack_for_random_models_averages_20_draws():
    model = keras.Sequential([keras.Input((8, 8, 1)), Noisy(), small_cnn(2)])
    labels = predicted(small_cnn(2), IMAGES)
    attack = get("autoattack-rand")
    for part in attack.parts.values():
        part.steps = 4
    report = evaluate_robustness(
        model, IMAGES, labels, attacks={"rand": attack}, epsilons=[0.1], progress=False
    )
    assert any("20 draws" in note for note in report.notes)
    assert list(parts_of(report, model.name, "white-box")) == ["apgd-ce", "apgd-dlr"]
    assert report.robust_accuracy() < report.clean_accuracy()
