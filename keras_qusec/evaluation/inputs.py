"""What users give to an evaluation, checked, in the form that a plan wants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_qusec import checks, norms
from keras_qusec.attacks import Attack, AttackedModel, Classifier, Ensemble, GradientAttack
from keras_qusec.datasets import spread_rows
from keras_qusec.evaluation import threat_models
from keras_qusec.evaluation.threat_models import ThreatModel
from keras_qusec.expected_inputs import channels_first
from keras_qusec.integer_inputs import casts_images
from keras_qusec.logits import (
    check_logits,
    check_logits_reached,
    check_not_probabilities,
    check_one_of_each,
)
from keras_qusec.quantization import check_hardness
from keras_qusec.tasks import check_classifier

_TARGET_RULES = ("next", "random", "second", "least-likely")


def models_of(model: Any, name: str) -> dict[str, keras.Model | Classifier]:
    """Built Keras models and other classifiers by name; `name` is the argument's, for errors."""
    models = dict(model) if isinstance(model, Mapping) else {getattr(model, "name", ""): model}
    if not models:
        raise ValueError(f"Expected {name} to be a model or several. Received: none.")
    for key, value in models.items():
        if isinstance(value, Classifier):
            continue
        if not isinstance(value, keras.Model):
            raise ValueError(
                f"Expected {name} to be a Keras model, or a dictionary of models by name. "
                f"Received: {value!r} for {key!r}. Load a file with "
                "keras.saving.load_model(path); wrap another runtime or a function in "
                "keras_qusec.attacks.FunctionClassifier."
            )
        if not value.built:
            raise ValueError(
                f"Expected {name} to be built. Received: {key!r}, which has no weights yet. "
                "Train it, or start it with keras.Input(shape)."
            )
        check_one_of_each(value)
        check_classifier(value, str(key))
    return {str(key): value for key, value in models.items()}


def class_names_of(
    said: Sequence[str] | None, data: Any, models: Mapping[str, Any]
) -> tuple[str, ...]:
    """The names of the classes: those given, or those of the data set or of a model; or none.

    Args:
        said: names given by the user, or None.
        data: what the user gave as images; data sets of Keras from folders have `class_names`.
        models: attacked models; one may have an attribute `class_names`.
    """
    owners = [data, *models.values()]
    found = [said, *(getattr(owner, "class_names", None) for owner in owners)]
    lists = [names for names in found if names is not None and not callable(names)]
    return next((tuple(map(str, names)) for names in lists if len(names)), ())


def check_class_names(names: Sequence[str], classes: int, model: str) -> None:
    """Raise a ValueError for names of classes that are not as many as a model's outputs.

    Args:
        names: of the classes; none is right too.
        classes: that the model tells apart.
        model: its name.
    """
    if names and len(names) != classes:
        shown = ", ".join([*names[:12], "..."] if len(names) > 12 else names)
        raise ValueError(
            f"Expected as many classes as the model {model!r} tells apart, {classes}. Received: "
            f"{len(names)} ({shown}). A folder of test images numbers its classes by the folders "
            "in train beside test; without, give the names of all classes in the order of the "
            "model's outputs (class_names; --classes on the command line)."
        )


def threat_models_of(given: Any, models: Mapping[str, Any]) -> tuple[ThreatModel, ...]:
    """Threat models in the order in which they run; by default those that fit the models."""
    if given is None:
        followed = [has_gradients(model) for model in models.values()]
        given = ["white-box", "adaptive"] if any(followed) else []
        given += [] if all(followed) else ["black-box"]
    listed = [given] if isinstance(given, str) else list(given)
    for name in listed:
        threat_models.get(name)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(
            f"Expected threat_models to be some of {', '.join(threat_models.names())}, each "
            f"once. Received: {given!r}."
        )
    return tuple(threat_models.get(name) for name in threat_models.names() if name in listed)


def has_gradients(model: keras.Model | Classifier) -> bool:
    """Whether attacks can follow the gradients of a model."""
    return model.has_gradients if isinstance(model, Classifier) else True


def only_keras(models: Mapping[str, Any]) -> dict[str, keras.Model]:
    """The models themselves; a ValueError for one that is not of Keras."""
    for name, model in models.items():
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"Expected a Keras model, whose gradients are looked at. Received: {name!r}, a "
                f"{type(model).__name__}. Judge it with evaluate_robustness."
            )
    return dict(models)


def keras_models(models: Sequence[tuple[str, Any]]) -> list[tuple[str, keras.Model]]:
    """Of some named models those of Keras."""
    return [(name, model) for name, model in models if isinstance(model, keras.Model)]


def hardnesses_of(hardnesses: Any) -> tuple[float, ...]:
    """Hardnesses of the surrogate gradients, at least one."""
    checked = tuple(check_hardness(value, "surrogate_hardnesses") for value in hardnesses)
    if not checked:
        raise ValueError(
            "Expected surrogate_hardnesses for the surrogate gradients of defences. Received: "
            "none. The default is (3.0, 10.0)."
        )
    return checked


