"""APGD: closed forms, the published schedule, restarts from the best point."""

from __future__ import annotations

import closed_forms
import keras
import numpy as np
import pytest
from closed_forms import X, Y
from keras import ops

from keras_qusec import QuSecQuantization, evaluate_robustness, norms
from keras_qusec.attacks import APGD, AttackedModel, Goal
from keras_qusec.attacks.apgd import Climb, Momentum, Sparse
from keras_qusec.attacks.ball import Ball
from keras_qusec.attacks.objective import LOSSES


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_breaks_exactly_what_can_be_broken(norm, loss):
    exact = closed_forms.nearest(norm)
    radius = closed_forms.between(exact)
    attacked = AttackedModel(closed_forms.model())
    # Towards both other classes: a linear model's nearest boundary need not be the steepest.
    attack = APGD(norm=norm, loss=loss, steps=100, targets=2)
    images = attack.run(attacked, X, Goal(Y), epsilon=radius, seed=0)
    assert (norms.get(norm).distance(X, images) <= radius * (1 + 1e-5)).all()
    broken = attacked.is_adversarial(images, Goal(Y))
    assert not broken[exact > radius].any()
    # All images lie within a fifth of the radius, so that few steps of L1 miss some.
    assert broken[exact < (0.9 if norm == "l1" else 0.97) * radius].all()
    assert broken.sum() >= 4


def test_the_checkpoints_are_the_published_ones():
    assert Momentum().checkpoints(100) == [22, 19, 16, 13, 10, 7, 6, 6, 1]
    assert Sparse().checkpoints(100) == [4] * 25
    assert sum(Momentum().checkpoints(7)) == 7


def test_all_steps_are_taken_and_counted():
    attacked = AttackedModel(closed_forms.model())
    APGD(steps=30).run(attacked, X, Goal(Y), epsilon=1e-4, seed=0)
    assert attacked.counter.gradients == len(X) * 31


def test_adversarial_images_leave():
    attacked = AttackedModel(closed_forms.model())
    APGD(steps=100).run(attacked, X, Goal(Y), epsilon=0.4, seed=0)
    assert attacked.counter.gradients < len(X) * 12


def test_a_gradient_of_zero_ends_the_search():
    """Nothing can change any more: no step is made."""
    blocked = keras.Sequential(
        [keras.Input((8,)), keras.layers.Lambda(lambda x: ops.stop_gradient(ops.round(x))),
         keras.layers.Dense(3)]
    )  # fmt: skip
    attacked = AttackedModel(blocked)
    goal = Goal(attacked.predictions(X))
    APGD(steps=50).run(attacked, X, goal, epsilon=0.01, seed=0)
    assert attacked.counter.gradients == len(X)


def test_for_transfer_the_loss_is_raised_to_the_end():
    attacked = AttackedModel(closed_forms.model())
    goal = Goal(Y, transfer=True)
    few, many = (APGD(steps=steps).run(attacked, X, goal, epsilon=0.2, seed=0) for steps in (1, 40))
    losses = [
        ops.convert_to_numpy(
            LOSSES["ce"].away(
                ops.convert_to_tensor(Y), ops.convert_to_tensor(attacked.logits(images))
            )
        )
        for images in (few, many)
    ]
    assert (losses[1] >= losses[0] - 1e-5).all()
    assert attacked.counter.gradients == len(X) * (2 + 41)


def test_a_smaller_radius_begins_with_the_larger_one():
    """What falls at a radius is brought to the next one, by one query if that suffices."""
    attacked = AttackedModel(closed_forms.model())
    search = APGD(steps=20).on_batch(attacked, X, Goal(Y))
    rows = np.arange(len(X))
    search(rows, 0.4, 0)
    attacked.counter.gradients = 0
    images = search(rows, 0.39, 1)
    assert attacked.is_adversarial(images, Goal(Y)).all()
    assert attacked.counter.gradients == 0
    assert np.abs(images - X).max() <= 0.39 + 1e-6


