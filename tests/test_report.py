"""RobustnessReport on results made by hand, its files, and the command line."""

from __future__ import annotations

import html.parser
import json

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, RobustnessReport, cli, datasets, evaluate_robustness
from keras_qusec.evaluation.report import Result, wilson_interval

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

INF = np.inf


def result(model, attack, threat_model, linf, l2, source=None, radii=(0.1, 0.2)):
    linf, l2 = np.array(linf), np.array(l2)
    count = len(radii)
    return Result(
        model, source, threat_model, attack, radii,
        np.stack([np.where(np.isfinite(linf), 3.0, INF), l2, linf], 1).astype("float32"),
        np.full(count, 40), np.full(count, 60), np.full(count, 1.5), {},
    )  # fmt: skip


@pytest.fixture
def report():
    """Four images, the last misclassified; PGD and CW break different ones."""
    results = [
        result("m", "pgd", "white-box", [0.1, 0.2, INF, INF], [0.5, 0.9, INF, INF]),
        result("m", "pgd", "adaptive", [0.1, 0.1, INF, INF], [0.5, 0.7, INF, INF]),
        result("m", "cw", "white-box", [0.9, 0.9, 0.15, 0.1], [0.3, 0.4, 0.2, 0.1], radii=(None,)),
        result("m", "pgd", "black-box", [0.2, INF, INF, INF], [0.5, INF, INF, INF], "s"),
    ]
    identity = {
        "images": 4, "data": "d", "seed": 0, "value range": [0.0, 1.0],
        "surrogate hardnesses": [3.0], "attacks": {"pgd": "PGD", "cw": "CW"},
        "versions": {"keras": "3"}, "backend": "b", "models": {"m": "1"}, "sources": {"s": "2"},
    }  # fmt: skip
    return RobustnessReport(
        correct={"m": np.array([True, True, True, False])},
        results=results,
        epsilons={"linf": (0.1, 0.2)},
        norms={"pgd": "linf", "cw": "l2"},
        provenance={
            "identity": identity, "goal": "untargeted", "python": "3", "platform": "p",
        },
    )  # fmt: skip


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
            ({"epsilon": 0.15}, 0.0),
            ({"epsilon": 0.05}, 0.75),
            ({"attack": "pgd"}, 0.25),
            ({"attack": "pgd", "epsilon": 0.1}, 0.25),
            ({"attack": "pgd", "epsilon": 0.1, "threat_model": "white-box"}, 0.5),
            ({"attack": "pgd", "threat_model": "black-box"}, 0.5),
            ({"attack": "pgd", "threat_model": "black-box", "source": "s"}, 0.5),
            ({"attack": "cw"}, 0.0),  # at any distance
            ({"attack": "cw", "epsilon": 0.2}, 0.5),  # within L-infinity 0.2
            ({"attack": "cw", "epsilon": 0.3, "norm": "l2"}, 0.25),
            ({"norm": "l2", "epsilon": 0.25}, 0.5),
            ({"threat_model": "white-box", "epsilon": 0.2}, 0.0),
        ],
    )
    def test_robust_accuracy(self, report, question, share):
        assert report.robust_accuracy(**question) == pytest.approx(share)

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
            ({"norm": "l1"}, "norm"),
            ({"epsilon": -1.0}, "0 or more"),
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


