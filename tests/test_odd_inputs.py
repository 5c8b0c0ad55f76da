"""Bad and odd inputs at every public entry: the right number, an error that teaches, or a note.

Each row of the tables is one input. Nothing may pass silently.
"""

from __future__ import annotations

import pathlib
import shutil
from collections import Counter
from typing import Any, NamedTuple

import keras
import numpy as np
import odd_models as odd
import pytest
from helpers import BACKEND, FEATURES, IMAGES, WEIGHTS, X, predicted, small_cnn
from keras import ops
from odd_models import MARGIN, NEAREST, RADIUS, Y

import keras_qusec_cli as cli
from keras_qusec import (
    AdversarialTraining,
    HardnessSchedule,
    QuSecQuantization,
    RobustnessReport,
    TrainableQuSecQuantization,
    audit_robustness,
    certify_robustness,
    evaluate_robustness,
)
from keras_qusec.attacks import (
    BIM,
    FGSM,
    JSMA,
    PGD,
    AttackedModel,
    Ensemble,
    attack_from,
)
from keras_qusec.quantization import hard_quantize, soft_quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

EXPECTED = float((NEAREST > RADIUS).mean())
NAN, INF = float("nan"), float("inf")


class Case(NamedTuple):
    """One odd input: where, of which kind, what is called, and what must happen."""

    entry: str
    kind: str
    name: str
    call: Any
    outcome: str  # "right", "error", "note" or "warning"
    match: str = ""


CASES: list[Case] = []


def add(entry, kind, rows, outcome):
    for name, (call, *match) in rows.items():
        CASES.append(Case(entry, kind, name, call, outcome, *match))


def evaluated(model, x=X, y=Y, **settings):
    settings = {"attacks": ["fgsm"], "epsilons": [RADIUS], **settings}
    return evaluate_robustness(model, x, y, **settings)


def same(model, **settings):
    """The closed form of the linear model comes out."""
    report = evaluated(model, **settings)
    return report.clean_accuracy() == 1.0 and report.robust_accuracy() == EXPECTED


def lazily(function, *arguments, **settings):
    return lambda: function(*arguments, **settings)


# --- What a model's outputs are -------------------------------------------------------

softmax = ops.softmax
add("evaluate_robustness", "outputs", {
    "logits": (lambda: same(odd.linear()),),
    "softmax activation": (lambda: same(odd.dense(activation="softmax")),),
    "softmax layer": (lambda: same(odd.ending(keras.layers.Softmax())),),
    "activation layer": (lambda: same(odd.ending(keras.layers.Activation("softmax"))),),
    "softmax operation": (lambda: same(odd.ending(softmax)),),
    "softmax function": (lambda: same(odd.ending(keras.activations.softmax)),),
    "log-softmax": (lambda: same(odd.ending(ops.log_softmax)),),
    "logarithm of softmax": (lambda: same(odd.ending(lambda z: ops.log(softmax(z)))),),
    "sigmoids of two": (lambda: same(odd.ending(ops.sigmoid)),),
    "saturated softmax": (lambda: same(odd.dense(scale=1e4, activation="softmax")),),
    "saturated operation": (lambda: same(odd.ending(softmax, scale=1e4)),),
    "saturated nested": (
        lambda: same(keras.Sequential([keras.Input((FEATURES,)), odd.ending(softmax, 1e4)])),
    ),
    "large logits": (lambda: same(odd.ending(lambda z: 1e4 * z)),),
    "sum of logits": (lambda: same(odd.ending(lambda z: z + z)),),
    "mean of logits": (lambda: same(odd.ending(lambda z: ops.mean(ops.stack([z, z]), axis=0))),),
    "softmax, then identity": (lambda: same(odd.ending(lambda z: keras.layers.Identity()(softmax(z)))),),
    "softmax, then dropout": (lambda: same(odd.ending(lambda z: keras.layers.Dropout(0.5)(softmax(z)))),),
    "softmax, then flatten": (lambda: same(odd.ending(lambda z: keras.layers.Flatten()(softmax(z)))),),
    "softmax, then reshape": (
        lambda: same(odd.ending(lambda z: keras.layers.Reshape((2,))(softmax(z)))),
    ),
    "softmax cast to half": (lambda: same(odd.ending(lambda z: ops.cast(softmax(z), "float16"))),),
    "nested softmax": (
        lambda: same(keras.Sequential([keras.Input((FEATURES,)), odd.dense(activation="softmax")])),
    ),
    "twice nested softmax": (
        lambda: same(keras.Sequential([keras.Input((FEATURES,)), keras.Sequential(
            [keras.Input((FEATURES,)), odd.ending(softmax)])])),
    ),
    "one logit": (lambda: same(odd.dense(units=1)),),
    "one sigmoid": (lambda: same(odd.dense(units=1, activation="sigmoid")),),
    "one saturated sigmoid": (lambda: same(odd.dense(1, 1e4, activation="sigmoid")),),
    "one sigmoid operation": (lambda: same(odd.ending(lambda z: ops.sigmoid(z[:, 1:]))),),
    "one logit without an axis": (
        lambda: same(odd.ending(lambda z: ops.squeeze(z[:, 1:], axis=-1))),
    ),
    "subclassed, said logits": (lambda: same(odd.Subclassed(), outputs="logits"),),
    "subclassed, author says logits": (lambda: same(odd.Subclassed(kind="logits")),),
    "subclassed, said probabilities": (
        lambda: same(odd.Subclassed(softmax), outputs="probabilities"),
    ),
    "a gate times logits": (
        lambda: same(odd.ending(lambda z: z * keras.layers.Activation("sigmoid")(z * 0.0))),
    ),
    "what is computed from probabilities, said": (
        lambda: same(odd.ending(lambda z: (softmax(z) + softmax(z)) / 2), outputs="probabilities"),
    ),
}, "right")  # fmt: skip
for name in ("mixed_float16", "mixed_bfloat16"):
    rows = {
        f"{name} softmax": (
            lambda name=name: (
                abs(
                    evaluated(odd.dense(activation="softmax", dtype=name)).robust_accuracy()
                    - EXPECTED
                )
                < 0.06
            ),
        )
    }
    add("evaluate_robustness", "outputs", rows, "right")
add("evaluate_robustness", "outputs", {
    "100 * softmax": (lambda: evaluated(odd.ending(lambda z: 100 * softmax(z))), "probabilities"),
    "2 * softmax - 1": (lambda: evaluated(odd.ending(lambda z: 2 * softmax(z) - 1)), "outputs="),
    "mean of softmaxes": (lambda: evaluated(odd.ending(
        lambda z: (softmax(z) + softmax(2 * z)) / 2)), "computed from probabilities"),
    "a layer that adds softmaxes": (lambda: evaluated(odd.ending(
        lambda z: keras.layers.Add()([softmax(z), softmax(z)]))), "computed from probabilities"),
    "softmax by hand": (lambda: evaluated(odd.ending(
        lambda z: ops.exp(z) / ops.sum(ops.exp(z), axis=-1, keepdims=True))), "Say outputs="),
    "softmax over the batch": (lambda: evaluated(odd.ending(
        lambda z: ops.softmax(z, axis=0))), "Say outputs="),
    "rounded": (lambda: evaluated(odd.ending(ops.round)), "Say outputs="),
    "lambda layer": (lambda: evaluated(odd.ending(keras.layers.Lambda(lambda z: z * 2))), "Lambda"),
    "activation of one's own": (lambda: evaluated(odd.dense(
        activation=lambda z: ops.softmax(z))), "activation of your own"),
    "hard sigmoid": (lambda: evaluated(odd.dense(activation="hard_sigmoid")), "Say outputs="),
    "subclassed": (lambda: evaluated(odd.Subclassed()), r"no graph\. Say outputs="),
    "subclassed softmax, said logits": (lambda: evaluated(
        odd.Subclassed(softmax), outputs="logits"), "probabilities made in another way"),
    "subclassed softmax, said wrongly by its author": (lambda: evaluated(
        odd.Subclassed(softmax, kind="logits")), "probabilities made in another way"),
    "a graph that does not tell all": (lambda: evaluated(odd.with_own_call()), "no graph"),
    "softmax, said logits": (lambda: evaluated(
        odd.ending(softmax), outputs="logits"), "Expected outputs='probabilities'"),
    "logits, said probabilities": (lambda: evaluated(
        odd.linear(), outputs="probabilities"), "Expected outputs='logits'"),
    "said something else": (lambda: evaluated(odd.linear(), outputs="softmax"), "outputs to be one"),
    "a source that is unclear": (lambda: evaluated(odd.linear(), threat_models=["black-box"],
        source_model=odd.Subclassed()), "Say outputs="),
    "two outputs": (lambda: evaluated(keras.Model(*[
        (i := keras.Input((FEATURES,))), [odd.linear()(i), odd.linear()(i)]])), "one output"),
    "two outputs by name": (lambda: evaluated(keras.Model(*[(i := keras.Input((FEATURES,))),
        {"a": odd.linear()(i), "b": odd.linear()(i)}])), "one output"),
    "two outputs, subclassed": (lambda: evaluated(odd.Subclassed(lambda z: [z, z]),
        outputs="logits"), "one output"),
    "an image as output": (lambda: evaluated(odd.ending(
        lambda z: ops.reshape(z, (-1, 2, 1)))), r"outputs \(n, classes\)"),
    "NaN": (lambda: evaluated(odd.ending(lambda z: z + NAN)), "finite outputs"),
    "regression": (lambda: evaluated(odd.dense(units=1), y=Y + 0.5), "integers"),
}, "error")  # fmt: skip


