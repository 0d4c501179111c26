"""The finished rows of one unit, and how they are made of a filled unit.

The store writer takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actstore.format.statistics import REST, SPECIAL, SiteStats, UnitStats
from actstore.format.stored_dtypes import to_numpy

if TYPE_CHECKING:
    # It needs torch, and code that only writes finished units should not load that.
    from actstore.harvesting.filled_unit import ChannelSums, FilledUnit


@dataclass(frozen=True, slots=True)
class SealedUnit:
    """The rows of one unit, n of them, and what the store says of them.

    Attributes:
        unit: Which unit of the store.
        n_sequences: How many sequences its token block has.
        rows: Where each row comes from, int32 [n, 2]: its sequence and its position,
            in ascending order.
        values: By site, [n, d] in the storage dtype (for int8: float32).
        norms: By site, the L2 norms of the rows as stored, float32 [n].
        stats: The statistics of all sites over these rows.
        batch: Sequences per forward, where the planned batch did not fit; else None.
        permuted: Whether `values` lie in the unit's final order already (a GPU does
            that); `rows` and `norms` never do.
    """

    unit: int
    n_sequences: int
    rows: NDArray[np.int32]
    values: dict[str, NDArray[Any]]
    norms: dict[str, NDArray[np.float32]]
    stats: UnitStats
    batch: int | None = None
    permuted: bool = False


def seal(filled: FilledUnit) -> SealedUnit:
    """Wait for a unit's copies to the host, and complete its statistics.

    The arrays are views of the unit's buffer: they hold until it is filled again.
    """
    buffer = filled.buffer
    if buffer.ready is not None:
        buffer.ready.synchronize()
    n = filled.n_rows
    special = buffer.special[:n]
    stats = UnitStats(filled.sites)
    values: dict[str, NDArray[Any]] = {}
    norms: dict[str, NDArray[np.float32]] = {}
    for i, site in enumerate(filled.sites):
        values[site.name] = to_numpy(buffer.values[i][:n])
        norms[site.name] = buffer.norms[i, :n].numpy()
        _add_rows(
            stats.sites[site.name],
            norms[site.name],
            special,
            filled.channel_sums[i],
        )
    return SealedUnit(
        unit=filled.unit,
        n_sequences=filled.n_sequences,
        rows=buffer.rows[:n],
        values=values,
        norms=norms,
        stats=stats,
        batch=filled.batch,
        permuted=filled.permuted,
    )


def _add_rows(
    stats: SiteStats,
    norms: NDArray[np.float32],
    special: NDArray[np.bool_],
    sums: ChannelSums,
) -> None:
    """Add rows to a site's statistics: norms float32 [n], special bool [n]."""
    finite = stats.add_norms(norms, special)
    for stratum, in_stratum in ((SPECIAL, special), (REST, ~special)):
        count = int(np.count_nonzero(in_stratum & finite))
        if count == 0:
            continue
        # Back from sums around the shift to the mean and the squared deviations from
        # it. Values 11 and 13 around a shift of 10: the sums are 1 + 3 = 4 and 1 + 9 =
        # 10, so the mean is 10 + 4 / 2 = 12 and the deviations are 10 - 2 * 2**2 = 2,
        # which is (11 - 12)**2 + (13 - 12)**2.
        mean_offset = sums.first[stratum] / count
        deviations = sums.second[stratum] - count * np.square(mean_offset)
        # Rounding may leave a channel that hardly varies a little below 0.
        deviations = np.maximum(deviations, 0)
        stats.add_channels(stratum, count, sums.shift + mean_offset, deviations)
