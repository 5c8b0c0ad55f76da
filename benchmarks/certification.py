"""Proofs: how many images are decided in what time, beside attacks and beside plain training.

    KERAS_BACKEND=torch python benchmarks/certification.py decide MODEL.keras --images 1000
    KERAS_BACKEND=torch python benchmarks/certification.py attacks MODEL.keras --epsilon 0.1
    KERAS_BACKEND=torch python benchmarks/certification.py training
    KERAS_BACKEND=torch python benchmarks/certification.py verdicts FOLDER --seconds 120

One thread. `decide` proves the first test images of MNIST, at most some seconds an image, with an
interval (Wilson) beside each share. `attacks` takes turns on the same images: the published
AutoAttack alone, the standard evaluation alone, proofs alone, and the standard evaluation that
proves first; medians over the rounds. `training` times steps of `CertifiedTraining`, when epsilon
has reached its value, beside plain steps of the same network, batch 128; medians over the rounds.
`verdicts` decides problems of a competition of verifiers: networks in ONNX, properties in VNN-LIB,
and `verdicts.csv` with what the winner said; none may differ.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np

from keras_qusec import (
    CertifiedTraining,
    QuSecQuantization,
    certify_robustness,
    datasets,
    evaluate_robustness,
)
from keras_qusec.certification.exchange import read_box, read_network
from keras_qusec.certification.network import Network
from keras_qusec.certification.reduced import Reduced
from keras_qusec.certification.reduction import reduced
from keras_qusec.certification.search import Found, search
from keras_qusec.models import paper_cnn
from keras_qusec.statistics import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decide", "attacks", "training", "verdicts"])
    parser.add_argument("model", nargs="?", help="a .keras file, or a folder")
    parser.add_argument("--data", default="mnist5k", help="a data set of keras_qusec.datasets")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the search for one image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    if options.what == "training":
        training(options.rounds)
        return
    if options.what == "verdicts":
        verdicts(Path(options.model), options.seconds)
        return
    data = datasets.load(options.data)
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    model = keras.models.load_model(options.model)
    if options.what == "decide":
        decide(model, x, y, options)
    else:
        attacks(model, x, y, options)


def decide(model: keras.Model, x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> None:
    """A line for each epsilon."""
    print("| epsilon | proved | broken | open | robust, % | decided, % | s/image | median |")
    print("| ---: | ---: | ---: | ---: | --- | --- | ---: | ---: |")
    for epsilon in options.epsilons:
        proof = certify_robustness(
            model, x, y, epsilons=[epsilon], time_limit=options.seconds, progress=False
        )
        states, seconds = proof.status(), proof.certificate().seconds
        proved, broken, left = ((states == s).sum() for s in ("proved", "broken", "open"))
        robust = f"{100 * proved / len(x):.1f}"
        if left:
            robust += f" to {100 * (proved + left) / len(x):.1f}"
        low, high = (100 * end for end in wilson_interval(int(len(x) - left), len(x)))
        print(
            f"| {epsilon:g} | {proved} | {broken} | {left} | {robust} | "
            f"{100 * (1 - left / len(x)):.1f} ({low:.1f} to {high:.1f}) | {seconds.mean():.3f} | "
            f"{np.median(seconds):.3f} |",
            flush=True,
        )
        how = dict(zip(*np.unique(proof.how(), return_counts=True), strict=True))
        print(f"  how: {how}; margin for rounding {proof.certificate().margin:.4f}", flush=True)


def attacks(model: keras.Model, x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> None:
    """Seconds and shares of attacks alone, proofs alone, and both, in turns."""
    radii = [options.epsilon]
    both: dict[str, dict[str, Any]] = {
        "AutoAttack": {"attacks": ["autoattack"], "threat_models": ["adaptive"]},
        "standard": {"attacks": "standard"},
        "proofs": {"attacks": [], "prove": "exact"},
        "prove first, standard": {"attacks": "standard", "prove": "exact"},
    }
    times: dict[str, list[float]] = {name: [] for name in both}
    shares: dict[str, str] = {}
    for _ in range(options.rounds):
        for name, settings in both.items():
            began = time.perf_counter()
            report = evaluate_robustness(model, x, y, epsilons=radii, progress=False, **settings)
            times[name].append(time.perf_counter() - began)
            found = report.bracket()
            share = f"{100 * report.robust_accuracy():.1f}"
            shares[name] = share if found is None else f"{100 * found.proved.share:.1f} to {share}"
    print(f"| {len(x)} images at {options.epsilon:g} | s | times AutoAttack | robust, % |")
    print("| --- | ---: | ---: | --- |")
    first = statistics.median(times["AutoAttack"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.1f} | {middle / first:.2f} | {shares[name]} |")


def verdicts(folder: Path, seconds: float) -> None:
    """A line for each problem, and how many agree."""
    counts: dict[str, int] = {}
    for row in csv.DictReader((folder / "verdicts.csv").open()):
        network = read_network(folder / row["network"])
        low, high, label = read_box(folder / row["property"])
        began = time.perf_counter()
        found = decided(network, low, high, label, seconds)
        spent = time.perf_counter() - began
        verdict = {"proved": "unsat", "broken": "sat", "open": "open"}[found.state]
        agrees = "open" in verdict or row["verdict"] in (verdict, "timeout")
        kind = verdict if agrees else "CONTRADICTION"
        counts[kind] = counts.get(kind, 0) + 1
        print(
            f"{row['network'][:17]} {row['property'][:11]} {row['verdict']:8} {verdict:6} "
            f"{spent:7.1f} s {found.nodes} boxes" + ("" if agrees else " CONTRADICTION"),
            flush=True,
        )
    print(counts)


def decided(
    network: Network, low: np.ndarray, high: np.ndarray, label: int, seconds: float
) -> Found:
    """What the search says of a property of a network."""
    bounds = network.bounds(low[None], high[None])
    gaps, errors = network.gaps(bounds, np.array([label]))
    # The competition asks about real numbers, so what is rounded is our float64 alone.
    errors = errors * 2.0**-29
    others = np.delete(np.arange(network.classes), label)
    if (gaps + errors)[0, others].max() < 0:
        return Found("proved", 0.0, 0)
    small = reduced(network, bounds, 0)
    matrices = [matrix[others] - matrix[label] for matrix in small.matrices]
    offset = small.offset[others] - small.offset[label]
    moving = np.flatnonzero(high > low)

    def check(values: np.ndarray) -> bool | None:
        inputs = low.copy()
        inputs[moving] = values
        logits = network.forward(inputs[None])[0]
        gap, error = logits[others].max() - logits[label], errors[0, others].max()
        return True if gap > error else None if gap > -error else False

    return search(
        Reduced(small.low, small.high, small.groups, matrices, offset), [None] * len(moving),
        errors[0, others], check, seconds=seconds,
    )  # fmt: skip


def training(rounds: int, *, steps: int = 12) -> None:
    """Processor time of steps of plain and of certified training, in turns."""
    data = datasets.mnist5k()
    x, y = data.x_train[: 128 * steps], data.y_train[: 128 * steps]
    settings = {"warmup_epochs": 0, "ramp_epochs": 0}
    callbacks = {
        "plain": [],
        "intervals": [CertifiedTraining(0.3, **settings)],
        "intervals and clean": [CertifiedTraining(0.3, clean_weight=0.5, **settings)],
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    models = {}
    for name, used in callbacks.items():
        models[name] = paper_cnn(QuSecQuantization(2, hard=True), seed=0)
        models[name].compile("adam", loss, metrics=["accuracy"])
        models[name].fit(x[:256], y[:256], batch_size=128, verbose=0, callbacks=used)
    times: dict[str, list[float]] = {name: [] for name in callbacks}
    for _ in range(rounds):
        for name, used in callbacks.items():
            began = time.process_time()
            models[name].fit(x, y, batch_size=128, verbose=0, callbacks=used)
            times[name].append((time.process_time() - began) / steps)
    plain = statistics.median(times["plain"])
    print("| step | ms | plain steps |")
    print("| --- | ---: | ---: |")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {1000 * middle:.0f} | {middle / plain:.2f} |")


if __name__ == "__main__":
    main()
