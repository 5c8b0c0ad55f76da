"""Units in other processes; attacks that fail."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest
from helpers import FEATURES, IMAGES, X, Y, predicted, small_cnn, without_clock

from keras_qusec import QuSecQuantization, RobustnessReport, evaluate_robustness, progress
from keras_qusec.attacks import APGD, FGSM, PGD, Attack, AttackedModel, Ensemble, Goal, Square
from keras_qusec.evaluation import ensemble_parts, evaluate, threat_models, unit_progress
from keras_qusec.evaluation.plan import Plan, Unit

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class HalfNaN(Attack):
    """Returns NaN for every other image, and an adversarial example for the others."""

    norm, uses_gradients = "linf", True

    def run(self, model, x, goal, *, epsilon, seed):
        found = x + np.float32(0.3) * np.sign(model.ascent(x, goal))
        found[::2] = np.nan
        return found


class Reaching(Attack):
    """Goes as far as epsilon along the gradient; writes down how it was called."""

    norm, uses_gradients, is_random = "linf", True, True

    def __init__(self, restarts=1, works=True):
        self.restarts, self.works, self.calls = restarts, works, []

    def run(self, model, x, goal, *, epsilon, seed):
        self.calls.append((epsilon, len(x), seed))
        return x + np.float32(epsilon) * np.sign(model.ascent(x, goal)) * self.works


RADII = [0.02, 0.05, 0.1]


@pytest.mark.parametrize("skip_smaller", [True, False])
def test_what_fell_at_a_large_radius_is_attacked_at_smaller_ones(linear, skip_smaller):
    """What stood is not, where an ensemble says so; the figures are those of each radius alone."""
    attack = Reaching()
    report = evaluate_robustness(
        linear, X, Y, attacks={"all": Ensemble({"one": attack}, skip_smaller=skip_smaller)},
        epsilons=RADII, threat_models=["white-box"], progress=False,
    )  # fmt: skip
    for radius in RADII:
        alone = evaluate_robustness(
            linear, X, Y, attacks={"one": Reaching()}, epsilons=[radius],
            threat_models=["white-box"], progress=False,
        )  # fmt: skip
        assert report.robust_accuracy(epsilon=radius) == alone.robust_accuracy()
    (part,) = report.results[0].parts
    fell = [round(60 * (1 - report.robust_accuracy(epsilon=radius))) for radius in RADII]
    assert 0 < fell[0] < fell[1] < fell[2] < 60
    if skip_smaller:  # the largest first
        assert part.tried.tolist() == [fell[1], fell[2], 60]
        assert part.broken.tolist() == fell
    else:
        assert part.tried.tolist() == [60, 60 - fell[0], 60 - fell[1]]
        assert part.broken.tolist() == [fell[0], fell[1] - fell[0], fell[2] - fell[1]]


@pytest.mark.parametrize("as_part", [False, True])
def test_each_restart_and_each_radius_has_a_seed_of_its_own(linear, as_part):
    attack = Reaching(restarts=4, works=False)
    given = Ensemble({"one": attack}, skip_smaller=False) if as_part else attack
    settings = {"epsilons": RADII, "threat_models": ["white-box"], "progress": False}
    evaluate_robustness(linear, X, Y, attacks={"all": given}, **settings)
    assert len(attack.calls) == 12
    assert len({seed for _, _, seed in attack.calls}) == 12


def test_restarts_of_an_attack_alone_start_elsewhere(linear):
    once, again = (PGD(0.01, steps=1, restarts=n)(linear, X, Y, seed=0) for n in (1, 2))
    robust = predicted(linear, once) == Y
    moved = np.abs(once - again).reshape(60, -1).max(axis=1) > 0
    assert robust.sum() > 20
    assert moved[robust].all()


class Kept:
    """Unfinished work, in memory."""

    def __init__(self):
        self.saved = []

    def load(self, key):
        return None

    def save(self, key, results):
        self.saved.append([result.threat_model for result in results])

    def remove(self, key):
        pass


def test_a_partial_save_has_all_threat_models_so_far():
    """So that a resumed run does not attack under an earlier one again."""
    model = small_cnn(quantizer=QuSecQuantization(2))
    attack = Ensemble({"pgd": PGD(steps=2), "square": Square(queries=5)}, first=("pgd",))
    attacked = AttackedModel(model)
    plan = Plan(
        attacks={"all": attack}, radii={"all": (0.05, 0.1)},
        threat_models=tuple(map(threat_models.get, ("white-box", "adaptive"))),
        hardnesses=(3.0,), value_range=(0.0, 1.0), x=IMAGES, goal=Goal(predicted(model, IMAGES)),
        correct={"m": np.ones(len(IMAGES), bool)}, batch_size=24, seed=0,
    )  # fmt: skip
    kept = Kept()
    unit = Unit("all", ("m",), None, 0)
    results = ensemble_parts.attack_with_parts(unit, plan, attacked, kept, lambda text, share: None)
    assert [result.threat_model for result in results] == ["white-box", "adaptive"]
    assert kept.saved[0] == ["white-box"]
    assert kept.saved[-1] == ["white-box", "adaptive"]


def test_examples_belong_to_their_images(cnn):
    """Also those of later batches."""
    y = predicted(cnn, IMAGES)
    report = evaluate_robustness(
        cnn,
        IMAGES,
        y,
        attacks=["pgd"],
        epsilons=[0.1],
        batch_size=5,
        progress=False,
        threat_models=["white-box"],
    )
    (result,) = report.results
    assert max(result.examples) >= 20
    for index, image in result.examples.items():
        assert 0 < np.abs(image - IMAGES[index]).max() <= 0.1 + 1e-6
    for example in report.gallery:
        np.testing.assert_array_equal(example.images[0], IMAGES[example.number])
        assert example.distances["linf"] <= 0.1 + 1e-6
        assert example.label == y[example.number]


@pytest.mark.parametrize("as_part", [False, True])
def test_images_with_nan_are_failures_with_a_note(linear, tmp_path, as_part):
    """Whatever an attack returns: the others' examples count, and the note survives a resume."""
    attack = Ensemble({"half": HalfNaN()}) if as_part else HalfNaN()
    settings = {"attacks": {"half-nan": attack}, "epsilons": [0.3], "threat_models": ["white-box"]}
    plain = evaluate_robustness(linear, X, Y, progress=False, **settings)
    broken = ~plain.robust_images()
    assert not broken[::2].any()
    assert broken[1::2].any()
    for report in (plain, *(evaluate_robustness(linear, X, Y, progress=False, **settings,
                                                resume_dir=tmp_path) for _ in range(2))):  # fmt: skip
        (note,) = [note for note in report.notes if "NaN" in note]
        assert "returned images with NaN or infinity 30 times" in note
        assert "count as failures" in note
        path = report.save(tmp_path / "report.json")
        assert RobustnessReport.load(path).results[0].unusable == 30


