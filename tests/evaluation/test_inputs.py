"""What users give: errors that teach, and forms that are understood."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FEATURES, X, Y

from keras_qusec import attacks, evaluate_robustness
from keras_qusec.attacks import PGD
from keras_qusec.attacks.foolbox import import_foolbox

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": X * 2}, "inside value_range"),
            ({"x": X[:0], "y": Y[:0]}, "at least one"),
            ({"x": np.where(X > 0.6, np.nan, X)}, "finite images"),
            ({"x": X[:, :5]}, "Expected images of shape"),
            ({"x": (X * 255).astype("uint8")}, "dtype=uint8"),
            ({"y": Y[:5]}, "60 labels"),
            ({"y": Y + 1}, "from 0 to 1"),
            ({"y": Y.astype("float32")}, "integers"),
            ({"y": np.ones((60, 2))}, "single one"),
            ({"attacks": ["pdg"]}, "Did you mean 'pgd'"),
            ({"attacks": []}, "at least one attack"),
            ({"attacks": ["pgd", "pgd"]}, "Received: 'pgd' twice"),
            (
                {"attacks": [("pgd", {"step": 3})]},
                "settings of the attack 'pgd'.*Received: step. Did you mean 'steps'",
            ),
            ({"attacks": [("cw", {"step": 3})]}, "settings of the attack 'cw'"),
            ({"attacks": [("pgd", {"restarts": 0})]}, "restarts"),
            ({"attacks": [PGD(0.1)]}, "without an epsilon of its own"),
            ({"attacks": [42]}, "or a Foolbox attack object. Received: 42"),
            ({"attacks": ["pgd-l2"]}, "epsilons for the norm 'l2'"),
            ({"epsilons": [0.3, 0.1]}, "rising order"),
            ({"epsilons": [-0.1]}, "above 0"),
            ({"epsilons": [0.1, 0.1]}, "each once"),
            ({"epsilons": []}, "above 0"),
            ({"epsilons": {}}, "at least one norm"),
            ({"epsilons": {"l7": [0.1]}}, "one of"),
            ({"epsilons": [float("nan")]}, "above 0"),
            ({"threat_models": ["grey-box"]}, "some of white-box"),
            ({"threat_models": []}, "some of white-box"),
            ({"threat_models": ["black-box"]}, "source_model"),
            ({"surrogate_hardnesses": []}, "surrogate_hardnesses"),
            ({"surrogate_hardnesses": [-1]}, "surrogate_hardnesses"),
            ({"targets": "nearest"}, "least-likely"),
            ({"targets": Y}, "differ from the labels"),
            ({"targets": Y[:3]}, "60 target classes"),
            ({"targets": Y + 5}, "targets from 0"),
            ({"batch_size": 0}, "batch_size"),
            ({"seed": -1}, "seed"),
            ({"model": "model.keras"}, "load_model"),
            ({"model": {}}, "model or several"),
            ({"value_range": (1, 0)}, "value_range"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_errors_teach(self, linear, change, message):
        arguments = {"model": linear, "x": X, "y": Y, **change}
        with pytest.raises(ValueError, match=message) as caught:
            evaluate_robustness(
                arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments
            )
        assert "Expected" in str(caught.value)

    def test_models_that_are_no_classifiers(self, linear):
        inputs = keras.Input((FEATURES,))
        two = keras.Model(inputs, [linear(inputs), keras.layers.Dense(3)(inputs)])
        with pytest.raises(ValueError, match="one output"):
            evaluate_robustness(two, X, Y)
        single = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])
        with pytest.raises(ValueError, match="one-hot"):  # a regression has no classes
            evaluate_robustness(single, X, 0.5 * Y)
        unbuilt = keras.Sequential([keras.layers.Dense(2)])
        with pytest.raises(ValueError, match="to be built"):
            evaluate_robustness(unbuilt, X, Y)
        broken = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
        broken.set_weights([np.full((FEATURES, 2), np.nan), np.zeros(2)])
        with pytest.raises(ValueError, match="finite outputs"):
            evaluate_robustness(broken, X, Y)
        three = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(3)])
        with pytest.raises(ValueError, match="same classes"):
            evaluate_robustness(linear, X, Y, threat_models=["black-box"], source_model=three)
        with pytest.raises(ValueError, match='"black-box" among threat_models'):
            evaluate_robustness(linear, X, Y, source_model=three)

    def test_a_source_of_the_same_name_hides_nothing(self, linear):
        """The attacked model is checked, though a good source has its name."""
        inputs = keras.Input((FEATURES,))
        hidden = keras.Model(inputs, 100 * keras.ops.softmax(linear(inputs)))
        with pytest.raises(ValueError, match="computed from probabilities"):
            evaluate_robustness(
                {"m": hidden}, X, Y, attacks=["fgsm"], source_model={"m": linear},
                threat_models=["white-box", "black-box"],
            )  # fmt: skip
        narrow = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        with pytest.raises(ValueError, match="images of shape"):
            evaluate_robustness(
                {"m": linear}, X, Y, attacks=["fgsm"], source_model={"m": narrow},
                threat_models=["white-box", "black-box"],
            )  # fmt: skip

    def test_no_attack_is_called_worst_case(self, linear):
        with pytest.raises(ValueError, match="another name than 'worst case'"):
            evaluate_robustness(linear, X, Y, attacks={"worst case": "fgsm"})
        with pytest.raises(ValueError, match="not 'worst case'"):
            attacks.register("worst case", PGD)

    def test_settings_that_an_evaluation_gives_itself(self, linear):
        for attack, message in [
            (PGD(targeted=True), "without targets of its own"),
            (PGD(value_range=(-1, 1)), "without a value range of its own"),
        ]:
            with pytest.raises(ValueError, match=message):
                evaluate_robustness(linear, X, Y, attacks=[attack])
        report = evaluate_robustness(linear, X, Y, attacks=[PGD(steps=3, restarts=2)])
        assert report.attacks == ("PGD",)
        assert "steps=3" in report.provenance["identity"]["attacks"]["PGD"]

    def test_labels_as_they_come(self, linear):
        one_hot = np.eye(2)[Y]
        for y in (one_hot, Y[:, None], Y.astype("uint8"), Y.tolist()):
            report = evaluate_robustness(linear, X, y, attacks=["fgsm"])
            assert report.clean_accuracy() == 1.0

    def test_a_failing_attack_does_not_lose_the_others(self, linear):
        foolbox = import_foolbox()

        class Broken(foolbox.attacks.base.MinimizationAttack):
            distance = foolbox.distances.l2

            def run(self, *_, **__):
                raise RuntimeError("out of luck")

        report = evaluate_robustness(linear, X, Y, attacks=["fgsm", Broken()])
        assert report.attacks == ("fgsm",)
        assert "out of luck" in report.notes[0]
        assert "out of luck" in " ".join(str(report).split())
        with pytest.raises(ValueError, match="out of luck"):
            evaluate_robustness(linear, X, Y, attacks=[Broken()])


def test_names_of_classes(linear):
    """Given, of the data set or of the model; a method of that name is none."""

    class Named(keras.Sequential):
        class_names = ("no", "yes")

    class Method(keras.Sequential):
        def class_names(self):
            raise AssertionError("called")

    for kind, said, expected in (
        (keras.Sequential, None, None), (keras.Sequential, np.array(["a", "b"]), ["a", "b"]),
        (Named, None, ["no", "yes"]), (Named, ["a", "b"], ["a", "b"]), (Method, None, None),
    ):  # fmt: skip
        model = kind([keras.Input((FEATURES,)), *linear.layers])
        report = evaluate_robustness(
            model, X, Y, attacks=["fgsm"], epsilons=[0.05], class_names=said, progress=False
        )
        assert report.provenance.get("class names") == expected
    with pytest.raises(ValueError, match=r"as many classes as the model .*, 2. Received: 3"):
        evaluate_robustness(linear, X, Y, class_names=["a", "b", "c"], progress=False)


def test_labels_from_one_are_noted():
    """Every class but the first: probably numbered from 1."""
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(4)])
    settings = {"attacks": ["fgsm"], "epsilons": [0.05], "progress": False}
    for first, noted in ((1, True), (0, False)):
        y = first + np.arange(len(X)) % (4 - first)
        report = evaluate_robustness(model, X, y, **settings)
        assert any("give y - 1" in note for note in report.notes) == noted
    with pytest.raises(ValueError, match="become right with y - 1"):
        evaluate_robustness(model, X, 1 + np.arange(len(X)) % 4, **settings)
