"""Filters at read time: which rows of a store a stream leaves out.

They go by token, position and stored norm.

Finding them reads a few small columns once, when the stream opens: row positions (8
bytes per row), token blocks (4), and norms (4 per row and site). What is kept of them
is a bit per row. All sites lose the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import NoRowsError, SpecError
from actstore.format.norm_histogram import quantile
from actstore.format.site_patterns import match_sites
from actstore.format.token_ids import check_token_ids
from actstore.store.store import Store
from actstore.stream.group_cells import KeptRows
from schemas.stream import NormRange, RowFilter

# Reads wait for the disk or the network more than for a core.
THREADS = 16


class NormBounds(NamedTuple):
    """Norms that are kept at one site.

    Attributes:
        site: Its name.
        low: The lowest that is kept.
        high: The highest that is kept.
    """

    site: str
    low: float
    high: float


def check_filter_is_not_inert(store: Store, rule: RowFilter) -> None:
    """Raise SpecError where a filter, or a part of it, can leave out no row.

    Such a filter is more likely a slip than a wish: the stream would silently be that
    without it. Raises SpecError, too, where the store does not know what it asks for.
    """
    _check_store_knows(store, rule)
    for reason in _inert_parts(store, rule):
        raise SpecError(
            f"{store.url}: the filter, or a part of it, does nothing: {reason}"
        )


def _inert_parts(store: Store, rule: RowFilter) -> Iterator[str]:
    """Yield what of a filter leaves out no row, in words."""
    if rule == RowFilter():
        yield "it is empty; leave it out"
    context = store.layout.context
    if rule.positions is not None:
        first, stop = rule.positions
        if first == 0 and stop >= context:
            yield f"positions {[first, stop]} are all of a context of {context}"
    for norms in rule.norms:
        if norms.low == 0 and norms.high == 1 and norms.medians is None:
            yield "an entry of norms has no bound; give low, high or medians"
    # Only `tokens` are kept; leaving out others as well changes nothing.
    if rule.tokens is not None and rule.exclude_tokens:
        excluded_of_kept = set(rule.tokens) & set(rule.exclude_tokens)
        if not excluded_of_kept:
            yield "exclude_tokens has none of tokens, the only ones that are kept"


def kept_rows(
    store: Store,
    rule: RowFilter,
    units: NDArray[np.int64],
    sites: tuple[str, ...],
) -> KeptRows:
    """Return the rows of some units that a filter keeps.

    Args:
        store: The store that is streamed.
        rule: The filter.
        units: The units, ascending, int64 [n].
        sites: The streamed sites, whose norms count where the filter names none.

    Raises:
        NoRowsError: The filter keeps no row.
        SpecError: The store does not know what the filter asks for.
    """
    _check_store_knows(store, rule)
    layout = store.layout
    bounds = _bounds(store, rule, sites)
    mask_bytes = -(-layout.chunk_rows // 8)  # eight rows a byte, rounded up
    n_units = len(units)
    mask = np.zeros((n_units, layout.unit_chunks, mask_bytes), np.uint8)
    counts = np.zeros((n_units, layout.unit_chunks), np.int64)

    def scan(position: int) -> None:
        unit = int(units[position])
        n_rows = int(store.unit_rows[unit])
        # By slot of the unit: those after its last row are kept by no filter.
        kept = np.zeros(layout.capacity, bool)
        kept[:n_rows] = _kept_of_unit(store, rule, bounds, unit, n_rows)
        by_chunk = kept.reshape(layout.unit_chunks, layout.chunk_rows)
        mask[position] = np.packbits(by_chunk, axis=1)
        counts[position] = by_chunk.sum(axis=1)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="stream-filter") as pool:
        list(pool.map(scan, range(len(units))))
    if not counts.any():
        raise NoRowsError(_none_left(store, rule))
    return KeptRows(units, mask, counts)


def kept_ids(
    store: Store,
    rule: RowFilter,
    split: str | None,
    sites: tuple[str, ...],
) -> NDArray[np.int64]:
    """Return the ids of a split's rows that a filter keeps, in store order, int64 [n].

    Args:
        store: The store.
        rule: The filter.
        split: "train" or "held_out"; None: all rows.
        sites: The sites whose norms count where the filter names none.

    Raises:
        NoRowsError: The filter keeps no row.
        SpecError: The store does not know what the filter asks for.
    """
    _check_store_knows(store, rule)
    bounds = _bounds(store, rule, sites)

    def ids_of_unit(unit: int) -> NDArray[np.int64]:
        return _kept_ids_of_unit(store, rule, bounds, unit)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="filter") as pool:
        ids_by_unit = list(pool.map(ids_of_unit, store.units(split)))
    if not any(len(ids) for ids in ids_by_unit):
        raise NoRowsError(_none_left(store, rule, split))
    return np.concatenate(ids_by_unit)


def first_kept(
    store: Store, rule: RowFilter, sites: tuple[str, ...], n: int
) -> NDArray[np.int64]:
    """Return the ids of the first n training rows that a filter keeps, int64 [n].

    All of them if they are fewer. Reads as few units as that takes. Raises SpecError
    where the store does not know what the filter asks for.
    """
    _check_store_knows(store, rule)
    bounds = _bounds(store, rule, sites)
    ids_by_unit = [np.zeros(0, np.int64)]
    n_found = 0
    for unit in store.units("train"):
        ids = _kept_ids_of_unit(store, rule, bounds, unit)
        ids_by_unit.append(ids)
        n_found += len(ids)
        if n_found >= n:
            break
    return np.concatenate(ids_by_unit)[:n]


def norm_bounds(
    store: Store, norms: NormRange, sites: tuple[str, ...]
) -> list[NormBounds]:
    """Return a range of norms as numbers, for each of the sites that it is of.

    Quantiles and the median are those of the histograms of the store's training rows.
    """
    bounds = []
    # All rows: those of special tokens and those of the rest have a histogram each.
    for site in match_sites(norms.sites or sites, store.sites):
        histogram = store.statistics.sites[site].histogram.sum(axis=0)
        # Not the quantiles 0 and 1: a histogram knows its ends to a bin only, and held
        # out rows may lie outside of them.
        low = 0.0
        if norms.low > 0:
            low = quantile(histogram, norms.low)
        high = np.inf
        if norms.high < 1:
            high = quantile(histogram, norms.high)
        if norms.medians is not None:
            high = min(high, norms.medians * quantile(histogram, 0.5))
        bounds.append(NormBounds(site, low, high))
    return bounds


def _bounds(
    store: Store,
    rule: RowFilter,
    sites: tuple[str, ...],
) -> list[NormBounds]:
    bounds = []
    for norms in rule.norms:
        bounds.extend(norm_bounds(store, norms, sites))
    return bounds


def _kept_ids_of_unit(
    store: Store, rule: RowFilter, bounds: list[NormBounds], unit: int
) -> NDArray[np.int64]:
    n_rows = int(store.unit_rows[unit])
    kept = _kept_of_unit(store, rule, bounds, unit, n_rows)
    return np.flatnonzero(kept) + unit * store.layout.capacity


def _kept_of_unit(
    store: Store,
    rule: RowFilter,
    bounds: list[NormBounds],
    unit: int,
    n_rows: int,
) -> NDArray[np.bool_]:
    """Return which of a unit's rows a filter keeps, bool [n_rows]."""
    ids = np.arange(n_rows) + unit * store.layout.capacity
    kept = np.ones(n_rows, bool)
    # Tokens and positions are looked up only where the filter asks for them: an
    # imported store may have none.
    if _asks_for_tokens(rule) or rule.positions is not None:
        origin = store.provenance(ids)
        if rule.tokens is not None:
            wanted = np.array(rule.tokens, np.int64)
            kept &= np.isin(origin.token, wanted)
        excluded = np.array(rule.exclude_tokens, np.int64)
        kept &= ~np.isin(origin.token, excluded)
        if rule.positions is not None:
            first, stop = rule.positions
            kept &= (origin.position >= first) & (origin.position < stop)
    for bound in bounds:
        # A norm that is not a number lies within no bounds.
        norm = store.read_norms(bound.site, ids)
        kept &= (norm >= bound.low) & (norm <= bound.high)
    return kept


