"""The pages of results in the documentation say what the results say."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


def test_pages_are_generated_and_never_typed(tmp_path):
    docs = ROOT / "docs" / "reproduction"
    shutil.copytree(docs, tmp_path / "docs")
    script = runpy.run_path(str(ROOT / "benchmarks" / "reproduction.py"))
    pages = ["claims.md", "mnist.md", "cifar10.md", "best.md"]
    there = [page for page in pages if (docs / page).exists()]
    assert "claims.md" in there
    for page in there:
        (tmp_path / "docs" / page).unlink()
    script["write_pages"](tmp_path / "docs")
    for page in there:
        assert (tmp_path / "docs" / page).read_text() == (docs / page).read_text(), page
