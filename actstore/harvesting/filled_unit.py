"""A unit whose rows have all come, as the model's thread hands it to the writer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.source import Site


class ChannelSums(NamedTuple):
    """Sums over a unit's finite rows of one site, on the host.

    They are of `value - shift`: with a shift near the mean, the squares stay small and
    keep their digits. The first axis is the stratum (see `format/statistics.py`).

    Attributes:
        first: Sum of `value - shift`, float64 [2, d].
        second: Sum of `(value - shift) ** 2`, float64 [2, d].
        shift: float64 [d], or [1] (a zero) where the unit has no row.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    shift: NDArray[Any]


@dataclass(frozen=True, slots=True)
class FilledUnit:
    """A unit's rows in their buffer; copies from a GPU may still be under way.

    `seal` (`sealed_unit.py`) waits for them and makes a SealedUnit of it.

    Attributes:
        unit: Which unit of the store.
        n_sequences: How many sequences its token block has.
        n_rows: How many rows were kept; they stand first in the buffer.
        buffer: The memory that holds them.
        channel_sums: One for each site, in the order of `sites`.
        sites: The sites that are harvested.
        batch: Sequences per forward, where the planned batch did not fit; else None.
        permuted: Whether the values lie in the unit's final order already.
    """

    unit: int
    n_sequences: int
    n_rows: int
    buffer: UnitBuffer
    channel_sums: list[ChannelSums]
    sites: tuple[Site, ...]
    batch: int | None = None
    permuted: bool = False
