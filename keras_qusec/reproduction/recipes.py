"""Recipes for the best honest model: PGD training of the paper's CNN, with and without CQ."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from keras_qusec.comparison.contenders import Training
from keras_qusec.defenses import QuSecQuantization
from keras_qusec.training import AdversarialTraining


class Recipe(NamedTuple):
    """How a network is trained on PGD examples.

    Attributes:
        name: file of the network.
        title: what the table calls it.
        layer: function that makes the quantizer, or None for none.
        epsilon: radius, L-infinity.
        epochs: epochs; the learning rate falls to 0 as a cosine.
        steps: of PGD, from a random start.
        step_size: of PGD.
        gradient_hardness: of the surrogate gradients that PGD gets through the quantizer.
        ramp_epochs: epochs over which epsilon rises.
        shift: images move by up to so many pixels, each way.
        flip: whether half of the images are mirrored.
        rotation: images turn by up to so many degrees, each way.
        zoom: images grow or shrink by up to this share.
        objective: ``"loss"`` (Madry et al.) or ``"trades"`` (Zhang et al.), with beta 6.
        batch: images of a step.
        rate: learning rate at the start.
        images: test images of the standard evaluation, spread evenly over the test set.
    """

    name: str
    title: str
    layer: Callable[[], Any] | None
    epsilon: float
    epochs: int
    steps: int
    step_size: float
    gradient_hardness: float | None = None
    ramp_epochs: int = 1
    shift: int = 0
    flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    objective: Literal["loss", "trades"] = "loss"
    batch: int = 128
    rate: float = 0.001
    images: int = 1000

    def settings(self) -> str:
        """The recipe in one line, for the reader."""
        parts = [
            "TRADES, beta 6" if self.objective == "trades" else "cross-entropy of PGD examples",
            _epochs(self.epochs),
            f"PGD of {self.steps} steps of {self.step_size:.3g} from a random start",
            f"epsilon {self.epsilon:.3g}",
            f"rising over the first {_epochs(self.ramp_epochs)}",
            f"surrogate hardness {self.gradient_hardness:g}" if self.gradient_hardness else "",
            f"shifts of up to {self.shift} pixels" if self.shift else "",
            "mirrored images" if self.flip else "",
            f"turns of up to {self.rotation:g} degrees" if self.rotation else "",
            f"zoom of up to {self.zoom:.0%}" if self.zoom else "",
            f"batches of {self.batch}",
            f"Adam from {self.rate:g} to 0 as a cosine, bfloat16, weights averaged by 0.999",
        ]
        return ", ".join(filter(None, parts))

    def trained(self, training: Training) -> keras.Model:
        """The network, trained now.

        Adam with an average of the weights, and bfloat16 in the passes, which halves the time; the
        network that is returned computes in float32 with the averaged weights.

        Args:
            training: data, seed, number of epochs, and the folder from which training goes on.
        """
        epochs = training.epochs
        keras.utils.set_random_seed(training.seed)
        data = Augmented(
            training, batch=self.batch, shift=self.shift, flip=self.flip, rotation=self.rotation,
            zoom=self.zoom,
        )  # fmt: skip
        attack = AdversarialTraining(
            "pgd", epsilon=self.epsilon, steps=self.steps, step_size=self.step_size,
            gradient_hardness=self.gradient_hardness, ramp_epochs=min(self.ramp_epochs, epochs),
            objective=self.objective, seed=training.seed,
        )  # fmt: skip
        with _precision("mixed_bfloat16"):
            model = training.network(self.layer and self.layer())
            rate = keras.optimizers.schedules.CosineDecay(self.rate, epochs * len(data))
            model.compile(
                keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.999),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            model.fit(
                data, epochs=epochs, verbose=0,
                callbacks=[attack, keras.callbacks.BackupAndRestore(training.backup)],
            )  # fmt: skip
        precise = training.network(self.layer and self.layer())
        precise.set_weights(model.get_weights())
        precise.history = model.history
        return precise


class Augmented(keras.utils.PyDataset):
    """Training images in batches, shuffled, moved and mirrored anew in each epoch.

    Args:
        training: data and seed.
        batch: images of a batch.
        shift: largest shift, in pixels; what enters is black.
        flip: whether half of the images are mirrored.
        rotation: largest rotation, in degrees.
        zoom: largest change of size, as a share.
    """

    def __init__(
        self, training: Training, *, batch: int = 128, shift: int = 0, flip: bool = False,
        rotation: float = 0.0, zoom: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.x, self.y = training.data.x_train, training.data.y_train
        self.batch, self.shift, self.flip = batch, shift, flip
        self.rotation, self.zoom = rotation, zoom
        self.random = np.random.default_rng(training.seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return max(1, len(self.x) // self.batch)

    def on_epoch_end(self) -> None:
        count = len(self.x)
        self.order = self.random.permutation(count)
        self.shifts = self.random.integers(-self.shift, self.shift + 1, (count, 2))
        self.mirrored = self.random.random(count) < 0.5 * self.flip
        if self.rotation or self.zoom:
            self.angles = np.radians(self.random.uniform(-self.rotation, self.rotation, count))
            self.zooms = self.random.uniform(1 - self.zoom, 1 + self.zoom, count)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index * self.batch : (index + 1) * self.batch]
        images = np.where(
            self.mirrored[rows][:, None, None, None], self.x[rows][:, :, ::-1], self.x[rows]
        )
        if self.rotation or self.zoom:
            images = turned(images, self.angles[rows], self.zooms[rows], self.shifts[rows])
        elif self.shift:
            height, width = images.shape[1:3]
            edge = (self.shift, self.shift)
            padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
            images = np.stack([
                image[down : down + height, right : right + width]
                for image, (down, right) in zip(padded, self.shifts[rows] + self.shift, strict=True)
            ])  # fmt: skip
        return images, self.y[rows]


def turned(
    images: np.ndarray, angles: np.ndarray, zooms: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """Images turned about their centre, resized and shifted; what enters is black.

    They are read from images of twice the size, which blurs them less than linear interpolation
    would: of an image that does not move, nearly 0.9 along each axis stays in its pixel.

    Args:
        images: ``(batch, height, width, channels)``.
        angles: of each image, in radians, counter-clockwise.
        zooms: size of each image, 1 for as it was.
        shifts: ``(batch, 2)``, in pixels: how far below and right of a pixel its new value lies.
    """
    count, height, width, channels = images.shape
    large = keras.ops.image.resize(images, (2 * height, 2 * width), interpolation="bicubic")
    down, right = np.indices((height, width)) - (np.array([height, width])[:, None, None] - 1) / 2
    cosine, sine = (
        part[:, None, None] for part in (np.cos(angles) / zooms, np.sin(angles) / zooms)
    )
    rows = (height - 1) / 2 + cosine * down + sine * right + shifts[:, 0, None, None]
    columns = (width - 1) / 2 - sine * down + cosine * right + shifts[:, 1, None, None]
    image = np.broadcast_to(np.arange(count)[:, None, None], rows.shape)
    # Pixel i lies at 2 i + 0.5 of the large image.
    places = np.stack([image, 2 * rows + 0.5, 2 * columns + 0.5]).astype("float32")
    moved = [
        keras.ops.image.map_coordinates(large[..., channel], places, order=1)
        for channel in range(channels)
    ]
    return np.clip(keras.ops.convert_to_numpy(keras.ops.stack(moved, axis=-1)), 0.0, 1.0)


def _epochs(count: int) -> str:
    return "epoch" if count == 1 else f"{count} epochs"


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Layers made within compute as a policy says."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _hard(levels: int) -> Callable[[], Any]:
    return lambda: QuSecQuantization(levels, hard=True)


_MOVED: dict[str, Any] = {
    "epsilon": 0.3, "shift": 2, "rotation": 10.0, "zoom": 0.1, "batch": 256, "rate": 0.002,
}  # fmt: skip

# On MNIST, L-infinity 0.3. A few large steps find nearly all examples of a network behind two
# levels: only the pixels within epsilon of the threshold can change, to 0 or to 1. Without a
# quantizer PGD needs more and smaller steps, and a slow rise of epsilon to start learning at all.
MNIST = (
    Recipe(
        "best-none", "no quantizer, moved images", None, epochs=50, steps=10, step_size=0.1,
        ramp_epochs=10, images=2000, **_MOVED,
    ),
    Recipe(
        "best", "CQ, n = 2, hard, TRADES", _hard(2), 0.3, 22, 4, 0.2, gradient_hardness=5.0,
        ramp_epochs=2, objective="trades", images=10_000,
    ),
    Recipe(
        "best-turned", "CQ, n = 2, hard, moved images", _hard(2), epochs=40, steps=4,
        step_size=0.2, gradient_hardness=5.0, ramp_epochs=2, images=10_000, **_MOVED,
    ),
)  # fmt: skip

_COLOUR: dict[str, Any] = {
    "epsilon": 8 / 255, "epochs": 40, "steps": 3, "step_size": 4 / 255, "shift": 2, "flip": True,
}  # fmt: skip

# On CIFAR-10, L-infinity 8/255.
CIFAR10 = (
    Recipe("pgd-none", "no quantizer", None, **_COLOUR),
    *(
        Recipe(f"pgd-n{n}", f"CQ, n = {n}, hard", _hard(n), gradient_hardness=5.0, **_COLOUR)
        for n in (2, 4, 16)
    ),
)