def epsilons_of(epsilons: Any) -> dict[str, tuple[float, ...]]:
    """Radii by norm."""
    by_norm = dict(epsilons) if isinstance(epsilons, Mapping) else {"linf": epsilons}
    if not by_norm:
        raise ValueError('Expected epsilons of at least one norm. Example: {"linf": [0.1, 0.3]}.')
    checked = {}
    for norm, values in by_norm.items():
        norms.get(norm)
        radii = [values] if checks.is_number(values) else list(values)
        rising = [0.0, *map(float, radii)] if all(map(checks.is_number, radii)) else []
        if len(rising) < 2 or not all(a < b < math.inf for a, b in itertools.pairwise(rising)):
            raise ValueError(
                "Expected epsilons above 0 in rising order, each once. "
                f"Received: {values!r}. Accuracy on clean images is reported without asking."
            )
        checked[norm] = tuple(rising[1:])
    return checked


def radii_of(
    name: str,
    attack: Attack,
    epsilons: Mapping[str, tuple[float, ...]],
    image_shape: tuple[int, ...],
    value_range: tuple[float, float],
) -> tuple[float | None, ...]:
    """The radii at which an attack is run; None for as close as can be."""
    norm = norms.get(attack.norm)
    if attack.minimizes:
        return (None,)
    if attack.norm in epsilons:
        if isinstance(attack, GradientAttack):
            for epsilon in epsilons[attack.norm]:
                attack.check_step_size(epsilon)
        return epsilons[attack.norm]
    if attack.trial_radii:
        largest = norm.largest(image_shape, value_range)
        return tuple(share * largest for share in attack.trial_radii)
    raise ValueError(
        f"Expected epsilons for the norm {attack.norm!r} of the attack {name!r}. Received: "
        f"epsilons for {', '.join(epsilons)}. Example: "
        f"epsilons={{{', '.join(f'{k!r}: {list(v)}' for k, v in epsilons.items())}, "
        f"{attack.norm!r}: [0.5, 1.0, 2.0]}}"
    )


def check_sources(
    threats: tuple[ThreatModel, ...],
    attacks: Mapping[str, Attack],
    sources: Mapping[str, Any],
    *,
    followed: bool,
) -> None:
    """Raise a ValueError for a black box without a source, or a source without a black box."""
    with_gradients = [
        name
        for name, attack in attacks.items()
        if attack.uses_gradients and (followed or not _asks(attack))
    ]
    transferring = [threat.name for threat in threats if threat.uses_source]
    if transferring and with_gradients and not sources and not followed:
        raise ValueError(
            'Expected attacks that ask for outputs alone, such as "square", since the model '
            f"gives no gradients. Received: {with_gradients[0]!r}, which follows them. Or give a "
            "Keras model of the same task as source_model, on which examples are made."
        )
    if transferring and with_gradients and not sources:
        raise ValueError(
            f"Expected source_model for the {transferring[0]} threat model: "
            f"{with_gradients[0]!r} needs a model to make examples on. Received: none. Give an "
            "undefended model of the same task, or leave out that attack."
        )
    if sources and not transferring:
        raise ValueError(
            'Expected "black-box" among threat_models, since a source_model is given. Received: '
            f"{tuple(threat.name for threat in threats)}. Add it, or leave source_model out."
        )


def _asks(attack: Attack) -> bool:
    """Whether a part of an ensemble asks for outputs alone."""
    parts = attack.parts.values() if isinstance(attack, Ensemble) else ()
    return any(not part.uses_gradients and not part.attacks_defense for part in parts)


def data_format_of(
    models: Sequence[tuple[str, Any]], shape: tuple[int, ...], said: str | None
) -> str:
    """``"channels_first"`` or ``"channels_last"``, the same for all models.

    Args:
        models: names and models, attacked and sources.
        shape: of one image.
        said: what the user says, or None.
    """
    first = [
        (
            name,
            model.channels_first
            if isinstance(model, Classifier)
            else channels_first(model, shape, said),
        )
        for name, model in models
    ]
    if said is not None and (said == "channels_first") != first[0][1]:
        raise ValueError(
            f"Expected data_format={said!r} of the classifier {first[0][0]!r} too. Received: "
            "another one. Say it where the classifier is made."
        )
    if len({is_first for _, is_first in first}) > 1:
        named = ", ".join(name for name, is_first in first if is_first)
        raise ValueError(
            "Expected models that take the same images. Received: some with channels first "
            f"({named}) and some with channels last. Evaluate them one by one, or put "
            "keras.layers.Permute in front."
        )
    return "channels_first" if first[0][1] else "channels_last"


def check_epsilons(
    epsilons: Mapping[str, tuple[float, ...]],
    value_range: tuple[float, float],
    shape: tuple[int, ...],
    given: bool,
) -> list[str]:
    """Notes on radii that look as if in another unit; a ValueError where they must be.

    Args:
        epsilons: radii by norm, in rising order.
        value_range: smallest and largest pixel value.
        shape: of one image.
        given: whether the user gave them.
    """
    width = value_range[1] - value_range[0]
    if not given:
        return []
    for name, radii in epsilons.items():
        norm = norms.get(name)
        span = norm.largest(shape, value_range)
        checks.epsilon_not_tiny(radii[-1], name, norm.symbol, span, value_range)
    if "linf" not in epsilons:
        return []
    largest = epsilons["linf"][-1]
    checks.epsilon_inside(largest, value_range)
    if largest < width / 500:
        return [
            f"All L-inf epsilons are below {width / 500:g}, a five-hundredth of the value range. "
            "They are in units of the pixel values."
        ]
    return []


