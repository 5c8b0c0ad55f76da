"""The one list of attacks by name: how each is made, its settings in an evaluation, what it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from keras_qusec.attacks.apgd import APGD
from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.bim import BIM
from keras_qusec.attacks.cheapest_levels import CheapestLevels
from keras_qusec.attacks.fab import FAB
from keras_qusec.attacks.fgsm import FGSM
from keras_qusec.attacks.fmn import FMN
from keras_qusec.attacks.foolbox import FoolboxAttack, named_foolbox_attack
from keras_qusec.attacks.jsma import JSMA
from keras_qusec.attacks.local_search import LocalSearch
from keras_qusec.attacks.pgd import PGD
from keras_qusec.attacks.pointwise import Pointwise
from keras_qusec.attacks.presets import (
    PRESETS,
    Asked,
    asking_attacks,
    autoattack,
    autoattack_rand,
    preset,
    standard,
    strong,
)
from keras_qusec.attacks.reachable_levels import ReachableLevels
from keras_qusec.attacks.sigma_zero import SigmaZero
from keras_qusec.attacks.single_pixel import SinglePixel
from keras_qusec.attacks.square import Square
from keras_qusec.checks import closest, whole_number
from keras_qusec.registry import Registry
from keras_qusec.results import WORST_CASE


class Entry(NamedTuple):
    """An attack of the registry: a function of settings, settings of this name, a summary."""

    make: Callable[..., Attack]
    settings: dict[str, Any]
    summary: str


# What other libraries call our settings.
_NAMES_ELSEWHERE = {
    "eps": "epsilon", "epsilons": "epsilon", "alpha": "step_size", "eps_step": "step_size",
    "eps_iter": "step_size", "stepsize": "step_size", "abs_stepsize": "step_size",
    "rel_stepsize": "relative_step_size", "nb_iter": "steps", "max_iter": "steps",
    "num_steps": "steps", "n_iter": "steps", "iterations": "steps", "ord": "norm",
    "clip_min": "value_range", "clip_max": "value_range", "bounds": "value_range",
    "rand_init": "random_start", "num_random_init": "restarts", "n_restarts": "restarts",
}  # fmt: skip

_CW = {"binary_search_steps": 9, "steps": 1000, "stepsize": 0.01, "initial_const": 1e-3}
# CleverHans v2's tutorial, which the paper used, with the paper's 100 iterations.
_CW_PAPER = {"binary_search_steps": 1, "steps": 100, "stepsize": 0.2, "initial_const": 10.0}
_JSMA_PAPER = {"theta": 1.0, "gamma": 0.1, "decrease": False, "targets": 1}
_cw = named_foolbox_attack("L2CarliniWagnerAttack")
_gaussian = named_foolbox_attack("L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack")

_ENTRIES: Registry[Entry] = Registry(
    "an attack: one of",
    others="; an object of keras_qusec.attacks; or a Foolbox attack object",
)
for _key, _entry in {
    "fgsm": Entry(FGSM, {}, "one step along the sign of the gradient"),
    "fgsm-l2": Entry(FGSM, {"norm": "l2"}, "one step along the gradient"),
    "bim": Entry(BIM, {}, "steps from the clean image"),
    "bim-l2": Entry(BIM, {"norm": "l2"}, "steps from the clean image"),
    "pgd": Entry(PGD, {}, "steps from a random start"),
    "pgd-l2": Entry(PGD, {"norm": "l2"}, "steps from a random start"),
    "apgd-ce": Entry(APGD, {}, "Auto-PGD on the cross-entropy"),
    "apgd-dlr": Entry(APGD, {"loss": "dlr"}, "Auto-PGD on the difference of logits ratio"),
    "apgd-t": Entry(APGD, {"loss": "dlr", "targets": 9}, "Auto-PGD towards each of nine targets"),
    "apgd-ce-l2": Entry(APGD, {"norm": "l2"}, "Auto-PGD on the cross-entropy"),
    "apgd-t-l2": Entry(
        APGD, {"loss": "dlr", "targets": 9, "norm": "l2"}, "Auto-PGD towards each of nine targets"
    ),
    "apgd-ce-l1": Entry(APGD, {"norm": "l1"}, "Auto-PGD on the cross-entropy, sparse steps"),
    "square": Entry(Square, {}, "random squares, without gradients"),
    "square-l2": Entry(Square, {"norm": "l2"}, "random squares, without gradients"),
    "reachable-levels": Entry(ReachableLevels, {}, "a quantizer's own: the levels in reach"),
    "cheapest-levels-l2": Entry(
        CheapestLevels, {"norm": "l2"}, "a quantizer's own: the nearest thresholds"
    ),
    "cheapest-levels-l0": Entry(
        CheapestLevels, {"norm": "l0"}, "a quantizer's own: the fewest values"
    ),
    "standard": Entry(standard, {"norm": "linf"}, "our best for its cost, an ensemble"),
    "standard-l2": Entry(standard, {"norm": "l2"}, "our best for its cost, an ensemble"),
    "standard-l1": Entry(standard, {"norm": "l1"}, "our best for its cost, an ensemble"),
    "strong": Entry(strong, {"norm": "linf"}, "AutoAttack and all of ours, an ensemble"),
    "strong-l2": Entry(strong, {"norm": "l2"}, "AutoAttack and all of ours, an ensemble"),
    "strong-l1": Entry(strong, {"norm": "l1"}, "all of ours, an ensemble"),
    "autoattack": Entry(autoattack, {"norm": "linf"}, "AutoAttack, an ensemble of four"),
    "autoattack-l2": Entry(autoattack, {"norm": "l2"}, "AutoAttack, an ensemble of four"),
    "autoattack-rand": Entry(
        autoattack_rand, {"norm": "linf"}, "AutoAttack for random models, 20 draws"
    ),
    "fab": Entry(FAB, {}, "to the boundary, towards each of nine targets"),
    "fab-l2": Entry(FAB, {"norm": "l2"}, "to the boundary, towards each of nine targets"),
    "fab-l1": Entry(FAB, {"norm": "l1"}, "to the boundary, towards each of nine targets"),
    "fmn-linf": Entry(FMN, {"norm": "linf"}, "a ball whose radius follows the boundary"),
    "fmn-l2": Entry(FMN, {"norm": "l2"}, "a ball whose radius follows the boundary"),
    "fmn-l1": Entry(FMN, {"norm": "l1"}, "a ball whose radius follows the boundary"),
    "fmn-l0": Entry(FMN, {"norm": "l0"}, "a ball whose radius follows the boundary"),
    "sigma-zero": Entry(SigmaZero, {}, "the fewest pixels, by a smooth L0 norm"),
    "cw": Entry(_cw, _CW, "Carlini and Wagner with strong settings"),
    "cw-paper": Entry(_cw, _CW_PAPER, "Carlini and Wagner as in the paper, weak"),
    "deepfool": Entry(named_foolbox_attack("L2DeepFoolAttack"), {}, "to the nearest hyperplane"),
    "deepfool-linf": Entry(
        named_foolbox_attack("LinfDeepFoolAttack"), {}, "to the nearest hyperplane"
    ),
    "jsma": Entry(JSMA, {}, "most salient features, both ways, all targets"),
    "jsma-paper": Entry(JSMA, _JSMA_PAPER, "most salient features as in the paper"),
    "pointwise": Entry(Pointwise, {}, "from noise back, pixel by pixel"),
    "single-pixel": Entry(SinglePixel, {}, "every pixel at both ends of the range"),
    "local-search": Entry(LocalSearch, {}, "greedy search over pixels"),
    "local-search-paper": Entry(
        LocalSearch, {"magnitude": 10.0}, "greedy search, probing outside the range"
    ),
    "gaussian": Entry(_gaussian, {"repeats": 20}, "Gaussian noise, more and more"),
    "salt-and-pepper": Entry(
        named_foolbox_attack("SaltAndPepperNoiseAttack"), {}, "black and white pixels, ever more"
    ),
    "boundary": Entry(
        named_foolbox_attack("BoundaryAttack"), {"steps": 1000}, "a walk along the boundary"
    ),
    "hopskipjump": Entry(
        named_foolbox_attack("HopSkipJumpAttack"), {"steps": 16}, "boundary, estimated gradient"
    ),
}.items():
    _ENTRIES.add(_key, _entry)


def register(name: str, make: Callable[..., Attack], *, summary: str = "", **settings: Any) -> None:
    """Make an attack known by a name, for evaluations, training and the command line.

    Args:
        name: name in lower case; one of the same name is replaced.
        make: subclass of `Attack`, or a function of settings that returns one.
        summary: what it is, in a few words.
        **settings: settings under this name, which users may change.

    Raises:
        ValueError: for a name that cannot be used.

    Example:

    >>> from keras_qusec import attacks
    >>> attacks.register("pgd-100", attacks.PGD, summary="PGD of 100 steps", steps=100)
    >>> attacks.get("pgd-100").steps
    100
    >>> attacks.unregister("pgd-100")
    """
    if not name or name != name.lower() or name == WORST_CASE or not callable(make):
        raise ValueError(
            f"Expected a name in lower case, not {WORST_CASE!r}, and a function of settings. "
            f"Received: name={name!r}, {make!r}."
        )
    _ENTRIES.add(name, Entry(make, settings, summary))


def unregister(name: str) -> None:
    """Forget a name of `register`."""
    _ENTRIES.remove(name)


def names() -> tuple[str, ...]:
    """The names of all attacks.

    Example:

    >>> from keras_qusec import attacks
    >>> attacks.names()[:3]
    ('fgsm', 'fgsm-l2', 'bim')
    """
    return _ENTRIES.names()


def summary(name: str) -> str:
    """What an attack of the list is, in a few words.

    Example:

    >>> from keras_qusec.attacks import registry
    >>> registry.summary("fgsm")
    'one step along the sign of the gradient'
    """
    return _ENTRIES.get(name).summary


def get(attack: str | Attack | Any, **settings: Any) -> Attack:
    """An attack by name with its settings, or the object given.

    Args:
        attack: one of `names`, an `Attack`, or an attack object of Foolbox.
        **settings: settings of the named attack; `restarts` of any.

    Raises:
        ValueError: for an unknown name, or settings beside an object or that do not fit.

    Example:

    >>> from keras_qusec import attacks
    >>> attacks.get("pgd", epsilon=0.3, steps=7).steps
    7
    """
    if not isinstance(attack, str):
        if settings:
            raise ValueError(
                f"Expected either an attack object or settings of a named one. Received: "
                f"{attack!r} and {sorted(settings)}. Set them where the object is made."
            )
        return attack if isinstance(attack, Attack) else _from_foolbox(attack)
    entry = _ENTRIES.get(attack.lower())
    settings = {**entry.settings, **settings}
    restarts = settings.pop("restarts", None)
    try:
        made = entry.make(**settings)
    except TypeError as error:
        known = [*dict.fromkeys([*_setting_names(entry.make), "restarts"])]
        wrong = [name for name in settings if name not in known]
        ours = _NAMES_ELSEWHERE.get((wrong or [""])[0])
        hint = closest((wrong or [""])[0], known) if ours is None else f" Here it is {ours!r}."
        raise ValueError(
            f"Expected settings of the attack {attack.lower()!r}: {', '.join(known)}. "
            f"Received: {', '.join(wrong or settings)}.{hint} ({error})"
        ) from error
    if restarts is not None:
        made.restarts = whole_number(restarts, "restarts")
    return made


# The attacks on a quantizer in front, by norm; evaluations add them by themselves.
OWN_ATTACKS = {
    "linf": "reachable-levels",
    "l2": "cheapest-levels-l2",
    "l0": "cheapest-levels-l0",
}


def for_evaluation(
    attacks: Any, norms: Iterable[str] = ("linf",), asked: Asked | None = None
) -> dict[str, Attack]:
    """Attacks by the name shown in the report.

    Args:
        attacks: ``"quick"``, ``"standard"`` or ``"strong"``, for all norms at once; or one of the
            following or several: a name, a pair of a name and a dictionary of
            settings, an `Attack`, a Foolbox attack object; or a dictionary of such by names
            of your own.
        norms: names of the norms that have epsilons.
        asked: for models that give no gradients, what they give.

    Raises:
        ValueError: for an unknown name, a name used twice, or settings that do not fit.

    Example:

    >>> from keras_qusec.attacks.registry import for_evaluation
    >>> list(for_evaluation(["fgsm", ("pgd", {"steps": 7, "restarts": 3})]))
    ['fgsm', 'pgd']
    """
    if isinstance(attacks, str) and attacks.lower() in PRESETS:
        asking = asking_attacks(norms, asked) if asked else []
        alone = asked is not None and not asked.transferred
        attacks = asking if alone and asking else [*asking, *preset(attacks.lower(), list(norms))]
    if isinstance(attacks, Mapping):
        named = [(str(name), _one(attack)) for name, attack in attacks.items()]
    else:
        several = isinstance(attacks, Sequence) and not isinstance(attacks, str)
        pair = several and len(attacks) == 2 and isinstance(attacks[1], Mapping)
        listed = attacks if several and not pair else [attacks]
        named = [(_name(attack), _one(attack)) for attack in listed]
    if not named:
        raise ValueError(
            f'Expected at least one attack. Received: none. Example: attacks=["pgd"]; '
            f"the names are {', '.join(names())}."
        )
    chosen: dict[str, Attack] = {}
    for name, attack in named:
        if name in chosen:
            raise ValueError(
                f"Expected each attack once. Received: {name!r} twice. To compare settings, give "
                f"names of your own: attacks={{'{name} weak': ..., '{name} strong': ...}}."
            )
        if name == WORST_CASE:
            raise ValueError(
                f"Expected another name than {WORST_CASE!r} for an attack, since the report's "
                f"rows over all attacks are called so. Received: {name!r}."
            )
        attack.check_for_evaluation()
        chosen[name] = attack
    return chosen


def _name(attack: Any) -> str:
    if isinstance(attack, str):
        return attack.lower()
    if isinstance(attack, Sequence) and attack and isinstance(attack[0], str):
        return attack[0].lower()
    return attack.name if isinstance(attack, Attack) else type(attack).__name__


def _one(attack: Any) -> Attack:
    if isinstance(attack, Sequence) and not isinstance(attack, str):
        if len(attack) != 2 or not isinstance(attack[1], Mapping):
            raise ValueError(
                f'Expected an attack as a name or as ("name", {{settings}}). Received: {attack!r}.'
            )
        return get(attack[0], **attack[1])
    return get(attack)


def _from_foolbox(attack: Any) -> Attack:
    packages = {kind.__module__.partition(".")[0] for kind in type(attack).__mro__}
    if "foolbox" in packages:
        return FoolboxAttack(attack)
    raise ValueError(
        f"Expected an attack: one of {', '.join(names())}; an object of keras_qusec.attacks; or "
        f"a Foolbox attack object. Received: {attack!r}. A function becomes one with "
        "keras_qusec.attacks.attack_from."
    )


def _setting_names(make: Callable[..., Any]) -> list[str]:
    """The names of the settings of a class, also of those that it hands on to its base."""
    chain: tuple[Any, ...] = make.__mro__ if isinstance(make, type) else (make,)
    setting_names: dict[str, None] = {}
    for kind in chain:
        function = kind.__dict__.get("__init__") if isinstance(kind, type) else kind
        if kind is object or function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                setting_names[parameter.name] = None
    return [name for name in setting_names if name != "self"]
