"""An attack, a defence, a norm and a threat model that are defined here and used like our own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FEATURES, WEIGHTS, X, Y, predicted
from keras import ops

from keras_qusec import (
    AdversarialTraining,
    RobustnessReport,
    attacks,
    comparison,
    evaluate_robustness,
    norms,
)
from keras_qusec.defenses import current_surrogate, straight_through
from keras_qusec.evaluation import threat_models

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class Effort(norms.Norm):
    """The sum of all changes, as a user would write it under a name of their own."""

    name, symbol = "effort", "Effort"

    def distance(self, x, images):
        return np.abs(images.astype("float64") - x).reshape(len(x), -1).sum(axis=1)

    def direction(self, gradient):
        """All of the step on the value with the largest gradient."""
        shape = (-1, *gradient.shape[1:])
        flat = ops.reshape(gradient, (-1, FEATURES))
        size = ops.absolute(flat)
        first = ops.one_hot(ops.argmax(size, axis=1), FEATURES, dtype=flat.dtype)
        return ops.reshape(ops.sign(flat) * first, shape)

    def project(self, images, x, epsilon):
        """Changes made smaller together: inside the ball, though not the nearest point."""
        gap = images - x
        size = ops.sum(ops.absolute(gap), axis=list(range(1, len(x.shape))), keepdims=True)
        return x + gap * ops.minimum(1.0, epsilon / ops.maximum(size, 1e-12))


@pytest.fixture
def effort():
    norms.register(Effort())
    yield
    norms.unregister("effort")


class TestNorm:
    def test_pgd_in_it_reaches_the_closed_form(self, linear, effort, tmp_path):
        """The nearest adversarial example of a linear model changes its heaviest feature."""
        margin = np.abs(X @ WEIGHTS + 0.1).astype("float64")
        nearest = margin / np.abs(WEIGHTS).max()
        radii = [float(np.sort(nearest)[place : place + 2].mean()) for place in (5, 15)]
        assert radii[-1] < 0.35  # one feature can change so far inside [0, 1]
        report = evaluate_robustness(
            linear, X, Y, attacks={"pgd-effort": ("pgd", {"norm": "effort", "random_start": False})},
            epsilons={"effort": radii},
        )  # fmt: skip
        for radius in radii:
            assert report.robust_accuracy(epsilon=radius) == (nearest > radius).mean()
        row = report.rows[-1]
        assert row.norm == "effort"
        assert 0 < row.median["effort"] <= radii[-1]
        assert row.median_effort == row.median["effort"]
        assert "worst case over all attacks, Effort" in str(report)
        assert "Effort" in report.to_html(tmp_path / "report.html").read_text()
        report.plot(tmp_path / "curves.png")
        path, text = report.save(tmp_path / "report.json"), str(report)
        norms.unregister("effort")  # a report can be read where its norm is unknown
        again = RobustnessReport.load(path)
        words = (
            str(again)
            .replace("attacks, effort", "attacks, Effort")
            .replace("within effort", "within Effort")
        )
        assert words.split() == text.split()

    def test_every_attack_is_measured_in_it(self, linear, effort):
        report = evaluate_robustness(
            linear, X, Y, attacks=["deepfool"], epsilons={"linf": [0.1], "effort": [0.5]},
            threat_models=["white-box"],
        )  # fmt: skip
        result = report.results[0]
        assert set(result.distances) == {"l0", "l1", "l2", "linf", "effort"}
        broken = np.isfinite(result.distances["l2"])
        assert (result.distances["effort"][broken] >= result.distances["l2"][broken] - 1e-6).all()
        assert report.robust_accuracy(norm="effort", epsilon=100.0, attack="deepfool") == 0
        assert "No attack was made in Effort" in " ".join(report.notes)

    @pytest.mark.slow  # tests/attacks/test_classifier.py has one in other processes
    @pytest.mark.once
    def test_other_processes_learn_it(self, linear, effort):
        settings = {
            "attacks": [("pgd", {"norm": "effort", "steps": 3})],
            "epsilons": {"effort": [0.2]},
        }
        one = evaluate_robustness(linear, X, Y, batch_size=30, **settings)
        two = evaluate_robustness(linear, X, Y, batch_size=30, n_jobs=2, **settings)
        assert one.robust_accuracy() == two.robust_accuracy()

    def test_training_in_it(self, effort):
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        training = AdversarialTraining("pgd", epsilon=0.5, norm="effort", steps=3)
        history = model.fit(X, Y, verbose=0, callbacks=[training]).history
        assert history["adversarial_loss"][0] > 0

    def test_what_is_no_norm_is_refused(self):
        with pytest.raises(ValueError, match=r"subclass of keras_qusec\.norms\.Norm"):
            norms.register("effort")
        with pytest.raises(ValueError, match="Did you mean 'linf'"):
            norms.get("lin")


class Rounding(keras.layers.Layer):
    """Bit-depth reduction to one bit: no gradient at all; the identity is its surrogate."""

    def surrogates(self, hardnesses):
        return ["identity"]

    def call(self, x):
        y = ops.round(x)
        return y if current_surrogate(self) is None else straight_through(y, x)


@pytest.fixture
def rounded():
    """A linear model behind a defence whose gradient is zero everywhere."""
    model = keras.Sequential([keras.Input((FEATURES,)), Rounding(), keras.layers.Dense(2)])
    model.set_weights([np.stack([0 * WEIGHTS, WEIGHTS], 1), np.array([0, 0.1], "float32")])
    return model


class TestDefense:
    def test_the_adaptive_attacker_goes_through_it(self, rounded):
        y = predicted(rounded, X)
        report = evaluate_robustness(rounded, X, y, attacks=["bim"], epsilons=[0.2])
        assert report.robust_accuracy(threat_model="white-box") == 1.0
        # Every value lies within 0.15 of the threshold, so any image can be turned.
        assert report.robust_accuracy(threat_model="adaptive") == 0.0
        # The gallery shows what stands behind the defence.
        behind = np.round(report.gallery[0].images[:2])
        np.testing.assert_array_equal(report.gallery[0].images[2:], behind)

    def test_foolbox_attacks_go_through_it_too(self, rounded):
        y = predicted(rounded, X)
        report = evaluate_robustness(rounded, X, y, attacks=["deepfool"])
        white = report.robust_accuracy("deepfool", threat_model="white-box")
        adaptive = report.robust_accuracy("deepfool", threat_model="adaptive")
        assert white == 1.0
        assert adaptive < 0.7

    def test_without_the_adaptive_attacker_a_note_says_so(self, rounded):
        y = predicted(rounded, X)
        report = evaluate_robustness(rounded, X, y, attacks=["bim"], threat_models=["white-box"])
        assert "hides gradients" in report.notes[0]

    def test_training_goes_through_it(self, rounded):
        rounded.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        y = predicted(rounded, X)
        settings = {"verbose": 0, "batch_size": 60}
        with pytest.warns(UserWarning, match="all input gradients.*gradient_hardness"):
            rounded.fit(X, y, callbacks=[AdversarialTraining("fgsm", epsilon=0.2)], **settings)
        training = AdversarialTraining("fgsm", epsilon=0.2, gradient_hardness=5.0)
        history = rounded.fit(X, y, callbacks=[training], **settings).history
        assert history["adversarial_loss"][0] > history["clean_loss"][0] + 0.1

    def test_outputs_stay_the_same_to_the_last_bit(self, rounded):
        attacked = attacks.AttackedModel(rounded)
        (surrogate,) = attacked.with_surrogates([3.0, 10.0])
        np.testing.assert_array_equal(surrogate.logits(X), attacked.logits(X))
        own, _ = attacked.gradient(X, Y)
        straight, _ = surrogate.gradient(X, Y)
        np.testing.assert_array_equal(own, 0)
        sign = np.where(Y == 1, -1, 1)[:, None]
        np.testing.assert_allclose(straight, sign * WEIGHTS[None], rtol=1e-5)


class Lightning(attacks.Attack):
    """One step along the gradient, as a user would write it."""

    norm, cost = "linf", "1 gradient"

    def run(self, model, x, goal, *, epsilon, seed):
        ascent, _ = model.gradient(x, goal.classes)
        return x + (-1 if goal.targeted else 1) * epsilon * np.sign(ascent)


def brighten(model, x, goal, *, epsilon, seed):  # noqa: ARG001
    return np.where(model.is_adversarial(x + epsilon, goal)[:, None], x + epsilon, x - epsilon)


class HalfSteps(attacks.PGD):
    """PGD with a step rule of its own: half as far."""

    def step(self, images, ascent, ball, step_size):
        return ball.project(images + 0.5 * step_size * ball.norm.direction(ascent))


class TestAttack:
    def test_a_class_equals_ours(self, linear):
        report = evaluate_robustness(linear, X, Y, attacks=["fgsm", Lightning()], epsilons=[0.05])
        ours, theirs = (r for r in report.results if r.threat_model == "white-box")
        assert (ours.attack, theirs.attack) == ("fgsm", "Lightning")
        np.testing.assert_array_equal(ours.distances["linf"], theirs.distances["linf"])
        assert theirs.gradients.sum() == len(X)

    def test_a_registered_name_with_settings(self, linear):
        attacks.register("lightning", Lightning, summary="one step")
        try:
            assert "lightning" in attacks.names()
            report = evaluate_robustness(linear, X, Y, attacks=["Lightning"], epsilons=[0.05])
            assert report.attacks == ("lightning",)
            with pytest.raises(ValueError, match="Did you mean 'lightning'"):
                evaluate_robustness(linear, X, Y, attacks=["lightening"])
            with pytest.raises(ValueError, match="settings of the attack 'lightning': restarts"):
                evaluate_robustness(linear, X, Y, attacks=[("lightning", {"steps": 3})])
        finally:
            attacks.unregister("lightning")

    def test_a_function(self, linear):
        attack = attacks.attack_from(brighten, uses_gradients=False, cost="1 query")
        report = evaluate_robustness(linear, X, Y, attacks=[attack], epsilons=[0.05, 0.2])
        assert report.attacks == ("brighten",)
        moved = [predicted(linear, (X + sign * np.float32(0.2))) != Y for sign in (1, -1)]
        expected = 1 - (moved[0] | moved[1]).mean()
        assert report.robust_accuracy() == pytest.approx(expected, abs=1 / len(X))
        assert "No attack used gradients" in report.notes[0]
        with pytest.raises(ValueError, match="Expected facts of an attack"):
            attacks.attack_from(brighten, norms="l2")
        with pytest.raises(ValueError, match="attack_from"):
            evaluate_robustness(linear, X, Y, attacks=[brighten])

    def test_a_step_rule_of_its_own_is_used(self, linear):
        """After PGD with the same settings on the same compiled model, too."""
        settings = {"steps": 1, "step_size": 0.1, "random_start": False}
        attacked = attacks.AttackedModel(linear)
        far = attacks.PGD(0.1, **settings)(attacked, X, Y)
        near = HalfSteps(0.1, **settings)(attacked, X, Y)
        np.testing.assert_allclose(np.abs(far - X), 0.1, atol=1e-6)
        np.testing.assert_allclose(np.abs(near - X), 0.05, atol=1e-6)
        settings["steps"] = 3
        far = attacks.PGD(0.4, **settings)(attacked, X, Y)
        near = HalfSteps(0.4, **settings)(attacked, X, Y)
        np.testing.assert_allclose(np.abs(far - X), 0.3, atol=1e-5)
        np.testing.assert_allclose(np.abs(near - X), 0.15, atol=1e-5)

    def test_a_step_rule_of_its_own_in_training(self):
        losses = []
        for kind in (attacks.PGD, HalfSteps):
            model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
            model.set_weights([np.stack([0 * WEIGHTS, WEIGHTS], 1), np.zeros(2, "float32")])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.0), loss)
            attack = kind(0.2, steps=2, step_size=0.1, random_start=False)
            history = model.fit(X, Y, verbose=0, callbacks=[AdversarialTraining(attack)]).history
            losses.append(history["adversarial_loss"][0])
        assert losses[0] > losses[1] + 0.01

    def test_it_runs_in_other_processes(self, linear):
        settings = {"attacks": [Lightning()], "epsilons": [0.05], "batch_size": 30}
        one = evaluate_robustness(linear, X, Y, **settings)
        two = evaluate_robustness(linear, X, Y, n_jobs=2, **settings)
        assert one.robust_accuracy() == two.robust_accuracy()


class Impatient(threat_models.ThreatModel):
    """An adversary who has time for the first surrogate gradient only."""

    name, summary, line_style = "impatient", "knows the defence, has little time", (0, (1, 4))
    continues = "white-box"

    def models(self, model, attack, hardnesses, continued):
        return model.with_surrogates(hardnesses)[:1] or [model]


def test_a_threat_model(rounded, tmp_path):
    threat_models.register(Impatient())
    try:
        y = predicted(rounded, X)
        report = evaluate_robustness(
            rounded, X, y, attacks=["bim"], epsilons=[0.2],
            threat_models=["white-box", "impatient"],
        )  # fmt: skip
        assert report.threat_models == ("white-box", "impatient")
        assert report.robust_accuracy(threat_model="impatient") == 0.0
        assert "impatient bim" in str(report)
        path = report.save(tmp_path / "report.json")
    finally:
        threat_models.unregister("impatient")
    again = RobustnessReport.load(path)
    assert again.plot(tmp_path / "curves.png").stat().st_size > 10_000


class Insider(threat_models.ThreatModel):
    """An adversary who owns another model, and knows nothing of this one."""

    name, summary, line_style, uses_source = "insider", "owns another model", "-", True

    def models(self, model, attack, hardnesses, continued):
        return [model]


@pytest.fixture
def insider():
    threat_models.register(Insider())
    yield
    threat_models.unregister("insider")


def two_models():
    """A model behind a defence that hides its gradient, and the same without: a good source."""
    models = {}
    for name, front in {"hidden": [Rounding()], "open": []}.items():
        layers = [keras.Input((FEATURES,)), *front, keras.layers.Dense(2)]
        models[name] = keras.Sequential(layers)
        weights = [np.stack([0 * WEIGHTS, WEIGHTS], 1), np.array([0, 0.1], "float32")]
        models[name].set_weights(weights)
    return models


@pytest.mark.usefixtures("insider")
def test_a_threat_model_with_a_source_is_no_attack_on_the_model_itself(tmp_path):
    """In the table of transfers, examples of another model are not those made on the model."""
    models = two_models()
    y = predicted(models["hidden"], X)
    report = evaluate_robustness(
        models, X, y, attacks=["fgsm"], epsilons=[0.05, 0.3],
        threat_models=["white-box", "insider"], source_model=models,
    )  # fmt: skip
    again = RobustnessReport.load(report.save(tmp_path / "report.json"))
    for read in (report, again):
        matrix = read.transfer_matrix(epsilon=0.3)
        # White-box finds nothing, and what the other model's examples find is not its own.
        assert matrix["hidden"]["hidden"] == 1.0 > matrix["open"]["hidden"]
        for name in models:
            own = read.robust_accuracy(epsilon=0.3, threat_model="white-box", model=name)
            worst = read.robust_accuracy(epsilon=0.3, model=name)
            assert matrix[name][name] == own
            (other,) = set(models) - {name}
            transferred = read.robust_accuracy(epsilon=0.3, model=name, source=other)
            assert matrix[other][name] == transferred
            assert worst <= min(own, transferred)
        assert read.plot(tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.usefixtures("insider")
def test_a_comparison_under_threat_models_of_ones_own(tmp_path):
    images = np.random.default_rng(0).random((40, 28, 28, 1)).astype("float32")
    labels = np.arange(40) % 10
    np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    def flat(_):
        layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
        return keras.Sequential(layers)

    comparison.register("flat", flat)
    try:
        result = comparison.compare(
            tmp_path / "few.npz", ["flat"], images=10, epochs=1, epsilons=[0.1],
            attacks=["fgsm"], threat_models=["white-box", "insider"],
        )  # fmt: skip
    finally:
        comparison.unregister("flat")
    (measured,) = result.measured
    assert measured.report.threat_models == ("white-box", "insider")
    assert "insider" in str(result)
