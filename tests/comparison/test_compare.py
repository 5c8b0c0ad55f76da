"""Defences side by side: units that are kept, the table, the command line."""

from __future__ import annotations

from collections import Counter

import browser
import keras
import numpy as np
import pytest
from digit_networks import small_network, trained

import keras_qusec_cli as cli
from keras_qusec import QuSecQuantization, comparison, datasets

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

# How often a contender of this test was trained; what a function closes over is part of its code.
MADE: Counter = Counter()
SETTINGS = {"images": 16, "epochs": 1, "epsilons": (0.1, 0.3), "attacks": ["fgsm"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of few images, which compare loads by its path."""
    all_images = datasets.mnist5k()
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(
        path, x_train=all_images.x_train[:256], y_train=all_images.y_train[:256],
        x_test=all_images.x_test[:32], y_test=all_images.y_test[:32],
    )  # fmt: skip
    return path


@pytest.fixture
def small():
    """Contenders of this test's own, small and quick; how often each was trained is counted."""
    MADE.clear()

    def make(name, *front):
        def trained_once(training):
            MADE[name] += 1
            return trained(small_network(*front), training.data, images=256, epochs=1)

        return trained_once

    comparison.register("small", make("small"), settings="a small network")
    comparison.register("small-quantized", make("small-quantized", QuSecQuantization(2)))
    yield MADE
    for name in ("small", "small-quantized"):
        comparison.unregister(name)


@pytest.mark.once
def test_images_that_come_class_by_class_are_a_fair_sample(tmp_path):
    """The first of them would be of one class: 16 of 16 are right for a model that says 0."""
    images = np.random.default_rng(0).random((80, 28, 28, 1)).astype("float32")
    labels = np.repeat(np.arange(10), 8)
    np.savez(tmp_path / "sorted.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    def always_0(_):
        model = small_network()
        *others, bias = model.get_weights()
        bias[0] = 1e3
        model.set_weights([*(0 * w for w in others), bias])
        return model

    comparison.register("always-0", always_0)
    try:
        found = comparison.compare(tmp_path / "sorted.npz", ["always-0"], **SETTINGS)
    finally:
        comparison.unregister("always-0")
    report = found.measured[0].report
    assert report.clean_accuracy() == 2 / 16
    assert "16 of 80 test images" in " ".join(str(found).split())


@pytest.mark.once
def test_finished_work_is_kept_and_one_more_trains_alone(data, small, tmp_path):
    first = comparison.compare(data, ["small"], folder=tmp_path / "run", **SETTINGS)
    again = comparison.compare(data, ["small"], folder=tmp_path / "run", **SETTINGS)
    assert small == {"small": 1}
    assert again.measured[0].training_seconds == first.measured[0].training_seconds
    accuracies = [c.measured[0].report.robust_accuracy() for c in (first, again)]
    assert accuracies[0] == accuracies[1]
    both = comparison.compare(
        data, ["small", "small-quantized"], folder=tmp_path / "run", **SETTINGS
    )
    assert small == {"small": 1, "small-quantized": 1}
    lines = str(both).splitlines()
    assert max(map(len, lines)) <= 80
    assert "small-quantized" in both.to_markdown()
    report = both.report()
    assert report.models == ("small", "small-quantized")
    assert report.robust_accuracy(model="small") == accuracies[0]
    page = both.to_html(tmp_path / "page.html").read_text()
    browser.check(tmp_path / "page.html")
    assert "Accuracy in % at epsilon 0.3" in page
    assert "Every attack on small-quantized" in page
    rows = [cells for table in both.tables() for cells in table.rows]
    worst = [float(cells[1]) for cells in rows]
    assert all(w <= min(map(float, cells[4:7])) for w, cells in zip(worst, rows, strict=True))
    with pytest.raises(ValueError, match="differs in epochs"):
        comparison.compare(data, ["small"], folder=tmp_path / "run", **{**SETTINGS, "epochs": 2})


@pytest.mark.once
def test_what_is_proved_has_a_column(data):
    """Of defences behind hard steps alone; a soft one has a dash."""

    def hard(training):
        front = QuSecQuantization(2, hard=True)
        return trained(small_network(front), training.data, images=256, epochs=1)

    comparison.register("hard", hard)
    comparison.register("soft", lambda t: small_network(QuSecQuantization(2)))
    try:
        found = comparison.compare(
            data, ["hard", "soft"], prove="standard", **{**SETTINGS, "epsilons": (0.1,)}
        )
        with pytest.raises(ValueError, match="prove to be one of"):
            comparison.compare(data, ["hard"], prove="all", **SETTINGS)
    finally:
        comparison.unregister("hard")
        comparison.unregister("soft")
    (table,) = found.tables()
    place = table.columns.index("proved")
    assert table.columns[1] == "worst"
    (first, second) = table.rows
    assert second[place] == "-"
    # A search decides so small a network, and the decision is exact.
    assert float(first[place]) == float(first[1]) > 0
    assert "Proved is the share" in str(found)
    assert max(map(len, str(found).splitlines())) <= 80


@pytest.mark.once
@pytest.mark.usefixtures("small")
def test_a_damaged_file_says_what_it_is(data, tmp_path):
    settings = {**SETTINGS, "images": 4, "epsilons": (0.1,)}
    comparison.compare(data, ["small"], folder=tmp_path / "run", **settings)
    description = tmp_path / "run" / "small.json"
    for content, message in (("{", "small.json .*Check the path"), ("{}", "has other content")):
        description.write_text(content)
        with pytest.raises(ValueError, match=f"description of a trained network.*{message}"):
            comparison.compare(data, ["small"], folder=tmp_path / "run", **settings)


# The defences have tests of their own on each backend, so elsewhere one is enough.
SAMPLE = ["constant", "ape-gan"]
ALL = [
    name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow)
    for name in comparison.names()
]


@pytest.mark.parametrize("name", ALL if keras.backend.backend() == "tensorflow" else ["constant"])
def test_each_contender_trains_saves_and_can_be_attacked(data, name):
    result = comparison.compare(data, [name], **{**SETTINGS, "images": 4, "epsilons": (0.3,)})
    (measured,) = result.measured
    assert not measured.report.failures
    assert measured.parameters > 100_000
    assert measured.settings


# Processes are started by the same function as those of an evaluation.
@pytest.mark.slow
def test_two_processes(data, tmp_path):
    names = ["undefended", "constant"]
    one = comparison.compare(data, names, **SETTINGS)
    two = comparison.compare(data, names, n_jobs=2, folder=tmp_path / "run", **SETTINGS)
    assert [m.name for m in two.measured] == names
    for a, b in zip(one.measured, two.measured, strict=True):
        assert a.report.clean_accuracy() == pytest.approx(b.report.clean_accuracy(), abs=0.13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defenses": ["squeeze"]}, "Did you mean 'squeezing'"),
        ({"defenses": []}, "each once"),
        ({"defenses": ["constant", "constant"]}, "each once"),
        ({"images": 0}, "images"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"data": "imagenet"}, "mnist5k"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        comparison.compare(**{"data": "mnist5k", **change})
    with pytest.raises(ValueError, match="lower case"):
        comparison.register("Mine", lambda training: training)


def test_command_line(data, small, tmp_path, capsys):
    words = ["compare", "--data", str(data), "--defenses", "small", "--images", "8", "--epochs", "1",
             "--epsilons", "0.1", "77/255", "--attacks", "fgsm", "--html", str(tmp_path / "c.html"),
             "--markdown", str(tmp_path / "c.md")]  # fmt: skip
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "Accuracy in % at epsilon 0.301961" in out
    assert (tmp_path / "c.html").stat().st_size > 10_000
    assert "| small |" in (tmp_path / "c.md").read_text()
    assert small["small"] == 1
    assert cli.main(["compare", "--defenses", "smal"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert cli.main(["compare", "--defenses", "small", "--threat-models", "white"]) == 2
    assert "Did you mean 'white-box'" in capsys.readouterr().err
    assert cli.main([*words, "--threat-models", "white-box"]) == 0
    head, _ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("defence")]
    assert head.split()[1:6] == ["worst", "95", "%", "clean", "white"]