def attacked_model(
    model: keras.Model | Classifier,
    name: str,
    x: np.ndarray,
    value_range: tuple[float, float],
    settings: Mapping[str, Any],
) -> Classifier:
    """A classifier ready for attacks, its outputs checked on some images and on noise.

    Args:
        model: the classifier.
        name: its name, for errors.
        x: clean images; a few are used.
        value_range: smallest and largest pixel value.
        settings: of `AttackedModel`; its draws are for random models alone.

    Raises:
        ValueError: for a random model without draws, or outputs that cannot be attacked.
    """
    attacked: Classifier
    if isinstance(model, Classifier):
        attacked = model
    else:
        attacked = AttackedModel(model, value_range, **{**settings, "draws": 1})
    noise = np.random.default_rng(0).uniform(*value_range, (8, *x.shape[1:]))
    probe = np.concatenate([x[spread_rows(len(x), 8)], noise.astype("float32")])
    first, second = attacked.repeated(probe, calls=2)
    if not np.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"Expected a classifier that repeats its outputs. Received: {name!r}, which is "
                "random: two calls on the same images differ. Average its outputs inside it, with "
                "a seed that is always the same."
            )
        if settings["draws"] == 1:
            raise ValueError(
                f"Expected a model that repeats its outputs. Received: {name!r}, which is random: "
                "two calls on the same images differ. Attack the mean of several draws: draws=20, "
                "at that many times the cost."
            )
        check_not_probabilities(first, name)
        return AttackedModel(model, value_range, **settings)
    logits = attacked.logits(probe)
    check_logits(logits, name)
    if not isinstance(attacked, AttackedModel):
        return attacked
    if casts_images(attacked.model):
        check_followed(attacked, probe, logits, name)
    check_logits_reached(logits, attacked.outputs(probe), name)
    return attacked


def check_followed(model: AttackedModel, x: np.ndarray, logits: np.ndarray, name: str) -> None:
    """Raise a ValueError if behind a cast to integers attacks would follow another function."""
    _, followed = model.gradient(x, np.zeros(len(x), "int64"))
    scale = max(1.0, float(np.abs(logits).max()))
    if not np.allclose(followed, logits, rtol=1e-2, atol=1e-2 * scale):
        raise ValueError(
            f"Expected a model that computes with floats behind its Input of integers. Received: "
            f"{name!r}, whose outputs differ if it does, as sums of bytes that overflow do. Cast "
            "to float32 first in the model, or attack it without gradients."
        )


def clean_logits(model: Classifier, x: np.ndarray, batch_size: int, name: str) -> np.ndarray:
    """Logits on clean images ``(n, classes)``; a ValueError where they are not finite."""
    parts = [model.logits(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    logits = np.concatenate(parts)
    check_logits(logits, name)
    return logits


def check_same_classes(logits: Mapping[str, np.ndarray], other: np.ndarray, name: str) -> None:
    """Raise a ValueError if a source has another number of classes than an attacked model."""
    for model, own in logits.items():
        if own.shape[1] != other.shape[1]:
            raise ValueError(
                f"Expected models of the same classes. Received: {name!r} with "
                f"{other.shape[1]} and {model!r} with {own.shape[1]}."
            )


def targets_of(
    targets: Any, labels: np.ndarray, logits: np.ndarray, seed: int
) -> np.ndarray | None:
    """Target classes ``(n,)`` int64, or None."""
    if targets is None:
        return None
    if isinstance(targets, str):
        return _targets_by_rule(targets, labels, logits, seed)
    targets = np.asarray(targets)
    if targets.shape != labels.shape or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"Expected {len(labels)} target classes as integers. Received: shape "
            f"{targets.shape}, dtype {targets.dtype}."
        )
    targets = checks.class_labels(targets, len(labels), classes=logits.shape[1], name="targets")
    if (targets == labels).any():
        raise ValueError(
            "Expected targets that differ from the labels. Received: "
            f"{int((targets == labels).sum())} that are the label itself."
        )
    return targets


def _targets_by_rule(rule: str, labels: np.ndarray, logits: np.ndarray, seed: int) -> np.ndarray:
    checks.one_of(rule, "targets", _TARGET_RULES, hint="An array of classes is possible too.")
    classes, rows = logits.shape[1], np.arange(len(labels))
    wrong = logits.astype("float64")
    if rule == "next":
        return (labels + 1) % classes
    if rule == "random":
        shift = np.random.default_rng(seed).integers(1, classes, len(labels))
        return (labels + shift) % classes
    if rule == "second":
        wrong[rows, labels] = -np.inf
        return wrong.argmax(axis=1)
    wrong[rows, labels] = np.inf
    return wrong.argmin(axis=1)
