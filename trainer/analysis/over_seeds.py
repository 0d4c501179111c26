"""Means over seeds, and the 95 % interval of each."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# 97.5 % quantiles of Student's t with 1, 2, 3, ... degrees of freedom (Fisher's table);
# with more than 30 the normal one is taken, which is 4 % too narrow at most.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval (NaN with fewer than two values)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.3g} (one seed)"
        return f"{self.mean:.3g} (95 %: {self.low:.3g} to {self.high:.3g})"


def mean_interval(values: ArrayLike) -> Interval:
    """Return the mean of values with its 95 % interval, by Student's t.

    Values 1, 2, 3 have the mean 2 and the standard error 0.577; with t = 4.303 the
    interval is -0.48 to 4.48. NaN are left out.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    n = len(known)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(known.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    t = _T[n - 2] if n - 2 < len(_T) else _NORMAL
    half = t * float(known.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)
