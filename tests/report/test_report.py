"""Reports as files, text, figures and pages."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_qusec_cli as cli
from keras_qusec import QuSecQuantization, RobustnessReport, evaluate_robustness
from keras_qusec.report import page

# Reports are plain data, the same on every backend; Foolbox uses deprecated names of TensorFlow.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(one, other):
    """As the Web Content Accessibility Guidelines define it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def renamed(report, prefix):
    """The report of the same models by other names."""
    return report.renamed({name: prefix + name for name in report.models})


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
        assert 'class="examples"' not in report.to_html(tmp_path / "r.html").read_text()

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
        # Clean, adversarial, difference; and both behind the quantizer.
        shown = [len(example.images) for example in report.gallery]
        assert reader.images == sum(1 + images for images in shown)
        # One of all models in each norm, and bars for each model.
        assert text.count("<svg") == len(report.epsilons) + 2
        without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
        assert "http" not in without_names
        identifiers = re.findall(r'\bid="([^"]*)"', text)
        assert len(set(identifiers)) == len(identifiers)
        for row in report.rows:
            assert f"{100 * row.robust_accuracy:.1f}" in reader.words

    def test_the_answer_comes_first(self, measured, tmp_path):
        _, report = measured
        text = report.to_html(tmp_path / "r.html").read_text()
        epsilon = report.epsilons["linf"][-1]
        shares = {
            model: report.robust_accuracy(epsilon=epsilon, model=model) for model in report.models
        }
        best = max(shares, key=shares.get)
        white = report.robust_accuracy(epsilon=epsilon, model=best, threat_model="white-box")
        said = (
            f"<em>{best}</em>: {100 * shares[best]:.1f} % of {report.rows[0].images} images stand "
            f"against every attack tried at epsilon = {epsilon:g} (L-inf); white-box alone would "
            f"have said {100 * white:.1f} %; evidence: quick."
        )
        assert text.index(said) < text.index("<svg") < text.index("<table")
        headings = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", text)
        assert headings == sorted(shares, key=shares.get, reverse=True)

    def test_a_notebook_shows_the_answer(self, measured):
        _, report = measured
        shown = report._repr_html_()
        assert shown.count("<svg") == len(report.epsilons)
        assert shown.count("<table") == len(report.epsilons)
        assert "every attack tried" in shown

    def test_text_can_be_read_in_light_and_dark(self):
        style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
        themes = style.split("@media (prefers-color-scheme: dark)")
        for theme in themes[0], themes[1].split("* {")[0]:
            colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
            for name in ("fore", "muted", "accent", "bad", "good", "warn"):
                for back in ("back", "panel"):
                    assert contrast(colours[name], colours[back]) >= 4.5, (name, back)

    def test_six_models_stay_small(self, measured, tmp_path):
        _, report = measured
        many = RobustnessReport.joined([
            renamed(report, f"{place}-") for place in range(3)
        ])  # fmt: skip
        assert len(many.models) == 6
        assert many.to_html(tmp_path / "r.html").stat().st_size < 1_000_000

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


class TestImages:
    def test_by_class_and_as_a_table(self, report, tmp_path):
        report.provenance |= {
            "labels": [0, 0, 1, 1], "class names": ["cat", "dog"],
            "image names": ["a.png", "b.png", "c.png", "d.png"],
        }  # fmt: skip
        cat, dog = report.by_class(0.1)
        # PGD breaks both cats at 0.1; of the dogs one is misclassified when clean.
        assert cat == (0, "cat", 2, 1.0, 0.0)
        assert dog == (1, "dog", 2, 0.5, 0.5)
        assert "by class" in report.to_text(verbose=True)
        assert "by class" not in str(report)
        rows = report.save_images(tmp_path / "images.csv").read_text().splitlines()
        head, *lines = [row.split(",") for row in rows]
        assert len(lines) == 4 * sum(len(radii) for radii in report.epsilons.values())
        first = dict(zip(head, lines[0], strict=True))
        assert first["name"] == "a.png"
        assert (first["class_name"], first["state"], first["attack"]) == ("cat", "broken", "pgd")
        assert dict(zip(head, lines[3], strict=True))["distance"] == "0"

    def test_a_report_without_labels_says_so(self, report):
        with pytest.raises(ValueError, match="Evaluate again"):
            report.by_class()

    def test_names_of_images_come_with_the_data(self):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        model.set_weights([np.eye(2, dtype="float32")])
        x, y = np.array([[0.9, 0.2], [0.4, 0.7]], "float32"), np.array([0, 1])
        settings = {"attacks": ["fgsm"], "epsilons": [0.2], "progress": False}
        found = evaluate_robustness(model, x, y, image_names=["one", "two"], **settings)
        assert [(state.name, state.label) for state in found.images()] == [("one", 0), ("two", 1)]
        with pytest.raises(ValueError, match="image_names for each of 2"):
            evaluate_robustness(model, x, y, image_names=["one"], **settings)


class TestJoined:
    def test_it_says_what_differs(self, measured):
        _, report = measured
        other = renamed(report, "other ")
        identity = {**other.provenance["identity"], "seed": 7}
        other.provenance = {**other.provenance, "identity": identity}
        with pytest.raises(ValueError, match=r"differ in seed \(0 and 7\)"):
            RobustnessReport.joined([report, other])
        with pytest.raises(ValueError, match="plain, quantized more than once"):
            RobustnessReport.joined([report, report])
        with pytest.raises(ValueError, match="a name to replace"):
            report.renamed({"absent": "x"})

    def test_command(self, measured, tmp_path, capsys):
        _, report = measured
        paths = [str(report.save(tmp_path / f"{name}.json")) for name in ("a", "b")]
        page = tmp_path / "both.html"
        assert cli.main(["report", *paths, "--html", str(page)]) == 0
        out = capsys.readouterr().out
        for name in ("a plain", "a quantized", "b plain", "b quantized"):
            assert name in out
            assert name in page.read_text()
        assert cli.main(["report", str(tmp_path / "no.json")]) == 2
        assert "Check the path" in capsys.readouterr().err


def test_it_is_short_where_python_shows_objects(report):
    assert repr(report) == "<RobustnessReport of m: 4 images, quick evidence>"
