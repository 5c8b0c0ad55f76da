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

from keras_qusec.evaluation.threat_models import Record

_NAMES = ("model", "source", "threat_model", "attack")
_ARRAYS = tuple(name for name in Record._fields if name not in _NAMES)


class Store:
    """A folder with one file for each finished unit of work, and what they belong to.

    Files are written under another name and then renamed, so that a file is whole or absent.

    Args:
        folder: made if missing.
        identity: what the evaluation is made of, JSON values: models, data, settings,
            versions. A folder holds the results of one identity only.

    Raises:
        ValueError: for a folder of another evaluation or with files that are not ours.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        about = self.folder / "run.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"Expected resume_dir to be a folder. Received: the file {self.folder}."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if about.exists():
            _check_same(about, identity)
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(
                f"Expected resume_dir to be empty or of an earlier run. Received: {self.folder}, "
                "which has other files. Give a new folder."
            )
        else:
            _replace(about, json.dumps(identity, indent=1, sort_keys=True).encode())

    def load(self, key: str) -> list[Record] | None:
        """The records of a finished unit, or None.

        Raises:
            ValueError: for a damaged file.
        """
        path = self.folder / f"{key}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                names = json.loads(str(file["names"]))
                return [
                    Record(*name, *(file[f"{array}_{index}"] for array in _ARRAYS))
                    for index, name in enumerate(names)
                ]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"Expected finished work in {path}. Received: a damaged file ({error}). Delete "
                "this file; only its unit is then computed again."
            ) from error

    def save(self, key: str, records: list[Record]) -> None:
        """Write a finished unit."""
        arrays = {
            f"{array}_{index}": getattr(record, array)
            for index, record in enumerate(records)
            for array in _ARRAYS
        }
        names = json.dumps([[getattr(record, name) for name in _NAMES] for record in records])
        temporary = self.folder / f".{key}.npz"
        with open(temporary, "wb") as file:
            np.savez_compressed(file, names=np.array(names), **arrays)
        os.replace(temporary, self.folder / f"{key}.npz")


def _check_same(about: Path, identity: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads(about.read_text())
        if not isinstance(earlier, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected {about} to describe an earlier run. Received: an unreadable file "
            f"({error}). Give a new folder as resume_dir."
        ) from error
    here = json.loads(json.dumps(identity))
    different = sorted(name for name in {*earlier, *here} if earlier.get(name) != here.get(name))
    if different:
        first = different[0]
        raise ValueError(
            f"Expected resume_dir to be of the same evaluation. Received: {about.parent}, which "
            f"differs in {', '.join(different)} ({first}: {earlier.get(first)!r} there, "
            f"{here.get(first)!r} here). Give a new folder, or the settings of the earlier run."
        )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
