"""Exact search against enumeration, an independent solver, and every attack of the package."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_qusec import (
    QuSecQuantization,
    TrainableQuSecQuantization,
    certify_robustness,
    evaluate_robustness,
)
from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import reachable_box, soft_margin
from keras_qusec.certification.certify import Prover
from keras_qusec.norms import LInfinity

L = keras.layers
BACKEND = keras.backend.backend()
# Random networks that are compared with enumeration; the others with -m slow.
COUNT = 100 if BACKEND == "torch" else 20


def network(levels=2, *, features=6, classes=3, front=None):
    quantizer = QuSecQuantization(levels, hard=True) if front is None else front
    return keras.Sequential(
        [keras.Input((features,)), quantizer, L.Dense(8, activation="relu"),
         L.Dense(6, activation="relu"), L.Dense(classes)]
    )  # fmt: skip


def draw(model, generator):
    """Other weights, small enough that some images are robust and others are not."""
    model.set_weights(
        [w if w.ndim == 0 else generator.normal(0, 0.6, w.shape) for w in model.get_weights()]
    )


def truth(attacked, x, label, epsilon):
    """Whether all images that differ by a level at reach are classified as the label."""
    box = reachable_box(attacked, x[None], epsilon)
    outputs = box.low[0].astype("float32").ravel()
    moving = np.flatnonzero((box.high > box.low)[0])
    levels = box.levels(0)
    corners = np.repeat(outputs[None], int(np.prod([len(v) for v in levels])), axis=0)
    corners[:, moving] = list(itertools.product(*levels))
    behind = attacked.behind(box.quantizer.layer)
    return bool((behind.logits(corners.astype("float32")).argmax(axis=1) == label).all())


def compare_with_enumeration(count, seed):
    """How many images were proved and broken, all of them as enumeration says."""
    generator = np.random.default_rng(seed)
    models = {levels: network(levels) for levels in (2, 3, 4)}
    attacked = {levels: AttackedModel(model) for levels, model in models.items()}
    proved = broken = 0
    for number in range(count):
        levels = 2 + number % 3
        model = models[levels]
        draw(model, generator)
        x = generator.random((3, 6)).astype("float32")
        y = attacked[levels].predictions(x)
        epsilon = float(generator.choice([0.1, 0.3, 0.5]))
        status = certify_robustness(attacked[levels], x, y, epsilons=[epsilon]).status()
        for image in range(3):
            expected = truth(attacked[levels], x[image], y[image], epsilon)
            assert status[image] == ("proved" if expected else "broken"), (seed, number, image)
            proved, broken = proved + expected, broken + (not expected)
    return proved, broken


def test_it_equals_enumeration():
    proved, broken = compare_with_enumeration(COUNT, seed=0)
    assert min(proved, broken) > 0.15 * 3 * COUNT


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_it_equals_enumeration_on_many(seed):
    compare_with_enumeration(100, seed)


def worst_by_programme(model, low, high, label, other):
    """The largest gap of one logit over another in a box of levels, by mixed-integer programming.

    Each ReLU has a binary variable, as have all inputs that move; HiGHS solves it.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    weights = [w.astype("float64") for w in model.get_weights() if w.ndim]
    layers = [(weights[i].T, weights[i + 1]) for i in range(0, len(weights), 2)]
    lows, highs = [low.astype("float64")], [high.astype("float64")]
    integer = [np.ones(len(low))]
    rows, least, most = [], [], []
    starts, size = [0], len(low)
    for matrix, offset in layers[:-1]:
        reach = [np.maximum(matrix, 0), np.minimum(matrix, 0)]
        z_low = reach[0] @ lows[-1] + reach[1] @ highs[-1] + offset
        z_high = reach[0] @ highs[-1] + reach[1] @ lows[-1] + offset
        count = len(offset)
        # Outputs a, then switches d: a >= z, a <= z - low (1 - d), a <= high d.
        for unit in range(count):
            a, d = size + unit, size + count + unit
            before = slice(starts[-1], starts[-1] + len(lows[-1]))
            off, on = min(z_low[unit], 0.0), max(z_high[unit], 0.0)
            rows += [(before, -matrix[unit], {a: 1.0}), (before, -matrix[unit], {a: 1.0, d: -off}),
                     (before, 0 * matrix[unit], {a: 1.0, d: -on})]  # fmt: skip
            least += [offset[unit], -np.inf, -np.inf]
            most += [np.inf, offset[unit] - off, 0.0]
        starts.append(size)
        size += 2 * count
        lows.append(np.maximum(z_low, 0.0)), highs.append(np.maximum(z_high, 0.0))
        integer += [np.zeros(count), np.ones(count)]
    table = np.zeros((len(rows), size))
    for row, (before, values, others) in enumerate(rows):
        table[row, before] = values
        for place, value in others.items():
            table[row, place] = value
    matrix, offset = layers[-1]
    goal = np.zeros(size)
    goal[starts[-1] : starts[-1] + matrix.shape[1]] = matrix[other] - matrix[label]
    ends = [[low], [high]]
    for place in range(1, len(lows)):
        ends[0] += [lows[place], np.zeros(len(lows[place]))]
        ends[1] += [highs[place], np.ones(len(lows[place]))]
    solved = milp(
        -goal, constraints=LinearConstraint(table, least, most), integrality=np.concatenate(integer),
        bounds=Bounds(np.concatenate(ends[0]), np.concatenate(ends[1])),
    )  # fmt: skip
    assert solved.success
    return -solved.fun + offset[other] - offset[label]


