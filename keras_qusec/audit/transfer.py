"""Examples of another model that beat white-box attacks."""

from __future__ import annotations

import keras
import numpy as np

from keras_qusec.attacks import AttackedModel
from keras_qusec.audit.check import NOT_RUN, Check, Finding, more_found
from keras_qusec.audit.evidence import Evidence
from keras_qusec.datasets import spread_rows
from keras_qusec.results import Result
from keras_qusec.stored_images import StoredImages

# Copies with noise of an image that the substitute is trained on, and values of all images, 1 GiB.
_NOISY, _TRAINED_ON = 9, 2**28


class Transfer(Check):
    """Does the model's own gradient find at least what another model's finds?"""

    identifier = "transfer"
    title = "transferred examples find no more than white-box"
    rule = "Fails if, with 95 % confidence, it breaks more than 0.5 % of the images in addition"
    explanation = "Who knows the model must do better than who does not."
    source = "Athalye et al. 2018; Papernot et al. 2017 (substitutes)"
    remedy = "Give an undefended model of the task as source_model; judge black-box too."

    def own_results(self, evidence: Evidence) -> list[Result]:
        return evidence.results_of(evidence.sources)

    def judge(self, evidence: Evidence) -> Finding:
        if not evidence.sources:
            return Finding(
                NOT_RUN,
                "there is no other model; give source_model=, an undefended one of the same task",
            )
        by = f"PGD on {', '.join(evidence.sources)}"
        return more_found(evidence, evidence.transferred(evidence.sources), by, 0.005)


def substitute(
    model: AttackedModel, x: np.ndarray | StoredImages, epsilon: float, seed: int
) -> keras.Model:
    """A small network trained to answer like a model, on images with noise.

    Args:
        model: asked for its logits.
        x: images ``(n, ...)``; some spread evenly over them, if they are large and many.
        epsilon: size of the noise.
        seed: of weights and noise.

    Source: Papernot et al. 2017, Practical black-box attacks against machine learning.
    """
    rng = np.random.default_rng(seed)
    most = max(1, _TRAINED_ON // ((1 + _NOISY) * x[:1].size))
    x = x[spread_rows(len(x), most)]
    copies = [x] + [
        np.clip(x + rng.uniform(-epsilon, epsilon, x.shape), *model.value_range).astype("float32")
        for _ in range(_NOISY)
    ]
    images = np.concatenate(copies)
    classes = np.concatenate([model.predictions(part) for part in copies])
    seeds = iter(range(seed, seed + 2))
    low, high = model.value_range
    network = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Rescaling(2 / (high - low), offset=-1 - 2 * low / (high - low)),
            keras.layers.Flatten(),
            keras.layers.Dense(
                256, "relu", kernel_initializer=keras.initializers.HeNormal(next(seeds))
            ),
            keras.layers.Dense(
                model.logits(x[:1]).shape[1],
                kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
            ),
        ],
        name="substitute",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-3), loss)
    order = rng.permutation(len(images))
    valid = order[classes[order] >= 0]
    network.fit(images[valid], classes[valid], epochs=10, batch_size=64, verbose=0, shuffle=False)
    return network
