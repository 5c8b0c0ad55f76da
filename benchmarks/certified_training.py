"""Trains the paper's CNN so that as many images as can be are proved, and saves it.

    KERAS_BACKEND=torch python benchmarks/certified_training.py MODEL.keras [--epsilon 0.3]
        [--epochs 40] [--data mnist.npz]
    KERAS_BACKEND=torch python benchmarks/certification.py decide MODEL.keras --images 10000 \\
        --data mnist.npz --epsilons 0.3

Two hard levels in front, intervals, one seed, one thread. Batch normalization stands behind each
convolution in training and is folded into its weights afterwards, so that what is saved is the
paper's CNN. Weights of `IBPNormal`, Adam 0.002 falling as a cosine over the first 34 of 40 epochs
and then once more from 0.001, gradients clipped at a norm of 10, batches of 128; an epoch of plain
training, then epsilon rises over seven. After each epoch it
can go on where it was interrupted.
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


def with_normalization(seed: int) -> keras.Sequential:
    """The paper's CNN with batch normalization before each ReLU."""
    seeds = iter(range(4 * seed + 1, 4 * seed + 5))

    def convolution(filters: int, size: int, strides: int, padding: str) -> list:
        return [
            keras.layers.Conv2D(
                filters, size, strides=strides, padding=padding, use_bias=False,
                kernel_initializer=IBPNormal(next(seeds)),
            ),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]  # fmt: skip

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            QuSecQuantization(2, hard=True),
            *convolution(64, 8, 2, "same"),
            *convolution(128, 6, 2, "valid"),
            *convolution(128, 5, 1, "valid"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer=IBPNormal(next(seeds))),
        ]
    )


def folded(model: keras.Sequential) -> keras.Sequential:
    """The paper's CNN that computes the same at inference."""
    plain = paper_cnn(QuSecQuantization(2, hard=True), seed=0)
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
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(options.seed)
    data = datasets.load(options.data)
    model = with_normalization(options.seed)
    steps = options.epochs * -(-len(data.x_train) // BATCH)
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
        options.epsilon, warmup_epochs=1, ramp_epochs=7, validation_data=test
    )
    backup = keras.callbacks.BackupAndRestore(str(options.path) + "-backup")
    model.fit(
        data.x_train, data.y_train, epochs=options.epochs, batch_size=BATCH, verbose=2,
        callbacks=[training, backup],
    )  # fmt: skip
    plain = folded(model)
    gap = np.abs(plain.predict(test[0], verbose=0) - model.predict(test[0], verbose=0)).max()
    plain.save(options.path)
    print(f"Folded: logits differ by at most {gap:.1e}. Written: {options.path}")


if __name__ == "__main__":
    main()
