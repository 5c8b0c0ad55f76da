"""Which attack finds the closest adversarial examples: optimality in each norm.

    KERAS_BACKEND=torch python benchmarks/optimality.py MODEL.keras --images 100

The measure of AttackBench (Cinà et al. 2025): each attack gives a curve of robust accuracy against
epsilon. The best of all attacks on each image give the lowest curve, until it reaches 0. The
optimality of an attack is the area between its curve and the clean accuracy up to there, as a share
of that of the best: 1 if no other attack is closer on any image. Attacks of a fixed radius are made
at sixteen radii up to the largest distance that is the best on an image. The first test images of
MNIST that are classified correctly. One thread; gradients and queries are means over images, for
all radii together.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np

from keras_qusec import datasets, evaluate_robustness
from keras_qusec.attacks import get

# Attacks for the closest example, and attacks within a radius, by norm.
ATTACKS = {
    "linf": (["fmn-linf", "fab", "deepfool-linf"], ["pgd", "apgd-ce", "apgd-t", "standard"]),
    "l2": (["fmn-l2", "fab-l2", "deepfool", "cw"],
           ["pgd-l2", "apgd-ce-l2", "apgd-t-l2", "standard-l2"]),
    "l1": (["fmn-l1", "fab-l1"], ["apgd-ce-l1", "standard-l1"]),
    "l0": (["sigma-zero", "fmn-l0", "jsma", "pointwise"], []),
}  # fmt: skip
RADII = 16


def optimality(distances: np.ndarray, best: np.ndarray) -> float:
    """The area above a curve of robust accuracy, as a share of that above the lowest curve.

    Args:
        distances: of an attack's examples, ``(n,)``, infinite where it found none.
        best: the smallest distances of all attacks, ``(n,)``, finite.
    """
    end = best.max()
    # An image that falls at a distance d adds what is left up to the end.
    return float(np.maximum(end - distances, 0.0).sum() / (end - best).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--data", default="mnist5k", help="a data set of keras_qusec.datasets")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--norms", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    data = datasets.load(options.data)
    model = keras.models.load_model(options.model, compile=False)
    right = model.predict(data.x_test, verbose=0).argmax(axis=1) == data.y_test
    rows = np.flatnonzero(right)[: options.images]
    x, y = data.x_test[rows], data.y_test[rows]
    print(f"{options.model}, {len(x)} images, {keras.backend.backend()}")
    print("| norm | attack | optimality | median distance | gradients | queries | s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for norm in options.norms:
        table(model, x, y, norm)


def table(model: keras.Model, x: np.ndarray, y: np.ndarray, norm: str) -> None:
    """A line for each attack of a norm."""
    closest, within = ATTACKS[norm]
    found = {name: measured(model, x, y, norm, name, None) for name in closest}
    first = np.min([distances for distances, *_ in found.values()], axis=0)
    end = float(first[np.isfinite(first)].max())
    radii = [end * (place + 1) / RADII for place in range(RADII)]
    found |= {name: measured(model, x, y, norm, name, radii) for name in within}
    best = np.min([distances for distances, *_ in found.values()], axis=0)
    if not np.isfinite(best).all():
        print(f"| {norm} | no attack breaks {np.isinf(best).sum()} images; they are left out |")
    kept = np.isfinite(best)
    scores = {name: optimality(one[0][kept], best[kept]) for name, one in found.items()}
    for name in sorted(scores, key=scores.get, reverse=True):
        distances, gradients, queries, seconds = found[name]
        print(
            f"| {norm} | {name} | {scores[name]:.3f} | {np.median(distances):.3g} | "
            f"{gradients:,.0f} | {queries:,.0f} | {seconds:.0f} |",
            flush=True,
        )


def measured(
    model: keras.Model, x: np.ndarray, y: np.ndarray, norm: str, name: str,
    radii: list[float] | None,
) -> tuple[np.ndarray, float, float, float]:  # fmt: skip
    """Distances of an attack's closest examples, gradients and queries an image, and seconds.

    Args:
        model: the classifier.
        x: images that it classifies correctly.
        y: their classes.
        norm: in which distances are measured.
        name: name of the attack.
        radii: at which it is made; None for one that minimizes.
    """
    assert get(name).minimizes == (radii is None), name
    given = radii or [1e-9 if norm != "l0" else 1]
    began = time.perf_counter()
    report = evaluate_robustness(
        model, x, y, attacks=[name], epsilons={norm: given}, threat_models=["white-box"],
        progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    (result,) = report.results
    costs = (float(cost.sum()) / len(x) for cost in (result.gradients, result.queries))
    return result.distances[norm].astype("float64"), *costs, seconds


if __name__ == "__main__":
    main()
