"""CertifiedTraining: bounds in the compiled step, what is logged, what it is for."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_qusec import CertifiedTraining, QuSecQuantization, TrainableQuSecQuantization
from keras_qusec.attacks import AttackedModel
from keras_qusec.certification.box import reachable_box
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Network
from keras_qusec.training import IBPNormal
from keras_qusec.training.certified_objective import certified

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data():
    """Images of two classes: which half is bright, with noise."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 256)
    x = generator.uniform(0.0, 0.48, (256, 6, 6, 1))
    x[y == 0, :3] += 0.5
    x[y == 1, 3:] += 0.5
    return np.clip(x, 0, 1).astype("float32"), y


def network(*, front=None, normalize=False, classes=2):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6, 6, 1)), QuSecQuantization(2, hard=True) if front is None else front,
         L.Conv2D(4, 3, activation="linear" if normalize else "relu"),
         *([L.BatchNormalization(), L.ReLU()] if normalize else []),
         L.Flatten(), L.Dense(classes)]
    )  # fmt: skip


def trained(model, data, *, epochs=6, epsilon=0.15, optimizer=None, **settings):
    loss = settings.pop("loss", LOSS)
    model.compile(optimizer or keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    callback = CertifiedTraining(epsilon, **settings)
    return model.fit(*data, epochs=epochs, batch_size=64, verbose=0, callbacks=[callback]).history


def proved_by_network(model, x, y, epsilon):
    """The share of images that intervals in float64 prove."""
    attacked = AttackedModel(model)
    box = reachable_box(attacked, x, epsilon)
    network = Network.of(pieces_between(model, box.quantizer.layer))
    bounds = network.bounds(box.low.reshape(len(x), -1), box.high.reshape(len(x), -1))
    gaps, _ = network.gaps(bounds, y)
    gaps[np.arange(len(x)), y] = -np.inf
    return float((gaps.max(axis=1) < 0).mean())


@pytest.mark.parametrize("method", ["intervals", "mixed"])
def test_it_makes_a_network_provable(data, method):
    x, y = data
    plain = network()
    plain.compile(keras.optimizers.Adam(0.02), LOSS)
    plain.fit(x, y, epochs=6, batch_size=64, verbose=0)
    model = network()
    history = trained(model, data, method=method, validation_data=(x, y), gradient_hardness=5.0)
    before, after = (proved_by_network(m, x, y, 0.15) for m in (plain, model))
    assert after > before + 0.05
    assert history["val_certified_accuracy"][-1] == pytest.approx(after, abs=0.01)
    assert history["certified_accuracy"][-1] > 0.7
    assert history["epsilon"][0] < history["epsilon"][-1] == pytest.approx(0.15)
    assert ("adversarial_accuracy" in history) == (method == "mixed")


def test_the_logs_are_the_bounds_of_the_batch(data):
    """With a learning rate of 0, from outside: loss and accuracy of intervals in float64."""
    x, y = (part[:64] for part in data)
    model = network()
    optimizer = keras.optimizers.SGD(0.0)
    history = trained(model, (x, y), epochs=1, optimizer=optimizer, warmup_epochs=0, ramp_epochs=0)
    assert history["certified_accuracy"][0] == pytest.approx(proved_by_network(model, x, y, 0.15))
    # There is no attack of one step to overfit to, and so no probe.
    assert "catastrophic_overfitting" not in history
    box = reachable_box(AttackedModel(model), x, 0.15)
    exact = Network.of(pieces_between(model, model.layers[0]))
    bounds = exact.bounds(box.low.reshape(64, -1), box.high.reshape(64, -1))
    gaps, _ = exact.gaps(bounds, y)
    gaps[np.arange(64), y] = 0.0
    loss = np.log(np.exp(gaps).sum(axis=1)).mean()
    assert history["certified_loss"][0] == pytest.approx(loss, rel=1e-4)
    assert history["loss"][0] == pytest.approx(loss, rel=1e-4)


def test_the_gradient_is_that_of_the_bounds(data):
    """One step of SGD against differences of the certified loss."""
    x, y = (part[:32] for part in data)
    model = network(front=QuSecQuantization(2))
    kernel = model.layers[-1].kernel
    start = np.array(ops.convert_to_numpy(kernel))

    def loss_at(weights):
        kernel.assign(weights)
        found = certified(
            pieces_between(model), ops.convert_to_tensor(x), y, 0.1, (0.0, 1.0), training=False
        )
        return float(ops.convert_to_numpy(ops.stop_gradient(ops.mean(found.loss))))

    slopes = []
    for place in ((9, 0), (5, 1), (30, 0)):
        ends = []
        for side in (-1e-3, 1e-3):
            moved = start.copy()
            moved[place] += side
            ends.append(loss_at(moved))
        slopes.append((ends[1] - ends[0]) / 2e-3)
    kernel.assign(start)
    optimizer = keras.optimizers.SGD(1.0)
    trained(
        model, (x, y), epochs=1, epsilon=0.1, optimizer=optimizer, warmup_epochs=0, ramp_epochs=0
    )
    moved = start - ops.convert_to_numpy(kernel)
    np.testing.assert_allclose(
        [moved[p] for p in ((9, 0), (5, 1), (30, 0))], slopes, rtol=0.03, atol=2e-3
    )


@pytest.mark.parametrize(
    "front",
    [lambda: TrainableQuSecQuantization(2, hardness=8.0), lambda: L.Rescaling(1.0)],
    ids=["trained thresholds", "none"],
)
def test_other_fronts(data, front):
    model = network(front=front())
    before = [np.array(w) for w in model.get_weights()]
    history = trained(model, data, epochs=2)
    assert all(np.isfinite(history["certified_loss"]))
    assert all(np.isfinite(w).all() for w in model.get_weights())
    if isinstance(model.layers[0], TrainableQuSecQuantization):
        moved = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
        assert moved[0] > 0  # the thresholds


def test_batch_normalization_and_other_losses(data):
    x, y = data
    model = network(normalize=True)
    history = trained(model, data, epochs=8, validation_data=(x, y))
    assert history["val_certified_accuracy"][-1] > 0.1
    one_hot = network()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    assert "certified_loss" in trained(one_hot, (x, np.eye(2)[y]), epochs=1, loss=loss)
    binary = network(classes=1)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    history = trained(binary, (x, y.astype("float32")), epochs=4, loss=loss)
    assert history["certified_accuracy"][-1] > 0.2


def test_clean_weight_mixes_the_two_losses(data):
    x, y = (part[:64] for part in data)
    losses = {}
    for weight in (0.0, 0.25):
        history = trained(
            network(), (x, y), epochs=1, optimizer=keras.optimizers.SGD(0.0), warmup_epochs=0,
            ramp_epochs=0, clean_weight=weight,
        )  # fmt: skip
        losses[weight] = {name: values[0] for name, values in history.items()}
    own, bound = losses[0.25]["clean_loss"], losses[0.0]["certified_loss"]
    assert losses[0.25]["loss"] == pytest.approx(0.25 * own + 0.75 * bound, rel=1e-5)


def test_with_epsilon_0_the_bounds_are_the_loss(data):
    x, y = (part[:64] for part in data)
    history = trained(
        network(), (x, y), epochs=1, epsilon=0.0, optimizer=keras.optimizers.SGD(0.0),
        warmup_epochs=0, ramp_epochs=0,
    )  # fmt: skip
    assert history["certified_loss"][0] == pytest.approx(history["clean_loss"][0], rel=1e-5)
    assert history["certified_accuracy"][0] == pytest.approx(history["clean_accuracy"][0])


def test_the_model_is_left_as_it_was(data):
    model = network()
    step = model.train_step
    trained(model, data, epochs=1)
    assert model.train_step == step
    before = model.evaluate(*data, verbose=0)
    model.fit(*data, epochs=1, verbose=0)
    assert "certified_loss" not in model.history.history
    assert before != model.evaluate(*data, verbose=0)


class Squared(L.Layer):
    def call(self, x):
        return x * x


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (network, {"clean_weight": 1.0}, "clean_weight below 1"),
        (network, {"method": "crown"}, "method to be one of"),
        (network, {"crown_weight": 0.5}, "crown_weight for method='crown-ibp' alone"),
        (network, {"method": "crown-ibp", "crown_weight": 2.0}, "at most 1"),
        (network, {"epsilon": 3.0}, "epsilon"),
        (lambda: network(front=Squared(name="square")), {}, "'square' of class Squared"),
        (lambda: keras.Sequential([keras.Input((6, 6, 1), dtype="uint8"), L.Flatten(), L.Dense(2)]),
         {}, "float Input"),
    ],
)  # fmt: skip
def test_errors(data, make, settings, message):
    with pytest.raises(ValueError, match=message):
        trained(make(), data, epochs=1, **settings)


