"""Time of an adversarial training step, beside the floor and the peers.

    python benchmarks/adversarial_training.py [--backends tensorflow torch jax] [--json FILE]

The paper's CNN, batch 128, on random images. Every figure is a multiple of a plain `fit` step
measured in the same round; medians over rounds. Per backend:

* ours: `fit` with AdversarialTraining, FGSM and PGD;
* floor: 1 + k * (bare compiled input gradient / plain step), k the number of attack steps;
  counted: (2k + 3) / 3, if every pass cost the same;
* loop: a hand-written compiled loop, as in Keras' guide to custom training;
* ART: its AdversarialTrainer; CleverHans: its attacks in a custom loop.

The peers are optional: pip install adversarial-robustness-toolbox cleverhans easydict
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time

BATCH = 128
STEPS = 6
ROUNDS = 5
EPSILON = 0.3
OURS = (1, 2, 7, 14)
PEERS = (1, 7)


def data():
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.random((BATCH * (STEPS + 1), 28, 28, 1)).astype("float32")
    return x, rng.integers(0, 10, len(x))


def model():
    import keras

    from keras_qusec.models import paper_cnn

    network = paper_cnn(seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.001), loss)
    return network


def attack(k):
    from keras_qusec.attacks import FGSM, PGD

    return FGSM(EPSILON) if k == 1 else PGD(EPSILON, steps=k, step_size=0.1)


def time_fit(callbacks=()):
    """Seconds of a step of `fit`, compilation left out."""
    import keras

    ends = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ends.append(time.perf_counter())

    x, y = data()
    model().fit(x, y, batch_size=BATCH, verbose=0, callbacks=[*callbacks, Clock()])
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def time_ours(k):
    from keras_qusec import AdversarialTraining

    return time_fit([AdversarialTraining(attack(k))])


def time_calls(step):
    """Seconds of step(x, y) on a batch, compilation left out."""
    x, y = data()
    times = []
    for start in range(0, len(x), BATCH):
        begin = time.perf_counter()
        step(x[start : start + BATCH], y[start : start + BATCH])
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def time_input_gradient():
    """One forward pass and its input gradient, compiled, nothing else."""
    backend = os.environ["KERAS_BACKEND"]
    network = model()
    loss = network.loss
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradient(x, y):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                value = loss(y, network(x, training=False))
            return tape.gradient(value, x)

        return time_calls(lambda x, y: gradient(tf.constant(x), tf.constant(y)).numpy())
    if backend == "jax":
        import jax

        weights = [v.value for v in network.trainable_variables]

        @jax.jit
        def gradient(weights, x, y):
            def value(x):
                return loss(y, network.stateless_call(weights, [], x, training=False)[0])

            return jax.grad(value)(x)

        return time_calls(lambda x, y: jax.block_until_ready(gradient(weights, x, y)))
    import torch

    def gradient(x, y):
        x = torch.tensor(x, requires_grad=True)
        value = loss(torch.tensor(y), network(x, training=False))
        return torch.autograd.grad(value, x)

    return time_calls(gradient)


def training_step(network):
    """A hand-written training step, compiled where the backend compiles."""
    backend = os.environ["KERAS_BACKEND"]
    loss, optimizer = network.loss, network.optimizer
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def train(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, network(x, training=True))
            weights = network.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
            return value

        return train
    if backend == "torch":
        import torch

        def train(x, y):
            network.zero_grad()
            value = loss(y, network(x.detach(), training=True))
            value.backward()
            weights = network.trainable_weights
            with torch.no_grad():
                optimizer.apply([w.value.grad for w in weights], weights)
            return float(value)

        return train
    return None


def time_loop(k):
    """A hand-written loop, compiled where the backend compiles."""
    backend = os.environ["KERAS_BACKEND"]
    network = model()
    loss, train = network.loss, training_step(network)
    size = EPSILON if k == 1 else 0.1
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, y):
            adversarial = x
            for _ in range(k):
                with tf.GradientTape() as tape:
                    tape.watch(adversarial)
                    value = loss(y, network(adversarial, training=False))
                gradient = tape.gradient(value, adversarial)
                adversarial = adversarial + size * tf.sign(gradient)
                adversarial = tf.clip_by_value(adversarial, x - EPSILON, x + EPSILON)
                adversarial = tf.clip_by_value(adversarial, 0.0, 1.0)
            return train(adversarial, y)

        return time_calls(lambda x, y: step(tf.constant(x), tf.constant(y)).numpy())
    if backend == "torch":
        import torch

        def step(x, y):
            x, y = torch.tensor(x), torch.tensor(y)
            adversarial = x
            for _ in range(k):
                adversarial = adversarial.detach().requires_grad_(True)
                value = loss(y, network(adversarial, training=False))
                (gradient,) = torch.autograd.grad(value, adversarial)
                adversarial = adversarial + size * torch.sign(gradient)
                adversarial = torch.clamp(adversarial, x - EPSILON, x + EPSILON).clamp(0, 1)
            return train(adversarial, y)

        return time_calls(step)
    return None


def time_cleverhans(k):
    """CleverHans' attack, then a hand-written step, as in its tutorials."""
    import numpy as np

    backend = os.environ["KERAS_BACKEND"]
    network = model()
    train = training_step(network)
    if backend == "tensorflow":
        import tensorflow as tf
        from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
        from cleverhans.tf2.attacks.projected_gradient_descent import (
            projected_gradient_descent,
        )

        bounds = {"clip_min": 0.0, "clip_max": 1.0, "sanity_checks": False}

        def step(x, y):
            x, y = tf.constant(x), tf.constant(y)
            if k == 1:
                x = fast_gradient_method(network, x, EPSILON, np.inf, y=y, **bounds)
            else:
                x = projected_gradient_descent(network, x, EPSILON, 0.1, k, np.inf, y=y, **bounds)
            return train(x, y).numpy()

        return time_calls(step)
    if backend == "torch":
        import torch
        from cleverhans.torch.attacks.fast_gradient_method import fast_gradient_method
        from cleverhans.torch.attacks.projected_gradient_descent import (
            projected_gradient_descent,
        )

        bounds = {"clip_min": 0.0, "clip_max": 1.0, "sanity_checks": False}

        def step(x, y):
            x, y = torch.tensor(x), torch.tensor(y)
            if k == 1:
                x = fast_gradient_method(network, x, EPSILON, np.inf, y=y, **bounds)
            else:
                x = projected_gradient_descent(network, x, EPSILON, 0.1, k, np.inf, y=y, **bounds)
            return train(x, y)

        return time_calls(step)
    return None


