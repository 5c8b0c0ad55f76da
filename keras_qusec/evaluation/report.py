"""What an evaluation found: figures for any question, and ways to read and keep them."""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_qusec.evaluation.norms import NORMS, within

if TYPE_CHECKING:
    import pandas

    from keras_qusec.evaluation.gallery import Example

FORMAT = "keras-qusec robustness report"
FORMAT_VERSION = 1


class Result(NamedTuple):
    """One attack on one model under one threat model.

    Attributes:
        model: name of the attacked model.
        source: name of the model the examples were made on, or None for the same.
        threat_model: ``"white-box"``, ``"adaptive"`` or ``"black-box"``.
        attack: name of the attack.
        radii: at which the attack was run; ``(None,)``: as close as it could.
        distances: L0 (pixels), L2 and L-infinity of each image's adversarial example,
            ``(images, 3)``; infinite where none was found.
        gradients: images passed backward at each radius.
        queries: images passed forward at each radius.
        seconds: time at each radius.
        examples: some adversarial images, by the image's index.
    """

    model: str
    source: str | None
    threat_model: str
    attack: str
    radii: tuple[float | None, ...]
    distances: np.ndarray
    gradients: np.ndarray
    queries: np.ndarray
    seconds: np.ndarray
    examples: dict[int, np.ndarray]


