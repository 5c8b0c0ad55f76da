"""Defences as Keras layers and models, and the protocols by which attackers know them."""

from keras_qusec.custom_gradients import straight_through
from keras_qusec.defenses.ape_gan import APEGAN, Purifier, ape_discriminator, ape_generator
from keras_qusec.defenses.base import (
    Defense,
    RejectingClassifier,
    ValueQuantizer,
    current_choice,
    current_surrogate,
    find_defenses,
    find_layers,
    given_output,
    outputs_given,
    surrogate_choices,
    surrogate_gradients,
    surrogates_in_force,
)
from keras_qusec.defenses.bit_depth import BitDepthReduction, reduce_bit_depth
from keras_qusec.defenses.bounded_relu import BoundedReLU, brelu_gda, with_bounded_relus
from keras_qusec.defenses.defense_gan import WGANGP, DefenseGAN, wgan_critic, wgan_generator
from keras_qusec.defenses.distillation import distill
from keras_qusec.defenses.median_smoothing import MedianSmoothing, median_filter
from keras_qusec.defenses.non_local_means import NonLocalMeans, non_local_means
from keras_qusec.defenses.quantized_activation import QuantizedActivation
from keras_qusec.defenses.quantizers import (
    EqualThresholds,
    GivenThresholds,
    OrderedThresholds,
    QuSecQuantization,
    TrainableQuSecQuantization,
    find_quantizers,
)
from keras_qusec.defenses.squeezing import SqueezingDetector, area_under_curve, roc_curve
from keras_qusec.defenses.thermometer import ThermometerEncoding

__all__ = [
    "APEGAN",
    "WGANGP",
    "BitDepthReduction",
    "BoundedReLU",
    "Defense",
    "DefenseGAN",
    "EqualThresholds",
    "GivenThresholds",
    "MedianSmoothing",
    "NonLocalMeans",
    "OrderedThresholds",
    "Purifier",
    "QuSecQuantization",
    "QuantizedActivation",
    "RejectingClassifier",
    "SqueezingDetector",
    "ThermometerEncoding",
    "TrainableQuSecQuantization",
    "ValueQuantizer",
    "ape_discriminator",
    "ape_generator",
    "area_under_curve",
    "brelu_gda",
    "current_choice",
    "current_surrogate",
    "distill",
    "find_defenses",
    "find_layers",
    "find_quantizers",
    "given_output",
    "median_filter",
    "non_local_means",
    "outputs_given",
    "reduce_bit_depth",
    "roc_curve",
    "straight_through",
    "surrogate_choices",
    "surrogate_gradients",
    "surrogates_in_force",
    "wgan_critic",
    "wgan_generator",
    "with_bounded_relus",
]
