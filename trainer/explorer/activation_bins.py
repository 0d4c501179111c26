"""The bins of activation histograms: a quarter octave each, the same for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 4
BINS = 128  # from 2^-16 to 2^16


def bin_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of the histogram that each activation is in, int64 [n].

    With 4 bins an octave 1 to 1.19 is bin 64, and 2 to 2.38 bin 68. What is outside of
    all bins counts in the first or the last.
    """
    place = np.floor(np.log2(values.astype(np.float64)) * BINS_PER_OCTAVE)
    bins: NDArray[np.int64] = np.clip(place + BINS // 2, 0, BINS - 1).astype(np.int64)
    return bins


def bin_edges() -> NDArray[np.float64]:
    """Return the edges of the histogram's bins, [BINS + 1]."""
    octaves = (np.arange(BINS + 1) - BINS // 2) / BINS_PER_OCTAVE
    edges: NDArray[np.float64] = np.exp2(octaves)
    return edges
