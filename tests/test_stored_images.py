"""Images on disk: the same reports as from memory, a few rows at a time, and nothing left over."""

from __future__ import annotations

import functools
import gc
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import BACKEND

from keras_qusec import (
    QuSecQuantization,
    audit_robustness,
    certify_robustness,
    datasets,
    evaluate_robustness,
    parallel,
    stored_images,
)
from keras_qusec.audit import audit, distances, evidence, random_outputs, transfer
from keras_qusec.certification import certify
from keras_qusec.digests import digest
from keras_qusec.stored_images import StoredImages, Writer

RNG = np.random.default_rng(0)
X = RNG.random((40, 6, 6, 1), dtype="float32")
Y = RNG.integers(0, 3, 40)


def network(channels_first=False):
    keras.utils.set_random_seed(0)
    shape = (1, 6, 6) if channels_first else (6, 6, 1)
    return keras.Sequential(
        [keras.Input(shape), QuSecQuantization(2, hard=True), keras.layers.Flatten(),
         keras.layers.Dense(3)]
    )  # fmt: skip


class Batches(keras.utils.PyDataset):
    def __init__(self, x=X):
        super().__init__()
        self.x = x

    def __len__(self):
        return 5

    def __getitem__(self, place):
        rows = slice(8 * place, 8 * place + 8)
        return self.x[rows], Y[rows]


def mapped(x, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, x)
    return np.load(path, mmap_mode="r")


@pytest.fixture
def reads(monkeypatch):
    """How many rows were read at a time, and that nobody asked for all of them."""
    found = []
    read = StoredImages.__getitem__

    def counted(self, rows):
        part = read(self, rows)
        if self._before is None and not isinstance(rows, (int, np.integer)):
            found.append(len(part))
        return part

    def refuse(*_):
        raise AssertionError("all images were read into memory")

    monkeypatch.setattr(StoredImages, "__getitem__", counted)
    monkeypatch.setattr(StoredImages, "__array__", refuse)
    monkeypatch.setattr(stored_images, "_AT_A_TIME", 8 * 36)
    monkeypatch.setattr(datasets, "_IN_MEMORY", 10 * 36 * 4)
    return found


def evaluated(model, x, y=None, **settings):
    return evaluate_robustness(
        model, x, y, attacks="quick", epsilons=[0.05, 0.2], batch_size=8, **settings
    )


def make_generator():
    return ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8))


@pytest.mark.parametrize("form", ["memory map", "PyDataset", "generator"])
def test_reports_are_those_of_images_in_memory(form, reads, tmp_path):
    given = {
        "memory map": lambda: (mapped(X, tmp_path), Y),
        "PyDataset": lambda: (Batches(),),
        "generator": lambda: (make_generator(),),
    }[form]()
    model = network()
    expected = evaluated(model, X, Y)
    assert not reads
    report = evaluated(model, *given)
    assert max(reads) == 8
    for epsilon in (0.05, 0.2):
        assert report.robust_accuracy(epsilon=epsilon) == expected.robust_accuracy(epsilon=epsilon)
        np.testing.assert_array_equal(
            report.robust_images(epsilon=epsilon), expected.robust_images(epsilon=epsilon)
        )
    assert report.provenance["identity"] == expected.provenance["identity"]
    assert [e.number for e in report.gallery] == [e.number for e in expected.gallery]
    proof = certify_robustness(model, *given[:1] if form != "generator" else (make_generator(),),
                               *given[1:], epsilons=[0.05], effort="bounds")  # fmt: skip
    plain = certify_robustness(model, X, Y, epsilons=[0.05], effort="bounds")
    np.testing.assert_array_equal(proof.status(epsilon=0.05), plain.status(epsilon=0.05))
    if form == "memory map":
        report, expected = (evaluated(model, x, Y, prove="exact") for x in (given[0], X))
        assert report.bracket(epsilon=0.2) == expected.bracket(epsilon=0.2)


@pytest.mark.slow
def test_an_audit_says_the_same_of_images_on_disk(reads, tmp_path, monkeypatch):
    monkeypatch.setattr(
        audit, "evaluate_robustness", functools.partial(evaluate_robustness, batch_size=20)
    )
    for module in (audit, random_outputs):
        monkeypatch.setattr(module, "CALLED", 20)
    monkeypatch.setattr(distances, "_MOST", 20)
    monkeypatch.setattr(certify, "_VALUES_AT_A_TIME", 1)
    monkeypatch.setattr(transfer, "_TRAINED_ON", 20 * 10 * 36)
    few = evidence.BUDGETS["full"]._replace(
        steps=10, restarts=1, queries=20, noise=5, minimum_norm_steps=10, looked_at=8, planted=4,
        standard=False,
    )  # fmt: skip
    monkeypatch.setitem(evidence.BUDGETS, "full", few)
    model = network()
    y = model.predict(X, verbose=0).argmax(axis=1)
    settings = {"epsilon": 0.1, "level": "full", "threat_models": ("white-box", "adaptive")}
    expected = audit_robustness(model, X, y, **settings)
    assert not reads
    found = audit_robustness(model, mapped(X, tmp_path), y, **settings)
    assert max(reads) == 20
    assert found.verdict == expected.verdict
    assert [c.finding for c in found.checks] == [c.finding for c in expected.checks]
    found.plot(tmp_path / "audit.png")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow on a CPU wants channels last")
