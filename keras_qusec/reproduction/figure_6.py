"""Fig. 6: adversarial examples for QuSecNets and for DQA, and what their gradients are."""

from __future__ import annotations

import numpy as np

from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.laboratory import Laboratory
from keras_qusec.reproduction.networks import (
    Make,
    constant,
    dqa,
    input_gradients,
    report,
    shown,
    trainable,
    undefended,
)
from keras_qusec.reproduction.results import Row
from keras_qusec.results import Example

_NETWORKS: dict[str, tuple[str, Make]] = {
    "CNN": ("noquantization", undefended),
    "CQ, n = 2": ("n2", constant(2)),
    "VQ, n = 2": ("vq", trainable()),
    "DQA": ("other-dqa", dqa),
}


class Figure6(Figure):
    """The share of zero gradients, and FGSM accuracy, of each quantization."""

    name = "figure-6"
    title = "zero gradients and FGSM accuracy of QuSecNets and DQA"
    claim = "the signum function of DQA masks the gradient; the adversary finds no examples."
    remarks = (
        "DQA's gradient is that of its signum function, zero everywhere, as the paper reads it; "
        "with a straight-through gradient, which the worst case includes, it is not."
    )

    def rows(self, laboratory: Laboratory) -> list[Row]:
        rows = []
        for series, (name, make) in _NETWORKS.items():
            model = laboratory.model(name, make)
            sizes = np.abs(input_gradients(model, laboratory))
            zeros = float((sizes == 0).mean())
            small = float((sizes < 1e-6 * sizes.max()).mean()) if sizes.any() else 1.0
            shares = {
                "gradients of zero": zeros, "gradients below a millionth of the largest": small,
            }  # fmt: skip
            # Shares of gradients, not of images, so without an interval.
            rows += [
                laboratory.number(series, laboratory.epsilon, measure, share)._replace(
                    low=share, high=share
                )
                for measure, share in shares.items()
            ]
            attacked = report(laboratory, name, make)
            rows.append(laboratory.share(
                series, laboratory.epsilon, "clean", attacked.clean_accuracy(), laboratory.images
            ))  # fmt: skip
            rows.append(laboratory.row(attacked, series, "fgsm", measure="FGSM, white-box"))
        return rows

    def gallery(self, laboratory: Laboratory) -> list[Example]:
        return shown({s: report(laboratory, *network) for s, network in _NETWORKS.items()})
