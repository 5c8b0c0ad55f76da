"""Proofs: how many images are decided in what time, beside attacks and beside plain training.

    KERAS_BACKEND=torch python benchmarks/certification.py decide MODEL.keras --images 1000
    KERAS_BACKEND=torch python benchmarks/certification.py attacks MODEL.keras --epsilon 0.1
    KERAS_BACKEND=torch python benchmarks/certification.py training

One thread. `decide` proves the first test images of MNIST, at most some seconds an image, with an
interval (Wilson) beside each share. `attacks` takes turns on the same images: the published
AutoAttack alone, the standard evaluation alone, proofs alone, and the standard evaluation that
proves first; medians over the rounds. `training` times steps of `CertifiedTraining`, when epsilon
has reached its value, beside plain steps of the same network, batch 128; medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
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
from keras_qusec.models import paper_cnn
from keras_qusec.statistics import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decide", "attacks", "training"])
    parser.add_argument("model", nargs="?", help="a .keras file")
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


def training(rounds: int, *, steps: int = 12) -> None:
    """Steps of plain and of certified training, in turns."""
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
            began = time.perf_counter()
            models[name].fit(x, y, batch_size=128, verbose=0, callbacks=used)
            times[name].append((time.perf_counter() - began) / steps)
    plain = statistics.median(times["plain"])
    print("| step | ms | plain steps |")
    print("| --- | ---: | ---: |")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {1000 * middle:.0f} | {middle / plain:.2f} |")


if __name__ == "__main__":
    main()
