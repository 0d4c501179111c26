"""Norm statistics that merge exactly: sums in float64 (Chan et al. 1979) and integer
histograms over fixed bins.

Per site and stratum (0: position 0 and special tokens, 1: the rest). A row with a NaN
or an infinity is counted and is in no other figure. The binary form is normative
(`FORMAT.md`): per site in plan order count, non_finite (int64 [2]), sum of norms, sum
of squared norms, maximum (float64 [2]), channel mean and sum of squared deviations
(float64 [2, d]), histogram (int64 [2, BINS]); all little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format.norm_histogram import BINS, bin_of, quantile
from actstore.format.object_sizes import stats_bytes
from schemas.manifest import QUANTILES, NormStats, StratumNorms
from schemas.source import Site

OUTLIER = 10.0


SPECIAL, REST = 0, 1


Floats = NDArray[np.float64]


class SiteStats:
    """One site's sums over both strata."""

    def __init__(self, d: int) -> None:
        self.d = d
        self.count = np.zeros(2, "<i8")
        self.non_finite = np.zeros(2, "<i8")
        self.sum_norm = np.zeros(2, "<f8")
        self.sum_sq_norm = np.zeros(2, "<f8")
        self.max_norm = np.zeros(2, "<f8")
        self.mean = np.zeros((2, d), "<f8")
        self.m2 = np.zeros((2, d), "<f8")
        self.histogram = np.zeros((2, BINS), "<i8")

    def add_rows(
        self,
        x: NDArray[np.float32],
        norms: NDArray[np.float32],
        special: NDArray[np.bool_],
    ) -> None:
        """Count rows x [n, d] with their L2 norms [n] and which of them are special
        [n].
        """
        finite = self.add_norms(norms, special)
        for stratum in (SPECIAL, REST):
            rows = x[(special == (stratum == SPECIAL)) & finite].astype(np.float64)
            if len(rows):
                mean = rows.mean(axis=0)
                self.add_channels(
                    stratum, len(rows), mean, np.square(rows - mean).sum(axis=0)
                )

    def add_norms(
        self, norms: NDArray[np.float32], special: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Count norms [n] alone (the channels come by `add_channels`, first); returns
        which rows are finite.
        """
        finite = np.isfinite(norms)
        for stratum in (SPECIAL, REST):
            here = special == (stratum == SPECIAL)
            values = norms[here & finite].astype(np.float64)
            self.non_finite[stratum] += np.count_nonzero(here & ~finite)
            self.sum_norm[stratum] += values.sum()
            self.sum_sq_norm[stratum] += np.square(values).sum()
            self.max_norm[stratum] = max(
                self.max_norm[stratum], values.max(initial=0.0)
            )
            self.histogram[stratum] += np.bincount(bin_of(values), minlength=BINS)
        return finite

    def add_channels(self, stratum: int, n: int, mean: Floats, m2: Floats) -> None:
        """Merge n rows of channel mean [d] and sum of squared deviations [d] (Chan's
        update).
        """
        have = int(self.count[stratum])
        total = have + n
        if n == 0:
            return
        delta = mean - self.mean[stratum]
        self.mean[stratum] += delta * (n / total)
        self.m2[stratum] += m2 + np.square(delta) * (have * n / total)
        self.count[stratum] = total

    def merge(self, other: SiteStats) -> None:
        """Add another's rows; merging in unit order gives the same bytes for any
        worker.
        """
        for stratum in (SPECIAL, REST):
            self.add_channels(
                stratum,
                int(other.count[stratum]),
                other.mean[stratum],
                other.m2[stratum],
            )
        self.non_finite += other.non_finite
        self.sum_norm += other.sum_norm
        self.sum_sq_norm += other.sum_sq_norm
        self.max_norm[:] = np.maximum(self.max_norm, other.max_norm)
        self.histogram += other.histogram

    def adds_up(self) -> bool:
        """Whether counts can be counts, and the bins hold each finite row once."""
        counts, most = (self.count, self.non_finite, self.histogram), 1 << 62
        if any((part < 0).any() or (part >= most // BINS).any() for part in counts):
            return False
        return bool((self.histogram.sum(axis=1) == self.count).all())

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The parts in their normative order."""
        sums = (self.sum_norm, self.sum_sq_norm, self.max_norm)
        return (self.count, self.non_finite, *sums, self.mean, self.m2, self.histogram)

    def moments(
        self, strata: Iterable[int] = (SPECIAL, REST)
    ) -> tuple[int, Floats, Floats]:
        """(count, channel mean [d], channel variance [d]) over strata; NaN of no rows."""
        joined = SiteStats(self.d)
        for stratum in strata:
            joined.add_channels(
                REST, int(self.count[stratum]), self.mean[stratum], self.m2[stratum]
            )
        n = int(joined.count[REST])
        if n == 0:
            return 0, np.full(self.d, np.nan), np.full(self.d, np.nan)
        return n, joined.mean[REST], joined.m2[REST] / n

    def summary(self, strata: tuple[int, ...]) -> StratumNorms:
        """Norm figures over strata; NaN of no rows."""
        at = list(strata)
        n = int(self.count[at].sum())
        histogram = self.histogram[at].sum(axis=0)
        median = quantile(histogram, 0.5)
        above = (
            histogram[int(bin_of(np.array([max(median, 1e-300) * OUTLIER]))[0]) + 1 :]
            if n
            else histogram[:0]
        )
        return StratumNorms(
            count=n,
            non_finite=int(self.non_finite[at].sum()),
            mean_norm=float(self.sum_norm[at].sum() / max(n, 1)),
            mean_sq_norm=float(self.sum_sq_norm[at].sum() / max(n, 1)),
            max_norm=float(self.max_norm[at].max()),
            quantiles=tuple(quantile(histogram, q) for q in QUANTILES),
            outliers=int(above.sum()),
        )


class UnitStats:
    """The statistics of all sites over some rows: of a unit, or merged over units."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = {site.name: SiteStats(site.d) for site in sites}

    def merge(self, other: UnitStats) -> None:
        """Add another unit's statistics."""
        for name, stats in self.sites.items():
            stats.merge(other.sites[name])

    def to_bytes(self) -> bytes:
        """The normative binary form."""
        return b"".join(
            part.tobytes() for stats in self.sites.values() for part in stats.arrays()
        )

    @classmethod
    def from_bytes(
        cls, sites: Iterable[Site], data: bytes, where: str = "the statistics"
    ) -> Self:
        """Back from the binary form. Raises CorruptError where the length does not fit
        the sites.
        """
        sites = tuple(sites)
        # before memory is taken for them
        if len(data) != (wanted := stats_bytes(sites)):
            raise CorruptError(
                f"{where}: {len(data)} bytes, wanted {wanted} for {len(sites)} sites"
            )
        made = cls(sites)
        parts = [part for stats in made.sites.values() for part in stats.arrays()]
        offset = 0
        for part in parts:
            part[:] = np.frombuffer(data, part.dtype, part.size, offset).reshape(
                part.shape
            )
            offset += part.nbytes
        for name, stats in made.sites.items():
            if not stats.adds_up():
                raise CorruptError(f"{where}: the counts of site {name} do not add up")
        return made

    def norms(self) -> tuple[NormStats, ...]:
        """The figures that the manifest carries."""
        return tuple(
            NormStats(
                site=name,
                d=stats.d,
                all=stats.summary((SPECIAL, REST)),
                special=stats.summary((SPECIAL,)),
                rest=stats.summary((REST,)),
            )
            for name, stats in self.sites.items()
        )


def none_finite(site: str, rows: str) -> str:
    """What is said of a site without a finite row; `rows`: those that came, such as
    `its first 256 rows`.
    """
    return (
        f"site {site!r}: none of {rows} is finite: all hold a NaN, an infinity, or"
        " values whose squares float32 does not hold; leave the site out, or look for"
        " the cause (weights, --model-dtype, --autocast)"
    )
