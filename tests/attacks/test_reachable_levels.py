"""The attacks on a quantizer in front: exact levels, brute force, real images."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from helpers import small_cnn

from keras_qusec import (
    QuSecQuantization,
    TrainableQuSecQuantization,
    evaluate_robustness,
    norms,
)
from keras_qusec.attacks import AttackedModel, CheapestLevels, Goal, ReachableLevels
from keras_qusec.attacks.input_quantizer import input_quantizer
from keras_qusec.attacks.reachable_levels import _Box
from keras_qusec.defenses import BitDepthReduction, GivenThresholds

RNG = np.random.default_rng(0)
SIDE = 3
X = RNG.uniform(0.2, 0.8, (40, SIDE, SIDE, 1)).astype("float32")


def network(quantizer, seed=0, before=()):
    """A network with a hidden layer behind a quantizer, on images of nine pixels."""
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 1)), *before, quantizer, keras.layers.AveragePooling2D(1),
         keras.layers.Flatten(), keras.layers.Dense(12, activation="tanh"), keras.layers.Dense(3)]
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return model


def thresholds_by_pixel(levels):
    rng = np.random.default_rng(4)

    def initial(shape, dtype=None):
        return keras.ops.convert_to_tensor(np.sort(rng.uniform(0.2, 0.8, shape), 0), dtype)

    return TrainableQuSecQuantization(levels, hard=True, thresholds_initializer=initial)


QUANTIZERS = {
    "hard, 2": lambda: QuSecQuantization(2, hard=True),
    "hard, 5": lambda: QuSecQuantization(5, hard=True),
    "hard, own thresholds": lambda: QuSecQuantization(3, hard=True, thresholds=[0.3, 0.6]),
    "by pixel, 3": lambda: thresholds_by_pixel(3),
    "shared": lambda: TrainableQuSecQuantization(
        3, hard=True, granularity="shared", thresholds_initializer=GivenThresholds([0.4, 0.5])
    ),
    "bit depth": lambda: BitDepthReduction(2),
}


def reachable_patterns(model, x, epsilon):
    """The outputs of all level patterns within epsilon of an image, by trying many pixel values."""
    front = input_quantizer(AttackedModel(model), x[None])
    low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    values = low + np.linspace(0, 1, 401).reshape(-1, 1, 1, 1).astype("float32") * (high - low)
    outputs = front.outputs(values.astype("float32")).reshape(401, -1)
    levels = [np.unique(outputs[:, pixel]) for pixel in range(x.size)]
    patterns = np.array(list(itertools.product(*levels)), "float32")
    return front, patterns.reshape(-1, *x.shape)


EVERYWHERE = ("hard, 2", "by pixel, 3")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERYWHERE else [pytest.mark.once])
        for name in QUANTIZERS
    ],
)
def test_against_all_patterns(name):
    """Brute force over every reachable pattern of levels: at most 1 of 40 images is missed."""
    model = network(QUANTIZERS[name]())
    attacked = AttackedModel(model)
    labels = attacked.predictions(X)
    epsilon = 0.06 if name == "hard, 5" else 0.1
    images = ReachableLevels(rounds=3).run(attacked, X, Goal(labels), epsilon=epsilon, seed=0)
    assert np.abs(images - X).max() <= epsilon + 1e-7
    found = attacked.is_adversarial(images, Goal(labels))
    possible = np.zeros(len(X), bool)
    for row, x in enumerate(X):
        front, patterns = reachable_patterns(model, x, epsilon)
        possible[row] = (front.model.predictions(patterns) != labels[row]).any()
    assert not (found & ~possible).any()
    missed = int((possible & ~found).sum())
    assert possible.sum() >= 5
    assert missed <= 1, f"{missed} of {possible.sum()} missed"


def test_rounding_ends_at_what_is_reachable():
    """Between two levels of which only one can be reached, the other may be nearer."""
    model = network(QuSecQuantization(5, hard=True))
    attacked = AttackedModel(model)
    front = input_quantizer(attacked, X)
    own = front.outputs(X)
    goal = Goal(attacked.predictions(X))
    box = _Box(front, goal, own, own)
    rows = np.arange(len(X))
    for shift in (-0.4, 0.1, 0.2, 0.6):
        np.testing.assert_array_equal(box.rounded(own + np.float32(shift), rows), own)
    wider = _Box(front, goal, own, np.minimum(own + 0.25, 1.0).astype("float32"))
    found = wider.rounded(own + np.float32(0.7), rows)
    np.testing.assert_allclose(found, np.minimum(own + 0.25, 1.0))


def test_a_soft_quantizer_reaches_what_lies_between():
    model = network(QuSecQuantization(2, hardness=20.0))
    attacked = AttackedModel(model)
    labels = attacked.predictions(X)
    front = input_quantizer(attacked, X)
    assert front.grid is None
    wanted = 0.7 * front.outputs(X) + 0.3 * front.outputs(X + 0.1)
    images = front.images(X, X + 0.1, wanted)
    np.testing.assert_allclose(front.outputs(images), wanted, atol=1e-5)
    goal = Goal(labels)
    own = ReachableLevels(rounds=2).run(attacked, X, goal, epsilon=0.1, seed=0)
    report = evaluate_robustness(model, X, labels, attacks=["pgd"], epsilons=[0.1])
    through = 1 - report.robust_accuracy(attack="pgd")
    assert attacked.is_adversarial(own, goal).mean() >= through - 1e-9


def test_pixels_go_no_farther_than_the_level_asks():
    """The nearest image with given levels: the first float32 beyond each threshold."""
    model = network(QuSecQuantization(3, hard=True, thresholds=[0.3, 0.6]))
    front = input_quantizer(AttackedModel(model), X)
    up = front.images(X, np.ones_like(X), np.ones_like(X))
    np.testing.assert_allclose(up, np.maximum(X, 0.6), atol=1e-6)
    assert (front.outputs(up) == 1).all()
    down = front.images(X, np.zeros_like(X), np.zeros_like(X))
    np.testing.assert_allclose(down, np.minimum(X, 0.3), atol=1e-6)
    assert (front.outputs(down) == 0).all()
    assert np.array_equal(front.images(X, np.ones_like(X), front.outputs(X)), X)


class TestInFront:
    def test_scaled_and_shifted_images_pass_all_through_it(self):
        model = network(
            QuSecQuantization(2, hard=True), before=[keras.layers.Rescaling(1 / 255, 0.0)]
        )
        attacked = AttackedModel(model, (0.0, 255.0))
        assert input_quantizer(attacked, X * 255) is not None
        goal = Goal(attacked.predictions(X * 255))
        images = ReachableLevels().run(attacked, X * 255, goal, epsilon=25.5, seed=0)
        plain = AttackedModel(network(QuSecQuantization(2, hard=True)))
        same = ReachableLevels().run(plain, X, goal, epsilon=0.1, seed=0)
        # Draws belong to the values of an image, so that only what is broken is the same.
        broken = attacked.is_adversarial(images, goal)
        np.testing.assert_array_equal(broken, plain.is_adversarial(same, goal))
        assert broken.any()
        assert not broken.all()

    def test_channels_first(self):
        quantizer = QuSecQuantization(2, hard=True)
        model = keras.Sequential(
            [keras.Input((1, SIDE, SIDE)), quantizer, keras.layers.Permute((2, 3, 1)),
             keras.layers.Flatten(), keras.layers.Dense(3)]
        )  # fmt: skip
        attacked = AttackedModel(model, data_format="channels_first")
        goal = Goal(attacked.predictions(X))
        images = ReachableLevels().run(attacked, X, goal, epsilon=0.2, seed=0)
        assert images.shape == X.shape
        assert attacked.is_adversarial(images, goal).any()

    @pytest.mark.parametrize(
        "before",
        [
            [keras.layers.Conv2D(1, 3, padding="same")],
            [keras.layers.Lambda(lambda x: x**2)],
            [keras.layers.Lambda(lambda x: 1 - x)],
        ],
        ids=["convolution", "square", "negative"],
    )
    def test_what_is_no_scale_is_no_front(self, before):
        attacked = AttackedModel(network(QuSecQuantization(2, hard=True), before=before))
        assert input_quantizer(attacked, X) is None
        with pytest.raises(ValueError, match="quantizer in front"):
            ReachableLevels().run(attacked, X, Goal(np.zeros(40, int)), epsilon=0.1, seed=0)

    def test_a_way_around_it_is_seen(self):
        image = keras.Input((SIDE, SIDE, 1))
        both = keras.layers.Add()([QuSecQuantization(2, hard=True)(image), image])
        output = keras.layers.Dense(3)(keras.layers.Flatten()(both))
        assert input_quantizer(AttackedModel(keras.Model(image, output)), X) is None

    def test_a_quantizer_used_twice_is_none(self):
        image, quantizer = keras.Input((SIDE, SIDE, 1)), QuSecQuantization(2, hard=True)
        both = keras.layers.Add()([quantizer(image), quantizer(1 - image)])
        output = keras.layers.Dense(3)(keras.layers.Flatten()(both))
        assert input_quantizer(AttackedModel(keras.Model(image, output)), X) is None

    def test_the_model_is_as_it_was(self):
        model = network(QuSecQuantization(2, hard=True))
        before = keras.ops.convert_to_numpy(model(X))
        attacked = AttackedModel(model)
        ReachableLevels().run(attacked, X, Goal(attacked.predictions(X)), epsilon=0.2, seed=0)
        assert np.array_equal(keras.ops.convert_to_numpy(model(X)), before)


class TestInAnEvaluation:
    def test_it_joins_the_adaptive_threat_model_by_itself(self):
        models = {"quantized": network(QuSecQuantization(2, hard=True)),
                  "plain": network(keras.layers.Identity())}  # fmt: skip
        labels = AttackedModel(models["quantized"]).predictions(X)
        report = evaluate_robustness(models, X, labels, attacks=["fgsm"], epsilons=[0.05, 0.1])
        rows = {(r.model, r.threat_model) for r in report.results if r.attack == "reachable-levels"}
        assert rows == {("quantized", "adaptive")}
        assert "reachable-levels" in report.provenance["identity"]["joined attacks"]
        assert not report.failures
        white = evaluate_robustness(
            models["quantized"], X, labels, attacks=["fgsm"], threat_models=["white-box"]
        )
        assert white.attacks == ("fgsm",)

    @pytest.mark.once
    def test_it_joins_in_the_norms_that_have_epsilons(self):
        model = network(QuSecQuantization(2, hard=True))
        labels = AttackedModel(model).predictions(X)
        report = evaluate_robustness(
            model, X, labels, attacks=[("sigma-zero", {"steps": 5})],
            epsilons={"l2": [0.1], "l0": [2]},
        )  # fmt: skip
        assert set(report.attacks) == {"sigma-zero", "cheapest-levels-l2", "cheapest-levels-l0"}

    def test_asked_for_on_a_model_without_quantizer(self):
        model = network(keras.layers.Identity())
        labels = AttackedModel(model).predictions(X)
        with pytest.raises(ValueError, match="quantizers that stand in front"):
            evaluate_robustness(model, X, labels, attacks=["reachable-levels"], epsilons=[0.1])

    def test_at_byte_values_no_example_is_outside(self):
        model = network(
            QuSecQuantization(2, hard=True), before=[keras.layers.Rescaling(1 / 255, 0.0)]
        )
        x = np.round(X * 255)
        labels = AttackedModel(model, (0.0, 255.0)).predictions(x)
        report = evaluate_robustness(
            model, x, labels, attacks=["reachable-levels"], epsilons=[30.0], value_range=(0, 255)
        )
        assert report.robust_accuracy() < 1
        for result in report.results:
            for index, image in result.examples.items():
                assert np.abs(image.astype("float64") - x[index]).max() <= 30.0


@pytest.mark.parametrize("norm", [pytest.param("l2", marks=pytest.mark.once), "l0"])
def test_the_cheapest_levels_against_all_patterns(norm):
    """Over every pattern of two levels: within a tenth of the least cost for most images."""
    model = network(QuSecQuantization(2, hard=True))
    attacked = AttackedModel(model)
    labels = attacked.predictions(X)
    images = CheapestLevels(norm=norm).run(attacked, X, Goal(labels), epsilon=None, seed=0)
    found = norms.get(norm).distance(X, images)
    broken = attacked.is_adversarial(images, Goal(labels))
    least = np.full(len(X), np.inf)
    for row, x in enumerate(X):
        front, patterns = reachable_patterns(model, x, 1.0)
        fooling = patterns[front.model.predictions(patterns) != labels[row]]
        changed = fooling != front.outputs(x[None])
        cost = np.abs(x - 0.5) ** 2 if norm == "l2" else np.ones_like(x)
        least[row] = (changed * cost).sum(axis=(1, 2, 3)).min()
    least = np.sqrt(least) if norm == "l2" else least
    assert broken.mean() > 0.95
    assert (found[broken] >= least[broken] - 1e-5).all()
    assert np.median(found[broken] / least[broken]) < 1.1


def test_a_target_is_reached():
    model = network(QuSecQuantization(2, hard=True))
    attacked = AttackedModel(model)
    labels = attacked.predictions(X)
    goal = Goal(labels, (labels + 1) % 3)
    front, patterns = reachable_patterns(model, X[0], 0.8)
    assert len(patterns) == 2 ** X[0].size
    possible = np.isin(goal.targets, front.model.predictions(patterns))
    assert possible.sum() >= 5
    for attack, epsilon in ((ReachableLevels(rounds=4), 0.8), (CheapestLevels(), None)):
        images = attack.run(attacked, X, goal, epsilon=epsilon, seed=0)
        reached = attacked.is_adversarial(images, goal)
        assert not reached[~possible].any()
        assert reached[possible].mean() > 0.8


@pytest.mark.once
def test_it_is_no_weaker_than_surrogate_gradients():
    """On a convolutional network of 64 pixels."""
    model = small_cnn(3, QuSecQuantization(2, hard=True))
    x = np.random.default_rng(8).uniform(0.3, 0.7, (60, 8, 8, 1)).astype("float32")
    labels = AttackedModel(model).predictions(x)
    report = evaluate_robustness(
        model, x, labels, attacks=[("pgd", {"restarts": 2}), "apgd-ce"], epsilons=[0.02, 0.05]
    )
    for epsilon in (0.02, 0.05):
        own = report.robust_accuracy(attack="reachable-levels", epsilon=epsilon)
        assert own <= report.robust_accuracy(epsilon=epsilon) + 0.02
