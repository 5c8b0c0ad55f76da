"""Folders of images: which folders are classes, how they are numbered, and their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_qusec.checks import closest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class FolderImages(NamedTuple):
    """Images of the folders of some classes.

    Attributes:
        x: ``(n, height, width)`` if all images are grey, else ``(n, height, width, 3)``; uint8, or
            float32 in [0, 1] if some have 16 bits.
        y: classes ``(n,)`` int64.
        names: of the files, as paths inside the folder.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]


def class_folders(folder: Path) -> list[Path]:
    """The folders of a folder in the order of their names; hidden ones are no classes."""
    return [one for one in _visible(folder) if one.is_dir()] if folder.is_dir() else []


def class_names_of(folder: Path, said: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers.

    Args:
        folder: that has a folder for each class.
        said: the names in that order, from a user or a model; None for those of the folders.

    Raises:
        ValueError: for folders that are not among the names, or that differ in case alone.
    """
    names = [one.name for one in class_folders(folder)]
    if not names:
        raise ValueError(
            f"Expected a folder for each class in {folder}, with images ({', '.join(SUFFIXES)}). "
            "Received: no folder. Put the images of each class into a folder of its own."
        )
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if twice:
        raise ValueError(
            f"Expected one folder for each class in {folder}. Received: {', '.join(twice)}, whose "
            "names differ in upper and lower case alone. Put their images into one folder."
        )
    if said is None:
        return tuple(names)
    given = tuple(str(name) for name in said)
    if len(set(given)) < len(given):
        raise ValueError(f"Expected class_names, each once. Received: {', '.join(given)}.")
    _check_known(folder, names, given, "class_names")
    return given


def images_by_class(folder: Path, names: Sequence[str], source: str) -> FolderImages:
    """The images of a folder of classes.

    Args:
        folder: that has a folder for each class, or for some of them.
        names: of the classes, in the order of their numbers.
        source: where the names come from, for errors.

    Raises:
        ValueError: for a folder that is no class, has no images, or has folders of its own; for
            images of several sizes, or that cannot be read.
        ImportError: without Pillow.
    """
    folders = class_folders(folder)
    _check_known(folder, [one.name for one in folders], names, source)
    numbers = {name: number for number, name in enumerate(names)}
    paths = [(numbers[one.name], path) for one in folders for path in _images_in(one)]
    if not paths:
        raise ValueError(
            f"Expected a folder for each class in {folder}, with images ({', '.join(SUFFIXES)}). "
            "Received: no folder."
        )
    images = [_opened(path) for _, path in paths]
    sizes = {(image.shape[1], image.shape[0]) for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"Expected images of one size in {folder}. Received: "
            f"{', '.join(f'{w}x{h}' for w, h in sorted(sizes)[:4])}. Resize them first."
        )
    if any(image.dtype == np.uint16 for image in images):
        images = [image / np.float32(np.iinfo(image.dtype).max) for image in images]
    if any(image.ndim == 3 for image in images):
        images = [_in_colour(image) for image in images]
    labels = np.array([number for number, _ in paths], "int64")
    names = tuple(path.relative_to(folder).as_posix() for _, path in paths)
    return FolderImages(np.stack(images), labels, names)


def _visible(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if not one.name.startswith("."))


def _check_known(folder: Path, found: Sequence[str], names: Sequence[str], source: str) -> None:
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(
            f"Expected folders of the classes of {source} in {folder}: {', '.join(names)}. "
            f"Received: {', '.join(unknown)}.{closest(unknown[0], names)} Rename or remove "
            "what is no class."
        )


def _images_in(folder: Path) -> list[Path]:
    """The images of the folder of one class, at least one."""
    visible = _visible(folder)
    inner = [one.name for one in visible if one.is_dir()]
    if inner:
        raise ValueError(
            f"Expected images in {folder}, the folder of a class. Received: folders in it "
            f"({', '.join(inner)}), whose images would be left out. Move the images up."
        )
    paths = [one for one in visible if one.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(
            f"Expected images ({', '.join(SUFFIXES)}) in {folder}, the folder of a class. "
            f"Received: {len(visible)} other files. Remove the folder, or put images there."
        )
    return paths


# What Pillow calls images of one channel, of one with transparency, and of 16 bits.
_GREY, _DEEP = ("1", "L", "LA"), ("I;16", "I;16L", "I;16B", "I;16N")


def _opened(path: Path) -> np.ndarray:
    """An image ``(height, width)`` if it is grey, else ``(height, width, 3)``; 8 or 16 bits."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            "Folders of images need Pillow. Install it with: pip install pillow"
        ) from error
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image) if image.mode in (*_DEEP, "I") else np.zeros(0)
            # Some formats and versions of Pillow hold 16 bits in 32.
            in_16 = image.mode in _DEEP or (pixels.size and image.format in ("PNG", "PPM"))
            if in_16 and pixels.min() >= 0 and pixels.max() <= 65535:
                return pixels.astype("uint16")
            if image.mode not in ("I", "F"):
                return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
            mode = image.mode
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(
            f"Expected images that can be read. Received: {path} ({error}). Remove it, or save it "
            "again."
        ) from error
    # Pillow would cut off what is above 255 without a word.
    raise ValueError(
        f"Expected images of 8 or 16 bits. Received: {path}, of 32 bits (mode {mode}), whose range "
        "nothing says. Scale the images and save them again, or give arrays in an .npz file."
    )


def _in_colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
