"""Time of the squeezers beside ART's, and of each defence in inference.

    python benchmarks/defenses.py [tensorflow torch jax]

Bit depth (1 bit) and median smoothing (2 x 2) of 256 images 28 x 28 and of 64 images
32 x 32 x 3, beside ART's FeatureSqueezing and SpatialSmoothing, which run in NumPy and SciPy, on
the same batch. Ours are compiled where the backend compiles. Then `predict` on 256 images by the
paper's CNN behind each defence, as a multiple of the undefended one. All take turns; medians over
the rounds.

ART is optional: pip install adversarial-robustness-toolbox
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

ROUNDS = 9


def main() -> None:
    for backend in sys.argv[1:] or ["tensorflow", "torch", "jax"]:
        child = subprocess.run(
            [sys.executable, "-c", "import defenses; defenses.measure()"],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True,
        )  # fmt: skip
        if child.returncode:
            sys.exit(child.stderr)
        figures = json.loads(child.stdout.strip().splitlines()[-1])
        print(f"\n### {backend}\n")
        print("| squeezer | images | ours, ms | ART, ms | times faster |")
        print("| --- | --- | ---: | ---: | ---: |")
        for name, images, ours, art in figures["squeezers"]:
            print(f"| {name} | {images} | {ours:.2f} | {art:.2f} | {art / ours:.1f} |")
        print("\n| defence | inference, x undefended |\n| --- | ---: |")
        for name, ratio in figures["inference"].items():
            print(f"| {name} | {ratio:.2f} |")


def in_turns(functions: dict) -> dict[str, float]:
    """The median seconds of each function; the first round compiles and does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure() -> None:
    """Measure on this process's backend and print the figures as JSON."""
    import keras
    import numpy as np
    from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing

    from keras_qusec import QuSecQuantization
    from keras_qusec import defenses as d
    from keras_qusec.backends import backend
    from keras_qusec.models import paper_cnn

    rng = np.random.default_rng(0)
    squeezers = []
    for shape in ((256, 28, 28, 1), (64, 32, 32, 3)):
        x = rng.random(shape).astype("float32")
        pairs = {
            "bit depth": (d.BitDepthReduction(1), FeatureSqueezing((0, 1), bit_depth=1)),
            "median 2 x 2": (
                d.MedianSmoothing(2),
                SpatialSmoothing(window_size=2, clip_values=(0, 1)),
            ),
        }
        for name, (ours, theirs) in pairs.items():
            compiled = backend().compiled_forward(lambda _, x, ours=ours: ours(x), [])
            tensor = keras.ops.convert_to_tensor(x)
            median = in_turns({
                "ours": lambda c=compiled, t=tensor: keras.ops.convert_to_numpy(c(t)),
                "art": lambda theirs=theirs, x=x: theirs(x),
            })  # fmt: skip
            squeezers.append(
                [name, "x".join(map(str, shape)), 1000 * median["ours"], 1000 * median["art"]]
            )
    x = rng.random((256, 28, 28, 1)).astype("float32")
    plain = paper_cnn(seed=0)

    def behind(layer):
        return keras.Sequential([keras.Input((28, 28, 1)), layer, paper_cnn(seed=0)])

    models = {
        "undefended": plain,
        "constant quantizer": paper_cnn(QuSecQuantization(2), seed=0),
        "bit depth": paper_cnn(d.BitDepthReduction(1), seed=0),
        "median 2 x 2": paper_cnn(d.MedianSmoothing(2), seed=0),
        "non-local means 13-3": paper_cnn(d.NonLocalMeans(13, 3, 0.1), seed=0),
        "detector: 1 bit, median": d.SqueezingDetector(
            plain, [d.BitDepthReduction(1), d.MedianSmoothing(2)]
        ),
        "BReLU": d.brelu_gda(paper_cnn(seed=0)),
        "DQA": paper_cnn(first_activation=d.QuantizedActivation(2), seed=0),
        "thermometer 16": paper_cnn(d.ThermometerEncoding(16), seed=0),
        "APE-GAN, 16 filters": behind(d.Purifier(d.ape_generator((28, 28, 1), filters=16))),
        "Defense-GAN, 30 x 2": behind(
            d.DefenseGAN(d.wgan_generator((28, 28, 1)), steps=30, restarts=2)
        ),
    }
    times = in_turns({n: (lambda m=m: m.predict(x, batch_size=256, verbose=0))
                      for n, m in models.items()})  # fmt: skip
    inference = {name: value / times["undefended"] for name, value in times.items()}
    print(json.dumps({"squeezers": squeezers, "inference": inference}))


if __name__ == "__main__":
    main()
