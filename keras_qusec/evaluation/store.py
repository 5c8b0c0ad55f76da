"""Finished work on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec import files
from keras_qusec.evaluation.proofs import Proofs
from keras_qusec.results import (
    Result,
    certificate_of,
    content_of_certificate,
    content_of_result,
    result_of,
)


class Store:
    """A folder with one file for each finished unit of work, and what they belong to.

    Files are written under another name and then renamed, so that a file is complete or absent.

    Args:
        folder: made if missing.
        identity: what the evaluation is made of, JSON values: models, data, settings,
            versions. A folder holds the results of one identity only.
        clean: outputs of the models on clean images, by which models are told apart whose
            classes do something else with the same settings and weights.

    Used in a `with` statement, which keeps other processes out.

    Raises:
        ValueError: for a folder of another evaluation, in use, or with files that are not ours.
        ImportError: without the extra ``keras-qusec[evaluate]``.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        identity: Mapping[str, Any],
        clean: Sequence[np.ndarray] = (),
    ) -> None:
        self.folder = Path(folder)
        self._identity, self._clean = identity, clean
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"Expected resume_dir to be a folder. Received: the file {self.folder}."
            )
        self._units = self.folder / "units"
        self.folder.mkdir(parents=True, exist_ok=True)
        # The system gives it up with the process, also if that is killed.
        self._lock = _import_filelock().FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> Store:
        try:
            self._lock.acquire()
        except _import_filelock().Timeout as error:
            raise ValueError(
                "Expected resume_dir to be used by one evaluation at a time. Received: "
                f"{self.folder}, which another one uses now. Wait for it, or give another folder; "
                "n_jobs=2 runs one evaluation in two processes."
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _open(self) -> None:
        description, outputs = self.folder / "run.json", self.folder / "outputs.npz"
        if description.exists():
            _check_same(description, self._identity)
            if outputs.exists():  # a kill may have come between the two files
                _check_outputs(outputs, self._clean)
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(
                f"Expected resume_dir to be empty or of an earlier run. Received: {self.folder}, "
                "which has other files. Give a new folder."
            )
        else:
            files.write(self._identity, description, indent=1)
        self._units.mkdir(exist_ok=True)
        if not outputs.exists():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, *self._clean)
            files.write_bytes(buffer.getvalue(), outputs)

    def load(self, key: str) -> list[Result] | None:
        """The results of a finished unit, or None.

        Raises:
            ValueError: for a damaged file.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            content = files.read(path, "finished work")
            if content["key"] != key:
                raise ValueError(f"that of the unit {content['key']}")
            return [result_of(result) for result in content["results"]]
        except files.DAMAGED as error:
            raise ValueError(
                f"Expected finished work in {path}. Received: a damaged file ({error}). Delete "
                "this file; only its unit is then computed again."
            ) from error

    def remove(self, key: str) -> None:
        """Delete the file of a unit."""
        self._path(key).unlink(missing_ok=True)

    def save(self, key: str, results: list[Result]) -> None:
        """Write a finished unit."""
        contents = [content_of_result(result) for result in results]
        files.write({"key": key, "results": contents}, self._path(key))

    def load_proofs(self, name: str) -> Proofs | None:
        """What was proved of a model, or None.

        Raises:
            ValueError: for a damaged file.
        """
        path = self._path(_proofs_key(name))
        if not path.exists():
            return None
        try:
            content = files.read(path, "finished proofs")
            return Proofs(
                [certificate_of(one) for one in content["certificates"]],
                [result_of(one) for one in content["results"]],
            )
        except files.DAMAGED as error:
            raise ValueError(
                f"Expected finished proofs in {path}. Received: a damaged file ({error}). Delete "
                "this file; only these proofs are then made again."
            ) from error

    def save_proofs(self, name: str, proofs: Proofs) -> None:
        """Write what was proved of a model."""
        content = {
            "certificates": [content_of_certificate(one) for one in proofs.certificates],
            "results": [content_of_result(one) for one in proofs.results],
        }
        files.write(content, self._path(_proofs_key(name)))

    def _path(self, key: str) -> Path:
        return self._units / f"{key}.json"


def _proofs_key(name: str) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60]
    return f"proofs-{words}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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


def _check_outputs(path: Path, clean: Sequence[np.ndarray]) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            earlier = [file[name] for name in file.files]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"Expected {path} to hold the models' outputs on clean images. Received: a damaged "
            f"file ({error}). Give a new folder as resume_dir."
        ) from error
    # Another machine may round otherwise.
    if len(earlier) != len(clean) or not all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())
        for a, b in zip(earlier, clean, strict=True)
    ):
        raise ValueError(
            "Expected resume_dir to be of the same models. Received: "
            f"{path.parent}, whose models gave other outputs on the clean images, though their "
            "settings and weights are the same. Give a new folder."
        )


def _import_filelock() -> Any:
    try:
        import filelock
    except ImportError as error:
        raise ImportError(
            "A folder to resume from needs the package filelock. Install it with: "
            'pip install "keras-qusec[evaluate]"'
        ) from error
    return filelock
