"""Robust accuracy of cheap adversarial training, and what it costs, beside PGD of seven steps.

    python benchmarks/fast_training.py DATA.npz FOLDER [--methods pgd-7 n-fgsm ...] [--epsilon 0.3]
        [--fronts plain hard] [--seeds 0] [--epochs 3] [--train-images 60000] [--images 500]

DATA is MNIST, for the paper's CNN, or CIFAR-10, for a CNN of 32 and 64 filters (4 x 4, stride 2)
with batch normalization and 128 units. Batches of 128, Adam 0.001; epsilon rises over the first
epoch. Then the standard evaluation of the first test images. `plain` has no quantizer; `hard` has
two hard levels in front, and attacks follow gradients of hardness 5. Each row is written to FOLDER
as it ends, and is not made again. The time of a step is that of the processor in the same process,
on one thread: medians of single steps, in rounds in which every method and the plain step take
turns; what comes once an epoch is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

BATCH = 128
METHODS = {
    "fgsm": ("fgsm", {}),
    "fgsm-rs": ("fgsm", {"random_start": True}),
    "n-fgsm": ("n-fgsm", {}),
    "fgsm-mep": ("fgsm-mep", {}),
    "pgd-2": ("pgd", {"steps": 2}),
    "pgd-7": ("pgd", {"steps": 7}),
    "trades-7": ("pgd", {"steps": 7, "objective": "trades", "random_start": False}),
}


def small(quantizer, shape):
    import keras
    from keras import layers

    convolutions = [
        layer
        for filters in (32, 64)
        for layer in (
            layers.Conv2D(filters, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(), layers.ReLU(),
        )
    ]  # fmt: skip
    return keras.Sequential(
        [keras.Input(shape), *([quantizer] if quantizer else []), *convolutions,
         layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )  # fmt: skip


def network(front: str, seed: int, shape):
    import keras

    from keras_qusec import QuSecQuantization
    from keras_qusec.models import paper_cnn

    keras.utils.set_random_seed(seed)
    quantizer = QuSecQuantization(2, hard=True) if front == "hard" else None
    model = paper_cnn(quantizer, seed=seed) if shape[-1] == 1 else small(quantizer, shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
    return model


def callback(method: str, front: str, epsilon: float, *, ramp: bool, collapse="warn"):
    from keras_qusec import AdversarialTraining

    name, settings = METHODS[method]
    return AdversarialTraining(
        name, epsilon=epsilon, ramp_epochs=1 if ramp else 0, collapse=collapse,
        gradient_hardness=5.0 if front == "hard" else None, **settings,
    )  # fmt: skip


def trained(method: str, front: str, seed: int, data, arguments) -> dict:
    from keras_qusec import evaluate_robustness

    x, y, x_test, y_test = data
    model, began = network(front, seed, x.shape[1:]), time.perf_counter()
    history = model.fit(
        x, y, batch_size=BATCH, epochs=arguments.epochs, verbose=0,
        callbacks=[callback(method, front, arguments.epsilon, ramp=True)],
    ).history  # fmt: skip
    seconds = time.perf_counter() - began
    count = arguments.images
    report = evaluate_robustness(
        model,
        x_test[:count],
        y_test[:count],
        attacks="standard",
        epsilons=[arguments.epsilon],
    )
    clean = float(model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"])
    return {
        "robust": report.robust_accuracy(epsilon=arguments.epsilon), "images": count,
        "clean": clean,
        "epochs": arguments.epochs, "seconds": seconds,
        "collapse": history.get("catastrophic_overfitting"),
    }  # fmt: skip


def step_times(
    front: str, data, *, epsilon: float, rounds: int, steps: int = 12
) -> dict[str, float]:
    """Seconds of the processor for a step of each method, and for a plain one."""
    import keras

    x, y = (part[: BATCH * steps] for part in data[:2])
    model = network(front, 0, x.shape[1:])

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds: list[float] = []

        def on_train_batch_begin(self, batch, logs=None):
            self.began = time.process_time()

        def on_train_batch_end(self, batch, logs=None):
            # The first step compiles.
            if batch:
                self.seconds.append(time.process_time() - self.began)

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for method in ("plain", *METHODS):
            made = []
            if method != "plain":
                made = [callback(method, front, epsilon, ramp=False, collapse=None)]
            clock = Clock()
            model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[*made, clock])
            times.setdefault(method, []).extend(clock.seconds)
    return {method: statistics.median(found) for method, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--fronts", nargs="*", default=["plain", "hard"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=0.3)
    parser.add_argument("--train-images", type=int, default=60_000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    import numpy as np

    content = np.load(arguments.data)
    data = []
    for part, count in (("train", arguments.train_images), ("test", None)):
        x = (content[f"x_{part}"][:count] / 255).astype("float32")
        data += [x[..., None] if x.ndim == 3 else x, content[f"y_{part}"][:count].ravel()]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for front in arguments.fronts:
            for method in arguments.methods:
                path = arguments.folder / (
                    f"{front}-{method}-{seed}-{arguments.epochs}-{len(data[0])}.json"
                )
                if not path.exists():
                    path.write_text(json.dumps(trained(method, front, seed, data, arguments)))
                print(path.name, path.read_text(), flush=True)
    for front in arguments.fronts if arguments.rounds else []:
        times = step_times(front, data, epsilon=arguments.epsilon, rounds=arguments.rounds)
        print(f"| {front} | ms | plain steps |")
        for method, seconds in times.items():
            print(f"| {method} | {1e3 * seconds:.0f} | {seconds / times['plain']:.2f} |")


if __name__ == "__main__":
    main()