def second_of_two(index):
    """A model with one output, taken from a nested model with two."""
    inputs = keras.Input((FEATURES,))
    inner = keras.Model(
        inputs,
        [
            keras.layers.Dense(2, activation="softmax")(inputs),
            keras.layers.Softmax()(odd.linear()(inputs)),
        ],
    )
    outer = keras.Input((FEATURES,))
    return keras.Model(outer, inner(outer)[index])


def quantized(kind):
    model = odd.dense(activation="softmax")
    model.quantize(kind)
    return model


def deep():
    """Twenty sums at the end, whose graph has a million paths."""

    def add_up(z):
        for _ in range(20):
            z = z + 0.0 * ops.tanh(z)
        return z

    return odd.ending(add_up)


add("evaluate_robustness", "outputs", {
    "the second of two outputs": (lambda: same(second_of_two(1)),),
    "weights in int8": (lambda: evaluated(quantized("int8")).clean_accuracy() > 0.9,),
    "many sums": (lambda: same(deep()),),
    "attention, then dense": (lambda: same(odd.ending(
        lambda z: ops.matmul(ops.softmax(ops.zeros_like(z[:, :1, None])), z[:, None])[:, 0])),),
}, "right")  # fmt: skip
add("evaluate_robustness", "outputs", {
    "softmax times a number of the image": (lambda: evaluated(keras.Model(*[
        (i := keras.Input((FEATURES,))),
        softmax(odd.linear(1e4)(i)) * ops.mean(i, axis=-1, keepdims=True)])), "probabilities"),
    "softmax times a gate": (lambda: evaluated(keras.Model(*[(i := keras.Input((FEATURES,))),
        keras.layers.Multiply()([softmax(odd.linear()(i)), keras.layers.Dense(1)(i)])])),
        "computed from probabilities"),
    "loss of a regression": (lambda: evaluated(odd.compiled(odd.dense(units=1), "mse")),
        "a regression"),
    "multi-label": (lambda: evaluated(odd.compiled(
        odd.dense(activation="sigmoid"), "binary_crossentropy")), "multi-label"),
}, "error")  # fmt: skip
add("evaluate_robustness", "outputs", {
    "one sigmoid, squared error": (lambda: same(odd.compiled(
        odd.dense(units=1, activation="sigmoid"), "mse")),),
    "two outputs, squared error": (lambda: same(odd.compiled(odd.linear(), "mse")),),
}, "right")  # fmt: skip
add("certify_robustness", "outputs", {
    "regression": (lambda: certify_robustness(odd.compiled(odd.dense(units=1), keras.losses.Huber()),
        X, Y, epsilons=[0.1]), "a regression"),
}, "error")  # fmt: skip
add("audit_robustness", "outputs", {
    "multi-label": (lambda: audit_robustness(odd.compiled(odd.linear(), TWO(from_logits=True)),
        X, Y, epsilon=0.1), "multi-label"),
}, "error")  # fmt: skip
add("attacks", "outputs", {
    "two outputs": (lambda: FGSM(0.1)(keras.Model(*[(i := keras.Input((FEATURES,))),
        [softmax(odd.linear()(i)), softmax(odd.linear()(i))]]), X, Y), "one output"),
    "two inputs": (lambda: FGSM(0.1)(keras.Model(*[(i := [keras.Input((FEATURES,)),
        keras.Input((FEATURES,))]), softmax(odd.linear()(i[0] + i[1]))]), X, Y), "one input"),
}, "error")  # fmt: skip
add("attacks", "outputs", {
    "softmax": (lambda: np.abs(FGSM(0.1)(odd.ending(softmax, 1e4), X, Y) - X).min() > 0.09,),
    "one logit": (lambda: np.abs(FGSM(0.1)(odd.dense(units=1), X, Y) - X).min() > 0.09,),
    "one sigmoid": (
        lambda: np.abs(FGSM(0.1)(odd.dense(1, activation="sigmoid"), X, Y) - X).min() > 0.09,
    ),
    "subclassed, said": (
        lambda: np.abs(FGSM(0.1)(odd.Subclassed(), X, Y, outputs="logits") - X).min() > 0.09,
    ),
}, "right")  # fmt: skip
add("attacks", "outputs", {
    "100 * softmax": (lambda: FGSM(0.1)(odd.ending(lambda z: 100 * softmax(z)), X, Y), "outputs="),
    "subclassed": (lambda: FGSM(0.1)(odd.Subclassed(), X, Y), "outputs="),
    "said wrongly": (lambda: AttackedModel(odd.linear(), outputs="probabilities"), "'logits'"),
}, "error")  # fmt: skip

# --- Images and their range -----------------------------------------------------------

BRIGHT = (X * 255).astype("float32")


def reads_bytes():
    return odd.in_front(keras.layers.Rescaling(1 / 255))


def of_bytes(dtype):
    report = evaluated(reads_bytes(), x=BRIGHT.astype("uint8").astype(dtype),
                       value_range=(0, 255), epsilons=[255 * RADIUS])  # fmt: skip
    return report.results[0].distances["linf"].tolist()


def normalized(scale=1.0):
    layer = keras.layers.Normalization()
    layer.adapt(X * scale)
    return odd.in_front(layer)


add("evaluate_robustness", "images", {
    "float64": (lambda: same(odd.linear(), x=X.astype("float64")),),
    "list": (lambda: same(odd.linear(), x=X.tolist()),),
    "not contiguous": (lambda: same(odd.linear(), x=np.asfortranarray(X)),),
    "range of bytes": (lambda: same(odd.in_front(scale=1 / 255), x=BRIGHT, value_range=(0, 255),
                                    epsilons=[255 * RADIUS]),),
    "range from -1 to 1": (lambda: same(odd.in_front(scale=0.5, offset=0.5), x=2 * X - 1,
                                        value_range=(-1, 1), epsilons=[2 * RADIUS]),),
    "rescaling inside": (lambda: same(reads_bytes(), x=BRIGHT, value_range=(0, 255),
                                      epsilons=[255 * RADIUS]),),
    "the range of the first layers": (lambda: evaluated(reads_bytes(), x=BRIGHT,
        epsilons=[255 * RADIUS]).robust_accuracy() == evaluated(odd.linear()).robust_accuracy(),),
    "bytes and their range": (lambda: of_bytes("uint8") == of_bytes("float32"),),
    "division inside": (lambda: same(keras.Model(*[(i := keras.Input((FEATURES,))),
                                                   odd.linear()(i / 255.0)]), x=BRIGHT,
                                     value_range=(0, 255), epsilons=[255 * RADIUS]),),
    "normalization inside": (lambda: evaluated(normalized()) is not None,),
}, "right")  # fmt: skip
add("evaluate_robustness", "images", {
    "bytes": (lambda: evaluated(odd.linear(), x=BRIGHT.astype("uint8")), "dtype=uint8"),
    "integers": (lambda: evaluated(odd.linear(), x=np.ones_like(X, int)), "dtype=int"),
    "booleans": (lambda: evaluated(odd.linear(), x=X > 0.5), "dtype=bool"),
    "above the range": (lambda: evaluated(odd.linear(), x=2 * X), "inside value_range"),
    "below the range": (lambda: evaluated(odd.linear(), x=X - 1), "inside value_range"),
    "NaN": (lambda: evaluated(odd.linear(), x=np.where(X > 0.6, NAN, X)), "finite images"),
    "infinity": (lambda: evaluated(odd.linear(), x=np.where(X > 0.6, INF, X)), "finite images"),
    "none": (lambda: evaluated(odd.linear(), x=X[:0], y=Y[:0]), "at least one"),
    "one without a batch": (lambda: evaluated(odd.linear(), x=X[0], y=Y[:1]), r"image\[None\]"),
    "another shape": (lambda: evaluated(odd.linear(), x=X[:, :5]), "images of shape"),
    "an axis too many": (lambda: evaluated(odd.linear(), x=X[:, None]), "images of shape"),
    "dark for their range": (lambda: evaluated(odd.in_front(scale=1 / 255), value_range=(0, 255),
                                               epsilons=[8.0]), "less than a hundredth"),
    "a rescaling that expects bytes": (lambda: evaluated(reads_bytes()), r"Rescaling.*\(0, 255\)"),
    "a division that expects bytes": (lambda: evaluated(keras.Model(*[
        (i := keras.Input((FEATURES,))), odd.linear()(i / 255.0)])), r"\(0, 255\)"),
    "a nested rescaling": (lambda: evaluated(keras.Sequential(
        [keras.Input((FEATURES,)), reads_bytes()])), r"Rescaling.*\(0, 255\)"),
    "a quantizer of bytes": (lambda: evaluated(odd.in_front(
        QuSecQuantization(2, value_range=(0, 255)))), r"QuSecQuantization.*\(0, 255\)"),
    "a quantizer of [0, 1] and bytes": (lambda: evaluated(odd.in_front(QuSecQuantization(2)),
        x=BRIGHT, value_range=(0, 255), epsilons=[8.0]), r"QuSecQuantization.*\(0, 1\)"),
    "a quantizer behind a rescaling": (lambda: evaluated(odd.in_front(
        keras.layers.Rescaling(1 / 255), QuSecQuantization(2))), r"\(0, 255\)"),
    "a quantizer of [-1, 1]": (lambda: evaluated(odd.in_front(
        TrainableQuSecQuantization(2, value_range=(-1, 1)))), r"\(-1, 1\)"),
    "a normalization of bytes": (lambda: evaluated(normalized(255.0)), "Normalization was adapted"),
    "a normalization of [0, 1] and bytes": (lambda: evaluated(normalized(), x=BRIGHT,
        value_range=(0, 255), epsilons=[8.0]), "Normalization was adapted"),
    "a source that expects bytes": (lambda: evaluated(odd.linear(), threat_models=["black-box"],
        source_model=reads_bytes()), r"\(0, 255\)"),
    "range backwards": (lambda: evaluated(odd.linear(), value_range=(1, 0)), "low < high"),
    "range of one number": (lambda: evaluated(odd.linear(), value_range=1), "two finite numbers"),
    "range of NaN": (lambda: evaluated(odd.linear(), value_range=(0, NAN)), "two finite numbers"),
    "range in words": (lambda: evaluated(odd.linear(), value_range="bytes"), "two finite numbers"),
}, "error")  # fmt: skip
add("attacks", "images", {
    "bytes": (lambda: FGSM(0.1)(odd.linear(), BRIGHT.astype("uint8"), Y), "dtype=uint8"),
    "above the range": (lambda: FGSM(0.1)(odd.linear(), 2 * X, Y), "inside value_range"),
    "NaN": (lambda: FGSM(0.1)(odd.linear(), np.where(X > 0.6, NAN, X), Y), "inside value_range"),
    "none": (lambda: FGSM(0.1)(odd.linear(), X[:0], Y[:0]), "at least one"),
    "dark for their range": (lambda: FGSM(8, value_range=(0, 255))(odd.linear(), X, Y), "hundredth"),
    "a model that expects bytes": (lambda: FGSM(0.1)(reads_bytes(), X, Y), r"\(0, 255\)"),
    "fewer labels": (lambda: FGSM(0.1)(odd.linear(), X, Y[:3]), "as many labels"),
}, "error")  # fmt: skip


