"""Finished work on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec.evaluation.results import Result

_NAMES = ("model", "source", "threat_model", "attack", "radii")
_COSTS = ("gradients", "queries", "seconds")


class Store:
    """A folder with one file for each finished unit of work, and what they belong to.

    Files are written under another name and then renamed, so that a file is complete or absent.

    Args:
        folder: made if missing.
        identity: what the evaluation is made of, JSON values: models, data, settings,
            versions. A folder holds the results of one identity only.

    Raises:
        ValueError: for a folder of another evaluation or with files that are not ours.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        description = self.folder / "run.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"Expected resume_dir to be a folder. Received: the file {self.folder}."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if description.exists():
            _check_same(description, identity)
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(
                f"Expected resume_dir to be empty or of an earlier run. Received: {self.folder}, "
                "which has other files. Give a new folder."
            )
        else:
            _replace(description, json.dumps(identity, indent=1, sort_keys=True).encode())

    def load(self, key: str) -> list[Result] | None:
        """The results of a finished unit, or None.

        Raises:
            ValueError: for a damaged file.
        """
        path = self.folder / f"{key}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return [_read(file, *entry) for entry in enumerate(json.loads(str(file["names"])))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"Expected finished work in {path}. Received: a damaged file ({error}). Delete "
                "this file; only its unit is then computed again."
            ) from error

    def save(self, key: str, results: list[Result]) -> None:
        """Write a finished unit."""
        arrays: dict[str, np.ndarray] = {}
        for index, result in enumerate(results):
            arrays |= {f"{name}_{index}": getattr(result, name) for name in _COSTS}
            arrays |= {f"distance_{index}_{n}": d for n, d in result.distances.items()}
            arrays |= {f"example_{index}_{n}": image for n, image in result.examples.items()}
        names = json.dumps([[getattr(result, name) for name in _NAMES] for result in results])
        temporary = self.folder / f".{key}.npz"
        with open(temporary, "wb") as file:
            contents: dict[str, Any] = {"names": np.array(names), **arrays}
            np.savez_compressed(file, **contents)
        os.replace(temporary, self.folder / f"{key}.npz")


def _read(file: Any, index: int, names: list[Any]) -> Result:
    """A result from the arrays of a file and its names."""
    model, source, threat_model, attack, radii = names

    def group(kind: str) -> dict[str, np.ndarray]:
        start = f"{kind}_{index}_"
        return {name[len(start) :]: file[name] for name in file.files if name.startswith(start)}

    return Result(
        model=model,
        source=source,
        threat_model=threat_model,
        attack=attack,
        radii=tuple(radii),
        distances=group("distance"),
        gradients=file[f"gradients_{index}"],
        queries=file[f"queries_{index}"],
        seconds=file[f"seconds_{index}"],
        examples={int(number): image for number, image in group("example").items()},
    )


def _check_same(description: Path, identity: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads(description.read_text())
        if not isinstance(earlier, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected {description} to describe an earlier run. Received: an unreadable file "
            f"({error}). Give a new folder as resume_dir."
        ) from error
    new = json.loads(json.dumps(identity))
    different = sorted(name for name in {*earlier, *new} if earlier.get(name) != new.get(name))
    if different:
        first = different[0]
        raise ValueError(
            "Expected resume_dir to be of the same evaluation. Received: "
            f"{description.parent}, which differs in {', '.join(different)} ({first}: "
            f"{earlier.get(first)!r} then, {new.get(first)!r} now). Give a new folder, or the "
            "settings of the earlier run."
        )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
