"""Prior perturbations of training images, found again by what the images look like."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from keras_qusec import files
from keras_qusec.training.one_step import Priors

Array = np.ndarray

_FORMAT = 1
_DIGEST = 12


class PriorStore:
    """Priors of images, of which `fit` says no number: an image is known by a digest of its bytes.

    So arrays, which `fit` shuffles, data sets and loaders serve alike. Images that are augmented
    anew in each epoch are not found again; after an epoch in which most were new, the prior of
    the last batch is taken for all, as in FGSM-BP of the same paper, with one warning.

    Two float16 numbers are kept for each pixel value of each image: 190 MB for the 60,000 images
    of MNIST, 610 MB for CIFAR-10.

    Args:
        seed: of the priors that images begin with.

    Attributes:
        remembers_images: False once most images of an epoch were new.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.remembers_images = True
        self._places: dict[bytes, int] = {}
        self._shares = self._momenta = np.zeros((0,), "float16")
        self._last: Priors | None = None
        self._epochs = self._seen = self._new = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all priors."""
        return self._shares.nbytes + self._momenta.nbytes

    def begin_epoch(self) -> None:
        """Count anew how many images are known."""
        if self._epochs and self.remembers_images and self._new > self._seen / 2:
            self.remembers_images = False
            self._places, self._shares = {}, np.zeros((0,), "float16")
            self._momenta = self._shares
            warnings.warn(
                f"AdversarialTraining: {self._new} of {self._seen} images of an epoch were not "
                "seen in the one before, as of images that are augmented anew each time. So "
                "fgsm-mep takes the perturbation of the last batch as the prior of the next "
                "(FGSM-BP). Augment by layers of the model to keep one prior for each image.",
                stacklevel=2,
            )
        if self._seen:
            self._epochs += 1
        self._seen = self._new = 0

    def of(self, images: Array) -> tuple[Array, Priors]:
        """The places and priors of a batch.

        Args:
            images: ``(n, ...)``, as `fit` gets them.
        """
        self._seen += len(images)
        if not self.remembers_images:
            return np.zeros(0, "int64"), self._of_last_batch(images)
        digests = [hashlib.blake2b(i.tobytes(), digest_size=_DIGEST).digest() for i in images]
        before = len(self._places)
        places = np.array([self._places.setdefault(d, len(self._places)) for d in digests])
        new = len(self._places) - before
        self._new += new
        if new:
            self._make_room(images.shape[1:])
            shape = (new, *images.shape[1:])
            self._shares[before : before + new] = _corners([self.seed, before], shape)
        return places, Priors(
            self._shares[places].astype("float32"), self._momenta[places].astype("float32")
        )

    def keep(self, places: Array, priors: Priors) -> None:
        """Keep what the step made of the priors; `places` as `of` gave them."""
        kept = Priors(*(np.asarray(part, "float16") for part in priors))
        if not self.remembers_images:
            self._last = kept
            return
        # Where a share of the batch is attacked, there are fewer images than it has.
        places = places[: len(kept.shares)]
        self._shares[places], self._momenta[places] = kept

    def _of_last_batch(self, images: Array) -> Priors:
        if self._last is None or not len(self._last.shares):
            shares = _corners(self.seed, images.shape)
        else:
            rows = np.arange(len(images)) % len(self._last.shares)
            shares = self._last.shares[rows].astype("float32")
        return Priors(shares, np.zeros_like(shares))

    def _make_room(self, shape: tuple[int, ...]) -> None:
        needed = len(self._places)
        if len(self._shares) and self._shares.shape[1:] != shape:
            raise ValueError(
                f"Expected images of shape {self._shares.shape[1:]}, as before. Received: {shape}. "
                "Make a new callback, or another file of priors, for other images."
            )
        if len(self._shares) >= needed:
            return
        room = max(needed, len(self._shares) * 3 // 2)
        for name in ("_shares", "_momenta"):
            larger = np.zeros((room, *shape), "float16")
            before = getattr(self, name)
            if len(before):
                larger[: len(before)] = before
            setattr(self, name, larger)

    # Files.

    def save(self, path: str | os.PathLike) -> Path:
        """Write all priors to an ``.npz`` file, complete or absent."""
        count = len(self._places)
        digests = np.frombuffer(b"".join(self._places), "uint8").reshape(count, _DIGEST)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=_FORMAT,
            digests=digests,
            shares=self._shares[:count],
            momenta=self._momenta[:count],
        )
        return files.write_bytes(buffer.getvalue(), path)

    def load(self, path: str | os.PathLike) -> None:
        """Take over what `save` wrote.

        Raises:
            ValueError: for a file of something else.
        """
        try:
            with np.load(path) as content:
                read: dict[str, Any] = {name: content[name] for name in content.files}
            if int(read["format"]) != _FORMAT:
                raise ValueError
            digests = [bytes(row) for row in read["digests"]]
            shares, momenta = read["shares"], read["momenta"]
            if not len(digests) == len(shares) == len(momenta):
                raise ValueError
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"Expected a file of priors that AdversarialTraining wrote. Received: {path}, "
                "which is damaged or something else. Remove it, or name another."
            ) from error
        self._places = {digest: place for place, digest in enumerate(digests)}
        self._shares, self._momenta = shares, momenta
        self._epochs = 1


def _corners(seed: Any, shape: tuple[int, ...]) -> Array:
    """Random perturbations of a whole epsilon up or down, in shares of it."""
    signs = np.random.default_rng(seed).integers(0, 2, shape, "int8")
    return (2 * signs - 1).astype("float32")
