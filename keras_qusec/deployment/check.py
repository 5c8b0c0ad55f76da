"""check_deployment: whether a deployed model is the one that was measured."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import checks, norms
from keras_qusec.attacks import AttackedModel, Classifier
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.attacks.input_quantizer import InputQuantizer
from keras_qusec.certification.box import front_quantizer
from keras_qusec.datasets import arrays_of
from keras_qusec.defenses import find_quantizers
from keras_qusec.deployment.model import DeployedModel
from keras_qusec.deployment.result import AtRadius, DeploymentCheck, Levels, states_of
from keras_qusec.deployment.steps import away_from_steps
from keras_qusec.digests import digest
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.expected_inputs import range_of
from keras_qusec.graphs import has_graph
from keras_qusec.logits import LOGITS
from keras_qusec.progress import Progress, share_of, shown
from keras_qusec.report import RobustnessReport
from keras_qusec.results import PROVED
from keras_qusec.stored_images import channels_last

Array = np.ndarray

# Random images of each ball on which the classes of both models are compared.
_RANDOM = 5
# More levels than this cannot be told apart by the logits.
_MOST_LEVELS = 64
# Clean images whose outputs tell the scale of the deployed model's.
_COMPARED = 128
# Logits as close as this, as a share of the largest, are the same but for rounding.
_TIE = 1e-5
# Images on which levels are compared, and the share of their pixels that gets one value.
_LOOKED_AT, _SHARE_OF_PIXELS = 8, 0.25


def check_deployment(
    model: keras.Model,
    deployed: Classifier | str | os.PathLike,
    x: Any,
    y: Any = None,
    *,
    epsilons: Sequence[float] | None = None,
    attacks: Any = "standard",
    queries: Any = ("square",),
    prove: str | None = None,
    report: RobustnessReport | None = None,
    value_range: tuple[float, float] | None = None,
    outputs: str | None = None,
    seed: int = 0,
    resume_dir: str | os.PathLike | None = None,
    progress: bool | Progress | None = None,
) -> DeploymentCheck:
    """Tell whether a deployed model is the Keras model that was measured, proved and audited.

    Compares both on the same images: classes, logits, and the levels of all 256 byte values
    where a hard quantizer is in front. Replays the verified adversarial examples of the Keras
    model: some *stay*, some *stop*, which is no gain, since an adversary aims at the deployed
    model. So that is attacked, too: by those examples, by the same ones pushed away from the
    quantizer's steps, so that rounding does not undo them, and by asking it (Square). What breaks
    the deployed model is tried on the Keras model: right there, it is a difference; wrong there,
    it counts against both. The two robust accuracies stand side by side.

    Args:
        model: the Keras classifier that was measured.
        deployed: what is deployed: a `DeployedModel` or another
            `keras_qusec.attacks.Classifier`, or the path of a file.
        x: float images in `value_range`, ``(n, ...)``, or a data set as `evaluate_robustness`
            takes; 100 to 1,000 are usual.
        y: true classes; None if `x` has them.
        epsilons: radii in L-infinity in rising order, in units of the pixel values; default 0.1,
            0.2 and 0.3 of the value range.
        attacks: of the Keras model, as in `evaluate_robustness`.
        queries: attacks that ask the deployed model, where the examples failed; empty for none.
        prove: effort of proofs of the Keras model, as in `evaluate_robustness`, or None.
        report: an evaluation of the Keras model on these images, made with
            ``keep_examples=True`` and these epsilons, in place of one made here; `attacks` and
            `prove` are then its own.
        value_range: smallest and largest pixel value; default what the model's first layers say,
            such as (0, 255), else (0, 1).
        outputs: ``"logits"`` or ``"probabilities"`` of the Keras model, where its graph does not
            say.
        seed: seed of all that is random.
        resume_dir: folder for finished work; called again after a crash, it goes on from there.
        progress: as in `evaluate_robustness`.

    Returns:
        `DeploymentCheck`.

    Raises:
        ValueError: for unusable arguments, or models of other classes or images.
        ImportError: without the runtime, or ``keras-qusec[evaluate]``.

    Example:

    >>> from keras_qusec.deployment import DeployedModel, check_deployment
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> deployed = DeployedModel(lambda x: model.predict(x, verbose=0), input_shape=(4,))
    >>> x = np.random.default_rng(0).random((8, 4)).astype("float32")
    >>> y = model.predict(x, verbose=0).argmax(axis=1)
    >>> check = check_deployment(model, deployed, x, y, epsilons=[0.05], attacks=["fgsm"],
    ...                          queries=[], progress=False)
    >>> check.is_what_was_measured
    True
    """
    import_foolbox()
    x, y = arrays_of(x, y)
    known = {model.name: model}
    if isinstance(deployed, Classifier):
        known["deployed"] = deployed
    pixels = range_of(value_range, known, x)
    if not isinstance(deployed, Classifier):
        deployed = DeployedModel(deployed, value_range=pixels)
    if deployed.value_range != pixels:
        raise ValueError(
            f"Expected a deployed model of value_range={pixels}. Received: {deployed.value_range}. "
            "Say the same range for both."
        )
    if epsilons is None:
        epsilons = [share * (pixels[1] - pixels[0]) for share in (0.1, 0.2, 0.3)]
    radii = [checks.number(e, "epsilons", above=0) for e in epsilons]
    form = "channels_first" if deployed.channels_first else "channels_last"
    attacked = AttackedModel(model, pixels, outputs=outputs, data_format=form)
    images = np.asarray(x, "float32")
    checks.images_inside(images, pixels)
    if deployed.channels_first:
        images = channels_last(images)
    with shown(progress, "deployment") as tell:
        tell("both models on clean images", 0.0)
        ours, theirs = attacked.logits(images), deployed.logits(images)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"Expected a deployed model with {ours.shape[1]} classes, as {model.name!r} has. "
                f"Received: {deployed.name!r} with {theirs.shape[1]}. Check the file."
            )
        labels = checks.class_labels(y, len(images), classes=ours.shape[1])
        quantizer = front_quantizer(attacked, images[:1]) if _is_quantized(model) else None
        levels = _levels(attacked, deployed, quantizer, images)
        report = _checked(report, images, labels) or evaluate_robustness(
            model, x, y, attacks=attacks, epsilons=radii, value_range=pixels, outputs=outputs,
            data_format=form, seed=seed, keep_examples=True, prove=prove,
            resume_dir=None if resume_dir is None else Path(resume_dir) / "keras",
            progress=lambda text, share: tell(f"Keras: {text}", 0.05 + 0.55 * share),
        )  # fmt: skip
        tell("replaying examples", 0.6)
        correct = (ours.argmax(axis=1) == labels, theirs.argmax(axis=1) == labels)
        right = deployed.predictions(images) == labels
        random = np.random.default_rng(seed)
        both = _Both(attacked, deployed, labels, correct[0], right)
        found = [_replayed(both, quantizer, images, radius, report, random) for radius in radii]
        if len(queries):
            tell("asking the deployed model", 0.7)
            asked = _asked(
                deployed, x, labels, correct[1] & ~found[-1].broken, radii, queries, seed,
                None if resume_dir is None else Path(resume_dir) / "deployed",
                share_of(lambda text, share: tell(f"deployed: {text}", share), 0.7, 1.0),
            )  # fmt: skip
            for one, (rows, examples) in zip(found, asked, strict=True):
                both.take(one, rows, examples)
        for smaller, larger in itertools.pairwise(found):
            for name in ("broken", "keras_broken", "new"):
                getattr(larger, name)[:] |= getattr(smaller, name)
        _check_proofs(report, found)
        tell("done", 1.0)
    return DeploymentCheck(
        keras_name=model.name,
        deployed_name=deployed.name,
        runtime=getattr(deployed, "runtime_name", type(deployed).__name__),
        keras_right=correct[0],
        deployed_right=correct[1],
        classes_differ=ours.argmax(axis=1) != theirs.argmax(axis=1),
        logit_difference=_difference(ours, theirs, deployed),
        levels=levels,
        radii=tuple(found),
        report=report,
        asked=tuple(queries) if not isinstance(queries, str) else (queries,),
    )


def _checked(report: RobustnessReport | None, x: Array, labels: Array) -> RobustnessReport | None:
    """A report that was given, if it is of these images and kept its examples."""
    if report is None:
        return None
    data = digest(str(x.shape).encode(), x.tobytes(), labels.tobytes())
    kept = report.kept.get(report.models[0], {})
    if report.provenance["identity"]["data"] != data or "linf" not in kept:
        raise ValueError(
            "Expected a report of these images and labels that kept its adversarial examples. "
            f"Received: one of {', '.join(report.models)}, "
            + ("of other data" if "linf" in kept else "without examples")
            + ". Evaluate with keep_examples=True, or leave report out."
        )
    return report


def _is_quantized(model: keras.Model) -> bool:
    return has_graph(model) and bool(find_quantizers(model))


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _difference(ours: Array, theirs: Array, deployed: Classifier) -> Array:
    """The largest difference of logits of each image; of their logarithms for probabilities."""
    if getattr(deployed, "outputs", LOGITS) != LOGITS:
        floor = np.log(1e-6)  # below it probabilities of few bits say nothing
        ours, theirs = (np.maximum(_log_softmax(part), floor) for part in (ours, theirs))
    difference = np.abs(ours.astype("float64") - theirs).max(axis=1)
    return np.nan_to_num(difference, nan=np.inf)


class _Both(NamedTuple):
    """The two models on the same images.

    Attributes:
        model: the Keras model.
        deployed: what is deployed.
        labels: true classes ``(n,)``.
        correct: which clean images the Keras model gets right.
        right: which clean images the deployed model gets right.
    """

    model: AttackedModel
    deployed: Classifier
    labels: Array
    correct: Array
    right: Array

    def take(self, one: AtRadius, rows: Array, images: Array) -> Array:
        """Note what images within a radius do to both.

        Args:
            one: what is known within the radius; it is changed.
            rows: of which clean images they were made, ``(k,)``.
            images: ``(k, ...)``.

        Returns:
            Which of them the deployed model gets wrong, ``(k,)``.
        """
        if not len(rows):
            return np.zeros(0, bool)
        ours, theirs = self.model.predictions(images), self.deployed.predictions(images)
        return self.note(one, rows, ours, theirs)

    def note(self, one: AtRadius, rows: Array, ours: Array, theirs: Array) -> Array:
        """The same from the classes that both models say, ``(k,)``."""
        wrong, fooled = theirs != self.labels[rows], ours != self.labels[rows]
        one.broken[rows[wrong]] = True
        one.keras_broken[rows[fooled]] = True
        # Images that are wrong already when clean are counted there.
        new = wrong & ~fooled & self.correct[rows] & self.right[rows]
        one.new[rows[new]] = True
        return wrong


def _levels(
    model: AttackedModel, deployed: Classifier, quantizer: InputQuantizer | None, x: Array
) -> Levels | None:
    """Which of 256 byte values have another level in the deployed model, by its logits.

    A part of the pixels of a few images gets one value. Where the level is the same, the deployed
    model's logits are those for the middle value of that level. None without a hard quantizer in
    front, or with one whose levels differ between pixels or are too many.
    """
    if quantizer is None or quantizer.grid is None:
        return None
    low, high = model.value_range
    values = (low + (high - low) * np.arange(256) / 255).astype("float32")
    plain = np.zeros((256, *x.shape[1:]), "float32") + values.reshape(-1, *[1] * (x.ndim - 1))
    outputs = quantizer.outputs(plain).reshape(256, -1)
    steps = np.flatnonzero(np.diff(outputs[:, 0]) != 0) + 1
    if (outputs != outputs[:, :1]).any() or not 0 < len(steps) < _MOST_LEVELS:
        return None
    edges = np.array([0, *steps, 256])
    level = np.searchsorted(steps, np.arange(256), side="right")
    middle = (edges[:-1] + edges[1:] - 1) // 2
    random = np.random.default_rng(0)
    images = x[random.integers(0, len(x), _LOOKED_AT)]
    chosen = random.random(images.shape) < _SHARE_OF_PIXELS
    ours, theirs = (
        np.stack(
            [_log_softmax(one.logits(np.where(chosen, value, images))).ravel() for value in values]
        )
        for one in (model, deployed)
    )
    distance = np.abs(theirs[:, None] - theirs[middle][None]).sum(axis=2)
    own = distance[np.arange(256), level]
    # The same logits twice, as rounding alone may make them differ.
    rounding = _TIE * np.abs(theirs).sum(axis=1)
    # Twice as near to another level as to its own.
    changed = ~((distance.min(axis=1) >= 0.5 * own) | (own <= rounding))
    # Levels that are one in the deployed model; its outputs may be smaller by a factor.
    clean = [_log_softmax(one.logits(x[:_COMPARED])) for one in (model, deployed)]
    spread = [np.abs(part - part.mean(axis=0)).sum() for part in clean]
    scale = min(1.0, spread[1] / max(spread[0], 1e-30))
    for upper in range(1, len(middle)):
        apart = np.abs(ours[middle[upper]] - ours[middle[upper - 1]]).sum()
        least = max(0.1 * scale * apart, rounding[middle[upper]])
        if not distance[middle[upper], upper - 1] >= least:
            changed |= level == upper
    return Levels(len(middle), tuple(np.flatnonzero(changed).tolist()))


def _replayed(
    both: _Both,
    quantizer: InputQuantizer | None,
    x: Array,
    radius: float,
    report: RobustnessReport,
    random: np.random.Generator,
) -> AtRadius:
    """What the examples of the Keras model do to the deployed one, within one radius."""
    model, every = both.model, np.arange(len(x))
    kept = report.examples(radius)
    rows = np.asarray(kept.numbers, "int64")
    examples = np.asarray(kept.images, "float32").reshape(-1, *x.shape[1:])
    found = AtRadius(
        epsilon=radius, examples=len(rows), stay=0, pushed_stay=None, classes_differ=0,
        corners=_RANDOM * len(x), new=np.zeros(len(x), bool), broken=~both.right,
        keras_broken=~both.correct,
    )  # fmt: skip
    stays = int(both.take(found, rows, examples).sum())
    thresholds, pushed_stay = None if quantizer is None else quantizer.thresholds, None
    if thresholds is not None and len(rows):
        pushed = away_from_steps(examples, x[rows], radius, thresholds, model.value_range)
        near = norms.within(norms.distances(x[rows], pushed)["linf"], radius)
        pushed_stay = int(both.take(found, rows[near], pushed[near]).sum())
    # Random corners of the ball, where a small difference shows that no attack looks for.
    darkest, brightest = norms.LInfinity().ends(x, radius, model.value_range)
    differ = 0
    for _ in range(_RANDOM):
        images = np.where(random.random(x.shape) < 0.5, darkest, brightest).astype("float32")
        ours, theirs = model.logits(images), both.deployed.predictions(images)
        largest = np.sort(ours, axis=1)
        # Where the two largest logits are one but for rounding, so are the two classes.
        tie = largest[:, -1] - largest[:, -2] <= _TIE * np.abs(ours).max(axis=1)
        ours = np.where(tie, theirs, ours.argmax(axis=1))
        differ += int((ours != theirs).sum())
        both.note(found, every, ours, theirs)
    return found._replace(stay=stays, pushed_stay=pushed_stay, classes_differ=differ)


def _check_proofs(report: RobustnessReport, found: Sequence[AtRadius]) -> None:
    """Raise a ValueError if an image breaks the Keras model that is proved there."""
    for one in found if report.certificates else ():
        wrong = np.flatnonzero(one.keras_broken & (states_of(report, one.epsilon) == PROVED))
        if len(wrong):
            raise ValueError(
                f"keras-qusec failed: image {wrong[0]} is proved within {one.epsilon:g} and yet "
                "broken by what broke the deployed model. Trust neither, and report it."
            )


def _asked(
    deployed: Classifier,
    x: Any,
    labels: Array,
    rows: Array,
    radii: Sequence[float],
    queries: Any,
    seed: int,
    folder: Path | None,
    tell: Progress,
) -> list[tuple[Array, Array]]:
    """What attacks that ask the deployed model find: images by number, for each radius."""
    chosen = np.flatnonzero(rows)
    nothing = np.zeros(0, "int64"), np.zeros((0, *np.shape(x)[1:]), "float32")
    if not len(chosen):
        return [nothing for _ in radii]
    report = evaluate_robustness(
        deployed, np.asarray(x, "float32")[chosen], labels[chosen],
        attacks=queries if isinstance(queries, str) else list(queries), epsilons=list(radii),
        threat_models=["black-box"], value_range=deployed.value_range, seed=seed,
        data_format="channels_first" if deployed.channels_first else None,
        resume_dir=folder, progress=tell, keep_examples=True,
    )  # fmt: skip
    asked = []
    for radius in radii:
        kept = report.examples(radius)
        # Kept images have their channels last, whatever the models take.
        rows = chosen[np.asarray(kept.numbers, "int64")]
        asked.append((rows, np.asarray(kept.images, "float32")) if len(rows) else nothing)
    return asked
