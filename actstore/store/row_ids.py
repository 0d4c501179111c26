"""RowIds of rows from what a reader asks for: ids themselves, a slice of all valid
rows, or all of them.

Row id = unit * capacity + slot; the valid rows of a unit are its first slots. Store
order is that of the ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from actstore.store.store import Store

RowIds = NDArray[np.int64]
AskedRows = ArrayLike | slice | None


def ids_of(store: Store, rows: AskedRows) -> RowIds:
    """The ids asked for, int64 [n]; None: all. Raises IndexError for ids that do not
    exist, or that are no ids.
    """
    if rows is None or isinstance(rows, slice):
        return _at(store, _places(store, rows))
    given = np.asarray(rows)
    if given.size and given.dtype.kind not in "iu":  # a mask's True is not row 1
        raise IndexError(
            f"{store.url}: rows are ids, whole numbers, got {given.dtype};"
            " `store.rows()` gives them"
        )
    ids = given.astype(np.int64).reshape(-1)
    if len(ids) == 0:
        return ids
    units = ids // store.layout.capacity
    bad = (ids < 0) | (units >= store.manifest.n_units)
    bad |= ids % store.layout.capacity >= store.unit_rows[np.where(bad, 0, units)]
    if bad.any():
        raise IndexError(
            f"{store.url}: row {ids[bad][0]} does not exist; `store.rows()` gives the"
            " ids there are"
        )
    return ids


def pieces(store: Store, rows: AskedRows, size: int) -> Iterator[RowIds]:
    """The ids asked for, `size` at a time; those of a whole store are never in memory
    together.
    """
    if size < 1:
        raise ValueError(f"pieces of {size} rows; wanted at least 1")
    if rows is None or isinstance(rows, slice):
        places = _places(store, rows)
        yield from (
            _at(store, places[start : start + size])
            for start in range(0, len(places), size)
        )
    else:
        ids = ids_of(store, rows)
        yield from (ids[start : start + size] for start in range(0, len(ids), size))


def _places(store: Store, rows: slice | None) -> range:
    """Places among all valid rows."""
    return range(int(store.unit_rows.sum(dtype=np.int64)))[
        slice(None) if rows is None else rows
    ]


def _at(store: Store, places: range) -> RowIds:
    ends = np.cumsum(store.unit_rows, dtype=np.int64)
    at = np.arange(places.start, places.stop, places.step, dtype=np.int64)
    units = np.searchsorted(ends, at, "right")
    return at - (ends - store.unit_rows)[units] + units * store.layout.capacity
