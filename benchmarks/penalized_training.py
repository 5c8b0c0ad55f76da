"""Trains a small CNN against PGD with a penalty on its weights, so that proofs decide it sooner.

    KERAS_BACKEND=torch python benchmarks/penalized_training.py MODEL.keras --l1 0.001
        [--epsilon 0.3] [--epochs 5] [--data mnist.npz]
    KERAS_BACKEND=torch python benchmarks/certification.py decide MODEL.keras --images 1000 \\
        --data mnist.npz

Two hard levels, convolutions of 16 and 32 filters (4 x 4, stride 2), 100 units; an L1 penalty on
the weights of every layer. PGD of seven steps along gradients of hardness 5, epsilon rising over
the first epoch; Adam from 0.001 falling as a cosine, batches of 128, one seed, one thread.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
from keras import layers

from keras_qusec import AdversarialTraining, QuSecQuantization, datasets

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="file to write, .keras")
    parser.add_argument("--l1", type=float, required=True)
    parser.add_argument("--data", default="mnist5k", help="a data set, or an .npz file")
    parser.add_argument("--epsilon", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(options.seed)
    data = datasets.load(options.data)
    penalty = {"kernel_regularizer": keras.regularizers.L1(options.l1)}
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            QuSecQuantization(2, hard=True),
            layers.Conv2D(16, 4, strides=2, padding="same", activation="relu", **penalty),
            layers.Conv2D(32, 4, strides=2, padding="same", activation="relu", **penalty),
            layers.Flatten(),
            layers.Dense(100, activation="relu", **penalty),
            layers.Dense(10, **penalty),
        ]
    )
    steps = options.epochs * -(-len(data.x_train) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.001, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    training = AdversarialTraining(
        "pgd", epsilon=options.epsilon, steps=7, gradient_hardness=5.0, ramp_epochs=1
    )
    model.fit(
        data.x_train, data.y_train, epochs=options.epochs, batch_size=BATCH, verbose=2,
        callbacks=[training],
    )  # fmt: skip
    right = model.predict(data.x_test, verbose=0).argmax(axis=1) == data.y_test
    model.save(options.path)
    print(f"Clean accuracy of {len(right):,} test images: {100 * np.mean(right):.2f} %")


if __name__ == "__main__":
    main()
