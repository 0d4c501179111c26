"""The finished rows of one unit, as the store writer takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.format.statistics import UnitStats


@dataclass(frozen=True, slots=True)
class SealedUnit:
    """One unit.

    rows: int32 [n, 2], (sequence, position) in that order; sites: by name [n, d] in the
    storage dtype (for int8: float32); norms: by name float32 [n]. permuted: whether the
    sites' values are in the unit's final order already (a GPU does that); rows and
    norms never are.
    """

    unit: int
    n_sequences: int
    rows: NDArray[np.int32]
    sites: dict[str, NDArray[Any]]
    norms: dict[str, NDArray[np.float32]]
    stats: UnitStats
    batch: int | None = None
    permuted: bool = False
