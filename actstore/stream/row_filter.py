"""Filters at read time: which rows of a store a stream leaves out, by token, position
and stored norm.

Finding them reads a few small columns once, when the stream opens: row positions (8
bytes per row), token blocks (4), and norms (4 per row and site). What is kept of them
is a bit per row. All sites lose the same rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import NoRowsError, SpecError
from actstore.format.norm_histogram import quantile
from actstore.format.site_patterns import match_sites
from actstore.format.token_ids import check_token_ids
from actstore.store.store import Store
from actstore.stream.order import Kept
from schemas.stream import NormRange, RowFilter

THREADS = 16


class NormBounds(NamedTuple):
    """Norms that are kept at one site, both ends included."""

    site: str
    low: float
    high: float


def check_acts(store: Store, rule: RowFilter) -> None:
    """Raises SpecError where a filter, or a part of it, could leave out no row of a
    store.
    """
    _check_known(store, rule)
    context = store.layout.context
    for inert, what in (
        (rule == RowFilter(), "it is empty; leave it out"),
        (rule.positions is not None and rule.positions[0] == 0 and rule.positions[1] >= context,
         f"positions {list(rule.positions or ())} are all of a context of {context}"),
        (any(one.low == 0 and one.high == 1 and one.medians is None for one in rule.norms),
         "an entry of norms has no bound; give low, high or medians"),
        (rule.tokens is not None and bool(rule.exclude_tokens) and not {*rule.tokens} & {*rule.exclude_tokens},
         "exclude_tokens has none of tokens, the only ones that are kept"),
    ):  # fmt: skip
        if inert:
            raise SpecError(
                f"{store.url}: the filter, or a part of it, does nothing: {what}"
            )


def kept_rows(
    store: Store, rule: RowFilter, units: NDArray[np.int64], sites: tuple[str, ...]
) -> Kept:
    """The rows of some units that a filter keeps; `sites` are the streamed ones.

    Raises NoRowsError where none is, SpecError where the store does not know what the
    filter asks for.
    """
    _check_known(store, rule)
    layout, bounds = store.layout, _bounds(store, rule, sites)
    mask = np.zeros(
        (len(units), layout.unit_chunks, -(-layout.chunk_rows // 8)), np.uint8
    )
    counts = np.zeros((len(units), layout.unit_chunks), np.int64)

    def scan(i: int) -> None:
        kept = np.zeros(layout.capacity, bool)
        n = int(store.unit_rows[units[i]])
        kept[:n] = _kept(store, rule, bounds, int(units[i]), n)
        by_chunk = kept.reshape(layout.unit_chunks, layout.chunk_rows)
        mask[i], counts[i] = np.packbits(by_chunk, axis=1), by_chunk.sum(axis=1)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="stream-filter") as pool:
        list(pool.map(scan, range(len(units))))
    if not counts.any():
        raise NoRowsError(_none_left(store, rule))
    return Kept(mask, counts)


def kept_ids(
    store: Store, rule: RowFilter, split: str | None, sites: tuple[str, ...]
) -> NDArray[np.int64]:
    """Ids of the rows of a split (None: of the store) that a filter keeps, in store
    order. Raises NoRowsError where none is, SpecError as `kept_rows`.
    """
    _check_known(store, rule)
    bounds = _bounds(store, rule, sites)

    def of(unit: int) -> NDArray[np.int64]:
        return _ids_of(store, rule, bounds, unit)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="filter") as pool:
        found = list(pool.map(of, store.units(split)))
    if not any(map(len, found)):
        raise NoRowsError(_none_left(store, rule, split))
    return np.concatenate(found)


def first_kept(
    store: Store, rule: RowFilter, sites: tuple[str, ...], n: int
) -> NDArray[np.int64]:
    """Ids of the first n training rows that a filter keeps, of as few units as that
    takes; all of them if they are fewer. Raises SpecError as `kept_rows`.
    """
    _check_known(store, rule)
    bounds, found = _bounds(store, rule, sites), [np.zeros(0, np.int64)]
    for unit in store.units("train"):
        found.append(_ids_of(store, rule, bounds, unit))
        if sum(map(len, found)) >= n:
            break
    return np.concatenate(found)[:n]


def _ids_of(
    store: Store, rule: RowFilter, bounds: list[NormBounds], unit: int
) -> NDArray[np.int64]:
    kept = _kept(store, rule, bounds, unit, int(store.unit_rows[unit]))
    return np.flatnonzero(kept) + unit * store.layout.capacity


def _bounds(store: Store, rule: RowFilter, sites: tuple[str, ...]) -> list[NormBounds]:
    return [one for norms in rule.norms for one in norm_bounds(store, norms, sites)]


def _none_left(store: Store, rule: RowFilter, split: str | None = None) -> str:
    which = "" if split is None else f"{split.replace('_', '-')} "
    return (
        f"{store.url}: the filter leaves no {which}row; widen it"
        f" ({rule.model_dump_json(exclude_defaults=True)})"
    )


def _check_known(store: Store, rule: RowFilter) -> None:
    """Raises SpecError where a filter asks for what an imported store does not know, or
    for tokens that are none.
    """
    for name in ("tokens", "exclude_tokens"):
        check_token_ids(
            getattr(rule, name) or (), store.manifest.model.vocabulary, f"filter.{name}"
        )
    by_token = rule.tokens is not None or bool(rule.exclude_tokens)
    for asked, known, what in (
        (
            by_token,
            store.manifest.has_tokens,
            (
                "token (filter.tokens, filter.exclude_tokens): it was imported without"
                " tokens"
            ),
        ),
        (
            rule.positions is not None,
            store.manifest.has_contexts,
            "position: it was imported without contexts",
        ),
    ):
        if asked and not known:
            raise SpecError(
                f"{store.url}: its rows cannot be filtered by {what}; import again with"
                " them, or leave it out"
            )


def norm_bounds(
    store: Store, norms: NormRange, sites: tuple[str, ...]
) -> list[NormBounds]:
    """Quantiles and multiples of the median as norms, from the histograms of the
    store's training rows.
    """
    found = []
    for site in match_sites(norms.sites or sites, store.sites):
        histogram = store.statistics.sites[site].histogram.sum(axis=0)
        low = quantile(histogram, norms.low) if norms.low > 0 else 0.0
        high = quantile(histogram, norms.high) if norms.high < 1 else np.inf
        if norms.medians is not None:
            high = min(high, norms.medians * quantile(histogram, 0.5))
        found.append(NormBounds(site, low, high))
    return found


def _kept(
    store: Store, rule: RowFilter, bounds: list[NormBounds], unit: int, n: int
) -> NDArray[np.bool_]:
    """Of a unit's rows, [n]."""
    ids, keep = np.arange(n) + unit * store.layout.capacity, np.ones(n, bool)
    if rule.tokens is not None or rule.exclude_tokens or rule.positions is not None:
        where = store.provenance(ids)
        if rule.tokens is not None:
            keep &= np.isin(where.token, np.array(rule.tokens, np.int64))
        keep &= ~np.isin(where.token, np.array(rule.exclude_tokens, np.int64))
        if rule.positions is not None:
            keep &= (where.position >= rule.positions[0]) & (
                where.position < rule.positions[1]
            )
    for bound in bounds:
        norm = store.read_norms(bound.site, ids)
        keep &= (norm >= bound.low) & (norm <= bound.high)
    return keep
