"""Reports as files, text, figures and pages."""

from __future__ import annotations

import html.parser
import json

import keras
import numpy as np
import pytest

from keras_qusec import QuSecQuantization, RobustnessReport

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


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
