"""The order of a stream: pure functions of (counts of valid rows, seed, epoch). No I/O,
no state, no torch.

An epoch is one sequence of elements g = 0, 1, ... n * T - 1 over n *columns*, with T
the rows per column: element g is row g // n of column g mod n, so every stretch of it
holds the columns in equal shares (+-1), and batch b is its elements [b B, (b + 1) B). A
column is a site; or several that are read at the same places (aligned and pair modes);
a site of weight w has w columns, each with other chunks of it. The rows of a column
come window by window:

- a keyed bijection over units cuts the epoch into *groups* of units, so that every
  shard is opened in one group only (a stream that follows a harvest takes them in unit
  order, as they are released);
- in a group the chunks are shuffled, for every site by another permutation, but so that
  at each place every column has a chunk with the same number of valid rows (a unit's
  last chunk may be partial, a filter may leave rows out): windows then begin and end at
  the same row for all columns;
- a *window* is the next `window_chunks` chunks of every column; chunk i of it belongs
to lane i mod `lanes`;
- inside a window each lane's rows are permuted and the lanes take turns. Rank r of R
  serves the lanes r, r + R, ..., so the global batches are the same for every R that
  divides the lanes.

With weights that differ, an epoch ends with the sites of the largest weight: it visits
their rows once (but for at most weight - 1 chunks per group and number of valid rows),
and those of the others at most once. How well that mixes is a number: see `mixing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.permutation import bijection, key64, mix64, permutation
from schemas.harvest import Layout

UNITS, CHUNKS, ROWS = 11, 12, 13  # stages of the key, so that no two draws share one
GROUP_CHUNKS = 1 << 17
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Ints = NDArray[np.int64]


class Chunk(NamedTuple):
    """One chunk of a window: its column, where it lies in the store, and its cell in
    the window's buffer.
    """

    column: int
    unit: int
    chunk: int
    cell: int


class Window(NamedTuple):
    """The chunks that are in memory together, in a buffer [n_columns, window_chunks *
    chunk_rows].

    start: its first row, counted per column from the epoch's beginning. unit, chunk:
    [n_columns, n_chunks]. source: [n_rows, n_columns], where in the (flattened) buffer
    the rows lie, in the order in which they come; row: their ids, likewise; lane:
    [n_rows].
    """

    epoch: int
    start: int
    unit: Ints
    chunk: Ints
    source: Ints
    row: Ints
    lane: Ints

    @property
    def stop(self) -> int:
        return self.start + len(self.lane)

    def chunks(self, rank: int, world: int, lanes: int) -> list[Chunk]:
        """The chunks that a rank needs."""
        n_columns, n = self.unit.shape
        return [
            Chunk(c, int(self.unit[c, i]), int(self.chunk[c, i]), i)
            for c in range(n_columns)
            for i in range(n)
            if i % lanes % world == rank
        ]


@dataclass(frozen=True)
class Kept:
    """The rows that a filter keeps. mask: uint8 [n_units, unit_chunks, ceil(chunk_rows
    / 8)], one bit per row, by position in `Order.unit_ids`; counts: int64 [n_units,
    unit_chunks].
    """

    mask: NDArray[np.uint8]
    counts: Ints


@dataclass(frozen=True)
class Order:
    """The order of every epoch of a stream.

    unit_ids (ascending), unit_rows: the units streamed and their valid rows, int64
    [n_units] (all memory that it takes, but for a filter's); columns: index of each
    column's (first) site, in the order in which they take turns; window_chunks: chunks
    per column and window; released: in a stream that follows, waits for units
    (positions) and sets their `unit_rows`, False behind the end or when its second
    argument says to stop.
    """

    layout: Layout
    unit_ids: Ints
    unit_rows: Ints
    columns: tuple[int, ...]
    window_chunks: int
    lanes: int
    batch: int
    seed: int
    kept: Kept | None = None
    group_units: int = 0
    released: Callable[[Ints, Callable[[], bool]], bool] | None = None

    @cached_property
    def copies(self) -> int:
        """The largest number of columns of one site."""
        return max(self.columns.count(site) for site in self.columns)

    @cached_property
    def _epochs(self) -> dict[int, int]:
        return {}

    def elements(self, epoch: int) -> int:
        """Rows that an epoch delivers, over all columns. Epochs differ with weights in
        a store of several groups.
        """
        key = 0 if self.copies == 1 else epoch
        if key not in self._epochs:
            self._epochs[key] = len(self.columns) * sum(
                self._rows(units) for units in self._groups(epoch)
            )
        return self._epochs[key]

    def batches(self, epoch: int) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-self.elements(epoch) // self.batch)

    def windows(
        self, epoch: int, first_row: int = 0, stopped: Callable[[], bool] = bool
    ) -> Iterator[Window]:
        """An epoch's windows, from the one that holds a column's row `first_row` on.
        stopped: whether to wait no more for units to be released.
        """
        start = 0
        for number, units in enumerate(self._groups(epoch, stopped)):
            rows = self._rows(units)
            if start + rows > first_row:
                yield from self._windows_of(epoch, number, units, start, first_row)
            start += rows

    def chunk_rows(self, unit: int, chunk: int) -> int:
        """Rows that come of a chunk."""
        at = int(np.searchsorted(self.unit_ids, unit))
        if self.kept is not None:
            return int(self.kept.counts[at, chunk])
        return int(
            np.clip(
                self.unit_rows[at] - chunk * self.layout.chunk_rows,
                0,
                self.layout.chunk_rows,
            )
        )

    def _groups(self, epoch: int, stopped: Callable[[], bool] = bool) -> Iterator[Ints]:
        """Positions of each group's units."""
        n, size = len(self.unit_ids), self.group_units or group_units(self.layout)
        for first in range(0, n, size):
            here = np.arange(first, min(n, first + size), dtype=np.int64)
            if self.released is None:
                yield bijection(here, n, self.seed, UNITS, epoch)
            elif self.released(here, stopped):
                yield here
            else:
                return

    def _rows(self, units: Ints) -> int:
        """Rows per column of a group."""
        if self.copies == 1:
            return int(
                (
                    self.unit_rows[units]
                    if self.kept is None
                    else self.kept.counts[units]
                ).sum()
            )
        counts = np.bincount(self._chunks(units).valid)
        return int((counts // self.copies * np.arange(len(counts))).sum())

    def _windows_of(
        self, epoch: int, number: int, units: Ints, start: int, first_row: int
    ) -> Iterator[Window]:
        places = self._places(epoch, number, units)
        for w, first in enumerate(range(0, len(places.valid), self.window_chunks)):
            here = slice(first, first + self.window_chunks)
            valid = places.valid[here]
            if start + int(valid.sum()) > first_row:
                key = (self.seed, ROWS, epoch, number, w)
                yield self._window(
                    epoch,
                    start,
                    places.unit[:, here],
                    places.chunk[:, here],
                    valid,
                    key,
                )
            start += int(valid.sum())

    def _chunks(self, units: Ints) -> _Places:
        """A group's chunks that have rows, in the order of its units; unit is the
        position.
        """
        rows = self.layout.chunk_rows
        if self.kept is not None:
            at, chunk = np.nonzero(self.kept.counts[units])
            return _Places(units[at], chunk, self.kept.counts[units[at], chunk])
        counts = -(-self.unit_rows[units] // rows)
        unit = np.repeat(units, counts)
        chunk = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        return _Places(
            unit, chunk, np.minimum(self.unit_rows[unit] - chunk * rows, rows)
        )

    def _places(self, epoch: int, group: int, units: Ints) -> _Places:
        unit, chunk, valid = self._chunks(units)
        rows, copies = self.layout.chunk_rows, self.copies
        in_order = valid[permutation(len(unit), self.seed, CHUNKS, epoch, group, -1)]
        by_class = _stable_argsort(in_order, rows)
        # index of a place's first chunk, where chunks are sorted by their class
        first_of = np.arange(len(unit))
        if copies > 1:
            rank = first_of - np.searchsorted(in_order[by_class], in_order[by_class])
            taken = rank % copies == 0
            taken &= rank + copies <= np.bincount(valid)[in_order[by_class]]
            first_of, chosen = first_of[taken], np.zeros(len(unit), bool)
            chosen[by_class[taken]] = True
            in_order = in_order[chosen]
            by_class = _stable_argsort(in_order, rows)
        members, turn = (
            np.empty((len(self.columns), len(in_order)), np.int64),
            dict.fromkeys(self.columns, 0),
        )
        by_site: dict[int, Ints] = {}
        for i, site in enumerate(self.columns):
            if site not in by_site:
                shuffled = permutation(len(unit), self.seed, CHUNKS, epoch, group, site)
                by_site[site] = shuffled[_stable_argsort(valid[shuffled], rows)]
            members[i, by_class] = by_site[site][first_of + turn[site]]
            turn[site] += 1
        return _Places(self.unit_ids[unit][members], chunk[members], in_order)

    def _window(
        self,
        epoch: int,
        start: int,
        unit: Ints,
        chunk: Ints,
        valid: Ints,
        key: tuple[int, ...],
    ) -> Window:
        """Each lane's rows permuted, the lanes taking turns (a lane that has no rows
        left is passed over).
        """
        rows, n, lanes = self.layout.chunk_rows, len(self.columns), self.lanes
        first_ids = unit * self.layout.capacity + chunk * rows
        first_slots = np.arange(n)[:, None] * (self.window_chunks * rows)
        slots = [
            _slots(valid[lane::lanes], range(lane, len(valid), lanes), rows)
            for lane in range(lanes)
        ]
        kept = None if self.kept is None else self._kept_slots(unit, chunk, valid)
        longest = max(len(lane_slots) for lane_slots in slots)
        source = np.empty((longest, lanes, n), np.int64)
        row = np.empty_like(source)
        there = np.arange(longest)[:, None] < [len(lane_slots) for lane_slots in slots]
        turns = self._turns()
        for lane, own in enumerate(slots):
            keys = [
                key64(*key, lane, site, *turn)
                for site, turn in zip(self.columns, turns, strict=True)
            ]
            perm = permutations(len(own), keys)
            place, offset = np.divmod(own, rows)
            if kept is None:
                slot, ids = own[perm], first_ids[:, place] + offset
            else:
                offsets = kept[:, own]
                slot, ids = (
                    np.take_along_axis(place * rows + offsets, perm, axis=1),
                    first_ids[:, place] + offsets,
                )
            source[: len(own), lane] = (slot + first_slots).T
            row[: len(own), lane] = np.take_along_axis(ids, perm, axis=1).T
        lane_of = np.broadcast_to(np.arange(lanes), there.shape)
        if there.all():
            return Window(
                epoch,
                start,
                unit,
                chunk,
                source.reshape(-1, n),
                row.reshape(-1, n),
                lane_of.reshape(-1),
            )
        return Window(
            epoch, start, unit, chunk, source[there], row[there], lane_of[there]
        )

    def _turns(self) -> list[tuple[int, ...]]:
        """What tells the columns of one site apart: nothing for the first, so that
        weights of 1 change no order.
        """
        before = [self.columns[:i].count(site) for i, site in enumerate(self.columns)]
        return [(n,) if n else () for n in before]

    def _kept_slots(self, unit: Ints, chunk: Ints, valid: Ints) -> Ints:
        """[n_columns, window_chunks * chunk_rows]: the offset in its chunk of a place's
        i-th row that is kept.
        """
        assert self.kept is not None
        rows = self.layout.chunk_rows
        bits = np.unpackbits(
            self.kept.mask[np.searchsorted(self.unit_ids, unit), chunk],
            axis=-1,
            count=rows,
        )
        offset = np.nonzero(bits)[2]
        nth = np.arange(rows) < valid[:, None]
        slots = np.zeros((len(unit), len(valid) * rows), np.int64)
        where = np.flatnonzero(nth.reshape(-1))
        slots[:, where] = offset.reshape(len(unit), -1)
        return slots


class _Places(NamedTuple):
    """Of a group, in streaming order: unit and chunk [n_columns, n], valid rows [n]."""

    unit: Ints
    chunk: Ints
    valid: Ints


def group_units(layout: Layout) -> int:
    """Units per group."""
    return max(1, GROUP_CHUNKS // layout.unit_chunks)


def permutations(n: int, keys: list[np.uint64]) -> Ints:
    """Several of `layout.permutation` at once, by their keys: int64 [len(keys), n]."""
    index = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)
    with np.errstate(over="ignore"):
        draws = mix64(index * _GOLDEN + np.array(keys, np.uint64)[:, None])
    draws &= ~low
    draws |= index
    draws.sort(axis=1)
    draws &= low
    return draws.view(np.int64)


def _slots(valid: Ints, places: range, chunk_rows: int) -> Ints:
    """Rows of the window's buffer in some places: the valid ones of each."""
    parts = [
        place * chunk_rows + np.arange(n, dtype=np.int64)
        for place, n in zip(places, valid, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _stable_argsort(counts: Ints, largest: int) -> Ints:
    """Sixteen-bit keys take numpy's radix sort: a fifth of the time."""
    keys = counts.astype(np.uint16) if largest < 1 << 16 else counts
    return np.argsort(keys, kind="stable")
