"""The one list of defences to be compared, each with how it is trained on the paper's network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec.attacks import FGSM
from keras_qusec.datasets import Dataset, stratified_sample
from keras_qusec.defenses import (
    APEGAN,
    WGANGP,
    BitDepthReduction,
    DefenseGAN,
    MedianSmoothing,
    NonLocalMeans,
    Purifier,
    QuantizedActivation,
    QuSecQuantization,
    SqueezingDetector,
    ThermometerEncoding,
    TrainableQuSecQuantization,
    ape_discriminator,
    ape_generator,
    brelu_gda,
    distill,
    wgan_critic,
    wgan_generator,
)
from keras_qusec.models import paper_cnn
from keras_qusec.registry import Registry
from keras_qusec.training import AdversarialTraining, CertifiedTraining


class Training(NamedTuple):
    """What every contender is trained with.

    Attributes:
        data: the data set.
        epsilon: radius of attacks in training, L-infinity.
        epochs: epochs of a classifier.
        seed: seed of initial weights and of all that is random.
        backup: folder where a long training keeps each epoch, or empty for nowhere.
    """

    data: Dataset
    epsilon: float
    epochs: int
    seed: int
    backup: str = ""

    def network(self, layer: Any = None, **settings: Any) -> keras.Model:
        """The paper's network behind a layer, not trained."""
        shape = self.data.x_train.shape[1:]
        classes = int(self.data.y_train.max()) + 1
        return paper_cnn(layer, input_shape=shape, classes=classes, seed=self.seed, **settings)

    def fitted(self, model: keras.Model, *callbacks: Any) -> keras.Model:
        """A classifier that ends in logits, trained."""
        keras.utils.set_random_seed(self.seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
        x, y = self.data.x_train, self.data.y_train
        model.fit(x, y, batch_size=128, epochs=self.epochs, verbose=0, callbacks=list(callbacks))
        return model

    def behind(self, layer: keras.layers.Layer, classifier: keras.Model) -> keras.Model:
        """A layer in front of a classifier, as one model."""
        return keras.Sequential([keras.Input(self.data.x_train.shape[1:]), layer, classifier])


class Contender(NamedTuple):
    """A defence of the list: how it is made, and its settings in a few words."""

    make: Callable[[Training], keras.Model]
    settings: str


def _pgd(training: Training) -> AdversarialTraining:
    return AdversarialTraining(
        "pgd", epsilon=training.epsilon, steps=4, step_size=training.epsilon / 2,
        gradient_hardness=10.0, seed=training.seed,
    )  # fmt: skip


def _hard_certified(training: Training) -> keras.Model:
    longer = training._replace(epochs=2 * training.epochs)
    bounds = CertifiedTraining(training.epsilon, seed=training.seed)
    return longer.fitted(training.network(QuSecQuantization(2, hard=True)), bounds)


def _squeezing(training: Training) -> keras.Model:
    # The authors' settings, for MNIST and for CIFAR-10.
    squeezers: list[keras.layers.Layer] = [BitDepthReduction(1), MedianSmoothing(2)]
    if training.data.is_colour:
        squeezers = [BitDepthReduction(5), MedianSmoothing(2), NonLocalMeans(13, 3, 2 / 255)]
    detector = SqueezingDetector(training.fitted(training.network()), squeezers)
    rows = stratified_sample(training.data.y_train, 1000)
    detector.calibrate(training.data.x_train[rows], false_positive_rate=0.05)
    return detector


def _brelu_gda(training: Training) -> keras.Model:
    noise = 0.05 if training.data.is_colour else 0.3
    return training.fitted(brelu_gda(training.network(), bound=1.0, noise=noise))


def _distillation(training: Training) -> keras.Model:
    keras.utils.set_random_seed(training.seed)
    optimizer = keras.optimizers.Adam(0.001)
    x, y = training.data.x_train, training.data.y_train
    return distill(
        training.network(), x, y, temperature=20, optimizer=optimizer, verbose=0,
        epochs=2 * training.epochs, batch_size=128,
    )  # fmt: skip


def _ape_gan(training: Training) -> keras.Model:
    classifier = training.fitted(training.network())
    x, shape = training.data.x_train, training.data.x_train.shape[1:]
    attack = FGSM(training.epsilon)
    adversarial = attack(classifier, x, training.data.y_train, seed=training.seed)
    keras.utils.set_random_seed(training.seed)
    gan = APEGAN(
        ape_generator(shape, filters=16, seed=training.seed),
        ape_discriminator(shape, filters=16, seed=training.seed),
    )
    gan.compile(keras.optimizers.Adam(0.002))
    pairs = np.concatenate([adversarial, x]), np.concatenate([x, x])
    gan.fit(*pairs, batch_size=64, epochs=training.epochs, verbose=0)
    return training.behind(Purifier(gan.generator), classifier)


def _defense_gan(training: Training) -> keras.Model:
    classifier = training.fitted(training.network())
    keras.utils.set_random_seed(training.seed)
    shape = training.data.x_train.shape[1:]
    gan = WGANGP(
        wgan_generator(shape, latent=32, seed=training.seed),
        wgan_critic(shape, seed=training.seed),
        seed=training.seed,
    )
    gan.compile(keras.optimizers.Adam(3e-4, beta_1=0.5, beta_2=0.9))
    gan.fit(training.data.x_train, batch_size=64, epochs=6 * training.epochs, verbose=0)
    layer = DefenseGAN(gan.generator, steps=30, restarts=2, seed=training.seed)
    return training.behind(layer, classifier)


def fgsm_callback(training: Training, **settings: Any) -> AdversarialTraining:
    """FGSM on half of each batch, as the paper's Fig. 5; other settings of the callback too."""
    return AdversarialTraining(
        "fgsm", epsilon=training.epsilon, ratio=0.5, seed=training.seed, **settings
    )


def _fgsm_training(training: Training) -> keras.Model:
    return training.fitted(training.network(), fgsm_callback(training))


def _pgd_training(training: Training) -> keras.Model:
    # Without a rise of epsilon and more epochs this network learns nothing but the most frequent
    # class at 0.3.
    callback = AdversarialTraining(
        "pgd", epsilon=training.epsilon, steps=4, step_size=training.epsilon / 2,
        ramp_epochs=training.epochs, seed=training.seed,
    )  # fmt: skip
    return training._replace(epochs=2 * training.epochs).fitted(training.network(), callback)


_CONTENDERS: Registry[Contender] = Registry("defenses to be some of")
for _name, _contender in {
    "undefended": Contender(lambda t: t.fitted(t.network()), "no defence"),
    "constant": Contender(
        lambda t: t.fitted(t.network(QuSecQuantization(2))), "QuSecQuantization(2), z = 50"
    ),
    "trainable": Contender(
        lambda t: t.fitted(t.network(TrainableQuSecQuantization(2))),
        "TrainableQuSecQuantization(2), z = 5, thresholds for each pixel",
    ),
    "squeezing": Contender(
        _squeezing,
        "detector: 1 bit, median (colour: 5 bits, median, non-local means), 5 % false positives",
    ),
    "brelu-gda": Contender(_brelu_gda, "bound 1, noise 0.3 (colour: 0.05)"),
    "distillation": Contender(_distillation, "temperature 20, twice the epochs"),
    "dqa": Contender(
        lambda t: t.fitted(t.network(first_activation=QuantizedActivation(2))),
        "2 levels after the first convolution, trained threshold",
    ),
    "ape-gan": Contender(_ape_gan, "reduced: 16 filters (64), as many epochs as the classifier"),
    "defense-gan": Contender(
        _defense_gan, "reduced: dense generator, 30 steps (200), 2 restarts (10)"
    ),
    "thermometer": Contender(lambda t: t.fitted(t.network(ThermometerEncoding(16))), "16 levels"),
    "fgsm-training": Contender(_fgsm_training, "half of each batch attacked"),
    "pgd-training": Contender(
        _pgd_training, "4 steps, twice the epochs, epsilon rises over the first half"
    ),
    "constant-pgd": Contender(
        lambda t: t.fitted(t.network(QuSecQuantization(2)), _pgd(t)),
        "QuSecQuantization(2) and PGD training through softer gradients",
    ),
    "hard-certified": Contender(
        _hard_certified,
        "QuSecQuantization(2, hard=True) and CertifiedTraining by intervals, twice the epochs",
    ),
}.items():
    _CONTENDERS.add(_name, _contender)


def register(name: str, make: Callable[[Training], keras.Model], *, settings: str = "") -> None:
    """Make a defence known by a name, to be compared.

    Args:
        name: name in lower case; one of the same name is replaced.
        make: function of `Training` that returns a trained classifier.
        settings: what it is, in a few words.

    Raises:
        ValueError: for a name that cannot be used.

    Example:

    >>> from keras_qusec import comparison
    >>> comparison.register("plain", lambda training: training.fitted(training.network()))
    >>> comparison.unregister("plain")
    """
    if not name or name != name.lower() or "/" in name or not callable(make):
        raise ValueError(
            f"Expected a name in lower case and a function of Training. Received: {name!r}, "
            f"{make!r}."
        )
    _CONTENDERS.add(name, Contender(make, settings))


def unregister(name: str) -> None:
    """Forget a name of `register`."""
    _CONTENDERS.remove(name)


def names() -> tuple[str, ...]:
    """The names of all defences that can be compared.

    Example:

    >>> from keras_qusec import comparison
    >>> comparison.names()[:3]
    ('undefended', 'constant', 'trainable')
    """
    return _CONTENDERS.names()


def get(name: str) -> Contender:
    """A defence of the list.

    Raises:
        ValueError: for an unknown name.
    """
    return _CONTENDERS.get(name)
