"""Where the progress of a long run is shown: a function of the user's, a bar, or nowhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

# Called with what is running and the share done, from 0 to 1.
Progress = Callable[[str, float], None]


@contextlib.contextmanager
def shown(progress: bool | Progress | None, title: str = "") -> Iterator[Progress]:
    """The function that a long run tells its progress.

    Args:
        progress: a function, given back as it is; True for a bar on the terminal; False for
            nothing; None for a bar if there is a terminal.
        title: what is shown before the first step.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.
    """
    if callable(progress):
        yield progress
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError as error:
        raise ImportError(
            "A progress bar needs the package rich. Install it with: "
            'pip install "keras-qusec[evaluate]"'
        ) from error
    console = Console(stderr=True)
    if progress is False or (progress is None and not console.is_terminal):
        yield lambda text, share: None
        return
    columns = (
        TextColumn("{task.description:<28.28}"),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)
