"""Times training on interval bounds by auto_LiRPA, to stand beside that of this package.

    python3.11 -m venv PEER; PEER/bin/pip install torch==1.13.1 "numpy<2" "onnx<1.17" pyyaml
    PEER/bin/pip install --no-deps auto_LiRPA==0.3
    OMP_NUM_THREADS=1 PEER/bin/python benchmarks/certified_training_peer.py
    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/certification.py training

CTRAIN 0.6.1, the library of certified training, makes these calls (`bound_ibp`, `get_ibp_loss`:
outputs on the clean batch, bounds of the margins, cross-entropy), but needs a commit of auto_LiRPA
that no package index has. So its engine is timed alone, in its last release. The paper's CNN,
no quantizer, batches of 128, Adam; medians of the processor time of a step.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from torch import nn

BATCH, STEPS, ROUNDS, EPSILON, CLASSES = 128, 12, 4, 0.3, 10


def paper_cnn() -> nn.Sequential:
    """The network with Keras' padding written out."""
    return nn.Sequential(
        nn.ZeroPad2d(3), nn.Conv2d(1, 64, 8, stride=2), nn.ReLU(),
        nn.Conv2d(64, 128, 6, stride=2), nn.ReLU(), nn.Conv2d(128, 128, 5), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def margins(labels: torch.Tensor) -> torch.Tensor:
    """Matrices that take logits to those of the label less each other one, ``(n, 9, 10)``."""
    differences = torch.eye(CLASSES)[labels].unsqueeze(1) - torch.eye(CLASSES)
    others = labels.unsqueeze(1) != torch.arange(CLASSES)
    return differences[others].view(len(labels), CLASSES - 1, CLASSES)


def main() -> None:
    torch.manual_seed(0)
    images = torch.rand(BATCH * STEPS, 1, 28, 28)
    labels = torch.randint(CLASSES, (len(images),))
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    plain, inside = paper_cnn(), paper_cnn()
    bounded = BoundedModule(inside, images[:2])
    loss = nn.CrossEntropyLoss()

    def plain_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(plain(x), y)

    def interval_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ball = PerturbationLpNorm(
            norm=np.inf, eps=EPSILON, x_L=(x - EPSILON).clamp(0, 1), x_U=(x + EPSILON).clamp(0, 1)
        )
        least, _ = bounded.compute_bounds(
            x=(BoundedTensor(x, ball),), IBP=True, method="IBP", C=margins(y), bound_upper=False
        )
        return loss(torch.cat([torch.zeros(len(x), 1), -least], 1), torch.zeros_like(y))

    def with_clean_outputs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bounded(x)
        return interval_loss(x, y)

    kinds = {
        "plain": (plain_loss, plain),
        "intervals": (interval_loss, inside),
        "intervals and clean outputs": (with_clean_outputs, inside),
    }
    optimizers = {name: torch.optim.Adam(net.parameters()) for name, (_, net) in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, (value, _) in kinds.items():
            began = time.process_time()
            for x, y in batches:
                optimizers[name].zero_grad()
                value(x, y).backward()
                optimizers[name].step()
            times[name].append((time.process_time() - began) / STEPS)
    middle = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    print("| step | ms | plain steps |")
    print("| --- | ---: | ---: |")
    for name, seconds in middle.items():
        print(f"| {name} | {1000 * seconds:.0f} | {seconds / middle['plain']:.2f} |")


if __name__ == "__main__":
    main()
