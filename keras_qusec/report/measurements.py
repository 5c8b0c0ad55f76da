"""The measurements of a report, for any question: robust accuracy, interval, sizes, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_qusec import norms as norms_module
from keras_qusec.checks import closest
from keras_qusec.norms import radius_text, within
from keras_qusec.results import (
    BROKEN,
    OPEN,
    PROVED,
    WORST_CASE,
    Certificate,
    ClassAccuracy,
    Example,
    Examples,
    ImageState,
    Result,
)
from keras_qusec.statistics import wilson_interval


class Measurement(NamedTuple):
    """One number of the report, with its interval, sizes and cost.

    Attributes:
        model: name of the attacked model.
        threat_model: what the adversary knew.
        attack: name of the attack, or ``"worst case"`` for all attacks and threat models.
        source: name of the model the examples were made on, or None.
        norm: norm of epsilon.
        epsilon: radius, or None for adversarial examples at any distance.
        robust_accuracy: share of the images, in [0, 1].
        low: lower end of the 95 % interval (Wilson).
        high: upper end of the 95 % interval (Wilson).
        images: number of images.
        median: by norm, the median size of the perturbation over the broken images, or None;
            also as `median_l2` and so on.
        mean: by norm, the mean size of the perturbation over the broken images, or None; also
            as `mean_l2` and so on.
        gradients: images passed backward, per image of the data, up to this epsilon.
        queries: images passed forward, per image of the data, up to this epsilon.
        seconds: time for all images, up to this epsilon.
        proved: of the worst case, the share of images that are proved; None if nobody tried.
    """

    model: str
    threat_model: str
    attack: str
    source: str | None
    norm: str
    epsilon: float | None
    robust_accuracy: float
    low: float
    high: float
    images: int
    median: dict[str, float | None]
    mean: dict[str, float | None]
    gradients: float
    queries: float
    seconds: float
    proved: float | None = None

    def __getattr__(self, name: str) -> Any:
        kind, _, norm = name.partition("_")
        if kind in ("median", "mean") and norm in self.median:
            return (self.median if kind == "median" else self.mean)[norm]
        raise AttributeError(f"A measurement has no {name!r}. It has {', '.join(self.as_dict())}.")

    @property
    def is_worst_case(self) -> bool:
        """Whether it is over all attacks and threat models."""
        return self.attack == WORST_CASE

    @property
    def label(self) -> str:
        """Threat model, attack and source in words; of all attacks ``"worst case"``."""
        if self.is_worst_case:
            return self.attack
        origin = f" from {self.source}" if self.source is not None else ""
        return f"{self.threat_model} {self.attack}{origin}"

    def as_dict(self) -> dict[str, Any]:
        """All parts by name, sizes as `median_l2` and so on."""
        left_out = {"mean", *(["proved"] if self.proved is None else [])}
        parts = {name: value for name, value in self._asdict().items() if name not in left_out}
        columns: dict[str, Any] = {}
        for name, value in parts.items():
            if name != "median":
                columns[name] = value
                continue
            columns |= {f"median_{norm}": size for norm, size in self.median.items()}
            columns |= {f"mean_{norm}": size for norm, size in self.mean.items()}
        return columns


class Share(NamedTuple):
    """A share of images, with its interval.

    Attributes:
        share: in [0, 1].
        low: lower end of the 95 % interval (Wilson).
        high: upper end of the 95 % interval.
        images: number of images.
    """

    share: float
    low: float
    high: float
    images: int

    @classmethod
    def of(cls, rows: np.ndarray) -> Share:
        """The share of images in a mask."""
        count = int(rows.sum())
        return cls(count / len(rows), *wilson_interval(count, len(rows)), len(rows))


class Bracket(NamedTuple):
    """Between which shares robust accuracy lies."""

    proved: Share
    attacked: Share


class Measurements:
    """The data of a report, and the measurements that follow from them.

    Args:
        correct: by model, which images it classifies correctly when clean.
        results: what each attack found.
        epsilons: radii asked for, by norm.
        norms: norm of each attack.
        provenance: what the measurements were made from.
        failures: attacks that could not be run.
        notes: what a reader must know.
        gallery: broken images.
        certificates: what is proved of each image.
        examples: by model and norm the closest example of each broken image, where kept.

    Raises:
        ValueError: if an image is both proved and broken, which names it.
    """

    def __init__(
        self,
        *,
        correct: Mapping[str, np.ndarray],
        results: Sequence[Result],
        epsilons: Mapping[str, Sequence[float]],
        norms: Mapping[str, str],
        provenance: Mapping[str, Any],
        failures: Sequence[Mapping[str, str]] = (),
        notes: Sequence[str] = (),
        gallery: Sequence[Example] = (),
        certificates: Sequence[Certificate] = (),
        examples: Mapping[str, Mapping[str, Examples]] | None = None,
    ) -> None:
        self.correct = {name: np.asarray(rows, bool) for name, rows in correct.items()}
        self.results = list(results)
        self.epsilons = {norm: tuple(radii) for norm, radii in epsilons.items()}
        self.norms = dict(norms)
        self.provenance = dict(provenance)
        self.failures = [dict(failure) for failure in failures]
        self.notes = list(notes)
        self.gallery = list(gallery)
        self.certificates = list(certificates)
        self.kept = {name: dict(by_norm) for name, by_norm in (examples or {}).items()}
        self._check_certificates()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the attacked models."""
        return tuple(self.correct)

    @property
    def attacked(self) -> tuple[str, ...]:
        """Names of the models that any attack was run on."""
        return _unique(result.model for result in self.results)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that ran, as asked for."""
        return _unique(result.attack for result in self.results)

    @property
    def threat_models(self) -> tuple[str, ...]:
        """Threat models that ran."""
        return _unique(result.threat_model for result in self.results)

    @property
    def measured_norms(self) -> tuple[str, ...]:
        """Norms in which the size of every perturbation was measured."""
        return tuple(self.results[0].distances) if self.results else norms_module.names()

    @property
    def evidence(self) -> str:
        """How strong the attacks are: ``"quick"``, ``"standard"`` or ``"strong"``.

        Or ``"proof"`` without attacks, ``"queries"`` for models that give no gradients.
        """
        return str(self.provenance.get("evidence", "quick"))

    @property
    def main_norm(self) -> str:
        """The norm of the headline: the first that epsilons were given for."""
        return next(iter(self.epsilons))

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest pixel value."""
        low, high = self.provenance["identity"]["value range"]
        return low, high

    def clean_accuracy(self, model: str | None = None) -> float:
        """Accuracy on the images as they are, in [0, 1].

        Args:
            model: name; may be left out if there is one.

        Raises:
            ValueError: for an unknown name.
        """
        return float(self.correct[self._model(model)].mean())

    def robust_accuracy(
        self,
        attack: str | None = None,
        epsilon: float | None = None,
        threat_model: str | None = None,
        *,
        norm: str | None = None,
        model: str | None = None,
        source: str | None = None,
    ) -> float:
        """The share of images that are classified correctly and that no attack broke.

        What is left out means the worst case over it. An example counts if it lies within
        epsilon, whichever norm its attack minimizes. Attacks in a ball were run at the epsilons
        of the evaluation, so these are the epsilons that can be asked for; attacks that look
        for the closest example answer for any.

        Args:
            attack: name of an attack.
            epsilon: radius; left out, the largest asked for, or any distance for an attack
                whose norm has no epsilons.
            threat_model: ``"white-box"``, ``"adaptive"`` or ``"black-box"``.
            norm: norm of epsilon; default that of the attack if it has epsilons or epsilon
                is left out, else that of the headline.
            model: name; may be left out if there is one.
            source: name of the source model of transferred examples.

        Returns:
            A share in [0, 1].

        Raises:
            ValueError: for a name that is not in the report, or an epsilon at which an attack in
                a ball was not run.

        Example: see `evaluate_robustness`.
        """
        robust = self.robust_images(
            attack, epsilon, threat_model, norm=norm, model=model, source=source
        )
        return float(robust.mean())

    def robust_images(
        self,
        attack: str | None = None,
        epsilon: float | None = None,
        threat_model: str | None = None,
        *,
        norm: str | None = None,
        model: str | None = None,
        source: str | None = None,
    ) -> np.ndarray:
        """Which images are classified correctly and not broken by any attack.

        Args:
            attack: this and the others as in `robust_accuracy`.
            epsilon: also infinity, for any distance.
            threat_model: name of a threat model.
            norm: norm of epsilon.
            model: name.
            source: name of the source model.

        Returns:
            ``(n,)`` of bool, in the order of the images.

        Raises:
            ValueError: as `robust_accuracy`.

        Example: ``np.flatnonzero(~report.robust_images("pgd", 0.3))``
        """
        model = self._model(model)
        norm, epsilon = self._radius(attack, norm, epsilon)
        chosen = self._chosen(model, attack, threat_model, source)
        self._check_measured(chosen, norm, epsilon)
        return self._robust(model, chosen, norm, epsilon)

    def certified_accuracy(
        self, epsilon: float | None = None, *, norm: str | None = None, model: str | None = None
    ) -> float | None:
        """The share of images that are proved to be robust; None if no proof was tried there.

        Args:
            epsilon: radius; left out, the largest asked for.
            norm: norm of epsilon; default that of the headline.
            model: name; may be left out if there is one.

        Raises:
            ValueError: for a name that is not in the report.
        """
        model = self._model(model)
        norm, epsilon = self._radius(None, norm, epsilon)
        proved = self._proved(model, norm, epsilon)
        return None if proved is None else float(proved.mean())

    def add_certificates(self, certificates: Sequence[Certificate]) -> None:
        """Add what was proved apart from the evaluation, such as by `certify_robustness`.

        Args:
            certificates: of models of the report, for the same images.

        Raises:
            ValueError: if an image is both proved and broken, which names it; the report then stays
                as it was.
        """
        before = self.certificates
        self.certificates = [*before, *certificates]
        try:
            self._check_certificates()
        except ValueError:
            self.certificates = before
            raise

    def bracket(
        self, epsilon: float | None = None, *, norm: str | None = None, model: str | None = None
    ) -> Bracket | None:
        """Between which shares robust accuracy lies: what is proved, and what no attack broke.

        Args:
            epsilon: radius; left out, the largest asked for.
            norm: norm of epsilon; default that of the headline.
            model: name; may be left out if there is one.

        Returns:
            A pair ``(proved, attacked)`` of `Share`; equal where the answer is exact. None if no
            proof was tried within this radius or a larger one.

        Raises:
            ValueError: for a name that is not in the report.

        Example: ``proved, attacked = report.bracket(epsilon=0.3)``
        """
        model = self._model(model)
        norm, epsilon = self._radius(None, norm, epsilon)
        proved = self._proved(model, norm, epsilon)
        if proved is None:
            return None
        chosen = [result for result in self.results if result.model == model]
        attacked = self._robust(model, chosen, norm, epsilon)
        return Bracket(Share.of(proved), Share.of(attacked))

    def images(
        self, epsilon: float | None = None, *, norm: str | None = None, model: str | None = None
    ) -> list[ImageState]:
        """What is known of each image: proved, broken (by what), or open.

        Args:
            epsilon: radius; left out, the largest asked for.
            norm: norm of epsilon; default that of the headline.
            model: name; may be left out if there is one.

        Returns:
            One `ImageState` for each image, in the order of the data. An image that is
            misclassified when clean is broken at distance 0. Of several attacks it is that with
            the closest example.

        Raises:
            ValueError: as `robust_accuracy`.

        Example:

        >>> from keras_qusec import evaluate_robustness
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.eye(2, dtype="float32")])
        >>> x, y = np.array([[0.9, 0.2], [0.4, 0.7]], "float32"), np.array([0, 1])
        >>> report = evaluate_robustness(model, x, y, attacks=["fgsm"], epsilons=[0.2])
        >>> [(image.number, image.state, image.attack) for image in report.images(0.2)]
        [(0, 'open', ''), (1, 'broken', 'fgsm')]
        """
        model = self._model(model)
        norm, epsilon = self._radius(None, norm, epsilon)
        chosen = [result for result in self.results if result.model == model]
        self._check_measured(chosen, norm, epsilon)
        certificates = self._certificates(model, norm)
        robust = self._robust(model, chosen, norm, epsilon)
        states = []
        for number, correct in enumerate(self.correct[model]):
            if not correct:
                states.append(ImageState(number, BROKEN, 0.0))
            elif not robust[number]:
                closest = min(chosen, key=lambda r: float(r.distances[norm][number]))
                distance, origin = float(closest.distances[norm][number]), closest.source or ""
                by = (closest.attack, closest.threat_model, origin)
                states.append(ImageState(number, BROKEN, distance, *by))
            else:
                states.append(_state_by_proof(number, certificates, epsilon))
        labels, classes, names = (
            self.provenance.get(key, ()) for key in ("labels", "class names", "image names")
        )
        for number, label in enumerate(labels):
            states[number] = states[number]._replace(
                label=label,
                class_name=classes[label] if label < len(classes) else "",
                name=names[number] if number < len(names) else "",
            )
        return states

    def by_class(
        self, epsilon: float | None = None, *, norm: str | None = None, model: str | None = None
    ) -> list[ClassAccuracy]:
        """Accuracies of each class that the images have.

        Args:
            epsilon: radius; left out, the largest asked for.
            norm: norm of epsilon; default that of the headline.
            model: name; may be left out if there is one.

        Raises:
            ValueError: as `robust_accuracy`, and for a report of an older version, without labels.

        Example: ``min(report.by_class(), key=lambda one: one.robust)``
        """
        states = self.images(epsilon, norm=norm, model=model)
        if any(state.label is None for state in states):
            raise ValueError(
                "Expected a report with labels. Received: one that an older version saved. "
                "Evaluate again."
            )
        correct = self.correct[self._model(model)]
        accuracies = []
        for label in sorted({int(state.label or 0) for state in states}):
            own = [state for state in states if state.label == label]
            accuracies.append(
                ClassAccuracy(
                    label=label,
                    name=own[0].class_name,
                    images=len(own),
                    clean=float(np.mean([correct[state.number] for state in own])),
                    robust=float(np.mean([state.state != BROKEN for state in own])),
                )
            )
        return accuracies

    def examples(
        self, epsilon: float | None = None, *, norm: str | None = None, model: str | None = None
    ) -> Examples:
        """The closest verified adversarial example of each image that is broken within epsilon.

        Args:
            epsilon: radius; left out, the largest asked for; infinity for any distance.
            norm: norm of epsilon; default that of the headline.
            model: name; may be left out if there is one.

        Returns:
            `Examples`: arrays with a row for each example. Images that are misclassified when
            clean have none.

        Raises:
            ValueError: as `robust_accuracy`, and for a report that kept none.

        Example: ``found = report.examples(8 / 255); clean = x[found.numbers]``
        """
        model = self._model(model)
        norm, epsilon = self._radius(None, norm, epsilon)
        if norm not in self.kept.get(model, {}):
            raise ValueError(
                f"Expected a report that kept its adversarial examples in {norm}. Received: one "
                f"that kept {', '.join(self.kept.get(model, {})) or 'none'} of {model!r}. Evaluate "
                "again with keep_examples=True and epsilons in that norm."
            )
        if epsilon is None or math.isfinite(epsilon):
            own = [result for result in self.results if result.model == model]
            self._check_measured(own, norm, epsilon)
        kept = self.kept[model][norm]
        inside = np.ones(len(kept.numbers), bool)
        if epsilon is not None:
            inside = within(kept.distances, epsilon)
        return kept.take(np.flatnonzero(inside))

    @property
    def rows(self) -> list[Measurement]:
        """Every measurement: each attack at each epsilon of its norm, then the worst cases.

        An attack whose norm has no epsilons has one row, at any distance.
        """
        rows = []
        for model in self.models:
            if model not in self.attacked:
                continue  # no number is better than its clean accuracy
            for result in self._chosen(model, None, None, None):
                norm = self.norms[result.attack]
                for epsilon in self.epsilons.get(norm, (None,)):
                    rows.append(self._row(model, [result], norm, epsilon))
            for norm, radii in self.epsilons.items():
                for epsilon in radii:
                    rows.append(self._row(model, None, norm, epsilon))
        return rows

    def transfer_matrix(
        self, attack: str | None = None, epsilon: float | None = None
    ) -> dict[str, dict[str, float]]:
        """Robust accuracy of each model under examples made on each source.

        Where source and model are the same, it is that of the attacks made on the model itself.

        Args:
            attack: name of an attack; left out, the worst case.
            epsilon: radius; left out, the largest.

        Returns:
            ``{source: {model: share}}``; empty without transferred examples.
        """
        identity = self.provenance["identity"]
        norm, epsilon = self._radius(attack, None, epsilon)
        matrix: dict[str, dict[str, float]] = {}
        for source, digest in identity["sources"].items():
            line = matrix.setdefault(source, {})
            for model in self.models:
                own = digest == identity["models"][model]
                chosen = [
                    result
                    for result in self.results
                    if result.model == model
                    and attack in (None, result.attack)
                    and result.source == (None if own else source)
                ]
                if chosen:
                    self._check_measured(chosen, norm, epsilon)
                    line[model] = float(self._robust(model, chosen, norm, epsilon).mean())
        return matrix

    def worst_case(self, model: str, norm: str, epsilon: float | None) -> Measurement:
        """The measurement over all attacks and threat models at one epsilon."""
        near = None if epsilon is None else self._asked(norm, epsilon)
        return self._row(self._model(model), None, norm, near)

    def _certificates(self, model: str, norm: str) -> list[Certificate]:
        return [c for c in self.certificates if (c.model, c.norm) == (model, norm)]

    def _proved(self, model: str, norm: str, epsilon: float | None) -> np.ndarray | None:
        """Which images are proved within a radius or a larger one; None if nobody tried."""
        covering = [c for c in self._certificates(model, norm) if _covers(c, epsilon)]
        if not covering:
            return None
        return np.any([certificate.states == PROVED for certificate in covering], axis=0)

    def _check_certificates(self) -> None:
        """Raise a ValueError for certificates that do not fit, or an image proved and broken."""
        for certificate in self.certificates:
            name, states = certificate.model, certificate.states
            count = len(self.correct[self._model(name)])
            known = set(np.unique(states).tolist()) <= {PROVED, BROKEN, OPEN}
            if states.shape != (count,) or certificate.seconds.shape != (count,) or not known:
                raise ValueError(
                    f"Expected a certificate with {PROVED!r}, {BROKEN!r} or {OPEN!r} and seconds "
                    f"for each of {count} images of {name!r}. Received: states of shape "
                    f"{states.shape} ({', '.join(map(str, np.unique(states)[:5]))}) and seconds "
                    f"of shape {certificate.seconds.shape}."
                )
            proved = states == PROVED
            _refuse(certificate, proved & ~self.correct[name], "misclassified when clean")
            for result in self.results:
                if result.model == name and certificate.norm in result.distances:
                    broken = self._broken([result], certificate.norm, certificate.epsilon)[0]
                    what = f"broken by {result.attack!r} ({result.threat_model})"
                    _refuse(certificate, proved & broken, what)
            for other in self._certificates(name, certificate.norm):
                if within(other.epsilon, certificate.epsilon):
                    what = f"broken by {other.method!r} at {radius_text(other.epsilon)}"
                    _refuse(certificate, proved & (other.states == BROKEN), what)

    def _model(self, model: str | None) -> str:
        if model is None and len(self.correct) == 1:
            return next(iter(self.correct))
        return _known(model, "model", self.models)

    def _radius(
        self, attack: str | None, norm: str | None, epsilon: float | None
    ) -> tuple[str, float | None]:
        if attack is not None:
            _known(attack, "attack", self.attacks)
        if norm is None:
            own = self.norms[attack] if attack is not None else self.main_norm
            norm = own if own in self.epsilons or epsilon is None else self.main_norm
        _known(norm, "norm", self.measured_norms)
        if epsilon is None and norm in self.epsilons:
            epsilon = self.epsilons[norm][-1]
        if epsilon is not None and not epsilon >= 0:
            raise ValueError(f"Expected epsilon to be 0 or more. Received: {epsilon!r}.")
        return norm, None if epsilon is None else self._asked(norm, epsilon)

    def _asked(self, norm: str, epsilon: float) -> float:
        """The epsilon of the evaluation that is the same but for rounding, such as to float32."""
        near = [r for r in self.epsilons.get(norm, ()) if math.isclose(epsilon, r, rel_tol=1e-6)]
        return near[0] if near else float(epsilon)

    def _chosen(
        self, model: str, attack: str | None, threat_model: str | None, source: str | None
    ) -> list[Result]:
        if threat_model is not None:
            _known(threat_model, "threat_model", self.threat_models)
        chosen = [
            result
            for result in self.results
            if result.model == model
            and attack in (None, result.attack)
            and threat_model in (None, result.threat_model)
            and source in (None, result.source)
        ]
        if not chosen:
            raise ValueError(
                f"Expected what was measured. Received: attack={attack!r}, "
                f"threat_model={threat_model!r}, source={source!r} for {model!r}, which were "
                "not run together. See report.rows for what was."
            )
        return chosen

    def _check_measured(self, results: Sequence[Result], norm: str, epsilon: float | None) -> None:
        """Raise a ValueError if an attack in a ball of this norm was not run at epsilon."""
        asked = self.epsilons.get(norm, ())
        if epsilon is None or not asked or epsilon in asked:
            return
        names = {r.attack for r in results if self.norms[r.attack] == norm and r.radii != (None,)}
        if names:
            raise ValueError(
                f"Expected an epsilon at which {', '.join(sorted(names))} ran: "
                f"{', '.join(map(radius_text, asked))} in {norm}. Received: "
                f"epsilon={radius_text(epsilon)}, of which nothing is known. Evaluate again with "
                "it among epsilons, or name an attack that looks for the closest example."
            )

    def _broken(self, results: Sequence[Result], norm: str, epsilon: float | None) -> np.ndarray:
        """Which of the images each result breaks, ``(results, images)``."""
        distances = np.stack([result.distances[norm] for result in results])
        # The distance of an image without an example is infinite, and within no epsilon.
        found = np.isfinite(distances)
        return found if epsilon is None else found & within(distances, epsilon)

    def _robust(
        self, model: str, results: Sequence[Result], norm: str, epsilon: float | None
    ) -> np.ndarray:
        if not results:
            return self.correct[model]
        return self.correct[model] & ~self._broken(results, norm, epsilon).any(axis=0)

    def _row(
        self, model: str, results: Sequence[Result] | None, norm: str, epsilon: float | None
    ) -> Measurement:
        """The measurement of some results, or of all of a model's as the worst case."""
        is_worst_case = results is None
        chosen = self._chosen(model, None, None, None) if results is None else results
        robust = self._robust(model, chosen, norm, epsilon)
        low, high = wilson_interval(int(robust.sum()), len(robust))
        sizes = _sizes(chosen, self._broken(chosen, norm, epsilon), norm)
        cost = [_cost(result, None if is_worst_case else norm, epsilon, self.norms)
                for result in chosen]  # fmt: skip
        gradients, queries, seconds = np.sum(cost, axis=0)
        return Measurement(
            model=model,
            threat_model="all" if is_worst_case else chosen[0].threat_model,
            attack=WORST_CASE if is_worst_case else chosen[0].attack,
            source=None if is_worst_case else chosen[0].source,
            norm=norm,
            epsilon=epsilon,
            robust_accuracy=float(robust.mean()),
            low=low,
            high=high,
            images=len(robust),
            median={name: _summary(np.median, size) for name, size in sizes.items()},
            mean={name: _summary(np.mean, size) for name, size in sizes.items()},
            gradients=float(gradients / len(robust)),
            queries=float(queries / len(robust)),
            seconds=float(seconds),
            proved=self.certified_accuracy(epsilon, norm=norm, model=model)
            if is_worst_case and epsilon is not None
            else None,
        )


