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

_BATCH = 128


class Recipe(NamedTuple):
    """How a network is trained on PGD examples.

    Attributes:
        name: file of the network.
        title: what the table calls it.
        front: function that makes the quantizer, or None for none.
        epsilon: radius, L-infinity.
        epochs: epochs; the learning rate falls from 0.001 to 0 as a cosine.
        steps: of PGD, from a random start.
        step_size: of PGD.
        gradient_hardness: of the surrogate gradients that PGD gets through the quantizer.
        ramp_epochs: epochs over which epsilon rises.
        shift: images move by up to so many pixels, each way.
        flip: whether half of the images are mirrored.
        objective: ``"loss"`` (Madry et al.) or ``"trades"`` (Zhang et al.), with beta 6.
    """

    name: str
    title: str
    front: Callable[[], Any] | None
    epsilon: float
    epochs: int
    steps: int
    step_size: float
    gradient_hardness: float | None = None
    ramp_epochs: int = 1
    shift: int = 0
    flip: bool = False
    objective: Literal["loss", "trades"] = "loss"

    def settings(self) -> str:
        """The recipe in one line, for the reader."""
        parts = [
            "TRADES, beta 6" if self.objective == "trades" else "adversarial training",
            f"{self.epochs} epochs",
            f"PGD of {self.steps} steps of {self.step_size:.3g}, epsilon {self.epsilon:.3g}",
            f"rising over {self.ramp_epochs} epochs" if self.ramp_epochs > 1 else "",
            f"surrogate hardness {self.gradient_hardness:g}" if self.gradient_hardness else "",
            f"shifts of {self.shift} pixels" if self.shift else "",
            "mirrored images" if self.flip else "",
            "Adam from 0.001 to 0 as a cosine, averaged weights",
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
        data = Augmented(training, shift=self.shift, flip=self.flip)
        attack = AdversarialTraining(
            "pgd", epsilon=self.epsilon, steps=self.steps, step_size=self.step_size,
            gradient_hardness=self.gradient_hardness, ramp_epochs=min(self.ramp_epochs, epochs),
            objective=self.objective, seed=training.seed,
        )  # fmt: skip
        with _precision("mixed_bfloat16"):
            model = training.network(self.front and self.front())
            rate = keras.optimizers.schedules.CosineDecay(0.001, epochs * len(data))
            model.compile(
                keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.999),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            model.fit(
                data, epochs=epochs, verbose=0,
                callbacks=[attack, keras.callbacks.BackupAndRestore(training.backup)],
            )  # fmt: skip
        precise = training.network(self.front and self.front())
        precise.set_weights(model.get_weights())
        precise.history = model.history
        return precise


class Augmented(keras.utils.PyDataset):
    """Training images in batches, shuffled, shifted and mirrored anew in each epoch.

    Args:
        training: data and seed.
        shift: largest shift, in pixels; what enters is black.
        flip: whether half of the images are mirrored.
    """

    def __init__(self, training: Training, *, shift: int, flip: bool) -> None:
        super().__init__()
        self.x, self.y = training.data.x_train, training.data.y_train
        self.shift, self.flip = shift, flip
        self.random = np.random.default_rng(training.seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return max(1, len(self.x) // _BATCH)

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.x))
        self.shifts = self.random.integers(-self.shift, self.shift + 1, (len(self.x), 2))
        self.mirrored = self.random.random(len(self.x)) < 0.5 * self.flip

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index * _BATCH : (index + 1) * _BATCH]
        images = np.where(
            self.mirrored[rows][:, None, None, None], self.x[rows][:, :, ::-1], self.x[rows]
        )
        if self.shift:
            height, width = images.shape[1:3]
            edge = (self.shift, self.shift)
            padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
            images = np.stack([
                image[down : down + height, right : right + width]
                for image, (down, right) in zip(padded, self.shifts[rows] + self.shift, strict=True)
            ])  # fmt: skip
        return images, self.y[rows]


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Layers made within compute as a policy says."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _steps(levels: int) -> Callable[[], Any]:
    return lambda: QuSecQuantization(levels, hard=True)


# On MNIST, L-infinity 0.3. A few large steps find nearly all examples of a network behind two
# levels: only the pixels within epsilon of the threshold can change, to 0 or to 1. The plain loss
# gives as much (92.6 % of 1,000 test images after 6 epochs, 93.2 % after 60 with shifted images).
MNIST = (
    Recipe(
        "best", "CQ, n = 2, in steps", _steps(2), 0.3, 22, 4, 0.2, gradient_hardness=5.0,
        ramp_epochs=2, objective="trades",
    ),
)  # fmt: skip

_COLOUR: dict[str, Any] = {
    "epsilon": 8 / 255, "epochs": 6, "steps": 3, "step_size": 4 / 255, "shift": 2, "flip": True,
}  # fmt: skip

# On CIFAR-10, L-infinity 8/255.
CIFAR10 = (
    Recipe("pgd-none", "no quantizer", None, **_COLOUR),
    *(
        Recipe(f"pgd-n{n}", f"CQ, n = {n}, in steps", _steps(n), gradient_hardness=5.0, **_COLOUR)
        for n in (2, 4, 16)
    ),
)
