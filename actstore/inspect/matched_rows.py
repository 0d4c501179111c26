"""Finds the rows that two stores have in common, whatever their layouts.

A row is the same in both where its sequence has the same tokens and its position is the
same. Sequences are matched by their numbers first; what is left by its tokens, since a
store that has some of another's units may number them anew. Row ids are never compared:
they depend on the sizes of units, and on the seed.

Token blocks and rows of a unit are read only where the two stores' records tell of
different bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.format import object_keys
from actstore.format.permutation import mix64
from actstore.store.row_ids import RowIds
from actstore.store.store import Store
from schemas.manifest import UnitRecord

# Units whose rows are kept: neighbouring units of one store lie in the same units of
# the other.
_KEPT_UNITS = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class UnitRows(NamedTuple):
    """The rows of one unit of the first store that the second store has too.

    Attributes:
        a: Their ids in the first store, int64 [n].
        b: The ids of the same rows in the second store, int64 [n].
    """

    a: RowIds
    b: RowIds


class MatchedRows:
    """The sequences and rows that stores `a` and `b` have in common.

    Attributes:
        a: The first store.
        b: The second store.
        records_a: The records of the first store's units.
        records_b: The records of the second store's units.
        sequences: Numbers of the sequences that both have, int64 [n, 2]: in `a`, in
            ascending order, and in `b`.
    """

    def __init__(self, a: Store, b: Store) -> None:
        self.a = a
        self.b = b
        self.records_a = [a.record(unit) for unit in a.units()]
        self.records_b = [b.record(unit) for unit in b.units()]
        self.sequences = self._match_sequences()
        self.of_unit = lru_cache(_KEPT_UNITS)(self._of_unit)
        self._sorted_rows = lru_cache(_KEPT_UNITS)(self._read_sorted_rows)

    def n_in_unit(self, unit: int) -> int:
        """Return how many rows of a unit of `a` are in `b` too."""
        if self.same_slots(unit):
            return self.a.rows_in(unit)
        return len(self.of_unit(unit).a)

    def same_slots(self, unit: int) -> bool:
        """Return whether a unit has the same row in each slot, as its records say."""
        if not self._same_layout() or unit >= len(self.records_b):
            return False
        keys = [object_keys.chunk_key(name, unit, 0) for name in ("tokens", "rows")]
        a = self.records_a[unit]
        b = self.records_b[unit]
        same = all(a.objects[key] == b.objects[key] for key in keys)
        return same and (a.n_sequences, a.n_rows) == (b.n_sequences, b.n_rows)

    def same_values(self, unit: int, site: str) -> bool:
        """Return whether a site has the same values in a unit's slots, by digests."""
        if not self.same_slots(unit):
            return False
        a = _objects_of_site(self.records_a[unit], site)
        return a == _objects_of_site(self.records_b[unit], site)

    def _same_layout(self) -> bool:
        """Return whether units and chunks have the same sizes, and tokens are known."""
        a = self.a.layout
        b = self.b.layout
        sizes_a = (a.context, a.unit_sequences, a.capacity)
        sizes_b = (b.context, b.unit_sequences, b.capacity)
        has_tokens = self.a.manifest.has_tokens == self.b.manifest.has_tokens
        return sizes_a == sizes_b and has_tokens

    def _match_sequences(self) -> NDArray[np.int64]:
        """Return the numbers of the sequences that both stores have, int64 [n, 2]."""
        has_tokens = self.a.manifest.has_tokens == self.b.manifest.has_tokens
        if self.a.layout.context != self.b.layout.context or not has_tokens:
            return np.zeros((0, 2), np.int64)
        units = range(min(len(self.records_a), len(self.records_b)))
        known = {unit for unit in units if self._same_tokens(unit)}
        a = _sequences(self.a, self.records_a, known)
        b = _sequences(self.b, self.records_b, known)
        same = [_numbers(self.a, self.records_a[unit]) for unit in sorted(known)]
        same.append(_same_numbers(a, b))
        numbers = np.concatenate(same)
        left_a = a[~np.isin(a["number"], numbers)]
        left_b = b[~np.isin(b["number"], numbers)]
        by_tokens = _same_tokens(left_a, left_b)
        pairs = np.concatenate([np.stack([numbers, numbers], axis=1), by_tokens])
        return pairs[np.argsort(pairs[:, 0])]

    def _same_tokens(self, unit: int) -> bool:
        """Return whether a unit has the same tokens in both, as its records say."""
        key = object_keys.chunk_key("tokens", unit, 0)
        a = self.records_a[unit]
        b = self.records_b[unit]
        same_sizes = self.a.layout.unit_sequences == self.b.layout.unit_sequences
        same_bytes = a.objects[key] == b.objects[key]
        return same_sizes and same_bytes and a.n_sequences == b.n_sequences

    def _of_unit(self, unit: int) -> UnitRows:
        """Return the rows of a unit of `a` that `b` has too."""
        first = unit * self.a.layout.capacity
        if self.same_slots(unit):
            ids = first + np.arange(self.a.rows_in(unit), dtype=np.int64)
            return UnitRows(ids, ids)
        pairs = self.a.pairs(unit).astype(np.int64)
        place = np.searchsorted(self.sequences[:, 0], pairs[:, 0])
        place = np.minimum(place, max(len(self.sequences) - 1, 0))
        if not len(self.sequences):
            return UnitRows(np.zeros(0, np.int64), np.zeros(0, np.int64))
        slots = np.flatnonzero(self.sequences[place, 0] == pairs[:, 0])
        in_b = self.sequences[place[slots], 1]
        keys = in_b * self.b.layout.context + pairs[slots, 1]
        ids_b = self._ids_in_b(keys)
        there = ids_b >= 0
        return UnitRows(first + slots[there], ids_b[there])

    def _ids_in_b(self, keys: NDArray[np.int64]) -> RowIds:
        """Return the ids of rows in `b`, int64 [n], by their keys; -1: not there.

        A key is sequence * context + position.
        """
        layout = self.b.layout
        ids = np.full(len(keys), -1, np.int64)
        unit_of_key = keys // (layout.unit_sequences * layout.context)
        for unit in np.unique(unit_of_key).tolist():
            of_unit = np.flatnonzero(unit_of_key == unit)
            sorted_keys, slots = self._sorted_rows(unit)
            if not len(sorted_keys):
                continue
            place = np.searchsorted(sorted_keys, keys[of_unit])
            place = np.minimum(place, len(sorted_keys) - 1)
            found = sorted_keys[place] == keys[of_unit]
            ids[of_unit[found]] = unit * layout.capacity + slots[place[found]]
        return ids

    def _read_sorted_rows(
        self, unit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the keys of a unit's rows in `b`, sorted, and their slots."""
        pairs = self.b.pairs(unit).astype(np.int64)
        keys = pairs[:, 0] * self.b.layout.context + pairs[:, 1]
        order = np.argsort(keys)
        return keys[order], order


# A sequence: its number in its store, and 64 bits of the digest of its tokens.
_SEQUENCE = np.dtype([("number", "<i8"), ("digest", "<u8")])


def _sequences(
    store: Store, records: list[UnitRecord], known: set[int]
) -> NDArray[np.void]:
    """Return the sequences of a store, _SEQUENCE [n], but those of known units."""
    parts = [np.zeros(0, _SEQUENCE)]
    for record in records:
        if record.unit in known:
            continue
        part = np.zeros(record.n_sequences, _SEQUENCE)
        part["number"] = _numbers(store, record)
        block = store.block(record.unit)[: record.n_sequences]
        digests = b"".join(blake3(row.tobytes()).digest(8) for row in block)
        part["digest"] = np.frombuffer(digests, "<u8")
        parts.append(part)
    return np.concatenate(parts)


def _numbers(store: Store, record: UnitRecord) -> NDArray[np.int64]:
    """Return the numbers of a unit's sequences in its store, int64 [n]."""
    first = record.unit * store.layout.unit_sequences
    return first + np.arange(record.n_sequences, dtype=np.int64)


def _same_numbers(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the numbers under which both have the same tokens, int64 [n]."""
    numbers, at_a, at_b = np.intersect1d(a["number"], b["number"], True, True)
    same: NDArray[np.bool_] = a["digest"][at_a] == b["digest"][at_b]
    kept: NDArray[np.int64] = numbers[same]
    return kept


def _same_tokens(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.int64]:
    """Return numbers of sequences with the same tokens in both, int64 [n, 2].

    The first of several equal ones is matched with the first, and so on.
    """
    _, at_a, at_b = np.intersect1d(_keys(a["digest"]), _keys(b["digest"]), True, True)
    return np.stack([a["number"][at_a], b["number"][at_b]], axis=1)


def _keys(digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a key for each digest, uint64 [n], that tells equal digests apart.

    It is made of the digest and of how many equal ones came before.
    """
    order = np.argsort(digests, kind="stable")
    in_order = digests[order]
    index = np.arange(len(digests))
    is_first = np.ones(len(digests), np.bool_)
    is_first[1:] = in_order[1:] != in_order[:-1]
    first_of_group = np.maximum.accumulate(np.where(is_first, index, 0))
    rank = np.empty(len(digests), np.uint64)
    rank[order] = (index - first_of_group).astype(np.uint64)
    return mix64(digests + rank * _GOLDEN)


def _objects_of_site(record: UnitRecord, site: str) -> dict[str, object]:
    """Return the records of the objects that a site's values are read from."""
    names = (
        object_keys.acts_key(site),
        object_keys.scale_key(site),
        object_keys.step_key(site),
    )
    return {
        key: told
        for key, told in record.objects.items()
        if key.partition("/c/")[0] in names
    }
