"""Checks which rows a unit has: those of its tokens that are kept, each once.

They lie in the order that the unit's number and the seed give, and what is no row holds
the fill value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format import object_keys
from actstore.format.permutation import unit_permutation
from actstore.harvesting.token_filter import TokenFilter
from actstore.store.store import Store

_FILL = -1


class UnitRows(NamedTuple):
    """The rows of a unit, as the store tells of them.

    Attributes:
        unit: Number of the unit.
        tokens: Its sequences, int32 [n_sequences, context]; -1 is padding.
        pairs: Sequence and position of each row, int32 [n, 2].
        special: Which rows are of the stratum *special*, bool [n].
    """

    unit: int
    tokens: NDArray[np.int32]
    pairs: NDArray[np.int32]
    special: NDArray[np.bool_]


def read_unit_rows(store: Store, unit: int) -> UnitRows:
    """Return the rows of a unit.

    Raises:
        CorruptError: They cannot be.
    """
    n_sequences = store.record(unit).n_sequences
    tokens = store.block(unit)[:n_sequences]
    pairs = store.pairs(unit)
    return UnitRows(unit, tokens, pairs, _special(store, unit, tokens, pairs))


def row_problems(store: Store, rows: UnitRows) -> Iterator[str]:
    """Yield a line for what is wrong with which rows there are."""
    yield from _fill_problems(store, rows)
    wanted = wanted_pairs(store, rows)
    n = len(rows.pairs)
    if wanted is None:
        # Which tokens were kept is not known; each row is there once all the same.
        wanted = np.unique(rows.pairs, axis=0)
    where = f"{store.url}/{object_keys.chunk_key('rows', rows.unit, 0)}"
    yield from _twice(rows.pairs, where)
    if len(wanted) != n:
        yield (
            f"wrong    {where}: unit {rows.unit} has {n:,} rows, and of its tokens"
            f" {len(wanted):,} are kept"
        )
        return
    order = unit_permutation(store.manifest.spec.seed, rows.unit, n)
    in_order = wanted[order]
    wrong = np.flatnonzero((rows.pairs != in_order).any(axis=1))
    if len(wrong):
        slot = int(wrong[0])
        more = f", and {len(wrong) - 1:,} more are wrong" if len(wrong) > 1 else ""
        yield (
            f"wrong    {where}: {place(store, rows, slot)}: wanted sequence"
            f" {in_order[slot, 0]}, position {in_order[slot, 1]} in that slot{more}"
        )


def place(store: Store, rows: UnitRows, slot: int) -> str:
    """Return words that name a row: unit, slot, row id, sequence and position."""
    row = rows.unit * store.layout.capacity + slot
    sequence, position = rows.pairs[slot].tolist()
    return (
        f"unit {rows.unit}, slot {slot} (row {row}: sequence {sequence}, position"
        f" {position})"
    )


def wanted_pairs(store: Store, rows: UnitRows) -> NDArray[np.int64] | None:
    """Return the (sequence, position) that are kept of a unit's tokens, int64 [n, 2].

    They are in ascending order. None where an import does not tell.
    """
    manifest = store.manifest
    if not manifest.has_tokens:
        return None
    keep = TokenFilter() if manifest.imported else None
    keep = keep or TokenFilter.of(manifest.spec, manifest.model)
    sequence, position = np.nonzero(keep.keep(rows.tokens))
    first = rows.unit * store.layout.unit_sequences
    return np.stack([sequence + first, position], axis=1)


def _special(
    store: Store,
    unit: int,
    tokens: NDArray[np.int32],
    pairs: NDArray[np.int32],
) -> NDArray[np.bool_]:
    """Return which rows are a sequence's first, or of a special token, bool [n]."""
    sequence = pairs[:, 0] - unit * store.layout.unit_sequences
    special_tokens = store.manifest.model.special_tokens
    special: NDArray[np.bool_] = np.isin(tokens[sequence, pairs[:, 1]], special_tokens)
    if store.manifest.has_contexts:
        # Padding may come before the first token.
        first = (tokens >= 0).argmax(axis=1)
        special |= pairs[:, 1] == first[sequence]
    return special


def _fill_problems(store: Store, rows: UnitRows) -> Iterator[str]:
    """Yield a line where slots or sequences that nothing is in hold a value."""
    unit = rows.unit
    whole = store.block(unit)
    if (whole[len(rows.tokens) :] != _FILL).any():
        key = object_keys.chunk_key("tokens", unit, 0)
        yield (
            f"wrong    {store.url}/{key}: unit {unit} has {len(rows.tokens)} sequences,"
            f" and tokens behind them; wanted {_FILL} there"
        )
    key = object_keys.chunk_key("rows", unit, 0)
    slots = store.plain(key, unit, (store.layout.capacity, 2), np.int32)
    if (slots[len(rows.pairs) :] != _FILL).any():
        yield (
            f"wrong    {store.url}/{key}: unit {unit} has {len(rows.pairs):,} rows, and"
            f" sequences or positions behind them; wanted {_FILL} there"
        )


def _twice(pairs: NDArray[np.int32], where: str) -> Iterator[str]:
    """Yield a line where a row is there more than once."""
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    several = np.flatnonzero(counts > 1)
    if len(several):
        sequence, position = unique[several[0]].tolist()
        slots = np.flatnonzero((pairs == unique[several[0]]).all(axis=1))
        yield (
            f"wrong    {where}: sequence {sequence}, position {position} is there"
            f" {len(slots)} times, first in slots {slots[0]} and {slots[1]};"
            f" {len(several):,} rows are there more than once"
        )
