"""certify_robustness: which images no attack can break within epsilon, proved one by one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_qusec import checks
from keras_qusec.attacks import AttackedModel, Goal
from keras_qusec.backends import with_gradients
from keras_qusec.certification.box import Box, reachable_box
from keras_qusec.certification.graph import pieces_between
from keras_qusec.certification.network import Bounds, Network
from keras_qusec.certification.proof import RobustnessProof
from keras_qusec.certification.reduced import Reduced
from keras_qusec.certification.reduction import reduced_and_bounds
from keras_qusec.certification.search import Found, search
from keras_qusec.datasets import images_and_labels, spread_rows
from keras_qusec.expected_inputs import images_of, range_of
from keras_qusec.logits import check_classes_told, check_logits, check_one_of_each
from keras_qusec.progress import Progress, shown
from keras_qusec.results import BROKEN, OPEN, PROVED, Certificate
from keras_qusec.stored_images import StoredImages, on_parts
from keras_qusec.tasks import check_classifier
from keras_qusec.verify import verified

Array = np.ndarray

# Margins for float32 are made larger by this factor for what float64 rounds, 5e8 times less.
_FLOAT64 = 1 + 1e-3
# Seconds that the search has for one image; "bounds" has none.
EFFORTS = {"bounds": 0.0, "standard": 1.0, "exact": 60.0}
# Values of a network, over all of its nodes and a batch, whose bounds are computed together.
_VALUES_AT_A_TIME = 4_000_000


@with_gradients
def certify_robustness(
    model: keras.Model | AttackedModel,
    x: Any,
    y: Any = None,
    *,
    epsilons: Sequence[float] = (0.1, 0.2, 0.3),
    effort: str = "standard",
    time_limit: float | None = None,
    value_range: tuple[float, float] | None = None,
    outputs: str | None = None,
    data_format: str | None = None,
    progress: bool | Progress | None = None,
) -> RobustnessProof:
    """Prove image by image that no attack can break it within epsilon, or find the attack.

    An image is *proved* if every image within L-infinity epsilon that
    `keras_qusec.evaluate_robustness` would accept is classified correctly, whatever found it;
    *broken* if it is misclassified when clean, or if an adversarial example was found and
    verified; else *open*. Behind a hard quantizer the images of a ball have finitely many faces, so
    a search that ends knows the answer. First come bounds by intervals, then linear bounds
    (CROWN), then branch and bound over the levels of the pixels that can move.

    A proof is one of the network as float32 computes it, in any batch size and order of summation,
    on any of the backends: bounds are computed in float64 and must leave a margin for all that
    float32 may round. It is none for lower precision, such as TensorFloat-32, or for convolutions
    that do not sum products, such as Winograd's.

    Args:
        model: built functional or sequential classifier, images to logits or probabilities.
        x: float images in `value_range`, ``(n, ...)``; or images and labels in one, as
            `evaluate_robustness` takes them.
        y: true classes, integers ``(n,)`` or ``(n, 1)``, or one-hot; None if `x` has them.
        epsilons: radii in L-infinity, in units of the pixel values.
        effort: ``"bounds"``: bounds alone; ``"standard"``: and a search of a second an image at
            most; ``"exact"``: of a minute.
        time_limit: seconds of the search for one image and epsilon, in place of those of `effort`.
        value_range: smallest and largest pixel value; default what the model's first layers say,
            such as (0, 255), else (0, 1).
        outputs: ``"logits"`` or ``"probabilities"``, for models whose graph does not say.
        data_format: ``"channels_last"`` or ``"channels_first"``, for models none of whose layers
            says where the images have their channels.
        progress: True or False to show a progress bar on the terminal, or a function called with
            a text and the share done.

    Returns:
        `RobustnessProof`.

    Raises:
        ValueError: for unusable arguments, a model without a graph, or a layer without a rule.
        ImportError: without SciPy, which comes with ``keras-qusec[evaluate]``.

    Source: Zhang et al. 2018 (CROWN); Bunel et al. 2020 (branch and bound).

    Example:

    >>> from keras_qusec import QuSecQuantization, certify_robustness
    >>> model = keras.Sequential([keras.Input((2,)), QuSecQuantization(2, hard=True),
    ...                           keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array(50.0), np.array([[1, 0], [0, 1]], "float32")])
    >>> x, y = np.array([[0.9, 0.2], [0.4, 0.7]], "float32"), np.array([0, 1])
    >>> proof = certify_robustness(model, x, y, epsilons=[0.05, 0.2])
    >>> proof.status(epsilon=0.05).tolist(), proof.status(epsilon=0.2).tolist()
    (['proved', 'proved'], ['proved', 'broken'])
    """
    checks.one_of(effort, "effort", tuple(EFFORTS))
    seconds = EFFORTS[effort]
    if time_limit is not None:
        seconds = checks.number(time_limit, "time_limit", least=0)
    if not isinstance(model, AttackedModel):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"Expected a Keras model, whose layers have bounds. Received: {model!r}. Load a "
                "file with keras.saving.load_model(path)."
            )
        check_one_of_each(model)
        check_classifier(model, model.name)
        x, y = images_and_labels(x, y)
        attacked = AttackedModel(
            model, range_of(value_range, {model.name: model}, x), outputs=outputs,
            data_format=data_format or "channels_last",
        )  # fmt: skip
    else:
        attacked = model
    pixels = attacked.value_range
    listed = [epsilons] if checks.is_number(epsilons) else list(epsilons)
    radii = tuple(sorted({checks.number(e, "epsilons", least=0) for e in listed}))
    if not radii:
        raise ValueError("Expected at least one epsilon. Received: none. Example: epsilons=[0.1]")
    checks.epsilon_inside(radii[-1], pixels)
    images = images_of(x, pixels, [(attacked.model.name, attacked.model)])
    few = images[spread_rows(len(images), 8)]
    logits = attacked.logits(few)
    check_logits(logits, attacked.model.name)
    check_classes_told(logits, attacked.outputs(few), attacked.model.name)
    labels = checks.class_labels(y, len(images), classes=logits.shape[1], name="y")
    with shown(progress, "proofs") as tell:
        return proof_of(attacked, images, labels, radii, seconds, effort, tell)


def proof_of(
    model: AttackedModel,
    x: Array | StoredImages,
    labels: Array,
    radii: Sequence[float],
    seconds: float,
    effort: str,
    tell: Callable[[str, float], None],
) -> RobustnessProof:
    """What `certify_robustness` finds of checked images.

    Args:
        model: the classifier.
        x: images with channels last, float32.
        labels: true classes ``(n,)``.
        radii: in L-infinity, in rising order.
        seconds: of the search for one image and radius.
        effort: the name of it.
        tell: told what is proved, and the share done.
    """
    prover = Prover(model, x)
    correct = on_parts(model.predictions, x) == labels
    found = {radius: _Decisions.of(correct) for radius in radii}
    rounds, done = 2 * len(radii), 0
    # From the largest: what is proved there is proved within every smaller radius.
    for place, radius in enumerate(reversed(radii)):
        if place:
            found[radius].take_proofs(found[radii[-place]])
        prover.prove_by_intervals(x, labels, radius, found[radius])
        done += 1
        tell(f"intervals at {radius:g}", done / rounds)
    # From the smallest: what is broken there is broken within every larger radius.
    for place, radius in enumerate(radii):
        if place:
            found[radius].take_examples(found[radii[place - 1]])
        start = done

        def say(share: float, start: int = start, radius: float = radius) -> None:
            tell(f"search at {radius:g}", (start + share) / rounds)

        prover.search(x, labels, radius, found[radius], seconds, say)
        done += 1
    for place, radius in enumerate(radii[:-1]):
        for larger in radii[place + 1 :]:
            found[radius].take_proofs(found[larger])
    return RobustnessProof(
        model=model.name,
        correct=correct,
        certificates=[found[r].certificate(model.name, r, effort) for r in radii],
        examples={r: found[r].examples for r in radii},
        how={r: found[r].how for r in radii},
        image_shape=x.shape[1:],
        details={
            "images": len(x),
            "effort": effort,
            "seconds of search": seconds,
            "quantizer": prover.quantizer,
            "backend": keras.backend.backend(),
        },
    )


@dataclasses.dataclass
class _Decisions:
    """What is known of each image within one radius, as it is found out."""

    states: Array
    how: Array
    seconds: Array
    examples: dict[int, Array]
    margin: float = 0.0

    @classmethod
    def of(cls, correct: Array) -> _Decisions:
        count = len(correct)
        return cls(
            np.where(correct, OPEN, BROKEN).astype("U6"), np.where(correct, "", "clean")
            .astype("U9"), np.zeros(count), {},
        )  # fmt: skip

    @property
    def open(self) -> Array:
        """Images that are not decided."""
        return np.flatnonzero(self.states == OPEN)

    def take_proofs(self, larger: _Decisions) -> None:
        rows = (self.states == OPEN) & (larger.states == PROVED)
        self.states[rows], self.how[rows] = PROVED, larger.how[rows]
        self.margin = max(self.margin, larger.margin)

    def take_examples(self, smaller: _Decisions) -> None:
        rows = (self.states == OPEN) & (smaller.states == BROKEN)
        self.states[rows], self.how[rows] = BROKEN, smaller.how[rows]
        self.examples = {**smaller.examples, **self.examples}

    def certificate(self, model: str, radius: float, effort: str) -> Certificate:
        method = "bounds" if effort == "bounds" else "bounds and exact search"
        return Certificate(
            model, "linf", radius, self.states.copy(), method, self.seconds.copy(), self.margin
        )


class Prover:
    """Proofs for one classifier.

    Args:
        model: the classifier.
        x: images, of which the shape matters; on some of them the network in float64 is compared
            with the model.

    Attributes:
        quantizer: what is known of the quantizer in front, in words.

    Raises:
        ValueError: for a model without rules for its layers, or that computes something else.
    """

    def __init__(self, model: AttackedModel, x: Array | StoredImages) -> None:
        self.model = model
        box = reachable_box(model, x[:1], 0.0)
        start = None if box.quantizer is None else box.quantizer.layer
        self.quantizer = "none in front"
        if box.quantizer is not None:
            self.quantizer = "soft" if box.grid is None else "hard"
        self.network = Network.of(pieces_between(model.model, start))
        values = sum(node.size for node in self.network.nodes)
        self.at_a_time = max(1, _VALUES_AT_A_TIME // values)
        self._check_network(x)

    def _check_network(self, x: Array | StoredImages) -> None:
        """Raise a ValueError if the network in float64 and the model differ by more than rounding.

        A rule may be wrong, or the hardware may compute with fewer digits than float32.
        """
        low, high = self.model.value_range
        random = np.random.default_rng(0).uniform(low, high, (8, *x.shape[1:])).astype("float32")
        if self.model.takes_whole_numbers:
            random = np.round(random)
        images = np.concatenate([x[:8], random])
        box = reachable_box(self.model, images, 0.0)
        bounds = self.bounds(box, np.arange(len(images)))[-1]
        given = self.model.logits(images).astype("float64")
        worst = ""
        if given.shape == bounds.low.shape:
            with np.errstate(invalid="ignore"):
                gap = np.maximum(bounds.low - given, given - bounds.high) - bounds.error
            if (gap <= 0).all():
                return
            worst = f" by up to {gap.max():.3g}"
        raise ValueError(
            f"Expected {self.model.model.name!r} to compute what its layers say, in float32. "
            f"Received: logits that differ{worst} from those in float64, by more than "
            "rounding explains. A rule for a layer is wrong, or the model computes with lower "
            "precision than float32; nothing can be proved of it."
        )

    def bounds(self, box: Box, rows: Array) -> list[Bounds]:
        """Bounds of all nodes by intervals, for some images of a box."""
        low, high = (part[rows].reshape(len(rows), -1) for part in (box.low, box.high))
        return self.network.bounds(low, high, self.level_error(box) * (high > low))

    def level_error(self, box: Box) -> float:
        """How far a level between the ends of a box may be from the number taken for it."""
        if box.grid is None or (box.high - box.low).max() < 1.5 * box.grid[1]:
            return 0.0  # all levels are ends, which are known to the last bit
        first = box.grid[0]
        largest = max(abs(first), float(np.abs(box.low).max()), float(np.abs(box.high).max()))
        # A level is computed from a multiple of the step and the smallest one, which may cancel.
        return 2.0**-21 * (2 * largest + abs(first) + float(np.abs(box.high - first).max()))

    def prove_by_intervals(
        self, x: Array | StoredImages, labels: Array, epsilon: float, found: _Decisions
    ) -> None:
        """Prove what intervals can."""
        for part, _, _, gaps, margins in self._batches(x, labels, epsilon, found):
            holds = (gaps + margins).max(axis=1) < 0
            proved = part[holds]
            found.states[proved], found.how[proved] = PROVED, "intervals"
            found.margin = max(found.margin, float(margins[holds].max(initial=0.0)))

    def _batches(
        self, x: Array | StoredImages, labels: Array, epsilon: float, found: _Decisions
    ) -> Iterator[tuple[Array, Box, list[Bounds], Array, Array]]:
        """Open images a batch at a time: rows, box, bounds of all nodes, gaps and margins."""
        rows = found.open
        for first in range(0, len(rows), self.at_a_time):
            part = rows[first : first + self.at_a_time]
            began = time.perf_counter()
            box = reachable_box(self.model, x[part], epsilon)
            bounds = self.bounds(box, np.arange(len(part)))
            gaps, margins = self.gaps(bounds, labels[part])
            found.seconds[part] += (time.perf_counter() - began) / len(part)
            yield part, box, bounds, gaps, margins

    def gaps(self, bounds: Sequence[Bounds], labels: Array) -> tuple[Array, Array]:
        """The gaps of other logits over that of the label, and their margins for rounding.

        Both ``(batch, classes)``; of the label itself minus infinity and 0.
        """
        gaps, errors = self.network.gaps(bounds, labels)
        own = np.arange(len(labels)), labels
        margins = errors * _FLOAT64
        gaps[own], margins[own] = -np.inf, 0.0
        return gaps, margins

    def search(
        self, x: Array | StoredImages, labels: Array, epsilon: float, found: _Decisions,
        seconds: float,
        say: Callable[[float], None],
    ) -> None:  # fmt: skip
        """Decide what is open by linear bounds and the search."""
        count, done = len(found.open), 0
        for part, box, bounds, _, margins in self._batches(x, labels, epsilon, found):
            for place, row in enumerate(part):
                began = time.perf_counter()
                one = _Image(self, x[row : row + 1], labels[row : row + 1], epsilon, box, place)
                end, margin = one.decide(bounds, margins[place], seconds)
                found.states[row] = end.state
                if end.state == PROVED:
                    found.margin = max(found.margin, margin)
                if end.state == BROKEN:
                    found.examples[int(row)] = one.example
                if end.state != OPEN:
                    found.how[row] = "linear" if end.nodes == 1 else "search"
                found.seconds[row] += time.perf_counter() - began
                done += 1
                say(done / count)


class _Image:
    """One image within one radius."""

    def __init__(
        self, prover: Prover, x: Array, label: Array, epsilon: float, box: Box, place: int
    ) -> None:
        self.prover, self.x, self.label, self.epsilon = prover, x, label, epsilon
        self.box, self.place = box, place
        self.moving = np.flatnonzero((box.high[place] > box.low[place]).ravel())
        self.goal = Goal(label)
        self.example = x[0]

    def decide(
        self, bounds: Sequence[Bounds], margins: Array, seconds: float
    ) -> tuple[Found, float]:
        """Search for an adversarial example until there is none or the time is over.

        Returns:
            What was found, and the largest margin for rounding.
        """
        network, tight = reduced_and_bounds(self.prover.network, bounds, self.place)
        label = int(self.label[0])
        margins = np.minimum(margins, self.prover.gaps(tight, self.label)[1][0])
        others = np.delete(np.arange(self.prover.network.classes), label)
        matrices = [matrix[others] - matrix[label] for matrix in network.matrices]
        offset = network.offset[others] - network.offset[label]
        gaps = Reduced(network.low, network.high, network.groups, matrices, offset)
        found = search(
            gaps, self.box.levels(self.place), margins[others], self.is_broken, seconds=seconds,
            exact=not self.prover.network.has_steps,
        )  # fmt: skip
        return found, float(margins[others].max())

    def is_broken(self, values: Array) -> bool | None:
        """Whether what moves can have these values, and the model then is wrong.

        None if it is not, and might be in another batch or order of summation.
        """
        model, box = self.prover.model, self.box
        received = box.low[self.place].copy()
        received.reshape(-1)[self.moving] = values
        given = received[None]
        if model.channels_first:
            given = np.moveaxis(given, 1, -1)
        images = given
        if box.quantizer is not None:
            own = box.quantizer.outputs(self.x)
            darkest, brightest = (end[self.place][None] for end in box.ends)
            images = box.quantizer.images(self.x, np.where(given > own, brightest, darkest), given)
        images, distances = verified(model, self.x, images, self.goal, "linf", self.epsilon)
        if np.isfinite(distances["linf"][0]):
            self.example = images[0]
            return True
        inputs = received.reshape(1, -1)
        error = np.full(inputs.shape, self.prover.level_error(self.box))
        bounds = self.prover.network.bounds(inputs, inputs, error)
        gaps, margins = self.prover.gaps(bounds, self.label)
        return False if ((gaps + margins).max() < 0) else None
