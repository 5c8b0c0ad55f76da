"""APE-GAN and Defense-GAN: what their generators learn, and how the adaptive attack undoes it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, value_and_gradients
from keras import ops

from keras_qusec import evaluate_robustness
from keras_qusec.attacks import FGSM
from keras_qusec.defenses import (
    APEGAN,
    WGANGP,
    DefenseGAN,
    Purifier,
    ape_discriminator,
    ape_generator,
    surrogate_gradients,
    wgan_critic,
    wgan_generator,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

SHAPE = (28, 28, 1)


@pytest.fixture(scope="module")
def purifier(digits, undefended):
    keras.utils.set_random_seed(0)
    x, y = digits.x_train[:1000], digits.y_train[:1000]
    adversarial = FGSM(0.2)(undefended, x, y)
    gan = APEGAN(ape_generator(SHAPE, filters=8, seed=0), ape_discriminator(SHAPE, filters=8))
    gan.compile(keras.optimizers.Adam(0.002))
    # Clean images too, so that they pass unchanged.
    pairs = np.concatenate([adversarial, x]), np.concatenate([x, x])
    history = gan.fit(*pairs, epochs=6, batch_size=64, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    return Purifier(gan.generator)


class TestAPEGAN:
    def test_it_takes_transferred_examples_off_and_falls_to_the_adaptive_attack(
        self, digits, undefended, purifier
    ):
        defended = keras.Sequential([keras.Input(SHAPE), purifier, undefended])
        x, y = digits.x_test[:60], digits.y_test[:60]
        transferred = FGSM(0.2)(undefended, x, y)
        before = (undefended.predict(transferred, verbose=0).argmax(axis=1) == y).mean()
        after = (defended.predict(transferred, verbose=0).argmax(axis=1) == y).mean()
        assert after > before + 0.25
        report = evaluate_robustness(
            defended, x, y, attacks=[("bim", {"steps": 10})], epsilons=[0.2]
        )
        assert report.clean_accuracy() > 0.75
        assert report.robust_accuracy(threat_model="adaptive") < 0.25

    def test_each_loss_reaches_one_network(self, digits):
        """Without an error, and without a weight on fooling, the generator stands."""
        generator = ape_generator((8, 8, 1), filters=2, seed=0)
        discriminator = ape_discriminator((8, 8, 1), filters=2, seed=0)
        gan = APEGAN(generator, discriminator, mse_weight=1.0)
        gan.compile(keras.optimizers.SGD(0.1))
        x = digits.x_train[:16, ::4, ::4][:, :7, :7]
        x = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        before = [np.array(v) for v in discriminator.get_weights()]
        own = [np.array(v) for v in generator.trainable_variables]
        # The target is what the generator makes: no error, so only the discriminator moves.
        target = ops.convert_to_numpy(generator(x, training=True))
        gan.fit(x, target, batch_size=16, verbose=0)
        moved = zip(own, generator.trainable_variables, strict=True)
        assert max(np.abs(a - np.array(b)).max() for a, b in moved) < 1e-5
        told = zip(before, discriminator.get_weights(), strict=True)
        assert max(np.abs(a - b).max() for a, b in told) > 1e-6


@pytest.fixture(scope="module")
def generator(digits):
    """A generator of digits; an autoencoder's decoder would do, and so does a short training."""
    keras.utils.set_random_seed(0)
    gan = WGANGP(
        wgan_generator(SHAPE, latent=16, units=(128,), seed=0),
        wgan_critic(SHAPE, units=(128,), seed=0),
    )
    gan.compile(keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.9))
    history = gan.fit(digits.x_train[:2000], epochs=12, batch_size=64, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    return gan.generator


class TestDefenseGAN:
    def test_clean_digits_are_reconstructed(self, digits, undefended, generator):
        x, y = digits.x_test[:60], digits.y_test[:60]
        errors = {}
        for steps in (1, 60):
            layer = DefenseGAN(generator, steps=steps, restarts=4)
            made = ops.convert_to_numpy(layer(x))
            errors[steps] = np.square(made - x).mean()
        assert errors[60] < 0.06 < errors[1]  # a black image has 0.1
        right = (undefended.predict(made, verbose=0).argmax(axis=1) == y).mean()
        assert right > 0.4

    def test_more_restarts_are_never_worse(self, digits, generator):
        x = digits.x_test[:20]

        def error(restarts):
            layer = DefenseGAN(generator, steps=20, restarts=restarts)
            return np.square(ops.convert_to_numpy(layer(x)) - x).mean(axis=(1, 2, 3))

        assert (error(6) <= error(2) + 1e-4).all()

    @pytest.mark.skipif(BACKEND != "torch", reason="counts calls, which compiled loops hide")
    def test_its_cost_is_steps_times_restarts(self, digits):
        counted = []

        class Counting(keras.layers.Layer):
            def call(self, x):
                counted.append(len(x))
                return x

        generator = wgan_generator(SHAPE, units=(4,))
        counting = keras.Sequential([keras.Input((32,)), Counting(), generator])
        counted.clear()
        for steps, restarts in ((3, 2), (6, 2), (3, 4)):
            counted.clear()
            DefenseGAN(counting, steps=steps, restarts=restarts)(digits.x_test[:5])
            assert sum(counted) == (steps + 1) * restarts * 5

    def test_the_adaptive_attack_goes_through_it(self, digits, undefended, generator):
        layer = DefenseGAN(generator, steps=30, restarts=2)
        defended = keras.Sequential([keras.Input(SHAPE), layer, undefended])
        x, y = digits.x_test[:20], digits.y_test[:20]
        report = evaluate_robustness(
            defended, x, y, attacks=[("bim", {"steps": 8})], epsilons=[0.3]
        )
        white = report.robust_accuracy(threat_model="white-box")
        assert white == report.clean_accuracy()  # its own derivative is cut
        assert report.robust_accuracy(threat_model="adaptive") < 0.7 * white

    def test_the_unrolled_gradient_is_the_finite_difference(self):
        generator = wgan_generator((2, 2, 1), latent=3, units=(8,), seed=0)
        layer = DefenseGAN(generator, steps=4, restarts=1, unrolled=4, rate=1.0)
        x = np.random.default_rng(0).random((1, 2, 2, 1)).astype("float32")
        layer(x)
        choices = layer.surrogates([])
        assert choices == ["identity", "unrolled"]
        from keras_qusec.defenses import surrogates_in_force

        with surrogates_in_force({layer: "unrolled"}):
            value, (gradient,) = value_and_gradients(lambda x: ops.sum(layer(x) ** 2), x)
        plain = float(ops.convert_to_numpy(ops.sum(layer(x) ** 2)))
        assert float(value) == pytest.approx(plain, rel=1e-6)
        for place in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[place] = 1e-2
            up, down = (
                float(ops.convert_to_numpy(ops.sum(layer(moved) ** 2)))
                for moved in (x + step, x - step)
            )
            assert gradient[place] == pytest.approx((up - down) / 2e-2, abs=3e-3)
        with surrogate_gradients(layer, 5.0):  # the first one: the identity
            _, (identity,) = value_and_gradients(lambda x: ops.sum(layer(x)), x)
        np.testing.assert_allclose(identity, 1.0)

    def test_the_same_image_gives_the_same_result(self, digits, generator, tmp_path):
        model = keras.Sequential([keras.Input(SHAPE), DefenseGAN(generator, steps=5, restarts=2)])
        x = digits.x_test[:4]
        once = model.predict(x, verbose=0)
        np.testing.assert_allclose(model.predict(x, verbose=0), once, atol=1e-6)
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras")
        np.testing.assert_allclose(again.predict(x, verbose=0), once, atol=1e-5)


@pytest.mark.parametrize("kind", ["ape-gan", "wgan-gp"])
def test_training_is_that_of_fit(kind, tmp_path):
    """With its callbacks; the same seed gives the same weights, also from a file."""
    x = np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")
    shape, small = (8, 8, 1), {"units": (8,), "seed": 0}

    def made():
        keras.utils.set_random_seed(0)
        if kind == "ape-gan":
            generator = ape_generator(shape, filters=2, seed=0)
            gan = APEGAN(generator, ape_discriminator(shape, filters=2, seed=0))
        else:
            gan = WGANGP(wgan_generator(shape, **small), wgan_critic(shape, **small))
        # Adam would turn the rounding of a gradient near 0 into a whole step.
        gan.compile(keras.optimizers.SGD(0.05))
        return gan

    weights = []
    for number in range(2):
        gan = made()
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / f"backup-{number}")]
        settings = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
        history = gan.fit(x, x, callbacks=callbacks, **settings).history
        assert len(history["loss"]) == 2
        weights.append(gan.generator.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    gan.save(tmp_path / "gan.keras")
    again = keras.saving.load_model(tmp_path / "gan.keras")
    for one, two in zip(gan.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ape_generator((27, 28, 1)), "multiples of 4"),
        (lambda: APEGAN(ape_generator(SHAPE), ape_discriminator(SHAPE), mse_weight=2), "mse_weight"),
        (lambda: Purifier("generator"), "Keras model"),
        (lambda: WGANGP(wgan_generator(SHAPE), wgan_critic(SHAPE), penalty=-1), "penalty"),
        (lambda: DefenseGAN("generator"), "built generator"),
        (lambda: DefenseGAN(wgan_generator(SHAPE), steps=0), "steps"),
        (lambda: DefenseGAN(wgan_generator(SHAPE), restarts=0), "restarts"),
        (lambda: DefenseGAN(wgan_generator(SHAPE), rate=0), "rate"),
        (lambda: DefenseGAN(wgan_generator(SHAPE))(np.ones((1, 8, 8, 1), "float32")), "28, 28, 1"),
    ],
)  # fmt: skip
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
