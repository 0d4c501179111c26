"""The fixed bins in which L2 norms are counted, and quantiles from the counts.

Bins are the same for every store, so that histograms can be added up. There are 32 of
them for each doubling of the norm, from 2^-24 on: the norm 1 = 2^0 is in bin 24 * 32 =
768, which ends at 2^(1/32) = 1.0219; 2 is in bin 800.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from actstore.format.object_sizes import HISTOGRAM_BINS

LOWEST = -24  # the first bin begins at 2^-24
PER_OCTAVE = 32  # bins for each doubling
BINS = HISTOGRAM_BINS


def bin_of(norms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each norm, int64 [n] for float64 [n].

    Norms below the first bin, such as 0, are counted in it; those above the last one in
    that.
    """
    with np.errstate(divide="ignore"):  # the logarithm of 0 is minus infinity
        exact = (np.log2(norms) - LOWEST) * PER_OCTAVE
    whole = np.floor(exact)
    bins: NDArray[np.int64] = np.clip(whole, 0, BINS - 1).astype(np.int64)
    return bins


def quantile(histogram: NDArray[np.int64], q: float) -> float:
    """Return a quantile of the norm from a histogram; NaN if it is empty.

    The histogram has the count in each bin, int64 [BINS].

    It is linear in the logarithm inside its bin, which is 2.2 % wide.
    """
    # Three norms in bin 768 and one in bin 800: of the median, 0.5 * 4 = 2 norms are
    # below. That is two thirds into bin 768: 2^((768 + 2/3) / 32 - 24) = 1.0145.
    total = int(histogram.sum())
    if total == 0:
        return math.nan
    up_to = np.cumsum(histogram)
    target = q * total
    number = min(int(np.searchsorted(up_to, target)), BINS - 1)
    in_bin = int(histogram[number])
    inside = (target - (up_to[number] - in_bin)) / max(in_bin, 1)
    inside = min(max(inside, 0.0), 1.0)
    return float(2.0 ** (LOWEST + (number + inside) / PER_OCTAVE))
