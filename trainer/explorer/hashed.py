"""Numbers that look drawn by chance, and depend on what they are drawn for only.

A row gets the same number whenever it comes and whatever came before, so that what is
chosen by these numbers does not depend on an order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def hashed(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in (0, 1) for each number, by SplitMix64 (Steele et al. 2014).

    Args:
        numbers: int64 [n].
        seed: What else it depends on.
    """
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(seed + 1) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        mixed ^= mixed >> np.uint64(31)
    # 53 bits are what a float64 holds; half a step more keeps it above 0
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
