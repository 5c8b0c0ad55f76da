"""audit_robustness: from a model to a verdict on how its robustness was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qusec import checks
from keras_qusec.attacks import APGD, PGD, Attack, AttackedModel, get
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.audit.check import NOT_RUN, Check, Finding
from keras_qusec.audit.evidence import BUDGETS, HARDNESSES, JUDGED, TARGETED, Budget, Evidence
from keras_qusec.audit.random_outputs import CALLED, LIMIT, difference_between_calls
from keras_qusec.audit.registry import CHECKS
from keras_qusec.audit.report import AuditReport, CheckResult, Cost
from keras_qusec.audit.summary import summary_of
from keras_qusec.audit.surrogate_gradients import with_identity
from keras_qusec.audit.transfer import substitute
from keras_qusec.backends import with_gradients
from keras_qusec.certification.box import behind_hard_quantizer
from keras_qusec.datasets import images_and_labels, spread_rows
from keras_qusec.defenses import surrogates_in_force
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.evaluation.inputs import data_format_of, models_of, only_keras
from keras_qusec.expected_inputs import images_of, range_of
from keras_qusec.progress import Progress, share_of, shown
from keras_qusec.report import RobustnessReport
from keras_qusec.results import Result
from keras_qusec.stored_images import StoredImages, channels_last, on_parts

# These hardnesses are tried beyond those of the judged adaptive attack.
_MORE_HARDNESSES = (1.0, 30.0)
_WHITE_BOX, _ADAPTIVE = "white-box", "adaptive"


@with_gradients
def audit_robustness(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    epsilon: float,
    level: str = "quick",
    threat_models: Sequence[str] = ("white-box",),
    source_model: keras.Model | Mapping[str, keras.Model] | None = None,
    value_range: tuple[float, float] | None = None,
    outputs: str | None = None,
    data_format: str | None = None,
    draws: int = 1,
    seed: int = 0,
    n_jobs: int | None = None,
    resume_dir: str | os.PathLike | None = None,
    progress: bool | Progress | None = None,
) -> AuditReport:
    """Tell whether a classifier's robustness is real, or an attack that fails.

    Judges the figure that PGD of 40 steps gives within an L-infinity ball, by checks that each
    have a rule: gradients that vanish or mislead, attacks that fail where they cannot, others
    that find what gradients miss, adversarial examples planted and not found. The verdict is one
    of

    - *X % robust: this figure can be believed as far as we can attack*, or *is exact*, where
      proofs reach it; X may be low;
    - *overstated by at least X points*: other attacks find more than the judged one;
    - *gradients masked*: gradient attacks on this model cannot be trusted.

    A quantizer masks its own gradient by design. Judged white-box, the default, an audit says so,
    and how much is left when the attacker knows it; judged adaptively it asks whether the
    adaptive evaluation can be trusted.

    Args:
        model: built Keras classifier, images to logits or probabilities ``(n, classes)``.
        x: float images in `value_range`, ``(n, ...)``, or a data set as `evaluate_robustness`
            takes; 100 to 500 are usual.
        y: true classes, integers ``(n,)`` or ``(n, 1)``, or one-hot ``(n, classes)``.
        epsilon: L-infinity radius, in units of the pixel values.
        level: ``"quick"`` for minutes, or ``"full"``: more of everything, a substitute to
            transfer from, and the standard evaluation for the worst case.
        threat_models: ``("white-box",)`` or ``("white-box", "adaptive")``: under which the
            robustness is judged, as in `evaluate_robustness`.
        source_model: undefended model of the same task, or a dictionary of models by name, to
            transfer examples from.
        value_range: smallest and largest pixel value; default what the model's first layers say,
            such as (0, 255), else (0, 1).
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say.
        data_format: ``"channels_last"`` or ``"channels_first"``, for models that do not say.
        draws: for random models, how many draws are averaged. With 1 a random model is reported
            as such, and nothing else is judged.
        seed: seed of all that is random. The same seed gives the same verdict.
        n_jobs: processes, over joblib; see `evaluate_robustness`.
        resume_dir: folder for finished work. Called again with the same arguments after a
            crash, the audit goes on from there.
        progress: True or False to show progress on the terminal (default: if there is one), or
            a function called with a text and the share done.

    Returns:
        `AuditReport`.

    Raises:
        ValueError: for unusable input, or a model that gets no image right.
        ImportError: without the extra ``keras-qusec[evaluate]``.

    Source: Athalye et al. 2018; Carlini et al. 2019; Pintor et al. 2022; Zimmermann et al. 2022.

    Example:

    >>> from keras_qusec import audit_robustness
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.tile(np.eye(2, dtype="float32"), (4, 1))])
    >>> x = np.random.default_rng(0).uniform(0, 1, (40, 8)).astype("float32")
    >>> y = (x[:, 1::2].sum(1) > x[:, ::2].sum(1)).astype("int64")
    >>> audit = audit_robustness(model, x, y, epsilon=0.05, progress=False)
    >>> audit.failed
    ()
    """
    import_foolbox()
    x, y = images_and_labels(x, y)
    checks.one_of(level, "level", BUDGETS)
    budget = BUDGETS[level]
    epsilon = checks.number(
        epsilon, "epsilon", above=0, hint="In units of the pixel values, L-infinity."
    )
    judged = _judged(threat_models)
    draws = checks.whole_number(draws, "draws")
    ((name, net),) = _one(only_keras(models_of(model, "model"))).items()
    pixels = range_of(value_range, {name: net}, x)
    checks.epsilon_inside(epsilon, pixels)
    settings: dict[str, Any] = {
        "value_range": pixels, "outputs": outputs, "data_format": data_format, "seed": seed,
        "n_jobs": n_jobs,
    }  # fmt: skip
    images = images_of(x, pixels, [(name, net)])
    form = data_format_of([(name, net)], images.shape[1:], data_format)
    last = channels_last(images) if form == "channels_first" else images
    with surrogates_in_force({}):
        attacked = AttackedModel(net, pixels, outputs=outputs, data_format=form, draws=draws)
    called = last[spread_rows(len(last), CALLED)]
    if draws == 1 and difference_between_calls(attacked, called) > LIMIT:
        return _of_random_model(attacked, last, y, epsilon, judged, budget, seed)
    labels = _labels(y, len(images), attacked, last)
    correct = on_parts(attacked.predictions, last) == labels
    if not correct.any():
        raise ValueError(
            f"Expected a model that classifies some of the images correctly. Received: {name!r}, "
            f"which is wrong on all {len(images)}. Check value range and labels."
        )
    sources = only_keras(models_of(source_model, "source_model")) if source_model else {}
    if not sources and budget.substitute:
        sources = {"substitute": substitute(attacked, last, epsilon, seed)}
    identities = {f"identity for {n}": m for n, m in with_identity(attacked).items()}
    needs = {c.identifier: c.attacks(epsilon, pixels[1] - pixels[0], budget) for c in CHECKS}
    with shown(progress, "audit") as tell:
        evaluate = _evaluator(
            {name: net}, images, y, epsilon, {**settings, "draws": draws}, resume_dir
        )
        evaluation, adaptive_report = _attacked(
            evaluate, attacked, judged, needs.values(), budget, tell
        )
        transfers = None
        if identities or sources:
            transfers = evaluate(
                "transfer", {JUDGED: PGD()}, share_of(tell, 0.8, 0.85),
                threat_models=("black-box",), source_model={**identities, **sources},
            )  # fmt: skip
        adaptive = attacked.with_surrogates(HARDNESSES) if _ADAPTIVE in judged else []
        proofs, reason = _proofs(evaluate, attacked, last, budget, tell)
        evidence = Evidence(
            model=attacked, followed=[attacked, *adaptive], x=last, labels=labels, correct=correct,
            epsilon=epsilon, threat_models=judged, budget=budget, seed=seed,
            evaluation=evaluation, adaptive_report=adaptive_report, transfers=transfers,
            identities=tuple(identities), proofs=proofs, not_proved_because=reason,
        )  # fmt: skip
        results = []
        for place, check in enumerate(CHECKS):
            tell(check.identifier, 0.9 + 0.1 * place / len(CHECKS))
            results.append(_judge(check, evidence, needs[check.identifier]))
    return AuditReport(summary_of(evidence), results, evidence)


def _attacked(
    evaluate: Callable[..., RobustnessReport],
    model: AttackedModel,
    judged: Sequence[str],
    needs: Iterable[Mapping[str, Attack]],
    budget: Budget,
    tell: Progress,
) -> tuple[RobustnessReport, RobustnessReport | None]:
    """What the judged attack and those of the checks find, and who knows the defences.

    The standard evaluation, if it is made, is part of the one that sees through the defences.
    """
    battery: dict[str, Attack] = {
        JUDGED: PGD(),
        TARGETED: APGD(loss="dlr", steps=30, targets=3, order="malt"),
    }
    for attacks in needs:
        battery |= {name: attack for name, attack in attacks.items() if name not in battery}
    standard = {"standard": get("standard")} if budget.standard else {}
    defended = bool(model.with_surrogates(HARDNESSES))
    evaluation = evaluate(
        "judged", battery if defended else battery | standard, share_of(tell, 0.0, 0.6),
        threat_models=judged, surrogate_hardnesses=HARDNESSES,
    )  # fmt: skip
    for failure in evaluation.failures:
        if failure["attack"] == JUDGED:
            raise ValueError(
                f"Expected a model that PGD can attack. Received: one where it fails with "
                f"{failure['message']}"
            )
    if not defended:
        return evaluation, None
    beyond = _MORE_HARDNESSES if _ADAPTIVE in judged else (*HARDNESSES, *_MORE_HARDNESSES)
    adaptive_report = evaluate(
        "adaptive", {JUDGED: PGD()} | standard, share_of(tell, 0.6, 0.8),
        threat_models=(_WHITE_BOX, _ADAPTIVE) if standard else (_ADAPTIVE,),
        surrogate_hardnesses=beyond,
    )  # fmt: skip
    return evaluation, adaptive_report


def _proofs(
    evaluate: Callable[..., RobustnessReport],
    model: AttackedModel,
    x: np.ndarray | StoredImages,
    budget: Budget,
    tell: Progress,
) -> tuple[RobustnessReport | None, str]:
    """What is proved behind a hard quantizer, and why nothing is elsewhere.

    Other models have bounds, too, which are loose and can take minutes an image.
    """
    try:
        if not behind_hard_quantizer(model, x[:1]):
            return None, (
                "no hard quantizer is in front, behind which proofs are quick; "
                "certify_robustness tries on any model with a graph"
            )
        return evaluate("proofs", {}, share_of(tell, 0.85, 0.9), prove=budget.prove), ""
    except ValueError as error:
        return None, f"nothing can be proved: {error}"


def _judge(check: Check, evidence: Evidence, attacks: Mapping[str, Attack]) -> CheckResult:
    """The finding of a check and what it cost, its attacks' share included."""
    counter, start = evidence.model.counter, time.perf_counter()
    before = counter.gradients, counter.queries
    failed = [name for name in attacks if evidence.failure(name) is not None]
    if failed:
        finding = Finding(NOT_RUN, f"{failed[0]} failed: {evidence.failure(failed[0])}")
    else:
        finding = check.judge(evidence)
    cost = Cost(
        counter.gradients - before[0], counter.queries - before[1], time.perf_counter() - start
    )
    spent: list[Result] = []
    if evidence.has_evaluation:
        spent = [r for r in evidence.evaluation.results if r.attack in attacks]
        spent += check.own_results(evidence)
    for result in spent:
        cost = Cost(
            cost.gradients + int(result.gradients.sum()),
            cost.queries + int(result.queries.sum()),
            cost.seconds + float(result.seconds.sum()),
        )
    return CheckResult(check, finding, cost)


