"""The command line of keras-qusec: a backend is loaded only once there is work for it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import textwrap
import zipfile
from collections.abc import Sequence

from keras_qusec_cli import names
from keras_qusec_cli.parser import parser
from keras_qusec_cli.quiet import quiet

_PACKAGE = "keras_qusec"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``keras-qusec``.

    Returns:
        The exit status: 0; 1 if something asked for was not written; 2 for bad input; 130 if
        interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        _check_files(options)
        _check_names(options)
        _check_radii(options)
        with quiet():
            from keras_qusec import commands

            commands.start_backend(options.command)
        return int(getattr(commands, options.command)(options))
    except (ValueError, ImportError) as error:
        text = f"keras-qusec: {error}{_other_backend(error)}"
        if sys.stderr.isatty():
            text = textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False)
        print(text, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads the output, such as head, has enough; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"keras-qusec: interrupted{_how_to_resume(options)}", file=sys.stderr)
        return 130


def _how_to_resume(options: argparse.Namespace) -> str:
    """What an interrupted command may do next, if it can keep finished work."""
    if "resume" not in vars(options):
        return ""
    if options.resume:
        return f"; the same command goes on from {options.resume}"
    return "; --resume FOLDER keeps finished work, to go on from there"


def _check_files(options: argparse.Namespace) -> None:
    """Raise a ValueError for a file that is not there, before a backend is loaded."""
    given = vars(options)
    single = [given[name] for name in ("model", "deployed") if given.get(name)]
    lists = [given.get(name) or [] for name in ("compare", "source", "reports", "imports")]
    for path in [*single, *(path for paths in lists for path in paths)]:
        if not os.path.exists(path):
            raise ValueError(
                f"Expected a file. Received: {path}, which does not exist. Check the path."
            )
        if path.endswith(".keras") and os.path.isfile(path) and not zipfile.is_zipfile(path):
            raise ValueError(
                f"Expected a model that Keras saved, a zip file. Received: {path}, which is "
                "something else. Save it with model.save(path)."
            )
    if given.get("data"):
        names.check_data(given["data"])


def _check_radii(options: argparse.Namespace) -> None:
    """Raise a ValueError for radii that do not rise, before a backend is loaded."""
    for name, radii in vars(options).items():
        if not name.endswith("epsilons") or not radii:
            continue
        units = {radius.below is None for radius in radii}
        values = [radius.in_units(0.0, 1.0) for radius in radii]
        if len(units) == 1 and values != sorted(set(values)):
            raise ValueError(
                f"Expected --{name.replace('_', '-')} in rising order. Received: "
                f"{', '.join(f'{value:g}' for value in values)}."
            )


def _check_names(options: argparse.Namespace) -> None:
    """Raise a ValueError for a name that nothing has, before a backend is loaded."""
    given = vars(options)
    if given.get("imports") or _PACKAGE in sys.modules:
        # Names of a user's own may be registered, and the registries tell.
        return
    # Sets of attacks are given alone, and not to a comparison.
    alone = options.command != "compare" and len(given.get("attacks") or ()) == 1
    attacks = (*(("quick",) if alone else ()), *names.ATTACKS)
    for option, known in {"attacks": attacks, "queries": names.ATTACKS,
                          "threat_models": names.THREAT_MODELS, "defenses": names.DEFENSES,
                          "targets": names.TARGETS,
                          "figure": ("all", *names.REPRODUCTIONS)}.items():  # fmt: skip
        typed = given.get(option) or []
        if option == "figure" and options.command != "reproduce":
            continue
        label = option if option == "figure" else f"--{option.replace('_', '-')}"
        words = [typed] if isinstance(typed, str) else typed
        if option in ("attacks", "queries"):
            words = [word.lower() for word in words]
        names.check(words, known, label)


def _other_backend(error: Exception) -> str:
    """What to do where Keras looks for a backend that is not installed, and another one is."""
    backends = ("tensorflow", "jax", "torch")
    missing = getattr(error, "name", None)
    if missing not in backends:
        return ""
    there = [name for name in backends if importlib.util.find_spec(name) is not None]
    if not there:
        return f'. Install a backend: pip install "keras-qusec[{missing}]"'
    return f". Keras takes {missing} unless it is told otherwise: set KERAS_BACKEND={there[0]}"
