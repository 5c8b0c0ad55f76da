"""What a page looks like in a browser: text too small or too faint to read, overlaps, what is cut.

    python tests/browser.py report.html docs/_build/*.html

Each page is laid out by Chromium without a window, on a screen of 1280 and of 390 pixels, in light
and in dark colours, and measured by a script in it. Exit status 1 if any page has a fault.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (390, 1280)
# Smallest letters, in pixels, and least contrast of text (WCAG 2: 3 for large text).
SMALLEST, LEAST_CONTRAST = 10, 3

# Chromium makes no window below 500 pixels, so the page is put into a frame of any width.
_FRAME = """<iframe id="frame" style="width: {width}px; height: 900px; border: 0"
src="{address}"></iframe><pre id="answer"></pre><script>
const shades = (text) => {{
  const found = (text || "").match(/[\\d.]+/g);
  return !found || !/^rgb/.test(text) ? null : found.map(Number).concat(1).slice(0, 4);
}};
const light = ([r, g, b]) => [r, g, b].map((part) => {{
  const share = part / 255;
  return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
}}).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
const over = (upper, lower) => [0, 1, 2].map((k) => upper[k] * upper[3] + lower[k] * (1 - upper[3]));

function measured(view) {{
  const page = view.document, root = page.documentElement, words = [];
  document.getElementById("frame").style.height = root.scrollHeight + "px";
  const canvas = page.createElement("div");
  canvas.style.background = "Canvas";
  page.body.append(canvas);
  const paper = shades(view.getComputedStyle(canvas).backgroundColor);
  canvas.remove();
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {{
    const text = walker.currentNode.textContent.trim(), part = walker.currentNode.parentElement;
    const style = view.getComputedStyle(part);
    if (!text || /^(SCRIPT|STYLE|TITLE|NOSCRIPT|METADATA)$/i.test(part.tagName)) continue;
    if (!part.checkVisibility({{opacityProperty: true, visibilityProperty: true}})) continue;
    // What is for screen readers alone is clipped away.
    let hidden = false;
    for (let one = part; one && !hidden; one = one.parentElement) {{
      const its = view.getComputedStyle(one);
      hidden = its.clipPath === "inset(50%)" || its.clip === "rect(0px, 0px, 0px, 0px)";
    }}
    if (hidden) continue;
    const range = page.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects()) {{
      if (box.width < 3 || box.height < 3 || box.right <= 0 || box.left >= view.innerWidth) continue;
      const inside = part.closest("svg");
      const scale = inside ? Math.hypot(part.getScreenCTM().a, part.getScreenCTM().b) : 1;
      words.push({{text, part, style, box, inside, size: parseFloat(style.fontSize) * scale}});
    }}
  }}
  const small = words.filter((word) => word.size < {smallest} - 0.01);
  const faint = words.filter((word) => {{
    const at = page.elementsFromPoint(
      word.box.left + word.box.width / 2, word.box.top + word.box.height / 2);
    if (!at.length || !at.some((one) => one === word.part || one.contains(word.part))) return false;
    const layers = [];
    for (const one of at) {{
      const style = view.getComputedStyle(one);
      if (one.tagName === "IMG") return false;
      if (one !== word.part && one.ownerSVGElement && !/^(text|tspan|g)$/.test(one.tagName)) {{
        const fill = shades(style.fill);
        if (fill && fill[3]) layers.push([...fill.slice(0, 3), fill[3] * style.fillOpacity * style.opacity]);
      }}
      const back = shades(style.backgroundColor);
      if (back && back[3]) layers.push(back);
    }}
    const ground = layers.reverse().reduce((lower, upper) => over(upper, lower), paper);
    const ink = shades(word.inside ? word.style.fill : word.style.color);
    if (!ink) return false;
    const [one, two] = [light(over(ink, ground)), light(ground)].sort((a, b) => b - a);
    return (one + 0.05) / (two + 0.05) < {contrast};
  }});
  const overlaps = [];
  words.sort((a, b) => a.box.top - b.box.top);
  words.forEach((first, place) => {{
    for (const second of words.slice(place + 1)) {{
      if (second.box.top > first.box.bottom) break;
      if (first.part === second.part || first.part.contains(second.part) || second.part.contains(first.part)) continue;
      const wide = Math.min(first.box.right, second.box.right) - Math.max(first.box.left, second.box.left);
      const tall = Math.min(first.box.bottom, second.box.bottom) - second.box.top;
      if (wide > 2 && tall > 0.3 * Math.min(first.box.height, second.box.height))
        overlaps.push(first.text + " | " + second.text);
    }}
  }});
  const cut = [...page.querySelectorAll("body *")].filter((part) => {{
    const style = view.getComputedStyle(part);
    return /hidden|clip/.test(style.overflowX) && part.clientWidth > 8 && part.innerText
      && part.scrollWidth > part.clientWidth + 1 && style.position !== "fixed" && !part.closest("svg");
  }});
  const named = (list) => [...new Set(list.map((one) => (one.text || one.innerText).slice(0, 40)))].slice(0, 8);
  return {{
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    beyond: root.scrollWidth - root.clientWidth,
    small: named(small), faint: named(faint), overlaps: overlaps.slice(0, 8), cut: named(cut),
    words: words.length,
  }};
}}
document.getElementById("frame").onload = (event) => {{
  let answer;
  try {{ answer = measured(event.target.contentWindow); }} catch (error) {{ answer = {{error: String(error)}}; }}
  document.getElementById("answer").textContent = "MEASURED" + JSON.stringify(answer) + "END";
}};
</script>"""


def measured(page: Path, width: int, *, dark: bool = False) -> dict:
    """What a script in the page finds.

    Args:
        page: file of the page.
        width: of the screen, in pixels.
        dark: as for readers who ask for dark colours.

    Returns:
        How many pixels the page is wider than the screen, ``beyond``; texts that are too
        ``small``, too ``faint``, or ``cut``; pairs of texts that overlap, ``overlaps``; and the
        number of ``words`` that were looked at.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        address = html.escape(page.resolve().as_uri(), quote=True)
        frame.write_text(
            _FRAME.format(width=width, address=address, smallest=SMALLEST, contrast=LEAST_CONTRAST),
            encoding="utf-8",
        )
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
             "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={int(not dark)}",
             "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    found = json.loads(html.unescape(re.search("MEASURED(.*?)END<", done.stdout, re.DOTALL)[1]))
    if found.get("error") or not found.get("words") or found.pop("dark") != dark:
        raise RuntimeError(f"{page} could not be measured: {found}")
    return found


def faults(page: Path, width: int, *, dark: bool = False) -> dict:
    """What is wrong with a page, by kind; empty for nothing."""
    found = measured(page, width, dark=dark)
    return {kind: what for kind, what in found.items() if what and kind != "words"}


def check(page: Path) -> None:
    """Fail for a page with a fault, on a phone in dark colours and on a screen in light ones."""
    if BROWSER is not None:
        for width, dark in zip(WIDTHS, (True, False), strict=True):
            assert faults(page, width, dark=dark) == {}


def main(pages: list[str]) -> int:
    """Measure pages, and print what is wrong with each."""
    wrong = 0
    for page in pages:
        for width in WIDTHS:
            for dark in (False, True):
                found = faults(Path(page), width, dark=dark)
                wrong += bool(found)
                words = "; ".join(f"{kind}: {what}" for kind, what in found.items())
                print(f"{page} {width} {'dark' if dark else 'light'}: {words or 'no fault'}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
