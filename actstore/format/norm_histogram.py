"""The fixed bins in which L2 norms are counted, and quantiles from their counts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from actstore.format.object_sizes import HISTOGRAM_BINS

LOWEST, PER_OCTAVE, BINS = -24, 32, HISTOGRAM_BINS


def bin_of(norms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of each norm: 32 per octave from 2^-24 on; 0 and what is below in the first,
    what is above in the last.
    """
    with np.errstate(divide="ignore"):
        exact = (np.log2(norms) - LOWEST) * PER_OCTAVE
    bins: NDArray[np.int64] = np.clip(np.floor(exact), 0, BINS - 1).astype(np.int64)
    return bins


def quantile(histogram: NDArray[np.int64], q: float) -> float:
    """A quantile of the norm, linear in the logarithm inside its bin (a bin is 2.2 %
    wide); NaN of no rows.
    """
    total = int(histogram.sum())
    if total == 0:
        return math.nan
    below = np.cumsum(histogram)
    target = q * total
    at = min(int(np.searchsorted(below, target)), BINS - 1)
    inside = (target - (below[at] - histogram[at])) / max(int(histogram[at]), 1)
    return float(2.0 ** (LOWEST + (at + min(max(inside, 0.0), 1.0)) / PER_OCTAVE))
