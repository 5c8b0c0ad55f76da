"""Files that are complete or absent, and arrays as text inside them."""

from __future__ import annotations

import base64
import io
import json
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# What reading a damaged content raises.
DAMAGED = (KeyError, TypeError, AttributeError, ValueError, zlib.error, EOFError)


def write(content: Any, path: str | os.PathLike, *, indent: int | None = None) -> Path:
    """Write JSON values; the file is complete or absent, and its folder is created.

    Args:
        content: values of JSON; numbers must be finite.
        path: file to write.
        indent: spaces of each level, for people; None for one line.

    Returns:
        The path.
    """
    text = json.dumps(content, allow_nan=False, indent=indent, sort_keys=indent is not None)
    return write_text(text, path)


def write_text(text: str, path: str | os.PathLike) -> Path:
    """Write a text; the file is complete or absent, and its folder is created."""
    return write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: str | os.PathLike) -> Path:
    """Write bytes under a name of their own, then rename the file: it is complete or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def read(path: str | os.PathLike, expected: str) -> Any:
    """The JSON values of a file.

    Args:
        path: file to read.
        expected: what it should be, for the error, such as "a report saved by save".

    Raises:
        ValueError: for a file that is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected {expected}. Received: {path} ({error}). Check the path."
        ) from error


def packed(array: np.ndarray) -> str:
    """An array as text: the .npy format, compressed, in base 64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """An array from the text of `packed`."""
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
