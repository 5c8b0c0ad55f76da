"""Calls of a function in other processes and on other machines, over joblib."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


def is_parallel(n_jobs: int | None) -> bool:
    """Whether work goes to other processes.

    Args:
        n_jobs: as `joblib.Parallel` takes it; None for what `joblib.parallel_config` says.
    """
    import joblib

    return bool(joblib.effective_n_jobs(n_jobs) != 1)


def called(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """What a function returns for each call, as it is ready and in any order.

    Args:
        function: of a module that the other processes can import.
        calls: the positional arguments of each call.
        n_jobs: as in `is_parallel`.
    """
    import joblib

    # For processes that start now.
    os.environ.setdefault("KERAS_BACKEND", keras.backend.backend())
    # Some ways to run jobs, such as Ray's, give all results together.
    streams = joblib.parallel.get_active_backend()[0].supports_return_generator
    kind = "generator_unordered" if streams else "list"
    # Made one after the other, as there is room for them.
    jobs = (joblib.delayed(function)(*arguments) for arguments in calls)
    results = joblib.Parallel(n_jobs=n_jobs, return_as=kind)(jobs)
    try:
        for result in results:  # noqa: UP028  the end is ours
            yield result
    finally:
        # Who stops early has a reason, of which joblib need not warn.
        if hasattr(results, "close"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                results.close()
