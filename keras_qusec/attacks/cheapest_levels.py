"""The attack on quantizers in L2 and L0: the levels whose change costs least."""

from __future__ import annotations

import numpy as np

from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.input_quantizer import InputQuantizer, input_quantizer
from keras_qusec.attacks.reachable_levels import checked_quantizer
from keras_qusec.checks import one_of, whole_number

# Numbers of values that are changed or put back at once.
_TOGETHER = (1, 2, 3, 5, 8, 13, 21, 34, 55)
# The step between outputs of a quantizer that has no steps.
_SOFT_STEP = 0.125


class CheapestLevels(Attack):
    """Move values across the thresholds of a quantizer that cost least for what they gain.

    Each round takes the values with the largest first-order gain in the margin for the added
    squared distance (L2) or number (L0), several numbers of them tried at once, until the image
    is adversarial; then it puts back those that saved most, as long as it stays so. A value moves
    to the nearest pixel that gives its level. For the models that `ReachableLevels` is for.

    Args:
        norm: ``"l2"`` or ``"l0"``.
        rounds: most rounds forward, and as many back.

    Raises:
        ValueError: for unusable arguments; when it runs, for a model without a quantizer in front.

    Example:

    >>> from keras_qusec import QuSecQuantization
    >>> from keras_qusec.attacks import AttackedModel, CheapestLevels, Goal
    >>> model = keras.Sequential([keras.Input((2,)), QuSecQuantization(2, hard=True),
    ...                           keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array(50.0), np.array([[1, 0], [0, 2]], "float32")])
    >>> x, goal = np.array([[0.8, 0.25]], "float32"), Goal(np.array([0]))
    >>> found = CheapestLevels().run(AttackedModel(model), x, goal, epsilon=None, seed=0)
    >>> round(float(np.linalg.norm(found - x)), 2)
    0.25
    """

    minimizes = attacks_defense = True

    def __init__(self, *, norm: str = "l2", rounds: int = 50) -> None:
        self.norm = one_of(norm, "norm", ("l2", "l0"), hint='For L-inf use "reachable-levels".')
        self.rounds = whole_number(rounds, "rounds")
        self.cost = "a gradient and 9 queries a round, some 20 rounds"

    def applies_to(self, model: AttackedModel, x: np.ndarray) -> bool:
        return input_quantizer(model, x) is not None

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        levels = _Levels(checked_quantizer(model, x), x, goal, self.norm)
        rows = np.arange(len(x))
        for _ in range(self.rounds):
            if not len(rows):
                break
            rows = levels.forward(rows)
        rows = np.flatnonzero(levels.margins > 0)
        for _ in range(self.rounds):
            if not len(rows):
                break
            rows = levels.back(rows)
        return levels.images()


