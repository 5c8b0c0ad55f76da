"""Pages as a browser lays them out, on a screen and on a phone; where there is Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Chromium makes no window below 500 pixels, so the page is put into a frame of any width.
FRAME = """<iframe id="frame" style="width: {width}px; height: 900px; border: 0"
srcdoc="{page}"></iframe><pre id="answer"></pre><script>
document.getElementById("frame").onload = (event) => {{
  const root = event.target.contentDocument.documentElement;
  const small = [...root.querySelectorAll("p, td, th, figcaption, dd, dt, li")].filter(
    (part) => parseFloat(event.target.contentWindow.getComputedStyle(part).fontSize) < 12);
  document.getElementById("answer").textContent =
    "MEASURED" + JSON.stringify({{beyond: root.scrollWidth - root.clientWidth, small: small.length}}) + "END";
}};
</script>"""


def measured_in_browser(page, width, tmp_path):
    path = tmp_path / "frame.html"
    path.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
         "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(re.search("MEASURED(.*?)END<", done.stdout)[1])


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_its_screen(measured, tmp_path, width):
    page = measured[1].to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert measured_in_browser(page, width, tmp_path) == {"beyond": 0, "small": 0}


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_too_wide_a_page_is_noticed(tmp_path):
    page = '<body style="margin: 0"><p style="width: 700px; font-size: 9px">wide</p></body>'
    assert measured_in_browser(page, 390, tmp_path) == {"beyond": 310, "small": 1}
