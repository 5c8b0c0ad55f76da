"""One word for one thing: the word list of docs/design.md is held, and its table of changes."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from pathlib import Path

import pytest

import keras_qusec

pytestmark = pytest.mark.once

PACKAGE = Path(keras_qusec.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "keras_qusec_cli").rglob("*.py")])
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DESIGN = ROOT / "docs" / "design.md"

# Words that this package once had of its own, and those of the field that took their place.
RETIRED = {
    "standing": "unbroken, left",
    "knowing": "adaptive",
    "laboratory": "experiment",
    "played": "run",
    "height": "value, margin; or of an image",
    "figures": "measurements (numbers), plots (pictures); of the paper alone",
}
# Where such a word has its usual meaning.
USUAL = {
    "height": {
        "square.py", "local_search.py", "median_smoothing.py", "non_local_means.py", "recipes.py",
        "image_folders.py", "suggestion.py", "datasets.py", "page.py", "plots.py", "demo.py",
        "networks.py", "ape_gan.py", "defense_gan.py", "squeezing.py", "gan.py",
    },
    "figures": {"page.py", "registry.py", "reproduce.py", "commands.py", "claims.py", "__init__.py"},
}  # fmt: skip


def tokens(path, kind):
    text = path.read_text()
    return [
        token for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == kind
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names(path):
    names = {token.string.lower() for token in tokens(path, tokenize.NAME)}
    names = {part for name in names if not keyword.iskeyword(name) for part in name.split("_")}
    for word, instead in RETIRED.items():
        if path.name not in USUAL.get(word, ()):
            assert word not in names, f"{word}: say {instead}"
    assert not {name for name in names if "defence" in name}, "names have defense, prose defence"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_are_sentences(path):
    lines = path.read_text().splitlines()
    for token in tokens(path, tokenize.COMMENT):
        row, column = token.start
        alone = not lines[row - 1][:column].strip()
        before = lines[row - 2].strip() if row > 1 else ""
        begins = alone and not before.startswith("#")
        if not begins or token.string.startswith(("# fmt", "# noqa", "#!", "# type")):
            continue
        words = token.string.lstrip("# ")
        assert not words.startswith("Of "), f"a noun and a verb are missing: {words}"


def prose_of(path):
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        text = re.sub(r"^\|.*defense-gan.*$", "", text, flags=re.MULTILINE)
        text = re.sub(r"\[[^\]]*\]\(https?[^)]*\)", "", text)
        return re.sub(r"`[^`]*`|\([^)\s]*\)|defense-gan", "", text)
    parts = [token.string for token in tokens(path, tokenize.COMMENT)]
    parts += [t.string for t in tokens(path, tokenize.STRING) if t.string.startswith('"""')]
    text = re.sub(r"``?[^`]*``?|>>> .*|\.\.\. .*", "", "\n".join(parts))
    return re.sub(r"^ +defenses?: ", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_says_defence(path):
    wrong = re.findall(
        r".{0,40}(?<![\w.\-/])[Dd]efenses?(?![\w\-/])(?!-GAN).{0,30}", prose_of(path)
    )
    # Titles of papers.
    titles = ("as a Defense", "Efficient Defenses", "Defenses Against", "Weak Defenses")
    assert not [line for line in wrong if not any(title in line for title in titles)]


def rows_of(heading):
    """The cells of a table of the design page, below a heading."""
    part = DESIGN.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return rows[2:] if rows[1][0].startswith("---") else rows[1:]


@pytest.mark.parametrize("row", rows_of("Where a change goes"), ids=lambda row: row[0][:40])
def test_the_files_of_a_change_are_there(row):
    found = re.findall(r"`([\w/]+(?:\.\w+|/))`", row[1])
    assert found, f"no file is named: {row[1]}"
    for name in found:
        there = [folder / name for folder in (PACKAGE, ROOT)]
        assert any(path.exists() for path in there), name


def test_the_word_list_has_every_retired_word():
    words = DESIGN.read_text().split("\n## Words\n")[1].split("\n## ")[0]
    for word in ("unbroken", "measurement", "plot", "figure", "experiment", "defence", "attack"):
        assert f"*{word}*" in words