@pytest.mark.usefixtures("reads")
def test_channels_first(tmp_path):
    model = network(channels_first=True)
    moved = np.moveaxis(X, -1, 1).copy()
    settings = {"attacks": "quick", "epsilons": [0.1], "data_format": "channels_first"}
    expected = evaluate_robustness(model, moved, Y, **settings)
    report = evaluate_robustness(model, mapped(moved, tmp_path), Y, **settings)
    assert report.robust_accuracy(epsilon=0.1) == expected.robust_accuracy(epsilon=0.1)


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "finite images"), (1.5, "inside value_range")]
)
@pytest.mark.usefixtures("reads")
def test_a_bad_value_at_the_end_is_found(value, message, tmp_path):
    bad = X.copy()
    bad[-1, 0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        evaluated(network(), mapped(bad, tmp_path), Y)
    dark = np.full_like(X, 0.5)
    with pytest.raises(ValueError, match="less than a hundredth"):
        evaluated(network(), mapped(dark + 1e-4 * X, tmp_path), Y)


def test_rows_of_a_memory_map_that_is_a_part_are_read_by_numpy(tmp_path):
    part = mapped(X, tmp_path)[8:]
    assert StoredImages.of(part) is None
    x, _ = datasets.images_and_labels(part, Y[8:])
    np.testing.assert_array_equal(np.asarray(x), X[8:])


def test_rows_numbers_and_all(tmp_path):
    stored = StoredImages.of(mapped(X, tmp_path))
    assert stored is not None
    assert (len(stored), stored.shape, stored.ndim, stored.size) == (40, X.shape, 4, X.size)
    np.testing.assert_array_equal(stored[3], X[3])
    np.testing.assert_array_equal(stored[-1], X[-1])
    np.testing.assert_array_equal(stored[np.array([5, 1])], X[[5, 1]])
    np.testing.assert_array_equal(np.asarray(stored), X)
    doubled = stored.changed(lambda part: 2 * part)
    np.testing.assert_array_equal(doubled[2:4], 2 * X[2:4])
    np.testing.assert_array_equal(np.asarray(doubled.changed(np.negative)), -2 * X)
    some = doubled.taken(np.array([7, 3, 30]))
    assert some.shape == (3, 6, 6, 1)
    np.testing.assert_array_equal(some[1:], 2 * X[[3, 30]])
    np.testing.assert_array_equal(some.changed(np.negative)[0], -2 * X[7])
    assert digest(stored) == digest(X) == digest(X.tobytes())


def test_small_data_sets_stay_in_memory_and_temporary_files_go():
    x, y = datasets.images_and_labels(Batches())
    assert isinstance(x, np.ndarray)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    writer = Writer()
    writer.add(X[:8])
    images = writer.images()
    path = Path(images._path)
    changed = images.changed(np.negative)
    del writer, images
    gc.collect()
    assert path.exists()
    np.testing.assert_array_equal(changed[:2], -X[:2])
    del changed
    gc.collect()
    assert not path.exists()
    unused = Writer()
    path = Path(unused._file.name)
    del unused
    gc.collect()
    assert not path.exists()


def test_batches_of_other_shapes_are_refused():
    writer = Writer()
    writer.add(X[:2])
    with pytest.raises(ValueError, match="one shape and dtype"):
        writer.add(X[:2, :5])


def test_other_processes_get_a_part_of_the_images(monkeypatch):
    sizes = []

    def called(function, calls, _):
        for arguments in calls:
            sizes.append(len(pickle.dumps(arguments[1])))
            yield function(*arguments)

    monkeypatch.setattr(parallel, "called", called)
    x = np.repeat(np.repeat(X, 8, axis=1), 8, axis=2)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((48, 48, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    evaluate_robustness(
        model, x, Y, attacks=["fgsm"], epsilons=[0.1], threat_models=["white-box"], batch_size=8,
        n_jobs=2,
    )  # fmt: skip
    assert len(sizes) == 5
    assert max(sizes) < x.nbytes / 5 + 20_000


def test_examples_of_few_batches_are_kept():
    model = network()
    weights = model.layers[-1].get_weights()
    model.layers[-1].set_weights([50 * weights[0], weights[1]])
    x = RNG.random((120, 6, 6, 1), dtype="float32")
    y = model.predict(x, verbose=0).argmax(axis=1)
    report = evaluate_robustness(model, x, y, attacks=["pgd"], epsilons=[0.3], batch_size=4)
    whole = evaluate_robustness(model, x, y, attacks=["pgd"], epsilons=[0.3], batch_size=120)
    assert report.robust_accuracy(epsilon=0.3) < 0.5
    kept = [len(result.examples) for result in report.results]
    assert max(kept) <= 8 * 3
    assert len(report.gallery) == 4
    assert len(whole.gallery) >= 3
