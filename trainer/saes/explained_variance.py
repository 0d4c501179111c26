"""The share of the rows' variance that a reconstruction leaves unexplained."""

from __future__ import annotations

import math


def fvu(error: float, variance: float) -> float:
    """Return the fraction of variance unexplained (docs/metrics.md).

    Args:
        error: Sum over rows of |x - x'|^2.
        variance: Sum over the same rows of |x - mu|^2, mu the mean of the row's layer.

    Returns:
        Their ratio; NaN where all rows are the mean.
    """
    return error / variance if variance else math.nan
