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

from keras_qusec.report import files
from keras_qusec.reproduction import FIGURES, Reproduction, claims_page, figures_page, pictures

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
    judged = {title.split(" (")[0]: found[data] for data, title in _TITLES.items() if found[data]}
    files.write_text(claims_page(judged), docs / "claims.md")
    for data, title in _TITLES.items():
        drawn = {
            name: [path.relative_to(docs) for path in sorted((docs / data).glob(f"{name}*.png"))
                   if path.stem in (name, f"{name}-examples", f"{name}-training")]
            for name in found[data]
        }  # fmt: skip
        files.write_text(figures_page(title, found[data], drawn), docs / f"{data}.md")


if __name__ == "__main__":
    main()
