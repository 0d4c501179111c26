"""A unit whose rows have all come, until the writer's thread completes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.dtypes import to_numpy
from actstore.format.statistics import REST, SPECIAL, UnitStats
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.source import Site


class _Channels(NamedTuple):
    """Sums around shift on the host: float64 [2, d], [2, d], [d]."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FilledUnit:
    """A unit whose buffers are full (or about to be); `rows` does what is left, in the
    writer's thread.
    """

    unit: int
    n_sequences: int
    n: int
    buffer: UnitBuffer
    channels: list[_Channels]
    sites: tuple[Site, ...]
    batch: int | None = None
    permuted: bool = False  # whether the values are in the unit's final order already

    def rows(self) -> SealedUnit:
        """Wait for the copies and complete the statistics."""
        if self.buffer.ready is not None:
            self.buffer.ready.synchronize()
        n, special = self.n, self.buffer.special[: self.n]
        stats = UnitStats(self.sites)
        norms: dict[str, NDArray[np.float32]] = {}
        for i, (site, sums) in enumerate(zip(self.sites, self.channels, strict=True)):
            norms[site.name] = self.buffer.norms[i, :n].numpy()
            one = stats.sites[site.name]
            finite = one.add_norms(norms[site.name], special)
            for stratum, mine in ((SPECIAL, special), (REST, ~special)):
                count = int(np.count_nonzero(mine & finite))
                if count:
                    offset = sums.first[stratum] / count
                    m2 = np.maximum(sums.second[stratum] - count * np.square(offset), 0)
                    one.add_channels(stratum, count, sums.shift + offset, m2)
        values = {
            s.name: to_numpy(v[:n])
            for s, v in zip(self.sites, self.buffer.values, strict=True)
        }
        rows = self.buffer.rows[:n]
        return SealedUnit(
            self.unit,
            self.n_sequences,
            rows,
            values,
            norms,
            stats,
            self.batch,
            self.permuted,
        )
