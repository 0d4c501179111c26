"""Statistics of a site's rows that can be added up.

Sums are in float64 and counts in fixed bins, so that units can be merged in a fixed
order, whichever worker made them.

They are kept per site and stratum: 0 has the rows at position 0 and of special tokens,
1 the rest. A row with a NaN or an infinity is counted and is in no other figure. Means
and squared deviations are merged as in Chan, Golub and LeVeque 1979 ("Updating formulae
and a pairwise algorithm for computing sample variances").

The binary form is normative (`docs/FORMAT.md`): per site in plan order count,
non_finite (int64 [2]), sum of norms, sum of squared norms, maximum (float64 [2]),
channel mean and sum of squared deviations (float64 [2, d]), histogram (int64 [2,
BINS]); all little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format.norm_histogram import BINS, bin_of, quantile
from actstore.format.object_sizes import stats_bytes
from schemas.manifest import QUANTILES, NormStats, StratumNorms
from schemas.source import Site

OUTLIER = 10.0  # rows above so many times the median norm are outliers
SPECIAL = 0  # the stratum of position 0 and special tokens
REST = 1  # the stratum of all other rows

Floats = NDArray[np.float64]


class Moments(NamedTuple):
    """Mean and variance of each channel over some rows; NaN where there are none.

    Attributes:
        n_rows: Number of rows.
        mean: float64 [d].
        variance: float64 [d].
    """

    n_rows: int
    mean: Floats
    variance: Floats


class SiteStats:
    """One site's sums over rows, in both strata.

    Attributes:
        d: Width of a row.
        count: Finite rows, int64 [2].
        non_finite: Rows with a NaN or an infinity, int64 [2].
        sum_norm: Sum of L2 norms, float64 [2].
        sum_sq_norm: Sum of squared L2 norms, float64 [2].
        max_norm: Largest L2 norm, float64 [2].
        mean: Mean of each channel, float64 [2, d].
        m2: Sum of squared deviations from the mean, of each channel, float64 [2, d].
        histogram: Norms in each bin (see `norm_histogram.py`), int64 [2, BINS].
    """

    # in the order of the binary form
    FIGURES = (
        "count",
        "non_finite",
        "sum_norm",
        "sum_sq_norm",
        "max_norm",
        "mean",
        "m2",
        "histogram",
    )

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
        """Add rows.

        Args:
            x: The rows, float32 [n, d].
            norms: Their L2 norms, float32 [n].
            special: Whether each is at position 0 or of a special token, bool [n].
        """
        finite = self.add_norms(norms, special)
        for stratum in (SPECIAL, REST):
            in_stratum = special == (stratum == SPECIAL)
            rows = x[in_stratum & finite].astype(np.float64)
            if len(rows):
                mean = rows.mean(axis=0)
                m2 = np.square(rows - mean).sum(axis=0)
                self.add_channels(stratum, len(rows), mean, m2)

    def add_norms(
        self, norms: NDArray[np.float32], special: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Add the norms of rows alone.

        Whoever calls this adds the rows' channels with `add_channels`.

        Args:
            norms: L2 norms, float32 [n].
            special: Whether each row is at position 0 or of a special token, bool [n].

        Returns:
            Which rows are finite, bool [n].
        """
        finite = np.isfinite(norms)
        for stratum in (SPECIAL, REST):
            in_stratum = special == (stratum == SPECIAL)
            values = norms[in_stratum & finite].astype(np.float64)
            largest = values.max(initial=0.0)
            self.non_finite[stratum] += np.count_nonzero(in_stratum & ~finite)
            self.sum_norm[stratum] += values.sum()
            self.sum_sq_norm[stratum] += np.square(values).sum()
            self.max_norm[stratum] = max(self.max_norm[stratum], largest)
            self.histogram[stratum] += np.bincount(bin_of(values), minlength=BINS)
        return finite

    def add_channels(
        self,
        stratum: int,
        n: int,
        mean: Floats,
        m2: Floats,
    ) -> None:
        """Add rows of which only their channels' moments are known (Chan's update).

        Args:
            stratum: SPECIAL or REST.
            n: Number of rows.
            mean: Mean of each channel, float64 [d].
            m2: Sum of squared deviations from that mean, float64 [d].
        """
        # To the values 0 and 2 (mean 1, squared deviations 2) comes 4: its distance is
        # 3, the mean becomes 1 + 3 * 1/3 = 2, the squared deviations 2 + 0 + 9 * 2 * 1
        # / 3 = 8, which are those of 0, 2 and 4 from 2.
        if n == 0:
            return
        n_before = int(self.count[stratum])
        total = n_before + n
        distance = mean - self.mean[stratum]
        self.mean[stratum] += distance * (n / total)
        weight = n_before * n / total
        self.m2[stratum] += m2 + np.square(distance) * weight
        self.count[stratum] = total

    def merge(self, other: SiteStats) -> None:
        """Add another's rows.

        Sums in float64 depend on their order, so units are merged in the order of their
        numbers: then any number of workers gives the same bytes.
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
        """Return whether counts can be counts, and bins hold each finite row once."""
        too_many = (1 << 62) // BINS  # so that sums over bins fit int64
        for counts in (self.count, self.non_finite, self.histogram):
            if (counts < 0).any() or (counts >= too_many).any():
                return False
        in_bins = self.histogram.sum(axis=1)
        return bool((in_bins == self.count).all())

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the figures, in the order of FIGURES, as the attributes have them.

        The shapes are [2], [2, d] and [2, BINS].
        """
        return tuple(getattr(self, name) for name in self.FIGURES)

    def moments(self, strata: Iterable[int] = (SPECIAL, REST)) -> Moments:
        """Return each channel's mean and variance over the rows of some strata."""
        # One stratum of it is enough for the sum of several.
        joined = SiteStats(self.d)
        for stratum in strata:
            joined.add_channels(
                REST,
                int(self.count[stratum]),
                self.mean[stratum],
                self.m2[stratum],
            )
        n = int(joined.count[REST])
        if n == 0:
            no_mean = np.full(self.d, np.nan)
            no_variance = np.full(self.d, np.nan)
            return Moments(0, no_mean, no_variance)
        return Moments(n, joined.mean[REST], joined.m2[REST] / n)

    def summary(self, strata: tuple[int, ...]) -> StratumNorms:
        """Return the figures of the norms over some strata.

        They are NaN where the strata have no rows.
        """
        chosen = list(strata)
        n = int(self.count[chosen].sum())
        at_least_one = max(n, 1)
        histogram = self.histogram[chosen].sum(axis=0)
        n_outliers = 0
        if n:
            median = quantile(histogram, 0.5)
            # All bins above the one that the limit is in; bins know no zero.
            limit = np.array([max(median, 1e-300) * OUTLIER])
            limit_bin = int(bin_of(limit)[0])
            n_outliers = int(histogram[limit_bin + 1 :].sum())
        return StratumNorms(
            count=n,
            non_finite=int(self.non_finite[chosen].sum()),
            mean_norm=float(self.sum_norm[chosen].sum() / at_least_one),
            mean_sq_norm=float(self.sum_sq_norm[chosen].sum() / at_least_one),
            max_norm=float(self.max_norm[chosen].max()),
            quantiles=tuple(quantile(histogram, q) for q in QUANTILES),
            outliers=n_outliers,
        )


