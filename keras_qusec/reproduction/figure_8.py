"""Fig. 8: adversarial examples of each defence, and how far they are from the clean image."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import closest, of_the_paper, shown
from keras_qusec.reproduction.results import Row
from keras_qusec.results import Example


class Figure8(Figure):
    """The closest adversarial examples in L2, as pictures and by their median distance."""

    name = "figure-8"
    title = "the closest adversarial examples of each defence"
    claim = "quantization makes adversarial examples easier to see."
    axis = "distance"
    evidence = "FMN in L2, and behind a quantizer its own attack on the nearest thresholds"
    remarks = (
        "The closest example that either finds of each image, and the median over the images that "
        "the network gets right, of 200; the paper shows pictures only. These are of one image, "
        "whose order need not be that of the medians."
    )

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in of_the_paper().items():
            report = closest(experiment, name, make)
            median = report.worst_case(report.models[0], "l2", None).median["l2"]
            if median is not None:
                images = len(next(iter(report.correct.values())))
                row = experiment.number(series, float("inf"), "median L2 distance", median)
                rows.append(row._replace(images=images))
        return rows

    def gallery(self, experiment: Experiment) -> list[Example]:
        return shown({s: closest(experiment, *network) for s, network in of_the_paper().items()})
