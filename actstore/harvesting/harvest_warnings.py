"""The warnings of a harvest: each is a HarvestWarning, and no error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actstore.console.user_warnings import warn
from actstore.errors import HarvestWarning
from actstore.store.non_finite import non_finite

if TYPE_CHECKING:
    from actstore.store.store import Store
    from schemas.harvest import Plan
    from schemas.manifest import BlockRecord

# Sites named in one warning; a model may have hundreds.
SITES_SHOWN = 8


def warn_of_corpus(plan: Plan, records: Mapping[int, BlockRecord]) -> None:
    """Warn where the corpus was shorter than asked, or documents were left out.

    records: The records of all token blocks, by unit.
    """
    layout = plan.layout
    first_unit = plan.first_unit
    new = [record for unit, record in records.items() if unit >= first_unit]
    n_tokens = sum(record.n_tokens for record in new)
    n_sequences = sum(record.n_sequences for record in new)
    wanted = layout.n_sequences - first_unit * layout.unit_sequences
    if n_sequences < wanted:
        warn(
            f"the corpus ended early: {n_tokens:,} tokens in {n_sequences:,}"
            f" sequences, wanted {plan.spec.tokens:,} tokens; the store is"
            " finished with what there was",
            HarvestWarning,
        )
    skipped = sum(record.skipped_documents for record in new)
    if skipped:
        warn(
            f"{skipped:,} documents were left out: empty, or refused by the tokenizer",
            HarvestWarning,
        )


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