class Row(NamedTuple):
    """One figure of the report.

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
        median_l0: median size of the perturbation over the broken images, in pixels.
        median_l2: the same in L2.
        median_linf: the same in L-infinity.
        mean_l0: mean size of the perturbation over the broken images, in pixels.
        mean_l2: the same in L2.
        mean_linf: the same in L-infinity.
        gradients: images passed backward, per image of the data, up to this epsilon.
        queries: images passed forward, per image of the data, up to this epsilon.
        seconds: time for all images, up to this epsilon.
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
    median_l0: float | None
    median_l2: float | None
    median_linf: float | None
    mean_l0: float | None
    mean_l2: float | None
    mean_linf: float | None
    gradients: float
    queries: float
    seconds: float

    @property
    def label(self) -> str:
        """Threat model, attack and source in words; of all attacks ``"worst case"``."""
        if self.attack == "worst case":
            return self.attack
        origin = f" from {self.source}" if self.source is not None else ""
        return f"{self.threat_model} {self.attack}{origin}"


class RobustnessReport:
    """Robust accuracies of classifiers, worst case first.

    Made by `evaluate_robustness`; all figures are computed from the distance of each image's
    adversarial example, so any question can be asked afterwards.

    Args:
        correct: by model, which images it classifies correctly when clean.
        results: what each attack found.
        epsilons: radii asked for, by norm.
        norms: norm of each attack.
        provenance: what the figures were made from.
        failures: attacks that could not be run.
        notes: what a reader must know.
        gallery: broken images.
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
    ) -> None:
        self.correct = {name: np.asarray(rows, bool) for name, rows in correct.items()}
        self.results = list(results)
        self.epsilons = {norm: tuple(radii) for norm, radii in epsilons.items()}
        self.norms = dict(norms)
        self.provenance = dict(provenance)
        self.failures = [dict(failure) for failure in failures]
        self.notes = list(notes)
        self.gallery = list(gallery)

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
        epsilon, whichever norm its attack minimizes. Attacks in a ball were run at the
        epsilons asked for; between two of them and beyond the last, the figure counts what they
        found there, and another run would find more.

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
            ValueError: for a name that is not in the report.

        Example: see `evaluate_robustness`.
        """
        model = self._model(model)
        norm, epsilon = self._radius(attack, norm, epsilon)
        chosen = self._chosen(model, attack, threat_model, source)
        return float(self._robust(model, chosen, norm, epsilon).mean())

    @property
    def rows(self) -> list[Row]:
        """Every figure: each attack at each epsilon of its norm, then the worst cases.

        An attack whose norm has no epsilons has one row, at any distance.
        """
        rows = []
        for model in self.models:
            if model not in self.attacked:
                continue  # no figure is better than its clean accuracy
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

        Where source and model are the same, it is that of the white-box and adaptive threat
        models, if they ran.

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
                    and (result.threat_model != "black-box" if own else result.source == source)
                ]
                if chosen:
                    line[model] = float(self._robust(model, chosen, norm, epsilon).mean())
        return matrix

    def __str__(self) -> str:
        from keras_qusec.evaluation.text import plain_text

        return plain_text(self)

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        from keras_qusec.evaluation.text import markdown

        return markdown(self)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "A data frame needs pandas. Install it with: pip install pandas"
            ) from error
        return pandas.DataFrame(self.rows, columns=Row._fields)

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw accuracy against epsilon: one panel a model, one line an attack.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        from keras_qusec import plots

        return plots.robustness_curves(self, path)

    def plot_gallery(self, path: str | os.PathLike) -> Path:
        """Draw broken images: clean, adversarial, difference, both behind the quantizer.

        Args:
            path: image file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
            ValueError: if no image was broken.
        """
        from keras_qusec import plots

        return plots.adversarial_gallery(self.gallery, path, self.value_range)

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one page with all of it, which needs no other file and no network.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.

        Raises:
            ImportError: without matplotlib.
        """
        from keras_qusec.evaluation.page import html_page

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html_page(self), encoding="utf-8")
        return path

    def to_dict(self) -> dict[str, Any]:
        """All of the report as JSON values; arrays are compressed text.

        ``["rows"]`` repeats the figures for readers without this package.
        """
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "rows": [row._asdict() for row in self.rows],
            "notes": self.notes,
            "failures": self.failures,
            "provenance": self.provenance,
            "epsilons": {norm: list(radii) for norm, radii in self.epsilons.items()},
            "norms": self.norms,
            "correct": {name: _packed(rows) for name, rows in self.correct.items()},
            "results": [
                {
                    **result._asdict(),
                    "radii": list(result.radii),
                    "distances": _packed(result.distances),
                    "gradients": result.gradients.tolist(),
                    "queries": result.queries.tolist(),
                    "seconds": result.seconds.tolist(),
                    "examples": {str(k): _packed(v) for k, v in result.examples.items()},
                }
                for result in self.results
            ],
            "gallery": [
                {**example._asdict(), "images": _packed(example.images)} for example in self.gallery
            ],
        }

    @classmethod
    def from_dict(cls, content: Any) -> RobustnessReport:
        """A report from what `to_dict` returned.

        Raises:
            ValueError: for anything else.
        """
        from keras_qusec.evaluation.gallery import Example

        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(
                "Expected a report saved by RobustnessReport.save. Received: another kind of "
                "content. Check the path."
            )
        if content.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"Expected a report of version {FORMAT_VERSION}. Received: version "
                f"{content.get('version')!r}, written by another keras-qusec. Use that one."
            )
        try:
            return cls(
                correct={name: _unpacked(rows) for name, rows in content["correct"].items()},
                results=[
                    Result(
                        **{
                            **result,
                            "radii": tuple(result["radii"]),
                            "distances": _unpacked(result["distances"]),
                            "gradients": np.array(result["gradients"]),
                            "queries": np.array(result["queries"]),
                            "seconds": np.array(result["seconds"]),
                            "examples": {
                                int(k): _unpacked(v) for k, v in result["examples"].items()
                            },
                        }
                    )
                    for result in content["results"]
                ],
                epsilons=content["epsilons"],
                norms=content["norms"],
                provenance=content["provenance"],
                failures=content["failures"],
                notes=content["notes"],
                gallery=[
                    Example(
                        **{
                            **example,
                            "distances": tuple(example["distances"]),
                            "images": _unpacked(example["images"]),
                        }
                    )
                    for example in content["gallery"]
                ],
            )
        except (KeyError, TypeError, AttributeError, ValueError, zlib.error, EOFError) as error:
            raise ValueError(
                f"Expected a whole report. Received: one with damaged or missing parts ({error}). "
                "Save it again."
            ) from error

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, to be read again by `load`.

        Args:
            path: file to write; its folder is created.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> RobustnessReport:
        """Read a report written by `save`.

        Raises:
            ValueError: for a file that is missing, damaged or of another kind.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected a report saved by RobustnessReport.save. Received: {path} ({error}). "
                "Check the path."
            ) from error
        return cls.from_dict(content)

    def worst_case(self, model: str, norm: str, epsilon: float | None) -> Row:
        """The figure over all attacks and threat models at one epsilon."""
        return self._row(self._model(model), None, norm, epsilon)

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
        _known(norm, "norm", NORMS)
        if epsilon is None and norm in self.epsilons:
            epsilon = self.epsilons[norm][-1]
        if epsilon is not None and not epsilon >= 0:
            raise ValueError(f"Expected epsilon to be 0 or more. Received: {epsilon!r}.")
        return norm, epsilon

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
                f"Expected figures that were measured. Received: attack={attack!r}, "
                f"threat_model={threat_model!r}, source={source!r} for {model!r}, which were "
                "not run together. See report.rows for what was."
            )
        return chosen

    def _broken(self, results: Sequence[Result], norm: str, epsilon: float | None) -> np.ndarray:
        """Which of the images each result breaks, ``(results, images)``."""
        order = NORMS.index(norm)
        distances = np.stack([result.distances[:, order] for result in results])
        return np.isfinite(distances) if epsilon is None else within(distances, epsilon)

    def _robust(
        self, model: str, results: Sequence[Result], norm: str, epsilon: float | None
    ) -> np.ndarray:
        if not results:
            return self.correct[model]
        return self.correct[model] & ~self._broken(results, norm, epsilon).any(axis=0)

    def _row(
        self, model: str, results: Sequence[Result] | None, norm: str, epsilon: float | None
    ) -> Row:
        """A figure of some results, or of all of a model's as the worst case."""
        every = results is None
        chosen = self._chosen(model, None, None, None) if results is None else results
        robust = self._robust(model, chosen, norm, epsilon)
        low, high = wilson_interval(int(robust.sum()), len(robust))
        sizes = _sizes(chosen, self._broken(chosen, norm, epsilon), norm)
        cost = [_cost(result, norm if not every else None, epsilon, self.norms)
                for result in chosen]  # fmt: skip
        gradients, queries, seconds = np.sum(cost, axis=0)
        return Row(
            model=model,
            threat_model="all" if every else chosen[0].threat_model,
            attack="worst case" if every else chosen[0].attack,
            source=None if every else chosen[0].source,
            norm=norm,
            epsilon=epsilon,
            robust_accuracy=float(robust.mean()),
            low=low,
            high=high,
            images=len(robust),
            **sizes,
            gradients=float(gradients / len(robust)),
            queries=float(queries / len(robust)),
            seconds=float(seconds),
        )


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, by default at 95 %.

    Example:

    >>> [round(end, 3) for end in wilson_interval(5, 10)]
    [0.237, 0.763]
    """
    share = successes / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding may put an end a hair inside the share itself.
    return min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half)))


def _sizes(results: Sequence[Result], broken: np.ndarray, norm: str) -> dict[str, float | None]:
    """Median and mean sizes of the closest examples of the broken images, in three norms."""
    names = [f"{kind}_{name}" for kind in ("median", "mean") for name in NORMS]
    if not results or not broken.any():
        return dict.fromkeys(names)
    distances = np.stack([result.distances for result in results])
    order = NORMS.index(norm)
    closest = np.where(broken, distances[:, :, order], np.inf).argmin(axis=0)
    columns = np.flatnonzero(broken.any(axis=0))
    sizes = distances[closest[columns], columns].astype("float64")
    figures = [*np.median(sizes, axis=0).tolist(), *sizes.mean(axis=0).tolist()]
    return dict(zip(names, figures, strict=True))


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
        )
    return str(value)


def _unique(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _packed(array: np.ndarray) -> str:
    """An array as text: the .npy format, compressed, in base 64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