def augmented(*layers, front=()):
    """A linear model behind layers that rest in inference."""
    inputs = keras.Input((6, 6, 1))
    x = inputs
    for layer in (*front, *layers):
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


def square(model, **settings):
    x = np.random.default_rng(0).uniform(0.2, 0.8, (20, 6, 6, 1)).astype("float32")
    low, high = settings.get("value_range", (0, 1))
    x = (x * (high - low) + low).astype("float32")
    y = predicted(model, x)
    return evaluate_robustness(model, x, y, attacks=["fgsm"], **settings)


def shared_with_another_model():
    base = reads_bytes()
    models = [keras.Model(i, base(i)) for i in (keras.Input((FEATURES,)), keras.Input((FEATURES,)))]
    return evaluated(models[0])


def normalization(**settings):
    return odd.in_front(keras.layers.Normalization(**settings))


layers = keras.layers
add("evaluate_robustness", "images", {
    "augmentation in front": (lambda: square(augmented(
        layers.RandomFlip(), layers.RandomContrast(0.1), layers.RandomBrightness(0.1))),),
    "augmentation behind a rescaling": (lambda: square(augmented(
        layers.Rescaling(1 / 255), layers.RandomContrast(0.1)), value_range=(0, 255)),),
    "a mean taken off": (lambda: evaluated(normalization(
        mean=[120.0] * FEATURES, variance=[1.0] * FEATURES), x=BRIGHT, value_range=(0, 255),
        epsilons=[8.0]),),
    "divided by a deviation": (lambda: evaluated(normalization(mean=0.0, variance=255.0**2),
        x=BRIGHT, value_range=(0, 255), epsilons=[8.0]),),
    "the ends of a normalized range": (lambda: evaluated(
        odd.in_front(), x=((np.round(X * 255) / 255).astype("float32") - np.float32(0.1307))
        / np.float32(0.3081), value_range=((0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081)),),
    "black and white at the ends": (lambda: evaluated(
        odd.in_front(), x=np.where(X > 0.5, np.float32((1 - 0.485) / 0.229),
                                   np.float32(-0.485 / 0.229)),
        value_range=(-0.485 / 0.229, (1 - 0.485) / 0.229)),),
}, "right")  # fmt: skip
add("evaluate_robustness", "images", {
    "a model of bytes used in two models": (shared_with_another_model, r"\(0, 255\)"),
    "bytes behind augmentation": (lambda: square(augmented(layers.Rescaling(1 / 255), front=[
        keras.Sequential([keras.Input((6, 6, 1)), layers.RandomFlip()])])), r"\(0, 255\)"),
    "bytes behind a functional model": (lambda: square(augmented(layers.Rescaling(1 / 255), front=[
        keras.Model(*[(i := keras.Input((6, 6, 1))), layers.RandomFlip()(i)])])), r"\(0, 255\)"),
    "bytes in a pipeline": (lambda: square(augmented(layers.Pipeline(
        [layers.RandomFlip(), layers.Rescaling(1 / 255)]))), r"\(0, 255\)"),
    "a number times bytes": (lambda: evaluated(keras.Model(*[
        (i := keras.Input((FEATURES,))), odd.linear()((1 / 255) * i)])), r"\(0, 255\)"),
    "bytes divided by a number of NumPy": (lambda: evaluated(keras.Model(*[
        (i := keras.Input((FEATURES,))), odd.linear()(i / np.float32(255))])), r"\(0, 255\)"),
}, "error")  # fmt: skip

# --- Epsilons -------------------------------------------------------------------------

add("evaluate_robustness", "epsilons", {
    "one number": (lambda: same(odd.linear(), epsilons=RADIUS),),
    "array": (lambda: same(odd.linear(), epsilons=np.array([RADIUS])),),
    "left out": (
        lambda: evaluated(odd.linear(), epsilons=None).epsilons["linf"] == (0.1, 0.2, 0.3),),
    "left out for bytes": (lambda: np.allclose(evaluated(odd.in_front(scale=1 / 255), x=BRIGHT,
        value_range=(0, 255), epsilons=None).epsilons["linf"], [25.5, 51.0, 76.5]),),
}, "right")  # fmt: skip
add("evaluate_robustness", "epsilons", {
    "8 for [0, 1]": (lambda: evaluated(odd.linear(), epsilons=[8]), r"8 / 255"),
    "negative": (lambda: evaluated(odd.linear(), epsilons=[-0.1]), "above 0"),
    "zero": (lambda: evaluated(odd.linear(), epsilons=[0.0]), "above 0"),
    "NaN": (lambda: evaluated(odd.linear(), epsilons=[NAN]), "above 0"),
    "infinite": (lambda: evaluated(odd.linear(), epsilons=[INF]), "above 0"),
    "falling": (lambda: evaluated(odd.linear(), epsilons=[0.3, 0.1]), "rising order"),
    "twice": (lambda: evaluated(odd.linear(), epsilons=[0.1, 0.1]), "each once"),
    "none": (lambda: evaluated(odd.linear(), epsilons=[]), "above 0"),
    "no norm": (lambda: evaluated(odd.linear(), epsilons={}), "at least one norm"),
    "unknown norm": (lambda: evaluated(odd.linear(), epsilons={"l7": [0.1]}), "Did you mean"),
    "words": (lambda: evaluated(odd.linear(), epsilons=["8/255"]), "above 0"),
    "true": (lambda: evaluated(odd.linear(), epsilons=[True]), "above 0"),
    "of another norm": (lambda: evaluated(odd.linear(), epsilons={"l2": [0.1]}), "norm 'linf'"),
}, "error")  # fmt: skip
add("evaluate_robustness", "epsilons", {
    "tiny": (lambda: evaluated(odd.linear(), epsilons=[0.001]), "five-hundredth"),
}, "note")  # fmt: skip
add("evaluate_robustness", "epsilons", {
    "8 / 255 for bytes": (lambda: evaluated(odd.in_front(scale=1 / 255), x=BRIGHT,
        value_range=(0, 255), epsilons=[8 / 255]), "in these units it is 8"),
    "L2 0.1 for bytes": (lambda: evaluated(odd.in_front(scale=1 / 255), x=BRIGHT,
        value_range=(0, 255), attacks=["pgd-l2"], epsilons={"l2": [0.1]}), "0.1 in L2"),
    "small steps": (lambda: evaluated(odd.linear(), epsilons=[0.3],
        attacks=[("pgd", {"steps": 10, "step_size": 0.001})]), "inside a tenth"),
}, "error")  # fmt: skip
add("certify_robustness", "epsilons", {
    "0.3 for bytes": (lambda: certify_robustness(reads_bytes(), BRIGHT, Y, epsilons=[0.3],
        value_range=(0, 255)), "in these units it is 76.5"),
    "bytes for [0, 1]": (lambda: certify_robustness(reads_bytes(), X, Y, epsilons=[0.3]),
        "the range that the model was made for"),
}, "error")  # fmt: skip
add("audit_robustness", "epsilons", {
    "8 / 255 for bytes": (lambda: audit_robustness(reads_bytes(), BRIGHT, Y, epsilon=8 / 255,
        value_range=(0, 255)), "in these units it is 8"),
}, "error")  # fmt: skip
add("attacks", "epsilons", {
    "8 for [0, 1]": (lambda: FGSM(8), "8 / 255"),
    "negative": (lambda: PGD(-0.1), "0 or more"),
    "0.3 for bytes": (lambda: PGD(0.3, value_range=(0, 255)), "in these units it is 76.5"),
    "steps for [0, 1]": (lambda: PGD(8, step_size=2 / 255, value_range=(0, 255)), "tenth of it"),
    "steps for bytes": (lambda: PGD(8 / 255, step_size=2), "twenty times"),
    "NaN": (lambda: PGD(NAN), "0 or more"),
    "words": (lambda: BIM("0.1"), "a number"),
    "true": (lambda: BIM(True), "a number"),
    "missing": (lambda: FGSM()(odd.linear(), X, Y), "with an epsilon"),
}, "error")  # fmt: skip

# --- Labels ---------------------------------------------------------------------------

ONE_HOT = np.eye(2)[Y]
add("evaluate_robustness", "labels", {
    "column": (lambda: same(odd.linear(), y=Y[:, None]),),
    "one-hot": (lambda: same(odd.linear(), y=ONE_HOT),),
    "bytes": (lambda: same(odd.linear(), y=Y.astype("uint8")),),
    "list": (lambda: same(odd.linear(), y=Y.tolist()),),
    "one-hot for one logit": (lambda: same(odd.dense(units=1), y=ONE_HOT),),
}, "right")  # fmt: skip
BAD_LABELS = {
    "minus one": (np.where(Y == 0, -1, Y), "from 0 to 1"),
    "too large": (Y + 1, "from 0 to 1"),
    "fractions": (Y + 0.5, "integers"),
    "NaN": (np.where(Y == 0, NAN, Y), "integers"),
    "several ones": (np.ones((60, 2)), "single one"),
    "no ones": (np.zeros((60, 2)), "single one"),
    "soft": (np.full((60, 2), 0.5), "argmax"),
    "words": (np.array(["cat"] * 60), "integers"),
}
for name, (labels, match) in BAD_LABELS.items():
    add(
        "evaluate_robustness",
        "labels",
        {name: (lambda labels=labels: evaluated(odd.linear(), y=labels), match)},
        "error",
    )
    add(
        "attacks",
        "labels",
        {name: (lambda labels=labels: FGSM(0.1)(odd.linear(), X, labels), match)},
        "error",
    )
add("evaluate_robustness", "labels", {
    "fewer": (lambda: evaluated(odd.linear(), y=Y[:5]), "60 labels"),
    "targets that are labels": (lambda: evaluated(odd.linear(), targets=Y), "differ from the"),
    "fewer targets": (lambda: evaluated(odd.linear(), targets=Y[:3]), "60 target classes"),
    "targets out of range": (lambda: evaluated(odd.linear(), targets=Y + 5), "targets from 0"),
    "an unknown rule of targets": (lambda: evaluated(odd.linear(), targets="near"), "least-likely"),
}, "error")  # fmt: skip
add("evaluate_robustness", "labels", {
    "turned round": (lambda: evaluated(odd.linear(), y=1 - Y), "cannot tell from chance"),
}, "note")  # fmt: skip

# --- Settings of attacks --------------------------------------------------------------

SETTINGS = {
    ("pgd", "steps", 0): "steps", ("pgd", "steps", -1): "steps", ("pgd", "steps", 1.5): "steps",
    ("pgd", "steps", "3"): "steps", ("pgd", "steps", True): "steps",
    ("pgd", "restarts", 0): "restarts", ("pgd", "step_size", 0): "step_size",
    ("pgd", "step_size", -1): "step_size", ("pgd", "step", 3): "Did you mean 'steps'",
    ("pgd", "norm", "l0"): "a direction and a projection", ("pgd", "norm", "l7"): "norm",
    ("bim", "steps", 0): "steps", ("fgsm", "steps", 3): "settings of the attack",
    ("fgsm", "relative_step_size", 0): "relative_step_size",
    ("cw", "steps", 0): "steps", ("cw", "steps", -1): "steps", ("cw", "restarts", 0): "restarts",
    ("cw", "binary_search_steps", 0): "binary_search_steps", ("cw", "stepsize", 0): "stepsize",
    ("cw", "initial_const", -1): "initial_const", ("cw", "step", 3): "settings of the attack",
    ("deepfool", "steps", 0): "steps", ("deepfool-linf", "steps", -1): "steps",
    ("jsma", "theta", 0): "theta", ("jsma", "theta", 2): "theta", ("jsma", "gamma", 0): "gamma",
    ("jsma", "targets", 0): "targets", ("single-pixel", "max_pixels", 0): "max_pixels",
    ("local-search", "rounds", 0): "rounds", ("local-search", "scale", 1): "scale",
    ("local-search", "candidates", 0): "candidates", ("pointwise", "draws", 0): "draws",
    ("local-search", "magnitude", 0): "magnitude",
    ("pointwise", "noise_levels", ()): "noise_levels",
    ("pointwise", "noise_levels", (0.0,)): "noise_levels",
    ("gaussian", "repeats", 0): "repeats", ("salt-and-pepper", "steps", 0): "steps",
    ("boundary", "steps", 0): "steps", ("boundary", "steps", -5): "steps",
    ("hopskipjump", "steps", 0): "steps",
    ("apgd-ce", "steps", 0): "steps", ("apgd-ce", "loss", "cee"): "Did you mean 'ce'",
    ("apgd-ce", "norm", "l0"): "norm", ("apgd-t", "targets", 0): "targets",
    ("apgd-t", "order", "malts"): "Did you mean 'malt'", ("apgd-ce", "epsilon", 0.1): "settings of",
    ("fab", "steps", 0): "steps", ("fab", "norm", "l0"): "norm", ("fab", "targets", 0): "targets",
    ("fmn-l2", "gamma", 0): "gamma", ("fmn-l2", "step_size", -1): "step_size",
    ("sigma-zero", "sigma", 0): "sigma", ("sigma-zero", "threshold", 2): "threshold",
    ("square", "queries", 0): "queries", ("square", "share", 0): "share",
    ("reachable-levels", "rounds", 0): "rounds", ("cheapest-levels-l2", "norm", "linf"): "norm",
    ("autoattack", "norm", "l1"): "norm",
}  # fmt: skip
for (attack, setting, value), match in SETTINGS.items():
    add("attacks", "settings", {f"{attack}: {setting}={value!r}": (
        lambda a=attack, s=setting, v=value: evaluated(odd.linear(), attacks=[(a, {s: v})]), match
    )}, "error")  # fmt: skip
add("evaluate_robustness", "settings", {
    "a mistyped attack": (lambda: evaluated(odd.linear(), attacks=["pdg"]), "Did you mean 'pgd'"),
    "no attack": (lambda: evaluated(odd.linear(), attacks=[]), "at least one attack"),
    "a mistyped set of attacks": (lambda: evaluated(odd.linear(), attacks="standart"), "standard"),
    "a set of attacks for no norm": (lambda: evaluated(
        odd.linear(), attacks="strong", epsilons={"l0": [1]}), "linf, l2, l1"),
    "parts of two norms": (lambda: evaluated(odd.linear(), attacks=[Ensemble(
        {"a": PGD(steps=2), "b": PGD(steps=2, norm="l2")})]), "one norm"),
    "parts that do nothing": (lambda: evaluated(odd.linear(), attacks=[Ensemble({"a": attack_from(
        lambda model, x, goal, *, epsilon, seed: x)})]), "neither"),
    "parts that fail": (lambda: evaluated(odd.linear(), attacks=[Ensemble({"a": attack_from(
        lambda model, x, goal, *, epsilon, seed: 1 / 0)})]), "ZeroDivisionError"),
    "a quantizer's attack without one": (lambda: evaluated(
        odd.linear(), attacks=["reachable-levels"]), "in front of a model"),
    "an attack twice": (lambda: evaluated(odd.linear(), attacks=["pgd"] * 2), "'pgd' twice"),
    "a number as attack": (lambda: evaluated(odd.linear(), attacks=[42]), "Received: 42"),
    "an attack with an epsilon": (lambda: evaluated(odd.linear(), attacks=[PGD(0.1)]), "epsilon"),
    "a name of ours": (lambda: evaluated(odd.linear(), attacks={"worst case": "pgd"}), "worst"),
    "an attack that does nothing": (lambda: evaluated(odd.linear(), attacks=[attack_from(
        lambda model, x, goal, *, epsilon, seed: x)]), "neither"),
    "an attack that fails": (lambda: evaluated(odd.linear(), attacks=[attack_from(
        lambda model, x, goal, *, epsilon, seed: 1 / 0)]), "ZeroDivisionError"),
    "an unknown threat model": (lambda: evaluated(odd.linear(), threat_models=["grey"]), "some of"),
    "no threat model": (lambda: evaluated(odd.linear(), threat_models=[]), "some of"),
    "a black box without a source": (lambda: evaluated(
        odd.linear(), threat_models=["black-box"]), "source_model"),
    "a source without a black box": (lambda: evaluated(
        odd.linear(), source_model=odd.linear(2.0)), "black-box"),
    "a source that is the model": (lambda: evaluated(odd.linear(), threat_models=["black-box"],
        source_model=odd.linear()), "other than the attacked"),
    "no hardness": (lambda: evaluated(odd.linear(), surrogate_hardnesses=[]), "hardnesses"),
    "a negative hardness": (lambda: evaluated(odd.linear(), surrogate_hardnesses=[-1]), "hardn"),
    "batches of none": (lambda: evaluated(odd.linear(), batch_size=0), "batch_size"),
    "a negative seed": (lambda: evaluated(odd.linear(), seed=-1), "seed"),
    "a fraction of a seed": (lambda: evaluated(odd.linear(), seed=0.5), "seed"),
    "no draws": (lambda: evaluated(odd.linear(), draws=0), "draws"),
    "a path as model": (lambda: evaluated("model.keras"), "load_model"),
    "no model": (lambda: evaluated({}), "model or several"),
    "a model that is not built": (lambda: evaluated(keras.Sequential(
        [keras.layers.Dense(2)])), "to be built"),
    "two inputs": (lambda: evaluated(keras.Model(*[(i := [keras.Input((FEATURES,)),
        keras.Input((FEATURES,))]), odd.linear()(i[0] + i[1])])), "one input"),
    "a data format of one's own": (lambda: evaluated(
        odd.linear(), data_format="NHWC"), "data_format"),
}, "error")  # fmt: skip

# --- Where the channels are -----------------------------------------------------------

FIRST = np.ascontiguousarray(np.moveaxis(IMAGES, -1, 1))


def pixels_counted(permuted=False, globally=False, **settings):
    """Single pixels in images with channels first, as in the same images with channels last."""
    last, first = odd.channels_first(permuted)
    y = predicted(last, IMAGES)
    asked = {"attacks": ["single-pixel", "jsma-paper"], "epsilons": {"l0": [1, 3]}}
    one = evaluate_robustness(last, IMAGES, y, **asked)
    if globally:
        keras.config.set_image_data_format("channels_first")
    try:
        two = evaluate_robustness(first, FIRST, y, **asked, **settings)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert two.gallery[0].images.shape[1:] == (8, 8, 1)
    return all(
        np.array_equal(a.distances["l0"], b.distances["l0"])
        for a, b in zip(one.results, two.results, strict=True)
    )


def doubtful(**settings):
    flat = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Flatten(), keras.layers.Dense(2)])
    return evaluate_robustness(flat, IMAGES.reshape(24, 4, 4, 4), np.arange(24) % 2,
                               attacks=["fgsm"], **settings)  # fmt: skip