def _evaluator(
    model: Mapping[str, keras.Model],
    x: np.ndarray | StoredImages,
    y: Any,
    epsilon: float,
    settings: Mapping[str, Any],
    resume_dir: str | os.PathLike | None,
) -> Callable[..., RobustnessReport]:
    """`evaluate_robustness` on the audited model, each call with a folder of its own."""

    def evaluate(
        name: str, attacks: Mapping[str, Attack], progress: Progress, **more: Any
    ) -> RobustnessReport:
        folder = None if resume_dir is None else Path(resume_dir) / name
        return evaluate_robustness(
            model, x, y, attacks=dict(attacks), epsilons=[epsilon], resume_dir=folder,
            progress=progress, **settings, **more,
        )  # fmt: skip

    return evaluate


def _judged(threat_models: Sequence[str]) -> tuple[str, ...]:
    listed = (threat_models,) if isinstance(threat_models, str) else tuple(threat_models)
    for name in listed:
        checks.one_of(name, "threat_models", (_WHITE_BOX, _ADAPTIVE))
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(
            f"Expected threat_models to be {_WHITE_BOX}, or {_WHITE_BOX} and {_ADAPTIVE}. "
            f"Received: {threat_models!r}."
        )
    return tuple(name for name in (_WHITE_BOX, _ADAPTIVE) if name in listed or name == _WHITE_BOX)