class UnitStats:
    """The statistics of all sites over some rows: of a unit, or merged over units.

    Attributes:
        sites: The statistics of each site, by its name.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = {site.name: SiteStats(site.d) for site in sites}

    def merge(self, other: UnitStats) -> None:
        """Add another unit's statistics."""
        for name, stats in self.sites.items():
            stats.merge(other.sites[name])

    def to_bytes(self) -> bytes:
        """Return the normative binary form."""
        arrays = [array for stats in self.sites.values() for array in stats.arrays()]
        return b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(
        cls, sites: Iterable[Site], data: bytes, where: str = "the statistics"
    ) -> Self:
        """Return statistics from their binary form.

        Args:
            sites: The sites whose statistics they are, in order.
            data: The binary form.
            where: The place that errors name.

        Raises:
            CorruptError: The length does not fit the sites, or counts do not add up.
        """
        sites = tuple(sites)
        wanted = stats_bytes(sites)
        # before memory is taken for that many sites
        if len(data) != wanted:
            raise CorruptError(
                f"{where}: {len(data)} bytes, wanted {wanted} for {len(sites)} sites"
            )
        statistics = cls(sites)
        offset = 0
        for name, stats in statistics.sites.items():
            for array in stats.arrays():
                stored = np.frombuffer(data, array.dtype, array.size, offset)
                array[:] = stored.reshape(array.shape)
                offset += array.nbytes
            if not stats.adds_up():
                raise CorruptError(f"{where}: the counts of site {name} do not add up")
        return statistics

    def norms(self) -> tuple[NormStats, ...]:
        """Return the figures of each site that the manifest has."""
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
    """Return what is said of a site without a finite row.

    Args:
        site: Its name.
        rows: What came of it, such as `its first 256 rows`.
    """
    return (
        f"site {site!r}: none of {rows} is finite: all hold a NaN, an infinity, or"
        " values whose squares float32 does not hold; leave the site out, or look for"
        " the cause (weights, --model-dtype, --autocast)"
    )