add("evaluate_robustness", "channels", {
    "channels first": (lambda: pixels_counted(),),
    "channels first, also globally": (lambda: pixels_counted(globally=True),),
    "permuted, said": (lambda: pixels_counted(True, data_format="channels_first"),),
    "said": (lambda: doubtful(data_format="channels_last") is not None,),
}, "right")  # fmt: skip
add("evaluate_robustness", "channels", {
    "permuted": (lambda: pixels_counted(True), "otherwise than its images"),
    "in doubt": (doubtful, "where the channels"),
    "one of each": (lambda: evaluate_robustness({
        form: keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Conv2D(2, 1, data_format=form),
                                keras.layers.Flatten(), keras.layers.Dense(2)])
        for form in ("channels_first", "channels_last")
    }, IMAGES.reshape(24, 4, 4, 4), np.zeros(24, int)), "take the same images"),
    "said wrongly": (lambda: evaluate_robustness(small_cnn(), IMAGES, np.zeros(24, int),
        data_format="channels_first"), "Leave it out"),
}, "error")  # fmt: skip

# --- Randomness and what depends on other images --------------------------------------


def noisy(**settings):
    return odd.in_front(odd.Noisy(**settings))


def saturated_noise():
    """A saturated softmax hides most of the randomness in front of it."""
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, softmax(odd.linear(1e5)(odd.Noisy(size=0.001)(inputs))))