def test_an_independent_solver_says_the_same():
    generator = np.random.default_rng(5)
    model = network(2, features=8)
    attacked = AttackedModel(model)
    verdicts = []
    for _ in range(10):
        draw(model, generator)
        x = generator.random((1, 8)).astype("float32")
        y = attacked.predictions(x)
        box = reachable_box(attacked, x, 0.3)
        gaps = [worst_by_programme(model, box.low[0], box.high[0], y[0], other)
                for other in range(3) if other != y[0]]  # fmt: skip
        status = certify_robustness(attacked, x, y, epsilons=[0.3]).status()[0]
        assert status == ("proved" if max(gaps) < 0 else "broken")
        verdicts.append(status)
    assert len(set(verdicts)) == 2


@pytest.mark.parametrize(
    ("front", "value_range"),
    [
        (lambda: QuSecQuantization(2, hard=True), (0, 1)),
        (lambda: QuSecQuantization(3, hard=True, value_range=(0, 255)), (0, 255)),
        (lambda: QuSecQuantization(2), (0, 1)),
        (lambda: TrainableQuSecQuantization(3, hard=True), (0, 1)),
        (lambda: L.Rescaling(1.0), (0, 1)),
    ],
    ids=["hard", "hard 0-255", "soft", "trained", "none"],
)
def test_no_attack_breaks_what_is_proved(front, value_range):
    """Random images and the strongest attacks; the report refuses a contradiction by itself."""
    generator = np.random.default_rng(1)
    model = network(front=front())
    draw(model, generator)
    low, high = value_range
    x = generator.uniform(low, high, (40, 6)).astype("float32")
    y = ops.convert_to_numpy(model(x)).argmax(axis=1)
    epsilon = 0.15 * (high - low)
    proof = certify_robustness(model, x, y, epsilons=[epsilon], value_range=value_range)
    status = proof.status()
    assert (status == "proved").any()
    report = evaluate_robustness(
        model, x, y, attacks="standard", epsilons=[epsilon], value_range=value_range
    )
    assert not (~report.robust_images(epsilon=epsilon) & (status == "proved")).any()
    ends = LInfinity().ends(x, epsilon, value_range)
    for row in np.flatnonzero(status == "proved"):
        images = generator.uniform(ends[0][row], ends[1][row], (500, 6)).astype("float32")
        images[::2] = np.where(generator.random((250, 6)) < 0.5, ends[0][row], ends[1][row])
        assert (ops.convert_to_numpy(model(images)).argmax(axis=1) == y[row]).all()
    numbers, found = proof.examples()
    assert (ops.convert_to_numpy(model(found)).argmax(axis=1) != y[numbers]).all()
    assert (np.abs(found.astype("float64") - x[numbers]) <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("pixel", "epsilon", "moves"),
    [(102, 0.1, True), (153, 0.1, False), (51, 0.3, True), (204, 0.3, False)],
)
def test_edges_are_those_of_the_verification(pixel, epsilon, moves):
    """A pixel exactly epsilon from the threshold: float32 decides, and not symmetrically."""
    model = keras.Sequential([keras.Input((1,)), QuSecQuantization(2, hard=True), L.Dense(2)])
    box = reachable_box(AttackedModel(model), np.array([[pixel / 255]], "float32"), epsilon)
    assert bool((box.high > box.low).any()) == moves