def test_a_larger_ball_first_finds_what_lies_behind_a_ridge():
    """A margin of one value falls to both sides of a ridge, but far enough only to the right."""
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((1,)), dense(3, "relu"), dense(2)])
    # From 0.1 at 0.38, outside the ball, up to 0.5 at the ridge, 0.52, and down to -0.1 at 0.6.
    ramps = [[1.0, 1.0, 1.0]], [0.0, -0.38, -0.52]
    margin = [[-3.0, 0.0], [5.86, 0.0], [-10.36, 0.0]], [1.24, 0.0]
    model.set_weights([np.array(part, "float32") for part in (*ramps, *margin)])
    attacked = AttackedModel(model)
    x = np.linspace(0.499, 0.501, 40, dtype="float32")[:, None]
    goal = Goal(np.zeros(len(x), "int64"))
    broken = {}
    for radius in (1.0, 1.5):
        attack = APGD(loss="margin", steps=50, first_radius=radius)
        images = attack.run(attacked, x, goal, epsilon=0.1, seed=0)
        assert norms.get("linf").distance(x, images).max() <= 0.1 + 1e-6
        broken[radius] = int(attacked.is_adversarial(images, goal).sum())
    assert broken[1.0] < len(x) / 2 < broken[1.5] == len(x), broken


@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.once)])
def test_a_larger_ball_first_ends_in_the_ball_at_the_steps_told(norm):
    attacked = AttackedModel(closed_forms.model())
    attack = APGD(norm=norm, steps=10, first_radius=3)
    images = attack.run(attacked, X, Goal(Y), epsilon=1e-3, seed=0)
    assert norms.get(norm).distance(X, images).max() <= 1e-3 * (1 + 1e-3)
    assert attacked.counter.gradients <= len(X) * 12
    assert attack.cost == "12 gradients"
    assert attack.settings()["first_radius"] == 3.0


def test_the_same_seed_gives_the_same_images():
    attacked = AttackedModel(closed_forms.model())
    one, same, other = (
        APGD(steps=1, norm="l2").run(attacked, X, Goal(Y), epsilon=0.1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "classes", [2, pytest.param(3, marks=pytest.mark.once), pytest.param(4, marks=pytest.mark.once)]
)
def test_few_classes_have_losses_too(classes):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(classes)])
    x = rng.uniform(0.4, 0.6, (10, 5)).astype("float32")
    weights = rng.normal(size=(5, classes))
    model.set_weights([weights, -0.5 * weights.sum(axis=0)])
    attacked = AttackedModel(model)
    goal = Goal(attacked.predictions(x))
    for loss in LOSSES:
        for targets in (None, 9):
            images = APGD(loss=loss, targets=targets, steps=20).run(
                attacked, x, goal, epsilon=0.4, seed=0
            )
            assert np.isfinite(images).all()
            # Of three classes, DLR may rise by lowering the third logit alone.
            if (loss, targets, classes) != ("dlr", None, 3):
                assert attacked.is_adversarial(images, goal).mean() > 0.8


def test_never_outside_the_ball_at_byte_values():
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Rescaling(1 / 255), closed_forms.model()]
    )
    x, radius = np.round(X * 255), 255 * closed_forms.between(closed_forms.nearest("linf"))
    report = evaluate_robustness(
        model, x, Y, attacks=["apgd-ce", ("apgd-t", {"targets": 2, "steps": 20})],
        epsilons=[radius], value_range=(0, 255), threat_models=["white-box"],
    )  # fmt: skip
    for result in report.results:
        assert result.examples
        for index, image in result.examples.items():
            assert np.abs(image.astype("float64") - x[index]).max() <= radius


def test_a_quantizer_is_attacked_through_its_surrogate():
    model = keras.Sequential(
        [keras.Input((8,)), QuSecQuantization(2, hard=True), closed_forms.model()]
    )
    attacked = AttackedModel(model)
    goal = Goal(attacked.predictions(X))
    own = APGD(steps=30).run(attacked, X, goal, epsilon=0.1, seed=0)
    surrogate = attacked.with_surrogates((5.0,))[0]
    through = APGD(steps=30).run(surrogate, X, goal, epsilon=0.1, seed=0)
    found = [attacked.is_adversarial(images, goal).mean() for images in (own, through)]
    assert found[1] >= max(found[0], 0.9)