class NoisyShares(keras.Model):
    """Random probabilities, without a graph."""

    def __init__(self):
        super().__init__()
        self.core, self.noise = odd.linear(300.0), odd.Noisy()
        self(X[:1])

    def call(self, x):
        return softmax(self.core(self.noise(x)))


class RejectsInColumns(odd.Subclassed):
    """A classifier whose rejections are a column."""

    def rejection(self, images):
        return ops.mean(images, axis=-1, keepdims=True) - 0.9


class NamesALayer(keras.Model):
    """A classifier that cannot reject, but has a layer of that name."""

    def __init__(self):
        super().__init__()
        self.core, self.rejection = odd.linear(), keras.layers.Dense(1)
        self.output_kind = "logits"
        self(X[:1])

    def call(self, x):
        return self.core(x)


def averaged():
    """Draws averaged: near the truth of the mean, and not that of one fixed draw."""
    report = evaluated(noisy(size=0.05), draws=64)
    return abs(report.robust_accuracy() - EXPECTED) < 0.15 and "64 draws" in " ".join(report.notes)


add("evaluate_robustness", "randomness", {
    "several draws": (averaged,),
    "a layer called rejection": (lambda: same(NamesALayer()),),
    "dropout, which rests in inference": (
        lambda: same(odd.in_front(keras.layers.Dropout(0.5), keras.layers.GaussianNoise(0.5))),
    ),
    "draws of a model that is not random": (lambda: same(odd.linear(), draws=8),),
}, "right")  # fmt: skip
add("evaluate_robustness", "randomness", {
    "noise in inference": (lambda: evaluated(noisy()), "which is random.*draws=20"),
    "noise before a saturated softmax": (lambda: evaluated(saturated_noise()), "which is random"),
    "probabilities with draws, said logits": (
        lambda: evaluated(NoisyShares(), outputs="logits", draws=4),
        "made in another way",
    ),
    "rejections in a column": (lambda: evaluated(RejectsInColumns(kind="logits")), "rejection"),
    "noise of a source": (lambda: evaluated(odd.linear(), threat_models=["black-box"],
                                            source_model=noisy()), "which is random"),
}, "error")  # fmt: skip
if BACKEND != "jax":  # where Keras itself refuses layers without a generator
    add("evaluate_robustness", "randomness", {
        "noise of the global generator": (lambda: evaluated(noisy(own=False)), "which is random"),
        "draws of the global generator": (
            lambda: evaluated(noisy(own=False), draws=8), "SeedGenerator"),
    }, "error")  # fmt: skip
add("evaluate_robustness", "randomness", {
    "images that depend on their batch": (lambda: evaluated(
        odd.in_front(odd.BatchCentred())), "in a batch than alone"),
    "a gradient of zero": (lambda: evaluated(odd.in_front(
        QuSecQuantization(2, hardness=1e6)), threat_models=["white-box"]), "exactly zero"),
    "a gradient of zero at several radii": (
        lambda: no_failures(evaluated(odd.in_front(QuSecQuantization(2, hardness=1e6)),
                                      epsilons=[0.05, 0.1], threat_models=["white-box"])),
        "exactly zero",
    ),
    "a gradient that is cut": (lambda: evaluated(keras.Model(*[(i := keras.Input((FEATURES,))),
        odd.linear()(ops.round(4 * i) / 4)])), "exactly zero"),
}, "note")  # fmt: skip

# --- Files to resume from -------------------------------------------------------------


def resumed(first, second, folder, **settings):
    evaluated({"m": first}, resume_dir=folder)
    return evaluated({"m": second}, resume_dir=folder, **settings)


def renamed(folder):
    """A unit's file copied over another's."""
    settings = {"batch_size": 30, "resume_dir": folder}
    evaluated({"m": odd.linear()}, **settings)
    one, two = sorted((folder / "units").iterdir())
    shutil.copy(one, two)
    return evaluated({"m": odd.linear()}, **settings)


def occupied(folder):
    """A second evaluation of the same folder, begun inside the first."""

    def again(model, x, goal, *, epsilon, seed):  # noqa: ARG001
        with pytest.raises(ValueError, match="another one uses now"):
            evaluated(odd.linear(), resume_dir=folder)
        return x + epsilon

    return evaluated(odd.linear(), resume_dir=folder, attacks=[attack_from(again)]) is not None


def shifted(size):
    def shift(model, x, goal, *, epsilon, seed):  # noqa: ARG001
        return x + size * epsilon * np.sign(WEIGHTS) * np.where(goal.labels == 1, -1, 1)[:, None]

    return attack_from(shift, uses_gradients=False)


def other_code(folder):
    """Two functions of one name, of which one does more."""
    evaluated({"m": odd.linear()}, attacks=[shifted(1e-4)], resume_dir=folder)
    return evaluated({"m": odd.linear()}, attacks=[shifted(1.0)], resume_dir=folder)


def no_failures(report):
    """A gradient of zero is no failure of the attack, but is noted."""
    assert not report.failures
    return report


def restored(folder):
    a = evaluated({"m": odd.linear()}, resume_dir=folder)
    b = evaluated({"m": odd.linear()}, resume_dir=folder)
    return a.robust_accuracy() == b.robust_accuracy() == EXPECTED


add("evaluate_robustness", "resume_dir", {
    "the same again": (restored,),
    "a folder in use": (occupied,),
}, "right")  # fmt: skip
add("evaluate_robustness", "resume_dir", {
    "another attribute": (lambda f: resumed(odd.Scaled(1.0), odd.Scaled(-1.0), f), "other outputs"),
    "other weights": (lambda f: resumed(odd.linear(), odd.linear(2.0), f), "differs in models"),
    "levels inside a custom layer": (
        lambda f: resumed(odd.in_front(Wrapped(2)), odd.in_front(Wrapped(3)), f), "differs in models"
    ),
    "other images": (lambda f: resumed(odd.linear(), odd.linear(), f, x=X[::-1]), "differs in data"),
    "another seed": (lambda f: resumed(odd.linear(), odd.linear(), f, seed=1), "differs in seed"),
    "a unit copied over another": (renamed, "damaged file"),
    "an attack of the same name": (other_code, "differs in code of attacks"),
}, "error")  # fmt: skip