class TestJobs:
    @pytest.mark.once
    def test_two_processes_give_the_same_report(self, cnn, tmp_path):
        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["fgsm", ("pgd", {"steps": 4})], "epsilons": [0.02, 0.05]}
        one = evaluate_robustness(cnn, IMAGES, y, batch_size=12, **settings)
        two = evaluate_robustness(
            cnn, IMAGES, y, batch_size=12, n_jobs=2, resume_dir=tmp_path, **settings
        )
        assert without_clock(one)["rows"] == without_clock(two)["rows"]
        assert len(list(tmp_path.glob("units/*.json"))) == 4

    @pytest.mark.once
    def test_an_ensemble_in_two_processes(self, cnn):
        y = predicted(cnn, IMAGES)
        parts = {"pgd": PGD(steps=3), "apgd": APGD(steps=5), "square": Square(queries=20)}
        settings = {"attacks": {"all": Ensemble(parts)}, "epsilons": [0.02, 0.05]}
        one, two = (
            evaluate_robustness(cnn, IMAGES, y, batch_size=12, n_jobs=jobs, **settings)
            for jobs in (1, 2)
        )
        assert without_clock(one)["rows"] == without_clock(two)["rows"]
        broken = [[part.broken.tolist() for part in r.results[0].parts] for r in (one, two)]
        assert broken[0] == broken[1]

    @pytest.mark.slow  # two processes are tested beside it
    @pytest.mark.once
    def test_a_dask_cluster_of_two_workers(self, cnn):
        distributed = pytest.importorskip("distributed", reason='needs the extra "dask"')
        import joblib

        y = predicted(cnn, IMAGES)
        settings = {"attacks": ["fgsm", ("pgd", {"steps": 4})], "epsilons": [0.02, 0.05]}
        one = evaluate_robustness(cnn, IMAGES, y, batch_size=6, **settings)
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        )
        with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
            two = evaluate_robustness(cnn, IMAGES, y, batch_size=6, **settings)
        assert without_clock(one)["rows"] == without_clock(two)["rows"]

    def test_a_model_that_cannot_be_sent(self, linear):
        class Odd(keras.Model):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def call(self, x, training=False):
                return self.inner(x, training=training)

        model = Odd(linear)
        model(X[:1])
        settings = {"attacks": ["fgsm"], "outputs": "logits"}
        assert evaluate_robustness(model, X, Y, **settings).clean_accuracy() == 1.0
        with pytest.raises(ValueError, match="n_jobs=1"):
            evaluate_robustness(model, X, Y, n_jobs=2, **settings)


