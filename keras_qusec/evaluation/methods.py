"""Attacks by name with their settings, and one way to run them all."""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from keras_qusec.attacks.gradient_attacks import BIM, FGSM, PGD, GradientAttack
from keras_qusec.evaluation.attacked import AttackedModel, Goal
from keras_qusec.evaluation.bridge import import_foolbox, to_tensor

# Foolbox's random numbers come from generators that all threads share.
_ONE_AT_A_TIME = threading.Lock()

# Adversarial images for some rows of a batch, at a radius (None: as close as can be).
Attempt = Callable[[np.ndarray, float | None, int], np.ndarray]


class Method(Protocol):
    """An attack as the evaluation runs it.

    Attributes:
        norm: ``"l0"``, ``"l2"`` or ``"linf"``: what it keeps small.
        minimizes: looks for the closest adversarial example; otherwise for any in a ball.
        uses_gradients: needs the model's gradient, so that it can be adaptive or transferred.
        is_random: another seed gives another result.
        restarts: how often it is run on each image.
        ladder: for an attack in a ball whose norm has no epsilons: radii to try, as shares of
            the largest possible distance; else empty.
    """

    @property
    def norm(self) -> str: ...
    @property
    def minimizes(self) -> bool: ...
    @property
    def uses_gradients(self) -> bool: ...
    @property
    def is_random(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def ladder(self) -> tuple[float, ...]: ...

    def on(
        self, attacked: AttackedModel, x: np.ndarray, goal: Goal, hardness: float | None, stop: bool
    ) -> Attempt:
        """The attack on a batch; `hardness` is that of the surrogate gradients or None.

        With ``stop=False`` an image that has become adversarial goes on, as for a transfer.
        """


class GradientMethod:
    """FGSM, BIM or PGD of this package, compiled as one loop.

    Args:
        kind: the attack's class.
        restarts: random starts on each image, 1 or more.
        relative_step_size: length of one step as a share of epsilon; default the attack's.
        **settings: the attack's other settings, but for epsilon.

    Raises:
        ValueError: for settings that do not fit.
    """

    minimizes = False
    uses_gradients = True
    ladder: tuple[float, ...] = ()

    def __init__(
        self,
        kind: type[GradientAttack],
        restarts: int = 1,
        relative_step_size: float | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise ValueError(
                f"Expected restarts to be a whole number from 1 up. Received: {restarts!r}."
            )
        self.kind = kind
        self.restarts = restarts
        self.relative_step_size = relative_step_size
        self.settings = settings
        example = self._attack(0.1, (0.0, 1.0), targeted=False)  # checks the settings now
        self.norm = example.norm
        self.is_random = example.random_start

    def __repr__(self) -> str:
        settings = {"restarts": self.restarts, "relative_step_size": self.relative_step_size}
        settings.update(self.settings)
        return f"{self.kind.__name__}({_arguments(settings)})"

    def on(
        self, attacked: AttackedModel, x: np.ndarray, goal: Goal, hardness: float | None, stop: bool
    ) -> Attempt:
        targeted = goal.targets is not None
        slopes: np.ndarray | None = None
        # Where the search at the last, smaller radius ended.
        ends, last = x.copy(), 0.0

        def attempt(rows: np.ndarray, epsilon: float | None, seed: int) -> np.ndarray:
            nonlocal slopes, last
            radius = epsilon or 0.0
            attack = self._attack(radius, attacked.value_range, targeted)
            if attack.steps > 1 or attack.random_start:
                open_ = rows
                if stop and 0 < last < radius:
                    # Most images that fall at a radius do so to the last perturbation made
                    # larger: one forward pass instead of many steps.
                    ends[rows] = _stretched(x[rows], ends[rows], radius / last, attacked)
                    predictions = attacked.predictions(ends[rows])
                    open_ = rows[~goal.take(rows).reached(predictions)]
                last = radius
                if len(open_):
                    ends[open_] = attacked.search(
                        attack, x[open_], goal.take(open_), hardness=hardness, seed=seed, stop=stop
                    )
                return ends[rows]
            # FGSM steps along the gradient at the clean image whatever epsilon is.
            if slopes is None:
                slopes = np.zeros_like(x)
                slopes[rows] = attacked.slope(attack, x[rows], goal.take(rows), hardness)
            clean, slope = map(keras.ops.convert_to_tensor, (x[rows], slopes[rows]))
            size = attack.step_size
            moved = attack.advance(clean, slope, clean, attack.epsilon, size)
            return keras.ops.convert_to_numpy(moved)

        return attempt

    def _attack(
        self, epsilon: float, value_range: tuple[float, float], targeted: bool
    ) -> GradientAttack:
        settings = dict(self.settings)
        if self.relative_step_size is not None:
            settings["step_size"] = self.relative_step_size * epsilon
        try:
            return self.kind(epsilon, value_range=value_range, targeted=targeted, **settings)
        except TypeError as error:
            raise ValueError(
                f"Expected settings of {self.kind.__name__}. Received: {sorted(settings)}; {error}."
            ) from error


def _stretched(
    x: np.ndarray, images: np.ndarray, factor: float, attacked: AttackedModel
) -> np.ndarray:
    """Perturbations made larger by a factor, inside the value range."""
    return np.clip(x + (images - x) * np.float32(factor), *attacked.value_range)


class FoolboxMethod:
    """Any Foolbox attack.

    Args:
        attack: a `foolbox.attacks.MinimizationAttack` or `FixedEpsilonAttack`.
        norm: what it keeps small; default its own distance.
        restarts: how often it is run on each image.
        ladder: see `Method`.
        targeted: it can be told which class to reach.
    """

    def __init__(
        self,
        attack: Any,
        *,
        norm: str | None = None,
        restarts: int = 1,
        ladder: Sequence[float] = (),
        targeted: bool = True,
    ) -> None:
        foolbox = import_foolbox()
        kinds = (foolbox.attacks.base.MinimizationAttack, foolbox.attacks.base.FixedEpsilonAttack)
        if isinstance(attack, foolbox.attacks.base.Repeated):
            restarts, attack = restarts * attack.times, attack.attack
        if not isinstance(attack, kinds):
            raise ValueError(
                f"Expected a Foolbox attack that minimizes a distance or stays within an epsilon. "
                f"Received: {attack!r}."
            )
        self.attack = attack
        self.minimizes = isinstance(attack, kinds[0])
        self.norm = norm or _norm_of(attack)
        self.uses_gradients = not isinstance(attack, _without_gradients(foolbox))
        self.is_random = not isinstance(attack, _deterministic(foolbox))
        self.restarts = restarts
        self.ladder = tuple(ladder)
        self.targeted = targeted
        starts = (foolbox.attacks.BoundaryAttack, foolbox.attacks.HopSkipJumpAttack)
        self.wants_start = isinstance(attack, starts)

    def __repr__(self) -> str:
        settings = {name.strip("_"): value for name, value in vars(self.attack).items()}
        return (
            f"{type(self.attack).__name__}({_arguments({**settings, 'restarts': self.restarts})})"
        )

    def on(
        self, attacked: AttackedModel, x: np.ndarray, goal: Goal, hardness: float | None,
        stop: bool,
    ) -> Attempt:  # fmt: skip
        foolbox = import_foolbox()
        if goal.targets is not None and not self.targeted:
            raise ValueError(
                f"Expected an attack that can be targeted. Received: {type(self.attack).__name__}. "
                'Leave targets out, or use "pgd", "cw", "jsma" or a decision-based attack.'
            )

        # HopSkipJump clips to [0, 1] whatever the bounds are, and the constants of the others
        # weigh a loss against squared distances, in units of the pixels.
        unit_range = (
            foolbox.attacks.HopSkipJumpAttack,
            foolbox.attacks.L2CarliniWagnerAttack,
            foolbox.attacks.EADAttack,
        )

        def attempt(rows: np.ndarray, epsilon: float | None, seed: int) -> np.ndarray:
            extra: dict[str, Any] = {} if self.minimizes else {"epsilon": epsilon}
            kept = np.arange(len(rows))
            if self.wants_start:
                starts, kept = starting_points(attacked, x, goal, rows, seed)
                extra["starting_points"] = to_tensor(starts[kept])
            images = x[rows].copy()
            if not len(kept):
                return images
            some = goal.take(rows[kept])
            labels, targets = to_tensor(some.labels), some.targets
            if targets is None:
                criterion = foolbox.criteria.Misclassification(labels)
            else:
                criterion = foolbox.criteria.TargetedMisclassification(to_tensor(targets))
            attack = self.attack
            if hasattr(attack, "seed"):  # ours; Foolbox's draw from global generators
                attack = copy.copy(attack)
                attack.seed = seed
            with _ONE_AT_A_TIME, attacked.foolbox(hardness) as model, seeded(seed):
                clean = to_tensor(x[rows[kept]])
                if isinstance(attack, unit_range) and attacked.value_range != (0.0, 1.0):
                    found = _in_unit_range(attack, model, clean, criterion, extra)
                else:
                    found = keras.ops.convert_to_numpy(attack.run(model, clean, criterion, **extra))
            images[kept] = found
            return images

        return attempt


def starting_points(
    attacked: AttackedModel, x: np.ndarray, goal: Goal, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial images to start decision-based attacks from, and for which rows there is one.

    For each image the closest other image of the batch that the model puts in another class
    (or in the target class); without one, noise of several kinds.
    """
    predictions = attacked.predictions(x)
    rng = np.random.default_rng(seed)
    low, high = attacked.value_range
    starts = x[rows].copy()
    goals = goal.take(rows)
    for place, row in enumerate(rows):
        fit = np.flatnonzero(goal.take(np.full(len(x), row)).reached(predictions))
        if len(fit):
            gaps = np.square(x[fit] - x[row]).reshape(len(fit), -1).sum(axis=1)
            starts[place] = x[fit[gaps.argmin()]]
    for level in (0.1, 0.3, 0.5, 0.7, 0.9, *[None] * 5):
        left = np.flatnonzero(~goals.reached(attacked.predictions(starts)))
        if not len(left):
            break
        if level is None:
            starts[left] = rng.uniform(low, high, starts[left].shape)
        else:  # black and white pixels, some of them white
            white = rng.random(starts[left].shape) < level
            starts[left] = np.where(white, high, low)
    return starts, np.flatnonzero(goals.reached(attacked.predictions(starts)))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Foolbox's random numbers from a seed, and the user's generators as they were after it.

    TensorFlow's global seed cannot be read, so there it stays set.
    """
    backend = keras.backend.backend()
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        if backend == "torch":
            import torch

            with torch.random.fork_rng():
                torch.manual_seed(seed)
                yield
        elif backend == "jax":
            import eagerpy
            import jax

            key, eagerpy.JAXTensor.key = eagerpy.JAXTensor.key, jax.random.PRNGKey(seed % 2**31)
            try:
                yield
            finally:
                eagerpy.JAXTensor.key = key
        else:
            import tensorflow as tf

            tf.random.set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _in_unit_range(
    attack: Any, model: Any, x: Any, criterion: Any, extra: dict[str, Any]
) -> np.ndarray:
    """Run a minimizing attack on images in [0, 1]; failures become NaN, which never counts."""
    low, high = model.bounds
    if "starting_points" in extra:
        extra["starting_points"] = (extra["starting_points"] - low) / (high - low)
    scaled = model.transform_bounds((0.0, 1.0))
    found = attack.run(scaled, (x - low) / (high - low), criterion, **extra)
    images = np.array(keras.ops.convert_to_numpy(found))
    # Foolbox's sign of failure is an image of zeros, which scaling would hide.
    images[(images == 0).all(axis=tuple(range(1, images.ndim)))] = np.nan
    return images * np.float32(high - low) + np.float32(low)


class _Recipe(NamedTuple):
    """How an attack is made from its name: a function of settings, and the defaults."""

    make: Callable[..., Any]
    defaults: dict[str, Any]


def _own(kind: type[GradientAttack]) -> Callable[..., Method]:
    return lambda **settings: GradientMethod(kind, **settings)


def _foolbox(name: str, **about: Any) -> Callable[..., Method]:
    def make(restarts: int = 1, **settings: Any) -> Method:
        attack = getattr(import_foolbox().attacks, name)(**settings)
        return FoolboxMethod(attack, restarts=restarts, **about)

    return make


def _ours(module: str, name: str) -> Callable[..., Method]:
    def make(restarts: int = 1, **settings: Any) -> Method:
        import_foolbox()
        import importlib

        kind = getattr(importlib.import_module(f"keras_qusec.attacks.{module}"), name)
        return FoolboxMethod(kind(**settings), norm="l0", restarts=restarts)

    return make


_CW = {"binary_search_steps": 9, "steps": 1000, "stepsize": 0.01, "initial_const": 1e-3}
# CleverHans v2's tutorial, which the paper used, with the paper's 100 iterations.
_CW_PAPER = {"binary_search_steps": 1, "steps": 100, "stepsize": 0.2, "initial_const": 10.0}

_RECIPES: dict[str, _Recipe] = {
    "fgsm": _Recipe(_own(FGSM), {}),
    "fgsm-l2": _Recipe(_own(FGSM), {"norm": "l2"}),
    "bim": _Recipe(_own(BIM), {"steps": 10}),
    "bim-l2": _Recipe(_own(BIM), {"steps": 10, "norm": "l2"}),
    "pgd": _Recipe(_own(PGD), {"steps": 40}),
    "pgd-l2": _Recipe(_own(PGD), {"steps": 40, "norm": "l2"}),
    "cw": _Recipe(_foolbox("L2CarliniWagnerAttack"), _CW),
    "cw-paper": _Recipe(_foolbox("L2CarliniWagnerAttack"), _CW_PAPER),
    "deepfool": _Recipe(_foolbox("L2DeepFoolAttack", targeted=False), {}),
    "deepfool-linf": _Recipe(_foolbox("LinfDeepFoolAttack", targeted=False), {}),
    "jsma": _Recipe(_ours("saliency_map", "JSMA"), {}),
    "jsma-paper": _Recipe(
        _ours("saliency_map", "JSMA"),
        {"theta": 1.0, "gamma": 0.1, "decrease": False, "targets": 1},
    ),
    "pointwise": _Recipe(_ours("pointwise", "Pointwise"), {}),
    "single-pixel": _Recipe(_ours("pixel_search", "SinglePixel"), {}),
    "local-search": _Recipe(_ours("pixel_search", "LocalSearch"), {}),
    "local-search-paper": _Recipe(_ours("pixel_search", "LocalSearch"), {"magnitude": 10.0}),
    "gaussian": _Recipe(
        _foolbox(
            "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
            ladder=tuple(np.geomspace(0.02, 1.0, 12)),
        ),
        {"repeats": 20},
    ),
    "salt-and-pepper": _Recipe(_foolbox("SaltAndPepperNoiseAttack"), {}),
    "boundary": _Recipe(_foolbox("BoundaryAttack"), {"steps": 1000}),
    "hopskipjump": _Recipe(_foolbox("HopSkipJumpAttack"), {"steps": 16}),
}

NAMES = tuple(_RECIPES)


def methods_of(attacks: Any) -> dict[str, Method]:
    """Attacks by the name shown in the report.

    Args:
        attacks: one of the following or several: a name, a pair of a name and a dictionary of
            settings, a Foolbox attack object; or a dictionary of such by names of your own.

    Raises:
        ValueError: for an unknown name or settings that do not fit.

    Example:

    >>> methods_of(["fgsm", ("pgd", {"steps": 7, "restarts": 3})])
    {'fgsm': FGSM(restarts=1), 'pgd': PGD(restarts=3, steps=7)}
    """
    if isinstance(attacks, Mapping):
        named = [(str(name), _method(attack)) for name, attack in attacks.items()]
    else:
        several = isinstance(attacks, Sequence) and not isinstance(attacks, str)
        pair = several and len(attacks) == 2 and isinstance(attacks[1], Mapping)
        listed = attacks if several and not pair else [attacks]
        named = [(_name(attack), _method(attack)) for attack in listed]
    if not named:
        raise ValueError(
            f'Expected at least one attack. Received: none. Example: attacks=["pgd"]; '
            f"the names are {', '.join(NAMES)}."
        )
    methods: dict[str, Method] = {}
    for name, method in named:
        if name in methods:
            raise ValueError(
                f"Expected each attack once. Received: {name!r} twice. To compare settings, give "
                f"names of your own: attacks={{'{name} weak': ..., '{name} strong': ...}}."
            )
        methods[name] = method
    return methods


def _name(attack: Any) -> str:
    if isinstance(attack, str):
        return attack.lower()
    if isinstance(attack, Sequence) and attack and isinstance(attack[0], str):
        return attack[0].lower()
    return type(attack).__name__


def _method(attack: Any) -> Method:
    if isinstance(attack, (GradientMethod, FoolboxMethod)):
        return attack
    if isinstance(attack, GradientAttack):
        raise ValueError(
            f"Expected an attack without an epsilon of its own. Received: {attack!r}. The "
            'evaluation has epsilons; give the settings beside the name: ("pgd", {"steps": 40}).'
        )
    settings: Mapping[str, Any] = {}
    if isinstance(attack, Sequence) and not isinstance(attack, str):
        if len(attack) != 2 or not isinstance(attack[1], Mapping):
            raise ValueError(
                f'Expected an attack as a name or as ("name", {{settings}}). Received: {attack!r}.'
            )
        attack, settings = attack
    if not isinstance(attack, str):
        return FoolboxMethod(attack)
    name = attack.lower()
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected an attack: one of {', '.join(NAMES)}, or a Foolbox attack object. "
            f"Received: {attack!r}.{hint}"
        )
    recipe = _RECIPES[name]
    try:
        return recipe.make(**{**recipe.defaults, **settings})
    except TypeError as error:
        raise ValueError(
            f"Expected settings of the attack {name!r}. Received: {sorted(settings)}; {error}."
        ) from error


def _norm_of(attack: Any) -> str:
    try:
        order = attack.distance.p
    except (AttributeError, ValueError):  # Foolbox wants it chosen when the attack is called
        order = 2
    # L1 is not reported; L2 is the nearest.
    return {0: "l0", math.inf: "linf"}.get(order, "l2")


def _without_gradients(foolbox: Any) -> tuple[type, ...]:
    from keras_qusec.attacks import pixel_search, pointwise

    names = (
        "BinarizationRefinementAttack", "BinarySearchContrastReductionAttack", "BoundaryAttack",
        "DatasetAttack", "GaussianBlurAttack", "GenAttack", "HopSkipJumpAttack",
        "InversionAttack", "L2ContrastReductionAttack", "LinearSearchBlendedUniformNoiseAttack",
        "LinearSearchContrastReductionAttack", "PointwiseAttack", "SaltAndPepperNoiseAttack",
    )  # fmt: skip
    noise = foolbox.attacks.additive_noise
    return (
        *(getattr(foolbox.attacks, name) for name in names),
        noise.BaseAdditiveNoiseAttack,
        noise.BaseRepeatedAdditiveNoiseAttack,
        pixel_search.SinglePixel,
        pixel_search.LocalSearch,
        pointwise.Pointwise,
    )


def _deterministic(foolbox: Any) -> tuple[type, ...]:
    from keras_qusec.attacks import pixel_search, saliency_map

    attacks = foolbox.attacks
    return (
        attacks.L2CarliniWagnerAttack,
        attacks.deepfool.DeepFoolAttack,
        attacks.EADAttack,
        attacks.DDNAttack,
        saliency_map.JSMA,
        pixel_search.SinglePixel,
    )


def _arguments(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
