"""Fig. 6: adversarial examples for QuSecNets and for DQA, and what their gradients are."""

from __future__ import annotations

import numpy as np

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
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

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in _NETWORKS.items():
            model = experiment.model(name, make)
            sizes = np.abs(input_gradients(model, experiment))
            zeros = float((sizes == 0).mean())
            small = float((sizes < 1e-6 * sizes.max()).mean()) if sizes.any() else 1.0
            shares = {
                "gradients of zero": zeros, "gradients below a millionth of the largest": small,
            }  # fmt: skip
            # Shares of gradients, not of images, so without an interval.
            rows += [
                experiment.number(series, experiment.epsilon, measure, share)._replace(
                    low=share, high=share
                )
                for measure, share in shares.items()
            ]
            attacked = report(experiment, name, make)
            rows.append(experiment.share(
                series, experiment.epsilon, "clean", attacked.clean_accuracy(), experiment.images
            ))  # fmt: skip
            rows.append(experiment.row(attacked, series, "fgsm", measure="FGSM, white-box"))
        return rows

    def gallery(self, experiment: Experiment) -> list[Example]:
        return shown({s: report(experiment, *network) for s, network in _NETWORKS.items()})
