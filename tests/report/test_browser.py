"""Pages as a browser lays them out, on a screen and on a phone; where there is Chromium."""

from __future__ import annotations

import browser
import pytest

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(browser.BROWSER is None, reason="needs Chromium"),
]

BAD = """<html><head><style>
:root { color-scheme: light dark; } body { margin: 0; }
@media (prefers-color-scheme: dark) { .navy { color: #000080; } }
</style></head><body>
<p style="width: 700px; font-size: 9px">wide</p>
<p class="navy">navy</p>
<svg width="80" height="40" viewBox="0 0 160 80"><text y="20" font-size="12">tiny</text></svg>
<svg width="200" height="40"><text y="20" fill="#eee">pale</text>
  <text y="36" fill="gray">one label</text><text x="20" y="38" fill="gray">another</text></svg>
<p style="width: 50px; overflow: hidden; white-space: nowrap">a line that is cut off</p>
</body></html>"""


@pytest.mark.parametrize("width", browser.WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_can_be_read(measured, tmp_path, width, dark):
    page = measured[1].to_html(tmp_path / "report.html")
    assert browser.measured(page, width, dark=dark)["words"] > 100
    assert browser.faults(page, width, dark=dark) == {}


def test_what_is_wrong_with_a_page_is_noticed(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(BAD, encoding="utf-8")
    light, dark = (browser.faults(page, 390, dark=dark) for dark in (False, True))
    assert light == {
        "beyond": 310,
        "small": ["wide", "tiny"],
        "faint": ["pale"],
        "overlaps": ["one label | another"],
        "cut": ["a line that is cut off"],
    }
    assert "navy" in dark["faint"]
    assert "pale" not in dark["faint"]
    assert "beyond" not in browser.faults(page, 1280)
