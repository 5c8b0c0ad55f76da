"""The command line of keras-qusec: a backend is loaded only once there is work for it."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from keras_qusec_cli.parser import parser
from keras_qusec_cli.quiet import quiet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``keras-qusec``.

    Returns:
        The exit status: 0; 1 if something asked for was not written; 2 for bad input; 130 if
        interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        with quiet():
            from keras_qusec import commands

            commands.start_backend(options.command)
        return int(getattr(commands, options.command)(options))
    except (ValueError, ImportError) as error:
        text = f"keras-qusec: {error}"
        if sys.stderr.isatty():
            text = textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False)
        print(text, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads the output, such as head, has enough; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("keras-qusec: interrupted", file=sys.stderr)
        return 130
