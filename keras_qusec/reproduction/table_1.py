"""Table 1: the defences, measured instead of described."""

from __future__ import annotations

from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.figure import Figure
from keras_qusec.reproduction.networks import every_defense, report, trained_as
from keras_qusec.reproduction.results import Row


class Table1(Figure):
    """Clean accuracy, and the worst case white-box and black-box, of each defence."""

    name = "table-1"
    title = "each defence: clean, and under each threat model"
    claim = "each defence has its limits; those of QuSecNets are JSMA and CW."
    remarks = (
        "White-box: gradients as they are; where a defence masks them, FGSM and PGD. Adaptive: the "
        "standard evaluation, through surrogates, and a quantizer's own attack. Black-box: FGSM "
        "and PGD made on one undefended network of another seed, without queries. The paper's "
        "table has Defense-GAN, which would train for days, and not thermometer encoding. An "
        "adversarial example that the detector of feature squeezing rejects does not "
        "count."
    )

    def settings(self, experiment: Experiment) -> dict[str, str]:
        return trained_as(experiment)

    def rows(self, experiment: Experiment) -> list[Row]:
        rows = []
        for series, (name, make) in every_defense(experiment).items():
            attacked = report(experiment, name, make)
            images, epsilon = experiment.images, experiment.epsilon
            rows.append(experiment.share(
                series, 0.0, "clean", attacked.clean_accuracy(), images
            ))  # fmt: skip
            for threat in attacked.threat_models:
                share = attacked.robust_accuracy(epsilon=epsilon, norm="linf", threat_model=threat)
                row = experiment.share(series, epsilon, f"worst case, {threat}", share, images)
                rows.append(row._replace(worst=attacked.robust_accuracy()))
        return rows