def time_art(k):
    """ART's AdversarialTrainer."""
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer

    backend = os.environ["KERAS_BACKEND"]
    network = model()
    shared = {"nb_classes": 10, "input_shape": (28, 28, 1), "clip_values": (0.0, 1.0)}
    if backend == "tensorflow":
        import tensorflow as tf
        from art.estimators.classification import TensorFlowV2Classifier

        estimator = TensorFlowV2Classifier(
            network,
            loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
            optimizer=network.optimizer,
            **shared,
        )
    elif backend == "torch":
        import torch
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            network,
            loss=torch.nn.CrossEntropyLoss(),
            optimizer=torch.optim.Adam(network.parameters()),
            device_type="cpu",
            **shared,
        )
    else:
        return None
    if k == 1:
        method = FastGradientMethod(estimator, eps=EPSILON, batch_size=BATCH)
    else:
        method = ProjectedGradientDescent(
            estimator,
            eps=EPSILON,
            eps_step=0.1,
            max_iter=k,
            num_random_init=1,
            batch_size=BATCH,
            verbose=False,
        )
    trainer = AdversarialTrainer(estimator, method, ratio=1.0)

    def step(x, y):
        import numpy as np

        with contextlib.redirect_stderr(io.StringIO()):
            trainer.fit(x, np.eye(10)[y], batch_size=BATCH, nb_epochs=1)

    return time_calls(step)


def optional(timer, k):
    try:
        return timer(k)
    except ImportError:
        return None


def one_round():
    plain = time_fit()
    gradient = time_input_gradient()
    figures = {"plain step, ms": 1e3 * plain, "input gradient": gradient / plain}
    for k in OURS:
        figures[f"ours {k}"] = time_ours(k) / plain
        figures[f"floor {k}"] = 1 + k * gradient / plain
    for k in PEERS:
        for name, timer in {
            "loop": time_loop,
            "CleverHans": time_cleverhans,
            "ART": time_art,
        }.items():
            seconds = optional(timer, k)
            if seconds is not None:
                figures[f"{name} {k}"] = seconds / plain
    return figures


def memory(k):
    """Peak memory of a process that trains, in MiB; k of 0 is plain training."""
    from keras_qusec import AdversarialTraining

    time_fit([AdversarialTraining(attack(k))] if k else [])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(backend, *arguments):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--child", *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{backend} {arguments}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def table(backend, rounds, peaks):
    def middle(name):
        values = [figures[name] for figures in rounds if name in figures]
        return f"{statistics.median(values):.2f}" if values else "-"

    lines = [
        f"### {backend}",
        "",
        f"Plain step: {middle('plain step, ms')} ms. Input gradient: "
        f"{middle('input gradient')} of it.",
        "",
        "| attack | ours | floor | counted | loop | CleverHans | ART | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| none | 1.00 | 1.00 | 1.00 | - | - | - | {peaks[0]:.0f} |",
    ]
    for k in OURS:
        name = "FGSM" if k == 1 else f"PGD-{k}"
        peak = f"{peaks[k]:.0f}" if k in peaks else "-"
        lines.append(
            f"| {name} | {middle(f'ours {k}')} | {middle(f'floor {k}')} | {(2 * k + 3) / 3:.2f} "
            f"| {middle(f'loop {k}')} | {middle(f'CleverHans {k}')} | {middle(f'ART {k}')} "
            f"| {peak} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", help="file for the raw figures")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(memory(int(options.child[0])) if options.child else one_round()))
        return
    results = {}
    for backend in options.backends:
        rounds = [child(backend) for _ in range(options.rounds)]
        peaks = {k: child(backend, str(k)) for k in (0, *PEERS)}
        results[backend] = {"rounds": rounds, "peaks": peaks}
        print(table(backend, rounds, peaks), end="\n\n", flush=True)
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