class Wrapped(keras.layers.Layer):
    """A custom layer around a quantizer, whose configuration does not name the levels."""

    def __init__(self, levels):
        super().__init__(name="wrapped")
        self.inner = {"quantizer": QuSecQuantization(levels, name="inner")}

    def call(self, x):
        return self.inner["quantizer"](x)


# --- Layers ---------------------------------------------------------------------------

BAD_LAYER = {
    "one level": ({"levels": 1}, "levels"), "no levels": ({"levels": 0}, "levels"),
    "half a level": ({"levels": 2.5}, "levels"), "levels in words": ({"levels": "2"}, "levels"),
    "hardness 0": ({"hardness": 0}, "hardness"), "negative hardness": ({"hardness": -5}, "hardness"),
    "hardness NaN": ({"hardness": NAN}, "hardness"), "hardness inf": ({"hardness": INF}, "hardness"),
    "hardness in words": ({"hardness": "50"}, "hardness"),
    "gradient hardness 0": ({"gradient_hardness": 0}, "gradient_hardness"),
    "range backwards": ({"value_range": (1, 0)}, "value_range"),
    "range of nothing": ({"value_range": (0, 0)}, "value_range"),
    "range of one": ({"value_range": (1,)}, "value_range"),
}  # fmt: skip
for name, (settings, match) in BAD_LAYER.items():
    for kind in (QuSecQuantization, TrainableQuSecQuantization):
        add(
            "layers",
            "settings",
            {f"{kind.__name__}: {name}": (lazily(kind, **settings), match)},
            "error",
        )
add("layers", "settings", {
    "too few thresholds": (lazily(QuSecQuantization, 3, thresholds=[0.5]), "thresholds"),
    "thresholds that fall": (lazily(QuSecQuantization, 3, thresholds=[0.6, 0.3]), "increas"),
    "equal thresholds": (lazily(QuSecQuantization, 3, thresholds=[0.5, 0.5]), "increas"),
    "thresholds outside": (lazily(QuSecQuantization, 2, thresholds=[1.5]), "thresholds"),
    "thresholds NaN": (lazily(QuSecQuantization, 2, thresholds=[NAN]), "thresholds"),
    "a mistyped granularity": (
        lazily(TrainableQuSecQuantization, granularity="pixle"), "Did you mean 'pixel'"),
    "a mistyped data format": (lazily(TrainableQuSecQuantization, data_format="NCHW"), "data_form"),
    "a schedule of no epochs": (lazily(HardnessSchedule, epochs=0), "epochs"),
    "bytes": (lambda: QuSecQuantization(2)(ops.ones((1, 4), "uint8")), "dtype=uint8"),
    "pixels of another size": (lambda: [
        layer := TrainableQuSecQuantization(2), layer.build((None, 4)), layer(np.ones((1, 5), "float32"))
    ], "fit the thresholds"),
    "unknown size": (lambda: TrainableQuSecQuantization(2).build((None, None, 3)), "known size"),
    "thresholds before building": (lambda: TrainableQuSecQuantization(2).thresholds, "built layer"),
}, "error")  # fmt: skip


def keeps_nan(levels, hard):
    x = np.array([0.2, NAN, 0.9], "float32")
    quantize = hard_quantize if hard else soft_quantize
    y = ops.convert_to_numpy(quantize(ops.convert_to_tensor(x), levels))
    return np.isnan(y).tolist() == [False, True, False]


for hard in (False, True):
    for levels in (2, 3, 16, 64, 256):
        add("layers", "images", {f"NaN, {levels} levels, hard={hard}": (
            lazily(keeps_nan, levels, hard),)}, "right")  # fmt: skip
    for value, expected in ((INF, 1.0), (-INF, 0.0), (1e30, 1.0)):
        add("layers", "images", {f"{value}, hard={hard}": (
            lambda v=value, e=expected, h=hard: float(QuSecQuantization(3, hard=h)(
                np.array([v], "float32"))[0]) == pytest.approx(e),)}, "right")  # fmt: skip

# --- Training -------------------------------------------------------------------------


def fitted(model, *, x=X, y=Y, loss=None, compile_settings=None, fit_settings=None, **settings):
    attack = settings.pop("attack", "fgsm")
    if isinstance(attack, str):
        settings = {"epsilon": RADIUS, **settings}
    training = AdversarialTraining(attack, **settings)
    odd.compiled(model, loss, **(compile_settings or {}))
    return model.fit(x, y, verbose=0, shuffle=False, callbacks=[training],
                     **{"batch_size": 20, **(fit_settings or {})}).history  # fmt: skip


BAD_TRAINING = {
    "ratio 0": ({"ratio": 0}, "ratio"), "ratio 2": ({"ratio": 2}, "ratio"),
    "an unknown objective": ({"objective": "trade"}, "Did you mean 'trades'"),
    "beta 0": ({"objective": "trades", "beta": 0}, "beta"),
    "a negative warm-up": ({"warmup_epochs": -1}, "warmup_epochs"),
    "a negative ramp": ({"ramp_epochs": -1}, "ramp_epochs"),
    "a schedule that is a number": ({"epsilon_schedule": 0.5}, "function of the epoch"),
    "gradient hardness 0": ({"gradient_hardness": 0}, "gradient_hardness"),
    "a negative seed": ({"seed": -1}, "seed"), "outputs": ({"outputs": "scores"}, "outputs"),
    "validation data without labels": ({"validation_data": X}, "ndarray without labels"),
    "fewer validation labels": ({"validation_data": (X, Y[:5])}, "as many labels"),
    "an attack that minimizes": ({"attack": "cw", "epsilon": 0.1}, "cw"),
    "an unknown attack": ({"attack": "pdg"}, "Did you mean 'pgd'"),
    "restarts": ({"attack": "pgd", "restarts": 3}, "without restarts"),
    "epsilon 8": ({"epsilon": 8}, "8 / 255"), "epsilon NaN": ({"epsilon": NAN}, "epsilon"),
    "no epsilon": ({"epsilon": None}, "Expected epsilon"),
    "targeted TRADES": ({"objective": "trades", "targeted": True}, "untargeted"),
    "targeted": ({"attack": "pgd", "targeted": True}, "untargeted"),
    "validation by a name that is none": ({"validation_attack": "pgdd"}, "Did you mean 'pgd'"),
    "validation without epsilon": ({"validation_attack": PGD()}, "Expected epsilon"),
    "validation by JSMA": ({"validation_attack": JSMA()}, "follows gradients"),
    "TRADES of a part": ({"objective": "trades", "ratio": 0.5}, "ratio=1"),
}  # fmt: skip
for name, (settings, match) in BAD_TRAINING.items():
    add("AdversarialTraining", "settings", {name: (
        lambda s=settings: AdversarialTraining(**{"attack": "fgsm", "epsilon": 0.1, **s}), match
    )}, "error")  # fmt: skip
BAD_FIT = {
    "bytes": ({"x": BRIGHT.astype("uint8")}, "dtype=uint8"),
    "images above the range": ({"x": 2 * X}, "inside value_range"),
    "NaN images": ({"x": np.where(X > 0.6, NAN, X).astype("float32")}, "NaN or infinity"),
    "infinite images": ({"x": np.where(X > 0.6, INF, X).astype("float32")}, "NaN or infinity"),
    "dark images": ({"epsilon": 8, "value_range": (0, 255)}, "less than a hundredth"),
    "validation labels out of range": ({"validation_data": (X, Y + 5)}, "from 0 to 1"),
    "validation images above the range": ({"validation_data": (2 * X, Y)}, "inside value_range"),
    "fractional validation labels": ({"validation_data": (X, Y + 0.5)}, "integers"),
    "an unknown input": ({"attacked_input": "img"}, None),
}  # fmt: skip
for name, (settings, match) in BAD_FIT.items():
    if match:
        add("AdversarialTraining", "images and labels", {name: (
            lambda s=settings: fitted(odd.linear(), **s), match)}, "error")  # fmt: skip
if BACKEND == "jax":  # the other backends' losses refuse these themselves, or give NaN
    for name, labels in {"minus one": np.where(Y == 0, -1, Y), "too large": Y + 1}.items():
        add("AdversarialTraining", "images and labels", {name: (
            lambda y=labels: fitted(odd.linear(), y=y), "Expected labels")}, "error")  # fmt: skip
add("AdversarialTraining", "images and labels", {
    "fractional labels": (
        lambda: fitted(odd.linear(), y=(Y * 0.5).astype("float32")), "Expected labels from 0"),
    "a model that expects bytes": (lambda: fitted(reads_bytes()), r"\(0, 255\)"),
    "a quantizer of bytes": (
        lambda: fitted(odd.in_front(QuSecQuantization(2, value_range=(0, 255)))), r"\(0, 255\)"),
    "a quantizer of [0, 1] and bytes": (lambda: fitted(odd.in_front(QuSecQuantization(2)),
        x=BRIGHT, epsilon=8, value_range=(0, 255)), r"\(0, 1\)"),
    "no loss": (lambda: odd.linear().compile("sgd") or (m := odd.linear()).compile("sgd") or m.fit(
        X, Y, verbose=0, callbacks=[AdversarialTraining("fgsm", epsilon=0.1)]), "with a loss"),
    "two callbacks": (lambda: odd.compiled(odd.linear()).fit(X, Y, verbose=0, callbacks=[
        AdversarialTraining("fgsm", epsilon=0.1), AdversarialTraining("bim", epsilon=0.1)]),
        "two in one fit"),
}, "error")  # fmt: skip

