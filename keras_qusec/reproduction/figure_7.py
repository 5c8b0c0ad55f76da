"""Fig. 7: constant quantization under FGSM, by epsilon and number of levels."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import Make, constant, undefended
from keras_qusec.reproduction.results import Row

_LEVELS = (2, 3, 4, 8, 16)
# For MNIST and for CIFAR-10, where 0.1 leaves nothing of any network.
_EPSILONS = ((0.1, 0.2, 0.3, 0.4), (0.01, 0.02, 0.03, 0.1))


class Figure7(Figure):
    """FGSM accuracy of CQ with 2 to 16 levels."""

    name = "figure-7"
    title = "constant quantization under FGSM by epsilon and levels"
    claim = "more levels lower the accuracy on adversarial images."
    remarks = (
        "The paper does not say which radii it used on CIFAR-10: these are smaller than its 0.1, "
        "which leaves nothing of any network."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        levels = (2, 4) if experiment.quick else _LEVELS
        epsilons = (0.1, 0.3) if experiment.quick else _EPSILONS[experiment.data.is_colour]
        networks: dict[str, tuple[str, Make]] = {"CNN": ("noquantization", undefended)}
        networks |= {f"CQ, n = {n}": (f"n{n}", constant(n)) for n in levels}
        rows = []
        for series, (name, make) in networks.items():
            report = experiment.attacked(
                f"figure-7-{name}", experiment.model(name, make), epsilons=epsilons,
                images=min(200, experiment.images),
            )  # fmt: skip
            rows += [experiment.row(report, series, "fgsm", value=e) for e in epsilons]
        return rows