class _Levels:
    """The outputs that images have now, what they cost, and moves among them.

    Args:
        quantizer: through which all of an image passes.
        x: clean images.
        goal: what the images must reach.
        norm: ``"l2"`` or ``"l0"``.
    """

    def __init__(self, quantizer: InputQuantizer, x: np.ndarray, goal: Goal, norm: str) -> None:
        self.quantizer, self.x, self.goal, self.norm = quantizer, x, goal, norm
        low, high = quantizer.model.value_range
        self.dark, self.bright = np.full_like(x, low), np.full_like(x, high)
        self.own = quantizer.outputs(x)
        self.lowest, self.highest = quantizer.outputs(self.dark), quantizer.outputs(self.bright)
        self.step = np.float32(quantizer.grid[1] if quantizer.grid else _SOFT_STEP)
        self.now = self.own.copy()
        self.margins = quantizer.model.margins(self.now, goal)

    def images(self) -> np.ndarray:
        """The nearest images with the present outputs."""
        return self._images(np.arange(len(self.x)), self.now)

    def _images(self, rows: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        ends = np.where(outputs > self.own[rows], self.bright[rows], self.dark[rows])
        return self.quantizer.images(self.x[rows], ends, outputs)

    def _cost(self, rows: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """What each value adds to the squared distance, or to the number of changed values."""
        if self.norm == "l0":
            return (outputs != self.own[rows]).astype("float32")
        return np.square(self._images(rows, outputs) - self.x[rows])

    def _gradient(self, rows: np.ndarray) -> np.ndarray:
        goal = self.goal.take(rows)
        return np.nan_to_num(self.quantizer.model.ascent(self.now[rows], goal, "margin"))

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """Move the values that gain most for their cost; the rows that go on."""
        now, gradient = self.now[rows], self._gradient(rows)
        cost = self._cost(rows, now)
        # In L0 a changed value may as well go all the way.
        step = np.inf if self.norm == "l0" else self.step
        target = np.where(
            gradient > 0,
            np.minimum(now + step, self.highest[rows]),
            np.maximum(now - step, self.lowest[rows]),
        ).astype("float32")
        gain = gradient * (target - now)
        added = np.maximum(self._cost(rows, target) - cost, 1e-6)
        moved, margins = self._tried(rows, target, gain / added)
        reached = margins > 0
        # The fewest values that suffice, else as many as raise the margin most.
        best = np.where(reached.any(axis=1), reached.argmax(axis=1), margins.argmax(axis=1))
        chosen = np.take_along_axis(margins, best[:, None], axis=1)[:, 0]
        higher = chosen > self.margins[rows]
        self.now[rows[higher]] = moved[higher, best[higher]]
        self.margins[rows[higher]] = chosen[higher]
        return rows[higher & (chosen <= 0)]

    def back(self, rows: np.ndarray) -> np.ndarray:
        """Put back the values that save most for what they lose; the rows that go on."""
        now, gradient, own = self.now[rows], self._gradient(rows), self.own[rows]
        loss = gradient * (now - own)
        least = 1e-6 * np.abs(loss).max(axis=tuple(range(1, loss.ndim)), keepdims=True)
        loss = np.maximum(loss, np.maximum(least, 1e-37))
        saved = self._cost(rows, now)
        moved, margins = self._tried(rows, own, np.where(now != own, saved / loss, 0.0))
        changed = (moved != now[:, None]).reshape(*margins.shape, -1).any(axis=2)
        stays = (margins > 0) & changed
        # The most values that can be put back.
        best = stays.shape[1] - 1 - stays[:, ::-1].argmax(axis=1)
        some = stays.any(axis=1)
        self.now[rows[some]] = moved[some, best[some]]
        self.margins[rows[some]] = margins[some, best[some]]
        return rows[some]

    def _tried(
        self, rows: np.ndarray, target: np.ndarray, worth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The present outputs with the worthiest values moved to their targets, and the margins.

        Returns:
            Outputs ``(n, choices, ...)``, margins ``(n, choices)``.
        """
        flat, aim = self.now[rows].reshape(len(rows), -1), target.reshape(len(rows), -1)
        worth = worth.reshape(len(rows), -1)
        counts = [count for count in _TOGETHER if count <= flat.shape[1]]
        order = np.argsort(-worth, axis=1)[:, : counts[-1]]
        choices = np.repeat(flat[:, None], len(counts), axis=1)
        for place, count in enumerate(counts):
            group = order[:, :count]
            values = np.take_along_axis(aim, group, axis=1)
            values = np.where(
                np.take_along_axis(worth, group, axis=1) > 0,
                values,
                np.take_along_axis(flat, group, axis=1),
            )
            np.put_along_axis(choices[:, place], group, values, axis=1)
        shape = self.x.shape[1:]
        repeated = np.repeat(rows, len(counts))
        margins = self.quantizer.model.margins(
            choices.reshape(-1, *shape), self.goal.take(repeated)
        )
        return choices.reshape(len(rows), len(counts), *shape), margins.reshape(len(rows), -1)
