"""Random small models in many disguises, against the closed form of their robust accuracy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qusec import evaluate_robustness

pytestmark = pytest.mark.filterwarnings("ignore")  # Foolbox uses deprecated names of TensorFlow

ENDINGS = {
    "logits": lambda z: z,
    "softmax": ops.softmax,
    "softmax layer": lambda z: keras.layers.Softmax()(z),
    "log-softmax": ops.log_softmax,
    "softmax and dropout": lambda z: keras.layers.Dropout(0.5)(ops.softmax(z)),
    "one logit": lambda z: z[:, 1:] - z[:, :1],
    "one sigmoid": lambda z: ops.sigmoid(z[:, 1:] - z[:, :1]),
    "saturated softmax": lambda z: ops.softmax(1e4 * z),
    "half": lambda z: ops.cast(ops.softmax(z), "float16"),
    "nested": lambda z: keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])(z),
}
RANGES = [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)]


def model_of(kernel, bias, ending, value_range, first, precision):
    """A linear model of images in a range, its weights those of images in [0, 1]."""
    low, high = value_range
    inputs = keras.Input((2, 4, 4) if first else (4, 4, 2))
    x = keras.layers.Rescaling(1 / (high - low), -low / (high - low))(inputs)
    if first:
        x = keras.layers.Permute((2, 3, 1))(x)
    x = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(2, dtype=precision)
    model = keras.Model(inputs, ENDINGS[ending](dense(x)))
    dense.set_weights([kernel, bias])
    return model


# Each example is a model that is compiled anew, which takes seconds on JAX.
EXAMPLES = 25 if keras.backend.backend() == "tensorflow" else 10


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    seed=st.integers(0, 10_000),
    ending=st.sampled_from(sorted(ENDINGS)),
    value_range=st.sampled_from(RANGES),
    first=st.booleans(),
    precision=st.sampled_from(["float32", "mixed_bfloat16"]),
    norm=st.sampled_from(["linf", "l2", "l1"]),
)
def test_the_closed_form_comes_out(seed, ending, value_range, first, precision, norm):
    rng = np.random.default_rng(seed)
    low, high = value_range
    # Exact in bfloat16, so that mixed precision moves no boundary by much.
    kernel = np.round(rng.normal(size=(32, 2)) * 8) / 8
    x = rng.uniform(0.4, 0.6, (20, 4, 4, 2))
    slope = kernel[:, 1] - kernel[:, 0]
    margin = x.reshape(20, -1) @ slope
    bias = np.array([0, -np.round(np.median(margin) * 8) / 8])
    margin = margin + bias[1]
    dual = {"linf": np.abs(slope).sum(), "l2": np.linalg.norm(slope), "l1": np.abs(slope).max()}
    nearest = np.sort(np.abs(margin) / dual[norm])
    # Radii in the widest gaps between two images, where rounding decides nothing.
    gaps = np.diff(nearest)
    place = int(np.argmax(np.where((nearest[1:] < 0.35), gaps, 0)))
    radius = nearest[place : place + 2].mean()
    y = (margin > 0).astype(int)
    model = model_of(kernel, bias, ending, value_range, first, precision)
    images = (x * (high - low) + low).astype("float32")
    report = evaluate_robustness(
        model, np.moveaxis(images, -1, 1) if first else images, y,
        attacks=[("pgd", {"norm": norm, "random_start": False, "steps": 40})],
        epsilons={norm: [radius * (high - low)]}, value_range=value_range,
        data_format="channels_first" if first else "channels_last", outputs=None,
    )  # fmt: skip
    wrong = 2 / 20 if precision != "float32" or ending == "half" else 0
    # Processors differ in how they add in bfloat16; so many images may change side.
    logits = np.abs(x.reshape(20, -1)) @ np.abs(kernel)
    moved = 2**-8 * logits.sum(axis=1) if precision != "float32" else np.zeros(20)
    clean = max(wrong, (np.abs(margin) < moved).mean())
    robust = max(wrong, (np.abs(np.abs(margin) - radius * dual[norm]) < moved).mean())
    assert report.clean_accuracy() >= 1 - clean
    assert report.robust_accuracy() == pytest.approx((nearest > radius).mean(), abs=robust + 1e-9)
