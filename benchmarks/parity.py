"""What adv-lib's attacks find on three small models, written down for the tests.

    pip install --no-deps adv-lib        # and torch
    KERAS_BACKEND=torch python benchmarks/parity.py tests/data

adv-lib (on PyTorch) adapts the authors' code of APGD, FAB, FMN and sigma-zero. It is not
installed for the tests: it wants visdom and torchvision, for logs and other attacks, which are
replaced by empty modules here. The models are trained if the folder has none: a small CNN on
mnist5k, undefended, PGD-trained, and PGD-trained behind a hard two-level quantizer, whose surrogate
gradient (hardness 10) both sides follow.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import numpy as np

IMAGES = 200
SURROGATE = 10.0
EPSILONS = {"undefended": 0.05, "trained": 0.15, "quantized": 0.25}
# Radii in the other norms, as multiples of epsilon.
SCALE = {"linf": 1.0, "l2": 8.0, "l1": 60.0}


def main(folder: Path) -> None:
    import keras

    from keras_qusec import datasets

    _stand_in("torchvision", "torchvision.utils", "torchvision.models", "torchvision.transforms",
              "visdom")  # fmt: skip
    data = datasets.mnist5k()
    x, y = data.x_test[:IMAGES], data.y_test[:IMAGES]
    found: dict = {
        "versions": {name: importlib.metadata.version(name) for name in ("adv-lib", "torch")},
        "images": IMAGES, "epsilons": EPSILONS, "scale": SCALE, "models": {},
    }  # fmt: skip
    for name, epsilon in EPSILONS.items():
        path = folder / f"parity-{name}.keras"
        model = (
            keras.saving.load_model(path, compile=False) if path.exists() else _trained(name, data)
        )
        if not path.exists():
            model.save(path)
        found["models"][name] = _figures(model, x, y, epsilon)
        print(name, found["models"][name], flush=True)
    (folder / "parity.json").write_text(json.dumps(found, indent=1) + "\n")


def _figures(model, x, y, epsilon: float) -> dict[str, dict]:
    """What each attack finds on a model."""
    import torch
    from adv_lib.attacks import apgd, apgd_targeted, fab, fmn, sigma_zero

    from keras_qusec.defenses import surrogate_gradients

    class Followed(torch.nn.Module):
        def forward(self, images):
            with surrogate_gradients(model, SURROGATE):
                return model(images, training=False)

    given = (Followed().eval(), torch.tensor(x), torch.tensor(y.astype("int64")))
    figures = {}
    for norm, order in {"linf": float("inf"), "l2": 2.0, "l1": 1.0}.items():
        radius = SCALE[norm] * epsilon
        found = {
            "apgd-ce": apgd(*given, eps=radius, norm=order, loss_function="ce"),
            "apgd-t": apgd_targeted(
                *given, eps=radius, norm=order, loss_function="dlr", num_targets=9
            ),
            "fab": fab(*given, norm=order, targeted_restarts=True, restarts=9),
            "fmn": fmn(*given, norm=order, steps=200),
        }
        for attack, images in found.items():
            figures[f"{attack} {norm}"] = _robust(model, x, y, images, norm, radius)
    for attack, images in {
        "fmn": fmn(*given, norm=0, steps=200),
        "sigma-zero": sigma_zero(*given, num_steps=300),
    }.items():
        figures[f"{attack} l0"] = _robust(model, x, y, images, "l0", None)
    return figures


def _robust(model, x, y, images, norm: str, epsilon: float | None) -> dict:
    """Robust images within epsilon, and the median size of the adversarial examples."""
    from keras_qusec import norms
    from keras_qusec.attacks import AttackedModel

    attacked = AttackedModel(model)
    images = images.detach().numpy()
    right = attacked.predictions(x) == y
    wrong = attacked.predictions(images) != y
    sizes = norms.get(norm).distance(x, images)
    near = np.ones(len(x), bool) if epsilon is None else sizes <= epsilon * (1 + 1e-5)
    return {
        "robust": int((right & ~(wrong & near)).sum()),
        "median": float(np.median(np.where(wrong, sizes, np.inf)[right])),
    }


def _trained(name: str, data):
    import keras

    from keras_qusec import AdversarialTraining, QuSecQuantization

    keras.utils.set_random_seed(0)
    quantizer = [QuSecQuantization(2, hard=True)] if name == "quantized" else []
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *quantizer,
            keras.layers.Conv2D(8, 5, strides=2, activation="relu"),
            keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    callbacks = []
    if name != "undefended":
        epsilon = EPSILONS[name]
        callbacks = [AdversarialTraining(
            "pgd", epsilon=epsilon, steps=5, step_size=epsilon / 3, ramp_epochs=8,
            gradient_hardness=SURROGATE if quantizer else None,
        )]  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss)
    epochs = 5 if name == "undefended" else 20
    model.fit(
        data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks
    )
    return model


def _stand_in(*names: str) -> None:
    """Empty modules in place of some that are not needed."""
    for name in names:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _: None  # type: ignore[method-assign]
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
