"""Which attacks are quick, standard and strong, and which are AutoAttack's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from keras_qusec.attacks.apgd import APGD
from keras_qusec.attacks.base import Attack
from keras_qusec.attacks.cheapest_levels import CheapestLevels
from keras_qusec.attacks.ensemble import Ensemble
from keras_qusec.attacks.fab import FAB
from keras_qusec.attacks.pgd import PGD
from keras_qusec.attacks.reachable_levels import ReachableLevels
from keras_qusec.attacks.square import Square
from keras_qusec.checks import one_of

# Norms for which AutoAttack and our ensembles are made.
NORMS = ("linf", "l2", "l1")

# Images of a batch on which Square is tried first. Where gradients are masked it breaks many: of
# 32 images it misses a tenth that can be broken once in thirty times.
_SAMPLED = 32

# Radius of the first steps of APGD, in multiples of epsilon, of 1, 1.25, 1.5, 2 and 3 the one that
# broke most on a network with a rugged loss (docs/benchmarks.md).
_FIRST_RADIUS = {"linf": 1.5, "l2": 3.0, "l1": 3.0}

# Sets of attacks for the norms of an evaluation's epsilons.
PRESETS = ("quick", "standard", "strong")


class Asked(NamedTuple):
    """A model that gives no gradients, for which "quick" and so on are attacks that ask it.

    Attributes:
        gives_scores: whether its outputs say more than the class.
        transferred: whether examples made on other models are tried on it as well.
    """

    gives_scores: bool
    transferred: bool


def asking_attacks(norms: Iterable[str], asked: Asked) -> list[Any]:
    """The attacks that ask for outputs, for some norms."""
    by_norm: dict[str, list[Any]] = {
        "linf": ["square"] if asked.gives_scores else [("hopskipjump", {"constraint": "linf"})],
        "l2": ["square-l2", "boundary"] if asked.gives_scores else ["boundary", "hopskipjump"],
        "l0": ["pointwise"],
    }
    return [attack for norm in norms for attack in by_norm.get(norm, [])]


def preset(name: str, norms: Iterable[str]) -> list[Any]:
    """The attacks of "quick", "standard" or "strong" for some norms, as `for_evaluation` takes.

    Args:
        name: one of `PRESETS`.
        norms: names of norms; those that have no such attacks are left out.

    Raises:
        ValueError: if no norm has.
    """
    listed: list[Any] = []
    for norm in (norm for norm in norms if norm in NORMS):
        suffix = "" if norm == "linf" else f"-{norm}"
        if name != "quick":
            listed.append(f"{name}{suffix}")
        elif norm != "l1":
            listed += [f"fgsm{suffix}", f"pgd{suffix}"]
    if not listed:
        raise ValueError(
            f"Expected epsilons in {', '.join(NORMS)} for attacks={name!r}. Received: "
            f"{', '.join(norms)}. Name the attacks, for example attacks=['sigma-zero']."
        )
    return listed


def autoattack(norm: str = "linf") -> Ensemble:
    """AutoAttack with the published order and budgets: APGD-CE, APGD-T, FAB-T, Square.

    Args:
        norm: ``"linf"`` or ``"l2"``.

    Source: Croce and Hein 2020.
    """
    one_of(norm, "norm", ("linf", "l2"), hint="For L1 use the attack 'standard-l1'.")
    return Ensemble(_autoattack(norm), first=tuple(_autoattack(norm)), evidence="standard")


def _autoattack(norm: str) -> dict[str, Attack]:
    return {
        "apgd-ce": APGD(norm=norm),
        "apgd-t": APGD(norm=norm, loss="dlr", targets=9),
        "fab-t": FAB(norm=norm),
        "square": Square(norm=norm),
    }


def autoattack_rand(norm: str = "linf") -> Ensemble:
    """AutoAttack for random models: APGD-CE and APGD-DLR on the mean of 20 draws.

    Args:
        norm: ``"linf"`` or ``"l2"``.

    Source: Croce and Hein 2020, Appendix.
    """
    one_of(norm, "norm", ("linf", "l2"))
    parts = {"apgd-ce": APGD(norm=norm), "apgd-dlr": APGD(norm=norm, loss="dlr")}
    return Ensemble(parts, first=tuple(parts), evidence="standard", draws=20)


def standard(norm: str = "linf") -> Ensemble:
    """Our own best for its cost: a fraction of AutoAttack's.

    Its robust accuracy is AutoAttack's or lower on the networks measured (docs/benchmarks.md). The
    strong evaluation contains AutoAttack.

    PGD; the quantizer's own attack; APGD on the log-odds; APGD on the margin to the three nearest
    targets, both with their first steps in a larger ball; Square, in case gradients are masked: on
    some images of each batch first, and on all if one of them falls.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
    """
    wide = {"steps": 30, **_larger_ball_first(norm)}
    parts: dict[str, Attack] = {
        "pgd": PGD(steps=10, norm=norm),
        **_own_attack(norm, rounds=2),
        "apgd": APGD(loss="log-odds", **wide),
        "apgd-margin": APGD(loss="margin", targets=3, order="malt", **wide),
        **({} if norm == "l1" else {"square": Square(norm=norm, queries=500)}),
    }
    sampled = {} if norm == "l1" else {"square": _SAMPLED}
    return Ensemble(parts, first=("pgd",), skip_smaller=True, sampled=sampled, evidence="standard")


def strong(norm: str = "linf") -> Ensemble:
    """All that we have: the standard evaluation, then AutoAttack and more.

    Every part is made at every radius, and follows the model's own gradient and every surrogate.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
    """
    wide = _larger_ball_first(norm)
    parts: dict[str, Attack] = {
        "pgd": PGD(steps=40, norm=norm, restarts=2),
        **_own_attack(norm, rounds=6),
        "apgd": APGD(loss="log-odds", restarts=2, **wide),
        "apgd-margin": APGD(loss="margin", targets=9, order="malt", **wide),
        "apgd-ce": APGD(norm=norm),
        "apgd-t": APGD(norm=norm, loss="dlr", targets=9),
        "fab-t": FAB(norm=norm),
        **({} if norm == "l1" else {"square": Square(norm=norm)}),
    }
    return Ensemble(parts, first=tuple(parts), evidence="strong")


def _larger_ball_first(norm: str) -> dict[str, Any]:
    """Settings of APGD for a norm that has ensembles."""
    one_of(norm, "norm", NORMS)
    return {"norm": norm, "first_radius": _FIRST_RADIUS[norm]}


def _own_attack(norm: str, rounds: int) -> dict[str, Attack]:
    """The attack on a quantizer in front, where there is one for the norm."""
    if norm == "linf":
        return {"reachable-levels": ReachableLevels(rounds=rounds)}
    return {"cheapest-levels": CheapestLevels()} if norm == "l2" else {}
