"""The ids of the rows that a reader asks for.

It asks by ids themselves, by a slice of all valid rows, or for all of them.

Row id = unit * capacity + slot; the valid rows of a unit are its first slots, so that
ids have gaps. Store order is that of the ids. With a capacity of 100 and units of 90
and 80 rows, the ids are 0 to 89 and 100 to 179: row number 95 of the store, counted
from 0, has the id 105.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from actstore.store.store import Store

RowIds = NDArray[np.int64]
"""Ids of rows, int64 [n]."""

RowSelection = ArrayLike | slice | None
"""Which rows are asked for: ids; a slice of all valid rows in store order; or None, all
of them."""


def selected_ids(store: Store, selection: RowSelection) -> RowIds:
    """Return the ids of the rows asked for, int64 [n].

    Raises:
        IndexError: An id that does not exist, or values that are not ids.
    """
    if selection is None or isinstance(selection, slice):
        return _ids_of_numbers(store, _selected_numbers(store, selection))
    given = np.asarray(selection)
    if given.size and given.dtype.kind not in "iu":  # a mask's True is not row 1
        raise IndexError(
            f"{store.url}: rows are ids, whole numbers, got {given.dtype};"
            " `store.rows()` gives them"
        )
    ids = given.astype(np.int64).reshape(-1)
    if len(ids) == 0:
        return ids
    capacity = store.layout.capacity
    units = ids // capacity
    bad = (ids < 0) | (units >= store.manifest.n_units)
    # An id that is known to be bad may name a unit that does not exist: look unit 0 up
    # in its place.
    rows_in_unit = store.unit_rows[np.where(bad, 0, units)]
    bad |= ids % capacity >= rows_in_unit
    if bad.any():
        raise IndexError(
            f"{store.url}: row {ids[bad][0]} does not exist; `store.rows()` gives the"
            " ids there are"
        )
    return ids


def selected_pieces(
    store: Store, selection: RowSelection, size: int
) -> Iterator[RowIds]:
    """Yield the ids of the rows asked for, int64 [size]; the last may be fewer.

    Those of a whole store are never in memory together.

    Raises:
        IndexError: As for `selected_ids`.
        ValueError: A size below 1.
    """
    if size < 1:
        raise ValueError(f"pieces of {size} rows; wanted at least 1")
    if selection is None or isinstance(selection, slice):
        numbers = _selected_numbers(store, selection)
        for start in range(0, len(numbers), size):
            yield _ids_of_numbers(store, numbers[start : start + size])
    else:
        ids = selected_ids(store, selection)
        for start in range(0, len(ids), size):
            yield ids[start : start + size]


def _selected_numbers(store: Store, rows: slice | None) -> range:
    """Return the numbers of the rows asked for, counted over all valid rows."""
    # int64, since a store may have more rows than int32 can count
    n_rows = int(store.unit_rows.sum(dtype=np.int64))
    every_number = range(n_rows)
    return every_number if rows is None else every_number[rows]


def _ids_of_numbers(store: Store, numbers: range) -> RowIds:
    """Return the ids of rows that are told by their numbers among all valid rows."""
    # Units of 90 and 80 rows end before the numbers 90 and 170. Number 95 is below 170
    # and not below 90, so it is in unit 1, at slot 95 - 90.
    ends = np.cumsum(store.unit_rows, dtype=np.int64)
    start = numbers.start
    row_numbers = np.arange(start, numbers.stop, numbers.step, dtype=np.int64)
    units = np.searchsorted(ends, row_numbers, "right")
    firsts = ends - store.unit_rows
    slots = row_numbers - firsts[units]
    return slots + units * store.layout.capacity