CLASSES, TWO = keras.losses.SparseCategoricalCrossentropy, keras.losses.BinaryCrossentropy
DIVERGENCES = {
    "logits": (odd.linear, CLASSES(from_logits=True)),
    "softmax activation": (lambda: odd.dense(activation="softmax"), CLASSES()),
    "softmax operation": (lambda: odd.ending(softmax), CLASSES()),
    "softmax layer": (lambda: odd.ending(keras.layers.Softmax()), CLASSES()),
    "nested softmax": (lambda: keras.Sequential(
        [keras.Input((FEATURES,)), odd.ending(softmax)]), CLASSES()),
    "softmax, then identity": (lambda: odd.ending(
        lambda z: keras.layers.Identity()(softmax(z))), CLASSES()),
    "one logit": (lambda: odd.dense(units=1), TWO(from_logits=True)),
    "one sigmoid": (lambda: odd.dense(units=1, activation="sigmoid"), TWO()),
}  # fmt: skip


def trades_loss(make, loss):
    """The loss of a TRADES step, which does not depend on how the probabilities are made."""
    history = fitted(make(), loss=loss, objective="trades", attack=BIM(RADIUS, steps=3),
                     fit_settings={"batch_size": 60})  # fmt: skip
    return history["loss"][0]


def trades_by_hand():
    """The mean cross-entropy, and 6 times the divergence after the steps, in NumPy.

    The divergence grows with the distance of the logits on both sides nearly alike, and each step
    goes along the sign of the weights.
    """

    def shares(z):
        p = 1 / (1 + np.exp(-z))
        return np.stack([1 - p, p], axis=1)

    clean = shares(MARGIN)
    both = [shares(MARGIN + sign * RADIUS * np.abs(WEIGHTS).sum()) for sign in (-1, 1)]
    divergences = [(clean * np.log(clean / moved)).sum(axis=1) for moved in both]
    loss = -np.log(clean[np.arange(len(Y)), Y]).mean()
    return loss + 6 * np.max(divergences, axis=0).mean()


def trades_as_by_hand(make, loss):
    # The attack ends up to a thousandth before the corner of the ball, where it began.
    return trades_loss(make, loss) == pytest.approx(trades_by_hand(), rel=1e-3)


for name, pair in DIVERGENCES.items():
    add("AdversarialTraining", "outputs", {f"TRADES, {name}": (
        lambda pair=pair: trades_as_by_hand(*pair),)}, "right")  # fmt: skip


def one_output_accuracy(**settings):
    """FGSM moves the images of a model with one output, and accuracies are of two classes."""
    settings.setdefault("loss", keras.losses.BinaryCrossentropy(from_logits=True))
    history = fitted(odd.dense(units=1, activation=settings.pop("activation", None)),
                     y=Y.astype("float32"), validation_data=(X, Y), **settings)  # fmt: skip
    assert history["clean_accuracy"][0] == pytest.approx(1.0)
    return (history["val_adversarial_accuracy"][0] == pytest.approx(EXPECTED)
            and history["adversarial_accuracy"][0] == pytest.approx(EXPECTED))  # fmt: skip


def several_labels():
    """Each label of an image counts, as in Keras' own accuracy; FGSM turns each score around."""
    y = np.stack([Y, 1 - Y], axis=1).astype("float32")
    y[0] = 1.0
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
    weights = np.stack([WEIGHTS, -WEIGHTS], 1)
    model.set_weights([weights.astype("float32"), np.array([odd.BIAS, -odd.BIAS], "float32")])
    history = fitted(model, y=y, loss=TWO(from_logits=True), fit_settings={"batch_size": 60})
    return history["clean_accuracy"][0] == pytest.approx(1 - 0.5 / 60)


def weighed():
    """17 images in batches of 16: the logs are those of 17 images."""
    x, y = X[:17], np.where(np.arange(17) < 16, Y[:17], 1 - Y[:17])
    history = fitted(odd.linear(), x=x, y=y, fit_settings={"batch_size": 16})
    return history["clean_accuracy"][0] == pytest.approx(16 / 17)


def with_own_loss(function):
    """A linear model whose `compute_loss` is a function of one's own."""
    return type("Own", (odd.Subclassed,), {"compute_loss": function})(kind="logits")


def loss_without_training(self, x=None, y=None, y_pred=None, sample_weight=None):
    return keras.Model.compute_loss(self, x, y, y_pred, sample_weight)


def loss_of_required(self, x, y, y_pred, sample_weight=None, training=True):  # noqa: ARG001
    assert x is not None
    return keras.Model.compute_loss(self, x, y, y_pred, sample_weight)


def loss_of_images(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG001
    return ops.mean(ops.square(x)) + keras.Model.compute_loss(self, x, y, y_pred, sample_weight)


def weighted(shape):
    """TRADES with sample weights as a row and as a column."""
    weights = np.where(np.median(NEAREST) > NEAREST, 0.0, 2.0).astype("float32")
    return fitted(
        odd.linear(),
        objective="trades",
        attack=BIM(RADIUS, steps=2),
        fit_settings={"sample_weight": weights.reshape(shape), "batch_size": 60},
    )["loss"][0]


def compiled_again():
    """The same optimizer and losses, other weights of the losses: the step is made anew."""
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, [odd.linear()(inputs), odd.linear()(inputs)])
    optimizer, losses, callback = (
        keras.optimizers.SGD(0.0),
        ["mse", "mse"],
        AdversarialTraining("fgsm", epsilon=RADIUS),
    )
    values = []
    for weight in (1, 100):
        model.compile(optimizer, losses, loss_weights=[weight, weight])
        history = model.fit(X, [ONE_HOT, ONE_HOT], callbacks=[callback], verbose=0, shuffle=False)
        values.append(history.history["loss"][0])
    return values[1] == pytest.approx(100 * values[0], rel=1e-3)


def two_output_trades():
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, [odd.linear()(inputs), odd.linear()(inputs)])
    model.compile("sgd", ["mse", "mse"])
    training = AdversarialTraining("fgsm", epsilon=RADIUS, objective="trades")
    return model.fit(X, [ONE_HOT, ONE_HOT], callbacks=[training], verbose=0)


def restarted():
    """Restarts of an attack on a model go on with the images that stand."""
    counts = []
    for restarts in (1, 4):
        model = AttackedModel(odd.linear())
        PGD(RADIUS / 2, steps=2, restarts=restarts)(model, X, Y)
        counts.append(model.counter.gradients)
    return counts[1] > 2 * counts[0]


add("attacks", "settings", {"restarts on a model": (restarted,)}, "right")
add("AdversarialTraining", "outputs", {
    "a loss without training": (lambda: fitted(with_own_loss(loss_without_training)),),
    "a loss that needs its arguments": (lambda: fitted(with_own_loss(loss_of_required)),),
    "a loss of the images": (lambda: fitted(with_own_loss(loss_of_images)),),
    "a loss that ignores a class": (lambda: fitted(odd.linear(), y=np.where(Y == 0, -1, Y),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)),),
    "weights in a column, TRADES": (lambda: weighted((60, 1)) == pytest.approx(weighted(60)),),
    "compiled again": (compiled_again,),
    "several labels an image": (lambda: several_labels(),),
    "regression of several numbers": (lambda: "adversarial_accuracy" not in fitted(
        odd.linear(), loss="mse", y=np.random.default_rng(0).normal(size=(60, 2))),),
    "one logit": (one_output_accuracy,),
    "one sigmoid": (lambda: one_output_accuracy(
        activation="sigmoid", loss=keras.losses.BinaryCrossentropy()),),
    "one logit, hinge": (lambda: one_output_accuracy(loss=keras.losses.Hinge()),),
    "batches of several sizes": (weighed,),
    "regression on its loss": (lambda: "adversarial_accuracy" not in fitted(
        odd.dense(units=1), loss="mse", y=Y + 0.5),),
    "subclassed on its loss": (lambda: fitted(odd.Subclassed())["adversarial_loss"][0] > 0,),
    "subclassed TRADES, said": (lambda: fitted(
        odd.Subclassed(), objective="trades", outputs="logits")["loss"][0] > 0,),
}, "right")  # fmt: skip
add("AdversarialTraining", "outputs", {
    "two outputs, TRADES": (lambda: two_output_trades(), "one output"),
    "subclassed TRADES": (lambda: fitted(odd.Subclassed(), objective="trades"), "Say outputs="),
    "100 * softmax, TRADES": (lambda: fitted(
        odd.ending(lambda z: 100 * softmax(z)), objective="trades"), "Say outputs="),
    "regression, TRADES": (lambda: fitted(
        odd.dense(units=1), loss="mse", y=Y + 0.5, objective="trades"), "Expected a classifier"),
    "regression, validation": (lambda: fitted(odd.dense(units=1), loss="mse", y=Y + 0.5,
        validation_data=(X, Y + 0.5)), "integers"),
    "subclassed, validation": (
        lambda: fitted(odd.Subclassed(), validation_data=(X, Y)), "Say outputs="),
    "said wrongly": (lambda: fitted(odd.linear(), outputs="probabilities"), "'logits'"),
}, "error")  # fmt: skip
add("AdversarialTraining", "outputs", {
    "zero gradients": (lambda: fitted(odd.in_front(
        QuSecQuantization(2, hardness=1e6)), x=np.round(X)), "gradient_hardness"),
}, "warning")  # fmt: skip

