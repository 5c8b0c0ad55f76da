"""Results of `keras-qusec reproduce` as pages of the documentation.

    keras-qusec reproduce all --data mnist.npz --folder results
    keras-qusec reproduce all --data cifar10.npz --folder results
    python reproduction.py --mnist results/mnist --cifar10 results/cifar10

Copies the JSON files and pictures, and writes the pages of the figures and of the claims.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from keras_qusec import files
from keras_qusec.reproduction import (
    FIGURES,
    Reproduction,
    best_page,
    claims_page,
    figures_page,
    pictures,
)

_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10 (JPEG copy)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for data in _TITLES:
        parser.add_argument(f"--{data}", type=Path, help="folder of new results; default: none")
    parser.add_argument("--docs", type=Path, default=Path("../docs/reproduction"))
    options = parser.parse_args()
    for data in _TITLES:
        for path in sorted((getattr(options, data) or Path("none")).glob("*.json")):
            (options.docs / data).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, options.docs / data)
            pictures(Reproduction.load(path), options.docs / data)
    write_pages(options.docs)


def results(docs: Path, data: str) -> dict[str, Reproduction]:
    """The saved figures of a data set, in the order of the paper."""
    paths = {name: docs / data / f"{name}.json" for name in FIGURES}
    return {name: Reproduction.load(path) for name, path in paths.items() if path.exists()}


def write_pages(docs: Path) -> None:
    """Write all pages from the results in a folder."""
    found = {data: results(docs, data) for data in _TITLES}
    judged = {title: found[data] for data, title in _TITLES.items() if found[data]}
    files.write_text(claims_page(judged), docs / "claims.md")
    best = {_TITLES[data]: figures.pop("best") for data, figures in found.items()
            if "best" in figures}  # fmt: skip
    drawn = {_TITLES[data]: _drawn(docs, data, "best") for data in _TITLES}
    if best:
        files.write_text(best_page(best, drawn), docs / "best.md")
    for data, title in _TITLES.items():
        if not found[data]:
            continue
        headings = {name: f"{name}: {figure.title}" for name, figure in found[data].items()}
        page = figures_page(
            title,
            {headings[name]: figure for name, figure in found[data].items()},
            {headings[name]: _drawn(docs, data, name) for name in headings},
        )
        files.write_text(page, docs / f"{data}.md")


def _drawn(docs: Path, data: str, name: str) -> list[Path]:
    """The pictures of a figure, as pages link to them."""
    paths = [docs / data / f"{name}{kind}.png" for kind in ("", "-examples", "-training")]
    return [path.relative_to(docs) for path in paths if path.exists()]


if __name__ == "__main__":
    main()
