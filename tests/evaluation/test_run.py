"""Units in other processes; attacks that fail."""

from __future__ import annotations

import keras
import pytest
from helpers import IMAGES, X, Y, predicted, without_clock

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import APGD, PGD, Ensemble, Square

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


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