# --- Reports --------------------------------------------------------------------------

NAMES = {"dollars": "a $x^2$ b", "bars": "a | b", "lines": "a\nb", "tags": "<script>alert(1)</script>",
         "stars": "*a* _b_", "umlauts": "ä ß 模型"}  # fmt: skip


def shown(name, folder):
    report = evaluated({name: odd.linear(), "other": odd.linear(2.0)})
    text, lines = report.to_markdown(), str(report).splitlines()
    page = report.to_html(folder / "r.html").read_text(encoding="utf-8")
    report.plot(folder / "r.png")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "other" in line]
    columns = {line.replace("\\|", "").count("|") for line in rows}
    assert len(columns) <= 2
    assert "<script>alert" not in page
    assert "<script>" not in text.replace("\\<", "")
    again = RobustnessReport.load(report.save(folder / "r.json"))
    return max(map(len, lines)) <= 80 and again.models == report.models


for kind, name in NAMES.items():
    add("RobustnessReport", "names", {kind: (lambda f, n=name: shown(n, f),)}, "right")


def asked(**question):
    report = evaluated({"a": odd.linear(), "b": odd.linear(2.0)}, epsilons=[0.05, 0.1])
    return report.robust_accuracy(**{"model": "a", **question})


add("RobustnessReport", "questions", {
    "an unknown attack": (lambda: asked(attack="fgms"), "Did you mean 'fgsm'"),
    "an unknown model": (lambda: asked(model="c"), "model to be one of"),
    "no model of two": (lambda: asked(model=None), "model to be one of"),
    "an unknown norm": (lambda: asked(norm="l7"), "norm to be one of"),
    "an unknown threat model": (lambda: asked(threat_model="grey"), "threat_model to be one"),
    "an epsilon that was not run": (lambda: asked(epsilon=0.07), "0.05, 0.1 in linf"),
    "a negative epsilon": (lambda: asked(epsilon=-0.1), "0 or more"),
    "an epsilon of NaN": (lambda: asked(epsilon=NAN), "0 or more"),
    "an unknown source": (lambda: asked(source="c"), "not run together"),
    "a file that is missing": (lambda f: RobustnessReport.load(f / "no.json"), "Check the path"),
    "a file of something else": (lambda: RobustnessReport.from_dict({"a": 1}), "another kind"),
    "a list": (lambda: RobustnessReport.from_dict([1]), "another kind"),
    "a version to come": (lambda: RobustnessReport.from_dict(
        {"format": "keras-qusec robustness report", "version": 99}), "version 99"),
    "a report without parts": (lambda: RobustnessReport.from_dict(
        {"format": "keras-qusec robustness report", "version": 2}), "missing parts"),
}, "error")  # fmt: skip

# --- The command line -----------------------------------------------------------------


class CommandError(ValueError):
    """What the command line printed before it stopped with a status other than 0."""


def command(folder, *arguments, model=None, x=None):
    """Run `keras-qusec evaluate` on a saved model and an .npz file; what it printed."""
    import contextlib
    import io

    images = keras.Input((4, 4, 1))
    core = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))
    core = core if model is None else model
    core.save(folder / "m.keras")
    data = np.random.default_rng(0).uniform(0, 1, (30, 4, 4, 1)).astype("float32")
    data = data if x is None else x
    labels = np.arange(30) % 2
    np.savez(folder / "d.npz", x_train=data, y_train=labels, x_test=data, y_test=labels)
    out, err = io.StringIO(), io.StringIO()
    words = [
        "evaluate",
        str(folder / "m.keras"),
        "--data",
        str(folder / "d.npz"),
        "--attacks",
        "fgsm",
    ]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(
                [*words, *(word.replace("FOLDER", str(folder)) for word in arguments)]
            )
        except SystemExit as stop:
            status = stop.code
    if status:
        assert "Traceback" not in err.getvalue()
        raise CommandError(err.getvalue())
    return out.getvalue()


def reads_bytes_from_disk(folder, *arguments):
    """A model with a rescaling inside is given bytes, and its clean accuracy is Keras' own."""
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype("uint8")
    images = keras.Input((4, 4, 1))
    pixels = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(2)(pixels))
    right = (model.predict(x.astype("float32"), verbose=0).argmax(1) == np.arange(30) % 2).mean()
    printed = command(folder, *arguments, "--output", "FOLDER/r.json", model=model, x=x)
    report = RobustnessReport.load(folder / "r.json")
    assert report.clean_accuracy() == pytest.approx(right)
    return report, printed


add("command line", "value range and epsilons", {
    "a model that expects bytes": (
        lambda f: "scaled to 0 ... 255" in reads_bytes_from_disk(f)[1],),
    "the same, said": (lambda f: reads_bytes_from_disk(
        f, "--value-range", "0", "255")[0].value_range == (0.0, 255.0),),
    "8 for a model that expects bytes": (lambda f: reads_bytes_from_disk(
        f, "--epsilons", "8")[0].epsilons["linf"] == (8.0,),),
    "8/255": (lambda f: "8/255" in command(f, "--epsilons", "8/255"),),
    "a range of -1 to 1": (lambda f: command(f, "--value-range", "-1", "1") != "",),
}, "right")  # fmt: skip
add("command line", "value range and epsilons", {
    "a range that contradicts the model": (
        lambda f: reads_bytes_from_disk(f, "--value-range", "0", "1"), r"\(0, 255\)"),
    "8 for [0, 1]": (lambda f: command(f, "--epsilons", "8"), "8 / 255"),
    "a fraction of words": (lambda f: command(f, "--epsilons", "a/b"), "such as 8/255"),
    "a division by zero": (lambda f: command(f, "--epsilons", "8/0"), "such as 8/255"),
    "falling epsilons": (lambda f: command(f, "--epsilons", "0.3", "0.1"), "rising order"),
    "a range backwards": (lambda f: command(f, "--value-range", "1", "0"), "value_range"),
}, "error")  # fmt: skip
add("command line", "files and names", {
    "a model that is missing": (lambda f: command(f, "--compare", "FOLDER/no.keras"), "not exist"),
    "a model that is no model": (lambda f: command(f, "--compare", "FOLDER/d.npz"), "cannot load"),
    "a model twice": (lambda f: command(f, "--compare", "FOLDER/m.keras"), "twice"),
    "a mistyped attack": (lambda f: command(f, "--attacks", "pdg"), "Did you mean"),
    "unknown data": (lambda f: command(f, "--data", "imagenet"), "mnist5k"),
    "data that is missing": (lambda f: command(f, "--data", "FOLDER/no.npz"), "does not exist"),
    "fewer than no images": (lambda f: command(f, "--images", "-1"), "0 or more"),
    "a black box without a source": (
        lambda f: command(f, "--threat-models", "black-box"), "source_model"),
    "unknown outputs": (lambda f: command(f, "--outputs", "softmax"), "invalid choice"),
    "said wrongly": (lambda f: command(f, "--outputs", "probabilities"), "'logits'"),
    "no draws": (lambda f: command(f, "--draws", "0"), "draws"),
    "an unknown option": (lambda f: command(f, "--epsilon-max", "3"), "unrecognized|ambiguous"),
}, "error")  # fmt: skip


# --- The tables, run ------------------------------------------------------------------


# Every row on the users' default; on the other two a third of them each, unless all are asked for
# with -m "not slow".
THIRDS = {"jax": 0, "torch": 1}
SAMPLED = [
    case
    if number % 3 == THIRDS.get(keras.backend.backend(), number % 3)
    else pytest.param(case, marks=pytest.mark.once)
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize(
    "case", SAMPLED, ids=lambda case: f"{case.entry}: {case.kind}: {case.name}".replace("\n", " ")
)
def test_nothing_passes_silently(case, tmp_path):
    takes_folder = case.call.__code__.co_argcount > len(case.call.__defaults__ or ())
    call = (lambda: case.call(tmp_path)) if takes_folder else case.call
    if case.outcome == "error":
        with pytest.raises(ValueError, match=case.match) as caught:
            call()
        assert isinstance(caught.value, CommandError) or "Expected" in str(caught.value)
    elif case.outcome == "note":
        assert any(case.match in note for note in call().notes)
    elif case.outcome == "warning":
        with pytest.warns(UserWarning, match=case.match):
            call()
    else:
        assert call()


def test_the_tables_are_long_enough():
    names = [(case.entry, case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 200
    entries = {"layers", "attacks", "AdversarialTraining", "evaluate_robustness",
               "RobustnessReport", "command line", "certify_robustness",
               "audit_robustness"}  # fmt: skip
    assert set(Counter(case.entry for case in CASES)) == entries


def table_of_counts():
    """The rows of the table in docs/design.md."""
    counts = Counter((case.entry, case.kind, case.outcome) for case in CASES)
    outcomes = ("right", "error", "note", "warning")
    rows = [
        "| entry | kind | right number | error | note | warning |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for entry, kind in sorted({key[:2] for key in counts}):
        cells = [str(counts[entry, kind, outcome] or "") for outcome in outcomes]
        rows.append(f"| {entry} | {kind} | {' | '.join(cells)} |")
    totals = [str(sum(n for key, n in counts.items() if key[2] == o)) for o in outcomes]
    return [*rows, f"| all | | {' | '.join(totals)} |"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a few rows are of some backends alone")
def test_the_design_page_has_the_counts():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "design.md").read_text()
    assert "\n".join(table_of_counts()) in page