def bounds_of(model, x, y, epsilon):
    """The gaps of a batch by intervals and by linear bounds."""
    pieces = pieces_between(model)
    found = certified(pieces, ops.convert_to_tensor(x), y, epsilon, (0.0, 1.0), training=False)
    linear = pieces.linear_gaps(found.values, found.labels)
    return [ops.convert_to_numpy(ops.stop_gradient(gaps)) for gaps in (found.gaps, linear)]


def residual():
    keras.utils.set_random_seed(1)
    image = keras.Input((6, 6, 1))
    front = QuSecQuantization(3, hard=True)(image)
    first = L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(front))
    second = L.Conv2D(4, 3, strides=2, padding="same", activation="relu")(L.ReLU()(first))
    pooled = L.AveragePooling2D(2)(L.Add()([first, L.Conv2D(4, 1)(front)]))
    joined = L.Concatenate()([second, pooled, L.MaxPooling2D(2)(first)])
    dense = L.Dense(12, activation="relu")(L.Flatten()(joined))
    return keras.Model(image, L.Dense(3)(L.Dense(5, activation="tanh")(dense)))


@pytest.mark.parametrize(
    "make", [network, residual, lambda: network(classes=1), lambda: network(normalize=True)],
    ids=["sequential", "residual", "one logit", "normalized"],
)  # fmt: skip
@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_linear_bounds_hold_for_every_image(data, make, epsilon):
    x, y = (part[:8] for part in data)
    model, generator = make(), np.random.default_rng(0)
    _, linear = bounds_of(model, x, y, epsilon)
    reached = np.full_like(linear, -np.inf)
    for share in (1.0, 1.0, 0.5) * 100:
        moved = x + epsilon * np.sign(generator.normal(size=x.shape)) * (
            generator.uniform(size=x.shape) < share
        )
        logits = np.asarray(model.predict_on_batch(np.clip(moved, 0, 1).astype("float32")))
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        reached = np.maximum(reached, logits - logits[np.arange(8), y][:, None])
    assert (reached <= linear + 1e-4).all()
    assert (linear[np.arange(8), y] == 0).all()