def test_fewer_classes_than_targets_where_images_withstand():
    """Each of the other classes is a target once; then the search is over."""
    attacked = AttackedModel(closed_forms.model())
    images = APGD(loss="dlr", targets=9, steps=5).run(attacked, X, Goal(Y), epsilon=1e-4, seed=0)
    assert not attacked.is_adversarial(images, Goal(Y)).any()
    assert attacked.counter.gradients == len(X) * 2 * 6


def test_a_sparse_step_has_the_length_asked_for():
    """In L1: the steepest values change equally, and the changes add up to the step."""
    x = np.full((2, 4), 0.5, "float32")
    gradient = np.array([[4, -3, 2, 1], [-1, 2, 3, -4]], "float32")
    ones = np.ones(2, "float32")
    climb = Climb(
        images=x, before=x, gradient=gradient, best=x, best_gradient=gradient, value=ones,
        best_value=ones, size=ones, rises=ones, unbroken=ones, last_best=ones,
        memory=np.full(2, 0.5, "float32"),
    )  # fmt: skip
    ball = Ball(ops.convert_to_tensor(x), 5.0, norms.get("l1"), (0.0, 1.0))
    climb = climb._replace(**{n: ops.convert_to_tensor(v) for n, v in climb._asdict().items()})
    moved = Sparse().step(climb, ball, ops.ones((2, 1)) * 0.2, ops.ones((2, 1)))
    change = ops.convert_to_numpy(moved) - x
    np.testing.assert_allclose(change, [[0.1, -0.1, 0, 0], [0, 0, 0.1, -0.1]], atol=1e-6)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="Did you mean 'dlr'"):
        APGD(loss="dl")
    with pytest.raises(ValueError, match="norm"):
        APGD(norm="l0")
    with pytest.raises(ValueError, match="targets"):
        APGD(targets=0)
    with pytest.raises(ValueError, match="first_radius to be"):
        APGD(first_radius=0.5)


def test_a_checkpoint_starts_to_count_anew():
    """Rises begin at zero, and the best so far is a copy that later steps do not change."""
    n = 4
    x = np.full((n, 3), 0.5, "float32")
    ones = np.ones(n, "float32")
    climb = Climb(
        images=x + 0.1, before=x, gradient=x, best=x + 0.2, best_gradient=2 * x, value=ones,
        best_value=np.array([1, 2, 3, 4], "float32"), size=ones,
        rises=np.array([0, 9, 7, 8], "float32"), unbroken=np.array([1, 1, 1, 0], "float32"),
        last_best=np.array([0, 1, 3, 0], "float32"), memory=np.array([1, 0, 0, 0], "float32"),
    )  # fmt: skip
    after = Momentum().check(climb, x, 0.1, 10)
    # Few rises halve the first and the third, which did not gain either; the second goes on.
    assert after.size.tolist() == [0.5, 1.0, 0.5, 1.0]
    assert after.memory.tolist() == [1, 0, 1, 0]
    assert after.rises.tolist() == [0, 0, 0, 0]
    assert after.last_best.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(after.images[[0, 2]], x[[0, 2]] + 0.2)
    np.testing.assert_allclose(after.images[[1, 3]], x[[1, 3]] + 0.1)
    climb.best_value[:] = 100
    assert after.last_best.tolist() == [1, 2, 3, 4]
    stalled = climb._replace(
        best_value=np.array([1, 2, 3, 4], "float32"), rises=9 * ones, memory=0 * ones,
        last_best=np.array([1, 1, 3, 0], "float32"), unbroken=ones,
    )  # fmt: skip
    assert Momentum().check(stalled, x, 0.1, 10).size.tolist() == [0.5, 1.0, 0.5, 1.0]
