"""Intervals of shares, and whether one share is higher than another."""

from __future__ import annotations

import math


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, by default at 95 %.

    Args:
        successes: how many of the trials succeeded.
        count: number of trials, at least 1.
        z: quantile of the normal distribution; 1.959964 for 95 %.

    Example:

    >>> [round(end, 3) for end in wilson_interval(5, 10)]
    [0.237, 0.763]
    """
    share = successes / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding may put an end a hair inside the share itself.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The Wilson interval, at 95 %, of a share of so many images.

    Example:

    >>> share_interval(0.5, 10) == wilson_interval(5, 10)
    True
    """
    return wilson_interval(round(share * count), count)