def _covers(certificate: Certificate, epsilon: float | None) -> bool:
    """Whether what a certificate proves holds within a radius, too."""
    return epsilon is not None and bool(within(epsilon, certificate.epsilon))


def _state_by_proof(
    number: int, certificates: Sequence[Certificate], epsilon: float | None
) -> ImageState:
    """What is known of an image that no attack broke."""
    for certificate in certificates:
        nearer = epsilon is None or within(certificate.epsilon, epsilon)
        if nearer and certificate.states[number] == BROKEN:
            return ImageState(number, BROKEN, certificate.epsilon, certificate.method)
        if _covers(certificate, epsilon) and certificate.states[number] == PROVED:
            return ImageState(number, PROVED, math.inf, certificate.method)
    return ImageState(number, OPEN, math.inf)


def _refuse(certificate: Certificate, images: np.ndarray, what: str) -> None:
    """Raise a ValueError if there are images that contradict a proof."""
    if images.any():
        number = int(np.flatnonzero(images)[0])
        radius = f"{certificate.norm} {radius_text(certificate.epsilon)}"
        raise ValueError(
            f"Expected proofs and attacks that agree. Received: image {number} of "
            f"{certificate.model!r}, proved within {radius} by {certificate.method!r} and {what} "
            f"({int(images.sum())} such images). One of the two is wrong, so no figure is given. "
            "Please report the model and the image to the developers."
        )


