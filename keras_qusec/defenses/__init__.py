"""Defences as Keras layers, and the protocols by which attackers and reports know them."""

from keras_qusec.defenses.base import (
    Defense,
    RejectingClassifier,
    current_choice,
    current_surrogate,
    find_defenses,
    find_layers,
    straight_through,
    surrogate_choices,
    surrogate_gradients,
    surrogates_in_force,
)
from keras_qusec.defenses.quantizers import (
    EqualThresholds,
    GivenThresholds,
    OrderedThresholds,
    QuSecQuantization,
    TrainableQuSecQuantization,
    find_quantizers,
)

__all__ = [
    "Defense",
    "EqualThresholds",
    "GivenThresholds",
    "OrderedThresholds",
    "QuSecQuantization",
    "RejectingClassifier",
    "TrainableQuSecQuantization",
    "current_choice",
    "current_surrogate",
    "find_defenses",
    "find_layers",
    "find_quantizers",
    "straight_through",
    "surrogate_choices",
    "surrogate_gradients",
    "surrogates_in_force",
]
