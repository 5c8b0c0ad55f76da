"""Units in other processes; attacks that fail."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import IMAGES, X, Y, predicted, without_clock

from keras_qusec import RobustnessReport, evaluate_robustness
from keras_qusec.attacks import APGD, PGD, Attack, Ensemble, Square

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class HalfNaN(Attack):
    """Returns NaN for every other image, and an adversarial example for the others."""

    norm, uses_gradients = "linf", True

    def run(self, model, x, goal, *, epsilon, seed):
        found = x + np.float32(0.3) * np.sign(model.ascent(x, goal))
        found[::2] = np.nan
        return found


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
        assert len(list(tmp_path.glob("units/*.npz"))) == 4

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
