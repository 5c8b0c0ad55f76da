"""Evaluating robustness: time and robust accuracy beside plain Foolbox, in one run.

    python benchmarks/evaluation.py            # TensorFlow and PyTorch, about 40 minutes
    python benchmarks/evaluation.py torch --rounds 1

The paper's CNN, undefended and behind a constant quantizer, trained for four epochs; 1,000 test
images of mnist5k; L-infinity epsilons 0.1, 0.2, 0.3, 0.4. Plain Foolbox is what its README
shows: the Keras model itself in a TensorFlowModel or PyTorchModel, all images in one batch, all
epsilons in one call. Both have the same attacks with the same settings: FGSM; PGD of 40 steps
of 1/16 epsilon from a random start; CW-L2 of 2 binary search steps of 50 iterations. Foolbox's
all-zero failures of CW are not counted as successes; what it says itself stands beside. The two
take turns; times are medians over the rounds. The bare passes are the gradients that our PGD
took, each at the time of a compiled input gradient of 256 images and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

EPSILONS = (0.1, 0.2, 0.3, 0.4)
PGD = {"steps": 40}
CW = {"binary_search_steps": 2, "steps": 50, "stepsize": 0.05, "initial_const": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=["tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    for backend in options.backends:
        child = subprocess.run(
            [sys.executable, "-c", f"import evaluation; evaluation.measure({options.images}, "
             f"{options.rounds})"],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True,
        )  # fmt: skip
        if child.returncode:
            sys.exit(child.stderr)
        rows = json.loads(child.stdout.strip().splitlines()[-1])
        print(f"\n### {backend}\n")
        print("| model | attack | Foolbox, s | ours, s | times faster | Foolbox, % | ours, % |")
        print("| --- | --- | ---: | ---: | ---: | --- | --- |")
        for row in rows["attacks"]:
            ratio = row["plain"] / row["ours"]
            print(
                f"| {row['model']} | {row['attack']} | {row['plain']:.1f} | {row['ours']:.1f} | "
                f"{ratio:.1f} | {row['plain accuracy']} | {row['our accuracy']} |"
            )
        for attack in ("fgsm", "pgd", "cw"):
            both = [row for row in rows["attacks"] if row["attack"] == attack]
            ratio = sum(r["plain"] for r in both) / sum(r["ours"] for r in both)
            print(f"\n{attack}, both models: {ratio:.1f} times faster", end="")
        both = [row for row in rows["attacks"] if row["attack"] != "cw"]
        ratio = sum(r["plain"] for r in both) / sum(r["ours"] for r in both)
        print(f"\nfgsm and pgd, both models: {ratio:.1f} times faster")
        for name, share in rows["bare"].items():
            print(f"pgd on {name}: {share:.2f} times its bare gradient passes")


def measure(images: int, rounds: int) -> None:
    """Measure on this process's backend and print the rows as JSON."""
    import keras

    from keras_qusec import QuSecQuantization, datasets
    from keras_qusec.models import paper_cnn

    data = datasets.mnist5k()
    models = {"undefended": paper_cnn(seed=0), "quantized": paper_cnn(QuSecQuantization(2), seed=0)}
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.001), loss)
        model.fit(data.x_train, data.y_train, batch_size=128, epochs=4, verbose=0)
    x, y = data.x_test[:images], data.y_test[:images]
    rows, bare = [], {}
    for name, model in models.items():
        for attack in ("fgsm", "pgd", "cw"):
            times: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(rounds):
                start = time.perf_counter()
                plain = _plain(model, x, y, attack)
                times["plain"].append(time.perf_counter() - start)
                start = time.perf_counter()
                report = _ours(model, x, y, attack)
                times["ours"].append(time.perf_counter() - start)
            medians = {side: statistics.median(values) for side, values in times.items()}
            ours = _accuracies(report, attack)
            rows.append({
                "model": name, "attack": attack, **medians,
                "plain accuracy": plain, "our accuracy": ours,
            })  # fmt: skip
            if attack == "pgd":
                passes = report.results[0].gradients.sum() / 256
                bare[name] = medians["ours"] / (passes * _bare_pass(model, x[:256], y[:256]))
    print(json.dumps({"attacks": rows, "bare": bare}))


def _plain(model, x, y, attack: str) -> str:
    import foolbox
    import keras
    import numpy as np

    if keras.backend.backend() == "torch":
        model.eval()
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        wrapped.data_format = "channels_last"
    else:
        wrapped = foolbox.TensorFlowModel(model, bounds=(0, 1))
    images, labels = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y.astype("int64"))
    if attack == "cw":
        kind = foolbox.attacks.L2CarliniWagnerAttack(**CW)
        _, found, success = kind(wrapped, images, labels, epsilons=None)
        success, found = (keras.ops.convert_to_numpy(part) for part in (success, found))
        # Where it found nothing Foolbox returns zeros, and calls them a success if the model
        # takes a black image for another class.
        claimed = 100 * (1 - success.mean())
        success &= (found != 0).any(axis=(1, 2, 3)) | (np.square(x).sum(axis=(1, 2, 3)) == 0)
        sizes = np.sqrt(np.square(found - x).sum(axis=(1, 2, 3)))[success]
        robust = 100 * (1 - success.mean())
        return f"{robust:.1f} (says {claimed:.1f}), median L2 {np.median(sizes[sizes > 0]):.2f}"
    if attack == "fgsm":
        kind = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    else:
        kind = foolbox.attacks.LinfPGD(steps=PGD["steps"], rel_stepsize=2.5 / PGD["steps"])
    _, _, success = kind(wrapped, images, labels, epsilons=EPSILONS)
    robust = 1 - keras.ops.convert_to_numpy(success).mean(axis=1)
    return " ".join(f"{100 * share:.1f}" for share in robust)


def _ours(model, x, y, attack: str):
    from keras_qusec import evaluate_robustness

    settings = {"fgsm": {}, "pgd": PGD, "cw": CW}[attack]
    return evaluate_robustness(
        model, x, y, attacks=[(attack, settings)], epsilons=EPSILONS, threat_models=["white-box"]
    )


def _accuracies(report, attack: str) -> str:
    if attack == "cw":
        row = next(row for row in report.rows if row.attack == "cw")
        return f"{100 * row.robust_accuracy:.1f}, median L2 {row.median_l2:.2f}"
    return " ".join(f"{100 * report.robust_accuracy(epsilon=e):.1f}" for e in EPSILONS)


def _bare_pass(model, x, y) -> float:
    """Seconds of a compiled input gradient of one batch, and nothing else."""
    from keras_qusec.attacks import AttackedModel

    attacked = AttackedModel(model)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        attacked.gradient(x, y)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