def _asks_for_tokens(rule: RowFilter) -> bool:
    return rule.tokens is not None or bool(rule.exclude_tokens)


def _check_store_knows(store: Store, rule: RowFilter) -> None:
    """Raise SpecError where a store cannot tell which rows a filter keeps.

    An imported store may know no tokens or positions, and no store has tokens outside
    of its model's vocabulary.
    """
    vocabulary = store.manifest.model.vocabulary
    check_token_ids(rule.tokens or (), vocabulary, "filter.tokens")
    check_token_ids(rule.exclude_tokens, vocabulary, "filter.exclude_tokens")
    unknown = None
    if _asks_for_tokens(rule) and not store.manifest.has_tokens:
        unknown = (
            "token (filter.tokens, filter.exclude_tokens): it was imported without"
            " tokens"
        )
    elif rule.positions is not None and not store.manifest.has_contexts:
        unknown = "position: it was imported without contexts"
    if unknown is not None:
        raise SpecError(
            f"{store.url}: its rows cannot be filtered by {unknown}; import again with"
            " them, or leave it out"
        )


def _none_left(
    store: Store,
    rule: RowFilter,
    split: str | None = None,
) -> str:
    rows = "row" if split is None else f"{split.replace('_', '-')} row"
    return (
        f"{store.url}: the filter leaves no {rows}; widen it"
        f" ({rule.model_dump_json(exclude_defaults=True)})"
    )