def test_linear_bounds_by_hand():
    """Two ReLUs that may be on or off, with the lines of CROWN written out."""
    first, second = np.array([[1.0, -2.0], [3.0, 1.0]]), np.array([[2.0, -1.0], [-1.0, 1.5]])
    model = keras.Sequential(
        [keras.Input((2,)), L.Dense(2, activation="relu", bias_initializer="ones"), L.Dense(2)]
    )
    model.set_weights([first, np.array([-1.0, 0.5]), second, np.array([0.1, 0.2])])
    x, y, epsilon = np.array([[0.3, 0.4]]), np.array([0]), 0.2
    middle, radius = x @ first + [-1.0, 0.5], epsilon * np.abs(first).sum(axis=0)
    low, high = middle - radius, middle + radius
    assert (low < 0).all()
    assert (high > 0).all()
    apart = second[:, 1] - second[:, 0]
    slope = high / (high - low)
    chosen = np.where(apart > 0, slope, high > -low)[0]
    back = first @ (apart * chosen)
    worst = 0.1 + (np.maximum(apart, 0) * slope * -low).sum() + (apart * chosen) @ [-1.0, 0.5]
    worst += x[0] @ back + epsilon * np.abs(back).sum()
    _, linear = bounds_of(model, x.astype("float32"), y, epsilon)
    np.testing.assert_allclose(linear, [[0.0, worst]], rtol=1e-5)