def _one(models: Mapping[str, keras.Model]) -> Mapping[str, keras.Model]:
    if len(models) != 1:
        raise ValueError(
            f"Expected one model to audit. Received: {len(models)}. Audit them one by one."
        )
    return models


def _labels(y: Any, count: int, model: AttackedModel, x: np.ndarray | StoredImages) -> np.ndarray:
    return checks.class_labels(y, count, classes=model.logits(x[:1]).shape[1])


def _of_random_model(
    model: AttackedModel,
    x: np.ndarray | StoredImages,
    y: Any,
    epsilon: float,
    judged: Sequence[str],
    budget: Budget,
    seed: int,
) -> AuditReport:
    """The audit of a random model of which no draws are averaged: it says so, and no more."""
    labels = _labels(y, len(x), model, x)
    evidence = Evidence(
        model=model, followed=[model], x=x, labels=labels,
        correct=on_parts(model.predictions, x) == labels, epsilon=epsilon, threat_models=judged,
        budget=budget, seed=seed, evaluation=None, adaptive_report=None, transfers=None,
        identities=(),
    )  # fmt: skip
    unknown = Finding(NOT_RUN, "the model is random; judge the mean of its draws: draws=20")
    results = [
        CheckResult(check, unknown, Cost(0, 0, 0.0))
        if check.needs_one_answer
        else _judge(check, evidence, {})
        for check in CHECKS
    ]
    return AuditReport(summary_of(evidence), results, evidence)
