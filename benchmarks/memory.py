"""Peak memory of an evaluation by the number of images, given as an array or as a memory map.

    python benchmarks/memory.py [--images 64 512 1024] [--mapped 512 4096] [--backend tensorflow]

Images of 224 x 224 x 3 random floats, a network of one convolution behind QuSecQuantization(2),
whose own predictions are the labels; attacks "quick" at two radii. Each row is a process of its
own, which writes its images to a temporary file if they are mapped. Linux alone: it reads
/proc/self/status.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = (224, 224, 3)


def status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def images(count: int, folder: str | None):
    import numpy as np

    if folder is None:
        return np.random.default_rng(0).random((count, *SHAPE), dtype="float32")
    path = Path(folder) / "images.npy"
    mapped = np.lib.format.open_memmap(path, "w+", "float32", (count, *SHAPE))
    generator = np.random.default_rng(0)
    for start in range(0, count, 32):
        rows = min(32, count - start)
        mapped[start : start + rows] = generator.random((rows, *SHAPE), dtype="float32")
    del mapped
    return np.load(path, mmap_mode="r")


def row(count: int, folder: str | None) -> None:
    import keras
    import numpy as np

    from keras_qusec import QuSecQuantization, evaluate_robustness

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(SHAPE), QuSecQuantization(2),
         keras.layers.Conv2D(4, 7, strides=4, activation="relu"),
         keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    )  # fmt: skip
    x = images(count, folder)
    labels = [
        model.predict(np.array(x[start : start + 32]), verbose=0).argmax(axis=1)
        for start in range(0, count, 32)
    ]
    # The peak is counted anew from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), time.perf_counter()
    evaluate_robustness(
        model, x, np.concatenate(labels), attacks="quick", epsilons=[0.01, 0.02], progress=False
    )
    peak, seconds = status("VmHWM"), time.perf_counter() - began
    given = "array" if folder is None else "memory map"
    print(
        f"| {count:,} | {x.nbytes / 2**20:,.0f} | {given} | {peak - before:,.0f} | {peak:,.0f} "
        f"| {seconds:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="*", type=int, default=[64, 512, 1024])
    parser.add_argument("--mapped", nargs="*", type=int, default=[512, 4096])
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        count, mapped = int(arguments.row[0]), arguments.row[1] == "mapped"
        with tempfile.TemporaryDirectory() as folder:
            row(count, folder if mapped else None)
        return
    print(
        "| images | bytes of them, MiB | given as | peak above, MiB | in all, MiB | s |", flush=True
    )
    environment = {**os.environ, "KERAS_BACKEND": arguments.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for kind, counts in (("array", arguments.images), ("mapped", arguments.mapped)):
        for count in counts:
            command = [sys.executable, __file__, "--row", str(count), kind]
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
