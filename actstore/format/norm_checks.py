"""The norms of a manifest: one for each site, figures that can be of one set of
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from schemas.manifest import QUANTILES, StoreManifest, StratumNorms

_ROUNDED = 1 + 1e-6
_BIN = 2 ** (1 / 32) * _ROUNDED  # quantiles are exact to a bin of the histogram
_LOWEST = 2.0**-23  # above the first bin, where smaller norms are counted too


def norm_faults(m: StoreManifest) -> Iterator[str]:
    """Find figures that cannot be among the manifest's norms."""
    if [(one.site, one.d) for one in m.norms] != [
        (site.name, site.d) for site in m.sites
    ]:
        yield "its norms are not one for each site, in their order"
    for norms in m.norms:
        if (
            len(
                {
                    *map(
                        len,
                        (
                            norms.all.quantiles,
                            norms.special.quantiles,
                            norms.rest.quantiles,
                        ),
                    ),
                    len(QUANTILES),
                }
            )
            > 1
        ):
            yield f"norms of {norms.site}: wanted {len(QUANTILES)} quantiles"
        for name in ("all", "special", "rest"):
            if wrong := _wrong(getattr(norms, name)):
                yield f"norms of {norms.site}, {name}: {wrong} cannot be"
        for name in ("count", "non_finite"):
            parts = [getattr(one, name) for one in (norms.special, norms.rest)]
            if getattr(norms.all, name) != sum(parts):
                yield (
                    f"norms of {norms.site}: {name} of all is not that of special and"
                    " rest"
                )
        if norms.all.count + norms.all.non_finite != m.n_train_rows:
            yield f"norms of {norms.site}: they are not of {m.n_train_rows} rows"


def _wrong(one: StratumNorms) -> str:
    """The figure that cannot be, or nothing. Of no rows, figures are 0 or NaN."""
    figures = (one.mean_norm, one.mean_sq_norm, one.max_norm, *one.quantiles)
    if one.count < 0 or one.non_finite < 0 or not 0 <= one.outliers <= one.count:
        return "count, non_finite or outliers"
    if one.count == 0:
        return (
            ""
            if all(x == 0 or math.isnan(x) for x in figures)
            else "a figure of no rows"
        )
    if not all(math.isfinite(x) and x >= 0 for x in figures):
        return "a figure that is negative or no number"
    if any(a > b for a, b in pairwise(one.quantiles)) or one.quantiles[-1] > max(
        one.max_norm * _BIN, _LOWEST
    ):
        return "its quantiles"
    if (
        one.mean_norm > one.max_norm * _ROUNDED
        or one.mean_norm * one.mean_norm > one.mean_sq_norm * _ROUNDED
    ):
        return "mean_norm"
    return (
        "mean_sq_norm"
        if one.mean_sq_norm > one.max_norm * one.max_norm * _ROUNDED
        else ""
    )
