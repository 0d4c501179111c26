"""Checks the norms of a manifest.

There must be one set of figures for each site, and all must be possible for the same
rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from schemas.manifest import QUANTILES, StoreManifest, StratumNorms

_ROUNDED = 1 + 1e-6  # how far rounding may take a figure
_BIN = 2 ** (1 / 32) * _ROUNDED  # quantiles are exact to a bin of the histogram
_LOWEST = 2.0**-23  # above the first bin, where smaller norms are counted too
_STRATA = ("all", "special", "rest")


def norm_faults(m: StoreManifest) -> Iterator[str]:
    """Yield a line for everything that cannot be among a manifest's norms."""
    sites_of_norms = [(norms.site, norms.d) for norms in m.norms]
    if sites_of_norms != [(site.name, site.d) for site in m.sites]:
        yield "its norms are not one for each site, in their order"
    for norms in m.norms:
        where = f"norms of {norms.site}"
        strata = [getattr(norms, name) for name in _STRATA]
        if any(len(stratum.quantiles) != len(QUANTILES) for stratum in strata):
            yield f"{where}: wanted {len(QUANTILES)} quantiles"
        for name, stratum in zip(_STRATA, strata, strict=True):
            wrong = _wrong(stratum)
            if wrong:
                yield f"{where}, {name}: {wrong} cannot be"
        for name in ("count", "non_finite"):
            parts = getattr(norms.special, name) + getattr(norms.rest, name)
            if getattr(norms.all, name) != parts:
                yield f"{where}: {name} of all is not that of special and rest"
        if norms.all.count + norms.all.non_finite != m.n_train_rows:
            yield f"{where}: they are not of {m.n_train_rows} rows"


def _wrong(stratum: StratumNorms) -> str:
    """Return the figure that cannot be, or nothing.

    Figures of a stratum without rows are 0 or NaN.
    """
    mean = stratum.mean_norm
    mean_sq = stratum.mean_sq_norm
    largest = stratum.max_norm
    quantiles = stratum.quantiles
    figures = (mean, mean_sq, largest, *quantiles)
    counts_fit = stratum.count >= 0 and stratum.non_finite >= 0
    if not counts_fit or not 0 <= stratum.outliers <= stratum.count:
        return "count, non_finite or outliers"
    if stratum.count == 0:
        nothing = all(x == 0 or math.isnan(x) for x in figures)
        return "" if nothing else "a figure of no rows"
    if not all(math.isfinite(x) and x >= 0 for x in figures):
        return "a figure that is negative or no number"
    falling = any(lower > higher for lower, higher in pairwise(quantiles))
    if falling or quantiles[-1] > max(largest * _BIN, _LOWEST):
        return "its quantiles"
    # The square of a mean is at most the mean of squares (Jensen's inequality).
    if mean > largest * _ROUNDED or mean * mean > mean_sq * _ROUNDED:
        return "mean_norm"
    return "mean_sq_norm" if mean_sq > largest * largest * _ROUNDED else ""
