"""Time and memory of the quantizers, beside the floor and the obvious alternatives.

    python benchmarks/quantizer.py [--backends tensorflow torch jax] [--json FILE]

Each backend runs in a process of its own. All variants are timed in turn, in several
rounds, on one (32, 224, 224, 3) float32 batch; figures are medians. Peak memory comes from
one more process per variant. Variants:

* floor: one ``keras.ops.sigmoid`` over the batch;
* equal: ours, equally spaced thresholds; hard: its staircase;
* free: ours, any thresholds;
* loop: Eq. 1 as a Python loop of sigmoids under automatic differentiation;
* broadcast: Eq. 1 over a threshold axis (up to 16 levels: memory).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

SHAPE = (32, 224, 224, 3)
LEVELS = (2, 4, 16, 64, 256)
ROUNDS = 7
HARDNESS = 50.0
# glibc hands freed tensors of this size back to the kernel, and the page faults of
# getting them again would swamp every figure on PyTorch. For all variants alike:
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
}


def variants():
    import numpy as np
    from keras import ops

    from keras_qusec.quantization import equal_thresholds, hard_quantize, soft_quantize

    def loop(levels):
        thresholds = [np.float32(t) for t in equal_thresholds(levels)]

        def f(x):
            y = 0.0
            for t in thresholds:
                y = y + ops.sigmoid(HARDNESS * (x - t))
            return y / (levels - 1)

        return f

    def broadcast(levels):
        thresholds = ops.convert_to_tensor(equal_thresholds(levels))
        return lambda x: ops.mean(
            ops.sigmoid(HARDNESS * (ops.expand_dims(x, -1) - thresholds)), axis=-1
        )

    def free(levels):
        thresholds = equal_thresholds(levels)
        return lambda x: soft_quantize(x, thresholds, differentiate_thresholds=False)

    result = {"floor": ops.sigmoid}
    for n in LEVELS:
        result[f"equal {n}"] = lambda x, n=n: soft_quantize(x, n)
        result[f"hard {n}"] = lambda x, n=n: hard_quantize(x, n)
        result[f"free {n}"] = free(n)
        result[f"loop {n}"] = loop(n)
        if n <= 16:
            result[f"broadcast {n}"] = broadcast(n)
    return result


def forward(f):
    """f, compiled as in prediction."""
    backend = os.environ["KERAS_BACKEND"]
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(f)
    if backend == "jax":
        import jax

        compiled = jax.jit(f)
        return lambda x: jax.block_until_ready(compiled(x))
    import torch

    return torch.no_grad()(f)


def forward_backward(f):
    """f and its gradient for the images, compiled as in training."""
    backend = os.environ["KERAS_BACKEND"]
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def both(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x)
            return y, tape.gradient(y, x)

        return both
    if backend == "jax":
        import jax

        def both(x):
            y, pull_back = jax.vjp(f, x)
            return y, pull_back(jax.numpy.ones_like(y))

        compiled = jax.jit(both)
        return lambda x: jax.block_until_ready(compiled(x))
    import torch

    def both(x):
        x = x.detach().requires_grad_(True)
        y = f(x)
        return y, torch.autograd.grad(y, x, torch.ones_like(y))

    return both


def batch():
    import keras

    return keras.random.uniform(SHAPE, seed=0)


def time_all():
    x = batch()
    cases = {name: (forward(f), forward_backward(f)) for name, f in variants().items()}
    times = {name: ([], []) for name in cases}
    for round_ in range(ROUNDS + 1):
        for name, pair in cases.items():
            for which, case in enumerate(pair):
                case(x)  # the allocator and the caches of this variant, not the last one's
                start = time.perf_counter()
                case(x)
                if round_:  # the first round compiles
                    times[name][which].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "forward": statistics.median(f),
            "forward_range": [min(f), max(f)],
            "both": statistics.median(b),
            "both_range": [min(b), max(b)],
        }
        for name, (f, b) in times.items()
    }


def memory_of(name):
    """Peak memory of forward and backward above what stood before, in sizes of the batch."""
    x = batch()
    case = forward_backward(variants()[name])
    small = x[:1, :8, :8]
    case(small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case(x)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bytes_ = 4 * SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3]
    return 1024 * (after - before) / bytes_


def child(backend, *arguments):
    environment = {
        **os.environ,
        **ALLOCATOR,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, "--child", *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{backend} {arguments}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def table(backend, result):
    floor = result["floor"]
    lines = [
        f"### {backend}",
        "",
        "| variant | forward, ms | × floor | and backward, ms | × floor | memory, × batch |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result.items():
        lines.append(
            f"| {name} | {row['forward']:.1f} | {row['forward'] / floor['forward']:.1f} "
            f"| {row['both']:.1f} | {row['both'] / floor['both']:.1f} "
            f"| {row['memory']:.1f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--json", help="file for the raw figures")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(memory_of(*options.child) if options.child else time_all()))
        return
    results = {}
    for backend in options.backends:
        result = child(backend)
        for name in result:
            result[name]["memory"] = child(backend, name)
        results[backend] = result
        print(table(backend, result), end="\n\n", flush=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