@pytest.fixture(scope="module")
def measured():
    """A real report of two small models on images of a data set."""
    data = datasets.mnist5k()
    models = {}
    for name, first in {"plain": [], "quantized": [QuSecQuantization(2)]}.items():
        model = keras.Sequential(
            [keras.Input((28, 28, 1)), *first, keras.layers.Flatten(), keras.layers.Dense(10)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(data.x_train[:1000], data.y_train[:1000], epochs=3, verbose=0)
        models[name] = model
    report = evaluate_robustness(
        models, data.x_test[:30], data.y_test[:30], attacks=["fgsm", "deepfool", "jsma-paper"],
        epsilons={"linf": [0.05, 0.1, 0.2, 0.3, 0.4], "l2": [0.5, 1.0]},
        threat_models=["white-box", "adaptive", "black-box"], source_model=models,
    )  # fmt: skip
    return models, report


class TestFiles:
    def test_json_round_trip(self, measured, tmp_path):
        _, report = measured
        path = report.save(tmp_path / "new" / "report.json")
        again = RobustnessReport.load(path)
        assert again.to_dict() == report.to_dict()
        assert str(again) == str(report)
        assert again.rows == report.rows
        for one, two in zip(again.gallery, report.gallery, strict=True):
            np.testing.assert_array_equal(one.images, two.images)
        plain = json.loads(path.read_text())
        assert plain["rows"][0]["robust_accuracy"] == report.rows[0].robust_accuracy

    def test_foreign_and_damaged_files(self, measured, tmp_path):
        _, report = measured
        path = tmp_path / "report.json"
        for content, message in [
            ("{", "Check the path"),
            ("[]", "another kind"),
            ('{"format": "x"}', "another kind"),
            (json.dumps({**report.to_dict(), "version": 99}), "version 99"),
            (json.dumps({**report.to_dict(), "correct": {"m": "AAAA"}}), "damaged"),
            (json.dumps({**report.to_dict(), "results": [{}]}), "damaged"),
        ]:
            path.write_text(content)
            with pytest.raises(ValueError, match=message):
                RobustnessReport.load(path)
        with pytest.raises(ValueError, match="Check the path"):
            RobustnessReport.load(tmp_path / "absent.json")

    def test_text_fits_a_terminal(self, measured):
        text = str(measured[1])
        assert max(map(len, text.splitlines())) <= 80
        first = text.splitlines()
        assert "worst case" in first[0]
        assert any(line.startswith("worst case") for line in first)

    def test_many_epsilons_and_long_names_fit_too(self, report):
        report.epsilons = {"linf": tuple(float(e) for e in np.linspace(0.01, 0.5, 17))}
        report.correct = {"m" * 90: report.correct["m"]}
        report.provenance["identity"]["models"] = {"m" * 90: "1"}
        report.results = [r._replace(model="m" * 90, source=r.source and "s" * 90)
                          for r in report.results]  # fmt: skip
        assert max(map(len, str(report).splitlines())) <= 80
        assert "0.5 " in str(report)

    def test_markdown(self, measured):
        lines = measured[1].to_markdown().splitlines()
        heads = [line for line in lines if line.startswith(("| model", "| attack"))]
        assert len(heads) == 2 + 2 * 3  # two norms; each model: two norms and any distance
        tables = [line.count("|") for line in lines if line.startswith("|")]
        assert min(tables) >= 4

    def test_pandas(self, measured):
        pandas = pytest.importorskip("pandas")
        frame = measured[1].to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame) == len(measured[1].rows)
        assert frame["robust_accuracy"].between(0, 1).all()

    def test_figures(self, measured, tmp_path):
        _, report = measured
        for path in (
            report.plot(tmp_path / "new" / "curves.png"),
            report.plot_gallery(tmp_path / "gallery.png"),
        ):
            assert path.read_bytes()[:4] == b"\x89PNG"
            assert path.stat().st_size > 20_000

    def test_nothing_broken_draws_no_gallery(self, report, tmp_path):
        with pytest.raises(ValueError, match="Received: none"):
            report.plot_gallery(tmp_path / "gallery.png")
        assert "Adversarial examples" not in report.to_html(tmp_path / "r.html").read_text()

    def test_html_is_one_whole_page(self, measured, tmp_path):
        _, report = measured
        text = report.to_html(tmp_path / "new" / "report.html").read_text()

        class Reader(html.parser.HTMLParser):
            open: list = []  # noqa: RUF012
            images = 0
            words: list = []  # noqa: RUF012

            def handle_starttag(self, tag, attributes):
                values = dict(attributes)
                for name in ("src", "href"):
                    assert values.get(name, "data:").startswith("data:")
                if tag == "img":
                    self.images += 1
                    assert values["alt"]
                elif tag not in ("meta", "link"):
                    self.open.append(tag)

            def handle_endtag(self, tag):
                assert self.open.pop() == tag

            def handle_data(self, data):
                self.words.append(data)

        reader = Reader()
        reader.feed(text)
        assert not reader.open
        assert reader.images == 3  # a figure for each model, and the gallery
        assert "http" not in text.replace("http-equiv", "")
        for row in report.rows:
            assert f"{100 * row.robust_accuracy:.1f}" in reader.words

    def test_names_cannot_break_the_page(self, report, tmp_path):
        report.correct = {"<script>": report.correct["m"]}
        report.provenance["identity"]["models"] = {"<script>": "1"}
        report.results = [r._replace(model="<script>") for r in report.results]
        text = report.to_html(tmp_path / "r.html").read_text()
        assert "<script>" not in text
        assert "&lt;script&gt;" in text

    def test_gallery_shows_what_stands_behind_the_quantizer(self, measured):
        models, report = measured
        kinds = {example.model: len(example.images) for example in report.gallery}
        assert kinds == {"plain": 2, "quantized": 4}
        for example in report.gallery:
            model = models[example.model]
            answers = keras.ops.convert_to_numpy(model(example.images[:2])).argmax(axis=1)
            assert answers[0] == example.label
            assert answers[1] == example.prediction != example.label
            if len(example.images) == 4:
                quantizer = next(q for q in model.layers if isinstance(q, QuSecQuantization))
                behind = keras.ops.convert_to_numpy(quantizer(example.images[:2]))
                np.testing.assert_allclose(example.images[2:], behind, atol=1e-6)


class TestCommandLine:
    @pytest.fixture(scope="class")
    def files(self, measured, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models")
        for name, model in measured[0].items():
            model.save(folder / f"{name}.keras")
        data = datasets.mnist5k()
        np.savez(
            folder / "few.npz", x_train=data.x_train[:4], y_train=data.y_train[:4],
            x_test=data.x_test[:30], y_test=data.y_test[:30],
        )  # fmt: skip
        return folder

    def test_evaluate_and_compare(self, files, tmp_path, capsys, measured):
        names = {"output": "r.json", "html": "r.html", "plot": "c.png", "gallery": "g.png",
                 "markdown": "r.md"}  # fmt: skip
        writes = [
            part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))
        ]
        status = cli.main(
            ["evaluate", str(files / "plain.keras"), "--compare", str(files / "quantized.keras"),
             "--data", str(files / "few.npz"), "--attacks", "fgsm", "--epsilons", "0.1", "0.2",
             "--source", str(files / "plain.keras"), "--images", "0",
             "--resume", str(tmp_path / "run"), *writes]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert status == 0
        assert "plain" in out
        assert "quantized" in out
        report = RobustnessReport.load(tmp_path / "r.json")
        assert report.models == ("plain", "quantized")
        assert report.threat_models == ("white-box", "adaptive", "black-box")
        expected = measured[1].robust_accuracy("fgsm", 0.2, "white-box", model="quantized")
        got = report.robust_accuracy("fgsm", 0.2, "white-box", model="quantized")
        assert got == expected
        for file in names.values():
            assert (tmp_path / file).stat().st_size > 500
        table = out.split("Written")[0]
        assert max(map(len, table.splitlines())) <= 80

    def test_a_file_that_cannot_be_written_does_not_lose_the_rest(self, files, tmp_path, capsys):
        status = cli.main(
            ["evaluate", str(files / "plain.keras"), "--data", str(files / "few.npz"),
             "--attacks", "fgsm", "--html", str(files / "plain.keras" / "no.html"),
             "--plot", str(tmp_path / "c.png")]
        )  # fmt: skip
        captured = capsys.readouterr()
        assert status == 0
        assert "not written" in captured.err
        assert (tmp_path / "c.png").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["evaluate", "absent.keras"], "does not exist"),
            (["evaluate", "FOLDER/few.npz"], "cannot load"),
            (["evaluate", "FOLDER/plain.keras", "--attacks", "pdg"], "Did you mean"),
            (["evaluate", "FOLDER/plain.keras", "--epsilons", "0.3", "0.1"], "rising order"),
            (["evaluate", "FOLDER/plain.keras", "--images", "-1"], "0 for all"),
            (["evaluate", "FOLDER/plain.keras", "--threat-models", "black-box"], "source_model"),
            (["evaluate", "FOLDER/plain.keras", "--data", "imagenet"], "Expected one of mnist5k"),
        ],
    )
    def test_bad_arguments(self, files, capsys, arguments, message):
        assert cli.main([part.replace("FOLDER", str(files)) for part in arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