def _sizes(results: Sequence[Result], broken: np.ndarray, norm: str) -> dict[str, np.ndarray]:
    """By norm, the sizes of the closest examples of the broken images."""
    columns = np.flatnonzero(broken.any(axis=0))
    distances = {
        name: np.stack([result.distances[name] for result in results])
        for name in results[0].distances
    }
    nearest = np.where(broken, distances[norm], np.inf).argmin(axis=0)
    return {
        name: values[nearest[columns], columns].astype("float64")
        for name, values in distances.items()
    }


def _summary(function: Any, sizes: np.ndarray) -> float | None:
    return float(function(sizes)) if len(sizes) else None


def _cost(
    result: Result, norm: str | None, epsilon: float | None, norms: Mapping[str, str]
) -> tuple[float, float, float]:
    """Gradients, queries and seconds of a result, up to an epsilon of its own norm."""
    used = [
        epsilon is None or norm != norms[result.attack] or radius is None or radius <= epsilon
        for radius in result.radii
    ]
    return (
        float(result.gradients[used].sum()),
        float(result.queries[used].sum()),
        float(result.seconds[used].sum()),
    )


def _known(value: str | None, name: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(
            f"Expected {name} to be one of {', '.join(map(repr, known))}. Received: {value!r}."
            f"{closest(value, known)}"
        )
    return str(value)


def _unique(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
