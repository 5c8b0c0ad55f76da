"""Whether another verifier agrees: Marabou on the part of a model behind its quantizer.

    pip install maraboupy==2.0.0
    KERAS_BACKEND=torch python benchmarks/other_verifier.py MODEL.keras --images 10 --epsilon 0.1

Exports the first test images of MNIST as `keras-qusec certify --export` does, asks Marabou
whether any wrong class can be reached, and compares with `certify_robustness`. Between two levels
lie numbers that no image reaches, so a counterexample of Marabou does not contradict a proof; a
proof of Marabou contradicts an adversarial example. Linux, Python 3.11.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras

from keras_qusec import certify_robustness, datasets
from keras_qusec.certification.exchange import export_problems, read_box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--data", default="mnist5k", help="a data set of keras_qusec.datasets")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--seconds", type=int, default=60, help="for one image, of Marabou")
    options = parser.parse_args()
    data = datasets.load(options.data)
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    model = keras.models.load_model(options.model)
    proof = certify_robustness(
        model, x, y, epsilons=[options.epsilon], effort="exact", progress=False
    )
    states = proof.status()
    contradictions = 0
    with tempfile.TemporaryDirectory() as folder:
        export_problems(model, x, y, folder, epsilon=options.epsilon)
        for number, ours in enumerate(states):
            began = time.perf_counter()
            theirs = marabou(Path(folder), number, options.seconds)
            spent = time.perf_counter() - began
            wrong = (ours, theirs) == ("broken", "unsat")
            contradictions += wrong
            print(
                f"image {number}: {ours}; Marabou {theirs} in {spent:.1f} s"
                + (" CONTRADICTION" if wrong else ""),
                flush=True,
            )
    print(f"{contradictions} contradictions")
    raise SystemExit(contradictions > 0)


def marabou(folder: Path, number: int, seconds: int) -> str:
    """``"unsat"`` if no other class can be reached, ``"sat"`` if one can, or ``"open"``."""
    from maraboupy import Marabou
    from maraboupy.MarabouUtils import Equation

    low, high, label = read_box(folder / f"image-{number}.vnnlib")
    network = Marabou.read_onnx(str(folder / "network.onnx"))
    inputs, outputs = network.inputVars[0].ravel(), network.outputVars[0].ravel()
    for variable, least, most in zip(inputs, low, high, strict=True):
        network.setLowerBound(int(variable), float(least))
        network.setUpperBound(int(variable), float(most))
    unsafe = []
    for other in range(len(outputs)):
        if other != label:
            # The logit of the label at most that of the other class.
            below = Equation(Marabou.MarabouCore.Equation.LE)
            below.addAddend(1.0, int(outputs[label]))
            below.addAddend(-1.0, int(outputs[other]))
            below.setScalar(0.0)
            unsafe.append([below])
    network.addDisjunctionConstraint(unsafe)
    settings = Marabou.createOptions(verbosity=0, timeoutInSeconds=seconds)
    answer, _, _ = network.solve(verbose=False, options=settings)
    return str(answer) if answer in ("sat", "unsat") else "open"


if __name__ == "__main__":
    main()
