"""Rows of a store that hold a NaN or an infinity."""

from __future__ import annotations

from actstore.errors import CorruptError
from actstore.store.stored_objects import StoredObjects


def non_finite(store: StoredObjects) -> dict[str, int]:
    """Rows of a store that hold a NaN or an infinity, training and held out, by site;
    other sites are left out.
    """
    counts = store.column("sums")[..., 1].sum(axis=(0, 2))
    if not (counts >= 0).all() or not (counts <= store.manifest.n_rows).all():
        raise CorruptError(
            f"{store.url}: the column `sums` has {counts.min()} to {counts.max()}"
            " non-finite rows"
        )
    return {site: int(n) for site, n in zip(store.sites, counts, strict=True) if n}