def test_linear_bounds_are_tighter_for_a_network_not_trained_for_intervals(data):
    x, y = (part[:64] for part in data)
    deep = keras.Sequential(
        [keras.Input((6, 6, 1)), L.Flatten(), *(L.Dense(24, activation="relu") for _ in range(3)),
         L.Dense(3)]
    )  # fmt: skip
    intervals, linear = bounds_of(deep, x, y, 0.05)
    assert linear.mean() < 0.7 * intervals.mean()
    linear_network = keras.Sequential([keras.Input((6, 6, 1)), L.Flatten(), L.Dense(3)])
    np.testing.assert_allclose(*bounds_of(linear_network, x, y, 0.05), atol=1e-5)


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_crown_ibp_trains_on_linear_bounds(data, clean_weight):
    """What is minimized, from outside; and that the weights follow."""
    x, y = (part[:64] for part in data)
    model = network()
    gaps = bounds_of(model, x, y, 0.15)
    expected = [np.log(np.exp(part).sum(axis=1)).mean() for part in gaps]
    own = float(ops.convert_to_numpy(LOSS(y, model.predict(x, verbose=0))))
    settings = {"epochs": 1, "warmup_epochs": 0, "ramp_epochs": 0, "clean_weight": clean_weight}
    for weight in (0.0, 1.0) if clean_weight else (0.4,):
        bound = np.log(np.exp((1 - weight) * gaps[0] + weight * gaps[1]).sum(axis=1)).mean()
        history = trained(
            network(), (x, y), method="crown-ibp", crown_weight=weight,
            optimizer=keras.optimizers.SGD(0.0), **settings,
        )  # fmt: skip
        total = clean_weight * own + (1 - clean_weight) * bound
        assert history["loss"][0] == pytest.approx(total, rel=1e-4)
        assert history["certified_loss"][0] == pytest.approx(expected[0], rel=1e-4)
    if clean_weight:
        return
    model = network(normalize=True)
    history = trained(model, data, epochs=6, method="crown-ibp", validation_data=data)
    assert history["val_certified_accuracy"][-1] > 0.6
    assert history["certified_accuracy"][-1] > 0.6


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_a_step_without_the_clean_gradient_is_the_same_step(data, clean_weight):
    """A schedule that is always 1 keeps the step of the ramp, with the loss of clean images."""
    settings = {"epochs": 2, "warmup_epochs": 0, "ramp_epochs": 0, "clean_weight": clean_weight}
    weights, losses = [], []
    for schedule in (None, lambda epoch: ops.ones_like(epoch)):
        model = network()
        model.layers[-1].kernel.regularizer = keras.regularizers.L2(0.1)
        optimizer = keras.optimizers.SGD(0.1)
        history = trained(model, data, optimizer=optimizer, epsilon_schedule=schedule, **settings)
        weights.append(model.get_weights())
        losses.append(history["loss"])
        # The regularizer of the model is part of the loss at every epsilon.
        added = 0.1 * np.square(model.get_weights()[-2]).sum()
        bounds = history["certified_loss"][-1]
        if not clean_weight:
            assert history["loss"][-1] > bounds + 0.5 * added
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_the_step_changes_where_epsilon_has_its_value(data):
    """Warm-up, ramp and the rest in one fit, also continued from the middle."""
    model = network()
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    callback = CertifiedTraining(0.15, warmup_epochs=1, ramp_epochs=2)
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((callback.objective.settled, logs["epsilon"]))

    settings = {"batch_size": 64, "verbose": 0, "callbacks": [callback, Seen()]}
    model.fit(*data, epochs=5, **settings)
    assert [settled for settled, _ in seen] == [False, False, False, True, True]
    radii = [radius for _, radius in seen]
    assert radii[0] == 0 < radii[1] < radii[2] < radii[3] == radii[4] == pytest.approx(0.15)
    seen.clear()
    model.fit(*data, epochs=6, initial_epoch=2, **settings)
    assert [settled for settled, _ in seen] == [False, True, True, True]


def test_initial_weights_keep_the_width_of_intervals():
    """Through ten wide layers, where Keras' own weights widen them a thousand times."""

    def widening(initializer):
        layers = [
            L.Dense(300, activation="relu", kernel_initializer=initializer(n)) for n in range(10)
        ]
        model = keras.Sequential([keras.Input((300,)), *layers, L.Dense(2)])
        x = ops.convert_to_tensor(np.random.default_rng(0).random((8, 300)).astype("float32"))
        found = certified(
            pieces_between(model), x, np.zeros(8, "int64"), 0.1, (-1.0, 2.0), training=False
        )
        widths = [float(ops.convert_to_numpy(ops.stop_gradient(ops.mean(high - low))))
                  for low, high in found.values.values()]  # fmt: skip
        return widths[20] / widths[0]

    assert widening(lambda n: IBPNormal(seed=n)) == pytest.approx(1.0, abs=0.5)
    assert widening(lambda n: keras.initializers.GlorotUniform(seed=n)) > 100


def test_initial_weights_are_those_of_their_seed_and_are_saved(tmp_path):
    dense = L.Dense(4, kernel_initializer=IBPNormal(seed=3))
    model = keras.Sequential([keras.Input((5,)), dense])
    other = L.Dense(4, kernel_initializer=IBPNormal(seed=3))
    other.build((None, 5))
    np.testing.assert_array_equal(*(ops.convert_to_numpy(d.kernel) for d in (dense, other)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_initializer.seed == 3
    unseeded = IBPNormal()
    assert IBPNormal.from_config(unseeded.get_config()).seed is None