def slow(seconds):
    class Slow(FGSM):
        def run(self, *arguments, **settings):
            time.sleep(seconds)
            return super().run(*arguments, **settings)

        def on_batch(self, model, x, goal):
            search = super().on_batch(model, x, goal)

            def later(*arguments):
                time.sleep(seconds)
                return search(*arguments)

            return later

    return Slow()


def test_a_time_limit_leaves_images_out_and_says_so(tmp_path, linear):
    generator = np.random.default_rng(1)
    x = generator.uniform(0, 1, (40, FEATURES)).astype("float32")
    y = linear.predict(x, verbose=0).argmax(axis=1)
    settings = {
        "attacks": {"slow": slow(0.2), "fgsm": "fgsm"}, "epsilons": [0.05], "batch_size": 4,
        "threat_models": ["white-box"], "image_names": [f"{i}.png" for i in range(40)],
    }  # fmt: skip
    whole = evaluate_robustness(linear, x, y, **settings)
    part = evaluate_robustness(linear, x, y, time_limit=1.2, resume_dir=tmp_path, **settings)
    done = part.provenance["identity"]["images"]
    assert 4 <= done < 40
    assert done % 4 == 0
    assert any(f"{done} of 40 images were attacked" in note for note in part.notes)
    np.testing.assert_array_equal(
        part.robust_images(epsilon=0.05), whole.robust_images(epsilon=0.05)[:done]
    )
    assert part.provenance["image names"] == settings["image_names"][:done]
    assert part.provenance["labels"] == y[:done].tolist()
    assert len(part.images(epsilon=0.05)) == done
    assert RobustnessReport.load(part.save(tmp_path / "part.json")).notes == part.notes
    on = evaluate_robustness(linear, x, y, time_limit=60, resume_dir=tmp_path, **settings)
    np.testing.assert_array_equal(on.robust_images(epsilon=0.05), whole.robust_images(epsilon=0.05))
    assert not any("time limit" in note for note in on.notes)
    first = evaluate_robustness(linear, x, y, time_limit=1e-3, **settings)
    assert first.provenance["identity"]["images"] == 4
    with pytest.raises(ValueError, match="time_limit or prove"):
        evaluate_robustness(linear, x, y, time_limit=1, prove="bounds", **settings)
    with pytest.raises(ValueError, match="time_limit"):
        evaluate_robustness(linear, x, y, time_limit=0, **settings)


def test_a_long_run_is_announced(cnn, monkeypatch, capsys):
    y = predicted(cnn, IMAGES)
    settings = {"attacks": "standard", "epsilons": [0.01], "batch_size": 12}
    told = []

    def tell(text, share):
        told.append((text, share))

    evaluate_robustness(cnn, IMAGES, y, progress=tell, **settings)
    assert not any("if few are broken" in text for text, _ in told)
    monkeypatch.setattr(unit_progress, "_WORTH_A_FORECAST", 0)
    monkeypatch.setattr(evaluate, "_LONG", 0)
    told.clear()
    evaluate_robustness(cnn, IMAGES, y, progress=tell, **settings)
    forecasts = [(text, share) for text, share in told if "if few are broken" in text]
    assert len(forecasts) == 1
    assert forecasts[0][0].startswith(f"Attacks on {len(IMAGES)} images: about 10 s")
    assert forecasts[0][1] == 0
    evaluate_robustness(cnn, IMAGES, y, progress=False, **settings)
    assert "if few are broken" not in capsys.readouterr().err
    evaluate_robustness(cnn, IMAGES, y, **settings)
    assert "if few are broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "10 s"), (87, "90 s"), (200, "3 min"), (9000, "2.5 h")]
)
def test_durations(seconds, words):
    assert progress.duration(seconds) == words