def test_levels_are_those_of_the_quantizer():
    """The levels of a box, also between its ends, are outputs of the layer up to the last bit."""
    layer = QuSecQuantization(7, hard=True)
    model = keras.Sequential([keras.Input((5,)), layer, L.Dense(2)])
    x = np.array([[0.1, 0.3, 0.5, 0.7, 0.9]], "float32")
    box = reachable_box(AttackedModel(model), x, 0.25)
    dense = np.linspace(x - 0.25, x + 0.25, 4001)[:, 0].clip(0, 1).astype("float32")
    reached = ops.convert_to_numpy(layer(dense))
    for place, levels in enumerate(box.levels(0)):
        np.testing.assert_allclose(levels, np.unique(reached[:, place]), rtol=2e-7)


@pytest.mark.parametrize("levels", [2, 5, 40])
@pytest.mark.parametrize("hardness", [50.0, 5000.0])
def test_the_margin_of_soft_quantizers_is_enough(levels, hardness):
    """Also against sigmoids in float64, which is what no way to compute them is far from."""
    layer = QuSecQuantization(levels, hardness=hardness)
    layer.build((None, 1))
    margin = soft_margin(layer)
    x = np.sort(np.random.default_rng(0).random(60_000).astype("float32"))
    whole = ops.convert_to_numpy(layer(x[None]))[0]
    falls = np.maximum.accumulate(whole) - whole
    alone = np.concatenate(
        [ops.convert_to_numpy(layer(part[None]))[0] for part in x[:99].reshape(9, 11)]
    )
    assert max(falls.max(), np.abs(alone - whole[:99]).max()) < margin / 2
    argument = hardness * (x[:, None].astype("float64") - layer.thresholds)
    exact = (1 / (1 + np.exp(-np.clip(argument, -700, 700)))).mean(axis=1)
    assert np.abs(whole - exact).max() < margin / 2


def test_rounding_covers_batches_of_any_size():
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((12, 12, 1)), L.Conv2D(8, 5, activation="relu"),
         L.Conv2D(8, 5, strides=2, activation="relu"), L.Flatten(), L.Dense(10)]
    )  # fmt: skip
    x = np.random.default_rng(0).random((1000, 12, 12, 1)).astype("float32")
    bounds = Prover(AttackedModel(model), x).network.bounds(*[x.reshape(1000, -1)] * 2)[-1]
    widest = 0.0
    for size in (1, 2, 127, 128, 1000):
        rows = np.arange(0, 1000 if size > 2 else 60)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        found = np.concatenate([ops.convert_to_numpy(model(x[part])) for part in parts])
        gap = np.maximum(bounds.low[rows] - found, found - bounds.high[rows])
        assert (gap <= bounds.error[rows]).all()
        widest = max(widest, float((gap / bounds.error[rows]).max()))
    assert widest > 1e-3  # the margin is no more than a few hundred times what rounding does
