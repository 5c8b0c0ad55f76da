"""Trains a network so that as many images as can be are proved, and saves it.

    KERAS_BACKEND=torch python benchmarks/certified_training.py MODEL.keras [--epsilon 0.3]
        [--epochs 40] [--data mnist.npz] [--levels 2] [--clean-weight 0]
    KERAS_BACKEND=torch python benchmarks/certification.py decide MODEL.keras --images 10000 \\
        --data mnist.npz --epsilons 0.3

Grey images: the paper's CNN; batch normalization stands behind each convolution in training and is
folded into its weights afterwards. Colour images, mirrored at random: a CNN of 32 and 64 filters
(4 x 4, stride 2) with batch normalization, and 128 units. Hard levels in front (0 for no
quantizer), intervals, one seed, one thread. Weights of `IBPNormal`, Adam 0.002 falling as a cosine
over the first 34 of 40 epochs and then once more from 0.001, gradients clipped at a norm of 10,
batches of 128; a fortieth of plain training, then epsilon rises over seven fortieths. After each
epoch it can go on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np

from keras_qusec import CertifiedTraining, QuSecQuantization, datasets
from keras_qusec.models import paper_cnn
from keras_qusec.training import IBPNormal

BATCH = 128


class Mirrored(keras.utils.PyDataset):
    """Batches in random order; half of the images, drawn anew each time, are mirrored."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int) -> None:
        super().__init__()
        self.x, self.y, self.random = x, y, np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[BATCH * place : BATCH * (place + 1)]
        mirrored = self.random.random(len(rows)) < 0.5
        x = self.x[rows]
        return np.where(mirrored[:, None, None, None], x[:, :, ::-1], x), self.y[rows]

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.x))


def with_normalization(seed: int, levels: int, shape: tuple[int, ...]) -> keras.Sequential:
    """The network with batch normalization before each ReLU of a convolution."""
    seeds = iter(range(5 * seed + 1, 5 * seed + 6))

    def convolution(filters: int, size: int, strides: int, padding: str) -> list:
        return [
            keras.layers.Conv2D(
                filters, size, strides=strides, padding=padding, use_bias=False,
                kernel_initializer=IBPNormal(next(seeds)),
            ),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]  # fmt: skip

    if shape[-1] == 1:
        hidden = [
            *convolution(64, 8, 2, "same"),
            *convolution(128, 6, 2, "valid"),
            *convolution(128, 5, 1, "valid"),
            keras.layers.Flatten(),
        ]
    else:
        hidden = [
            *convolution(32, 4, 2, "same"),
            *convolution(64, 4, 2, "same"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu", kernel_initializer=IBPNormal(next(seeds))),
        ]
    front = [QuSecQuantization(levels, hard=True)] if levels else []
    last = keras.layers.Dense(10, kernel_initializer=IBPNormal(next(seeds)))
    return keras.Sequential([keras.Input(shape), *front, *hidden, last])


def folded(model: keras.Sequential, levels: int) -> keras.Sequential:
    """The paper's CNN that computes the same at inference."""
    plain = paper_cnn(QuSecQuantization(levels, hard=True) if levels else None, seed=0)
    kinds = keras.layers.Conv2D, keras.layers.BatchNormalization
    given, normalizations = ([la for la in model.layers if isinstance(la, k)] for k in kinds)
    into = [layer for layer in plain.layers if isinstance(layer, keras.layers.Conv2D)]
    for source, normalization, target in zip(given, normalizations, into, strict=True):
        (kernel,) = source.get_weights()
        gamma, beta, mean, variance = normalization.get_weights()
        factor = gamma / np.sqrt(variance.astype("float64") + normalization.epsilon)
        target.set_weights([(kernel * factor).astype("float32"), beta - mean * factor])
    plain.layers[-1].set_weights(model.layers[-1].get_weights())
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="file to write, .keras")
    parser.add_argument("--data", default="mnist5k", help="a data set, or an .npz file")
    parser.add_argument("--epsilon", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--clean-weight", type=float, default=0.0)
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(options.seed)
    data = datasets.load(options.data)
    model = with_normalization(options.seed, options.levels, data.x_test.shape[1:])
    batches = Mirrored(data.x_train, data.y_train, options.seed)
    steps = options.epochs * (len(batches) if data.is_colour else -(-len(data.x_train) // BATCH))
    rate = keras.optimizers.schedules.CosineDecayRestarts(
        0.002, int(steps * 34 / 40), t_mul=6 / 34, m_mul=0.5, alpha=0.01
    )
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=10.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    test = data.x_test[:2000], data.y_test[:2000]
    training = CertifiedTraining(
        options.epsilon, warmup_epochs=options.epochs / 40, ramp_epochs=options.epochs * 7 / 40,
        clean_weight=options.clean_weight, validation_data=test,
    )  # fmt: skip
    backup = keras.callbacks.BackupAndRestore(str(options.path) + "-backup")
    given = (
        {"x": batches}
        if data.is_colour
        else {"x": data.x_train, "y": data.y_train, "batch_size": BATCH}
    )
    model.fit(**given, epochs=options.epochs, verbose=2, callbacks=[training, backup])
    if data.is_colour:
        model.save(options.path)
        print(f"Written: {options.path}")
        return
    plain = folded(model, options.levels)
    gap = np.abs(plain.predict(test[0], verbose=0) - model.predict(test[0], verbose=0)).max()
    plain.save(options.path)
    print(f"Folded: logits differ by at most {gap:.1e}. Written: {options.path}")


if __name__ == "__main__":
    main()
