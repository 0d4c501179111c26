"""Counts the rows of a store that hold a NaN or an infinity."""

from __future__ import annotations

import numpy as np

from actstore.errors import CorruptError
from actstore.store.column_pieces import column_pieces
from actstore.store.stored_objects import StoredObjects


def non_finite(store: StoredObjects) -> dict[str, int]:
    """Return how many rows hold a NaN or an infinity, by site.

    Training rows and held out ones are counted together; sites without such rows are
    left out.

    Raises:
        CorruptError: The column `sums` has counts that cannot be.
    """
    # Figure 1 of the column `sums` [unit, site, stratum, figure] is the count of them.
    counts = np.zeros(len(store.sites))
    for piece in column_pieces(store, "sums"):
        counts += piece[..., 1].sum(axis=(0, 2))
    # NaN is neither at least 0 nor at most n, so it is refused too.
    possible = (counts >= 0) & (counts <= store.manifest.n_rows)
    if not possible.all():
        raise CorruptError(
            f"{store.url}: the column `sums` has {counts.min()} to {counts.max()}"
            " non-finite rows"
        )
    by_site = zip(store.sites, counts, strict=True)
    return {site: int(count) for site, count in by_site if count}
