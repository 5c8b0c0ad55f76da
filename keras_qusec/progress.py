"""Where the progress of a long run is shown: a function of the user's, a bar, or nowhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

# Columns of a terminal that are left for what is running.
_WIDTH = 42
# Called with what is running and the share done, from 0 to 1; None where nobody knows it.
Progress = Callable[[str, float | None], None]


def share_of(progress: Progress, start: float, end: float) -> Progress:
    """The progress of work that takes another one from one share to the next."""
    return lambda text, share: progress(
        text, None if share is None else start + (end - start) * share
    )


def announced(progress: bool | Progress | None, text: str) -> None:
    """Tell something once before a long run: to a function, or on standard error.

    Args:
        progress: as for `shown`; False for nothing.
        text: what is told.
    """
    if callable(progress):
        progress(text, 0.0)
    elif progress is not False:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in words, no more exact than a forecast is."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def shortened(text: str, width: int = _WIDTH) -> str:
    """A text that fits: without what stands behind its last commas, then with a shorter name.

    What runs stands behind the last colon and stays whole, if it fits.
    """
    while len(text) > width and ", " in text:
        text = text.rpartition(", ")[0]
    name, colon, what = text.rpartition(": ")
    room = width - len(colon + what)
    if len(text) > width and colon and room > 1:
        text = f"{name[: room - 1]}…{colon}{what}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


@contextlib.contextmanager
def shown(progress: bool | Progress | None, title: str = "") -> Iterator[Progress]:
    """The function that a long run tells its progress.

    Args:
        progress: a function, given back as it is; True for a bar on the terminal; False for
            nothing; None for a bar if there is a terminal, else a line a minute.
        title: what is shown before the first step.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.
    """
    if callable(progress):
        yield progress
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar
    except ImportError as error:
        raise ImportError(
            "A progress bar needs the package rich. Install it with: "
            'pip install "keras-qusec[evaluate]"'
        ) from error
    console = Console(stderr=True)
    if progress is False:
        yield lambda text, share: None
        return
    if progress is None and not console.is_terminal:
        yield _Lines(sys.stderr)
        return
    # The width is fixed, so that nothing moves sideways.
    columns = (
        TextColumn(f"{{task.description:<{_WIDTH}}}"),
        BarColumn(8),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0)

        def update(text: str, share: float | None) -> None:
            # Without a total the bar moves to and fro, and no time is said to be left.
            bar.update(task, description=shortened(text), completed=share or 0.0)
            bar.tasks[0].total = None if share is None else 1.0

        yield update


class _Lines:
    """A line a minute, for logs: a run that is over sooner says nothing.

    Args:
        stream: where lines go.
        seconds: between two lines.
    """

    def __init__(self, stream: TextIO, seconds: float = 60.0) -> None:
        self.stream, self.seconds = stream, seconds
        self.start = self.last = time.monotonic()

    def __call__(self, text: str, share: float | None) -> None:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last = now
        gone = now - self.start
        if share is None:
            print(f"{text}: {gone:.0f} s so far", file=self.stream, flush=True)
            return
        left = f", about {gone / share - gone:.0f} s left" if share > 0 else ""
        print(f"{text}: {100 * share:.0f} % in {gone:.0f} s{left}", file=self.stream, flush=True)
