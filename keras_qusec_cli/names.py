"""Names that the command line takes, said here so that no backend is loaded to know them.

Tests hold them against the registries.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

# What `keras_qusec.datasets.load` knows beside files and folders.
DATA_SETS = ("mnist5k", "mnist", "fashion_mnist", "cifar10")
THREAT_MODELS = ("white-box", "adaptive", "black-box")
# Classes that a targeted attack aims at.
TARGETS = ("next", "random", "second", "least-likely")
# Those of `keras_qusec.certification`.
EFFORTS = ("bounds", "standard", "exact")
# Those of `keras_qusec.comparison`.
DEFENSES = (
    "undefended",
    "constant",
    "trainable",
    "squeezing",
    "brelu-gda",
    "distillation",
    "dqa",
    "ape-gan",
    "defense-gan",
    "thermometer",
    "fgsm-training",
    "pgd-training",
    "constant-pgd",
    "hard-certified",
)
# Those of `keras_qusec.reproduction`.
REPRODUCTIONS = (
    "figure-1",
    "figure-5",
    "figure-6",
    "equation-9",
    "figure-7",
    "figure-8",
    "figure-9",
    "figure-10",
    "figure-11",
    "abstract",
    "table-1",
    "headline",
    "explanations",
    "best",
)
# Those of `keras_qusec.attacks`; "quick" is a set of them.
ATTACKS = (
    "fgsm",
    "fgsm-l2",
    "bim",
    "bim-l2",
    "pgd",
    "pgd-l2",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "apgd-ce-l2",
    "apgd-t-l2",
    "apgd-ce-l1",
    "square",
    "square-l2",
    "reachable-levels",
    "cheapest-levels-l2",
    "cheapest-levels-l0",
    "standard",
    "standard-l2",
    "standard-l1",
    "strong",
    "strong-l2",
    "strong-l1",
    "autoattack",
    "autoattack-l2",
    "autoattack-rand",
    "fab",
    "fab-l2",
    "fab-l1",
    "fmn-linf",
    "fmn-l2",
    "fmn-l1",
    "fmn-l0",
    "sigma-zero",
    "cw",
    "cw-paper",
    "deepfool",
    "deepfool-linf",
    "jsma",
    "jsma-paper",
    "pointwise",
    "single-pixel",
    "local-search",
    "local-search-paper",
    "gaussian",
    "salt-and-pepper",
    "boundary",
    "hopskipjump",
)


def check_data(path: str) -> None:
    """Raise a ValueError for data that are neither known by name nor there."""
    if path in DATA_SETS or os.path.exists(path):
        return
    hint = _close_to(path, DATA_SETS, 1) or " Check the path."
    raise ValueError(
        f"Expected --data to be {', '.join(DATA_SETS)}, an .npz file, or a folder of images by "
        f"class. Received: {path!r}, which does not exist.{hint}"
    )


def check(given: Sequence[str], known: Sequence[str], option: str) -> None:
    """Raise a ValueError for the first name that is not known.

    Args:
        given: names as typed.
        known: all names.
        option: as it is typed.
    """
    for name in given:
        if name not in known:
            raise ValueError(
                f"Expected {option} to be one of {', '.join(known)}. Received: {name!r}."
                f"{_close_to(name, known, 3)}"
            )


def _close_to(name: str, known: Sequence[str], most: int) -> str:
    """What may have been meant, in words; nothing if no name is close."""
    close = difflib.get_close_matches(name, known, most, 0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
