"""The warnings of a harvest: each is a HarvestWarning, and no error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actstore.console.user_warnings import warn
from actstore.errors import HarvestWarning
from actstore.store.non_finite import non_finite

if TYPE_CHECKING:
    from actstore.store.store import Store

# Sites named in one warning; a model may have hundreds.
SITES_SHOWN = 8


def warn_of_non_finite(store: Store) -> None:
    """Warn of rows of a finished store that hold a NaN or an infinity."""
    counts = non_finite(store)
    if counts:
        described = describe_non_finite(counts, store.manifest.n_rows)
        text = f"not finite: {described}; they are stored, and in no statistic"
        warn(text, HarvestWarning)


def describe_non_finite(counts: Mapping[str, int], n_rows: int) -> str:
    """Return a sentence about rows that are not finite.

    Args:
        counts: How many rows are not finite, by site.
        n_rows: How many rows each of the sites has.
    """
    shown = [
        f"{count:,} of {n_rows:,} rows at {site}"
        for site, count in list(counts.items())[:SITES_SHOWN]
    ]
    text = ", ".join(shown)
    n_more = len(counts) - SITES_SHOWN
    if n_more > 0:
        text += f", and some at {n_more} more sites"
    return text
