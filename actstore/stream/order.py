"""The order of a stream: pure functions of (counts of valid rows, seed, epoch). No I/O, no state, no torch.

An epoch is one sequence of elements g = 0, 1, ... n_sites * T - 1, with T the rows per site: element g is row g // n
of site g mod n, so every stretch of it holds the sites in equal shares (+-1), and batch b is its elements
[b B, (b + 1) B). The rows of a site come window by window:

- a keyed bijection over units cuts the epoch into *groups* of units, so that every shard is opened in one group only;
- in a group the chunks are shuffled, for every site by another permutation, but so that at each place every site has
  a chunk with the same number of valid rows (a unit's last chunk may be partial): windows then begin and end at the
  same row for all sites;
- a *window* is the next `window_chunks` chunks of every site; chunk i of it belongs to lane i mod `lanes`;
- inside a window each lane's rows are permuted and the lanes take turns. Rank r of R serves the lanes r, r + R, ...,
  so the global batches are the same for every R that divides the lanes.

How well that mixes is a number: see `mixing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.layout import bijection, key64, mix64, permutation
from schemas.harvest import Layout

UNITS, CHUNKS, ROWS = 11, 12, 13  # stages of the key, so that no two draws share one
GROUP_CHUNKS = 1 << 17
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Ints = NDArray[np.int64]


class Chunk(NamedTuple):
    """One chunk of a window: where it lies in the store, and its place in the window's buffer."""

    site: int
    unit: int
    chunk: int
    place: int


class Window(NamedTuple):
    """The chunks that are in memory together, in a buffer [n_sites, window_chunks * chunk_rows].

    start: its first row, counted per site from the epoch's beginning. unit, chunk: [n_sites, n_chunks].
    source: [n_rows, n_sites], where in the (flattened) buffer the rows lie, in the order in which they come; row: their
    ids, likewise; lane: [n_rows].
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
        n_sites, n = self.unit.shape
        return [
            Chunk(s, int(self.unit[s, i]), int(self.chunk[s, i]), i)
            for s in range(n_sites)
            for i in range(n)
            if i % lanes % world == rank
        ]


@dataclass(frozen=True)
class Order:
    """The order of every epoch of a stream.

    unit_ids, unit_rows: the units streamed and their valid rows, int64 [n_units] (all memory that it takes); sites:
    indices of the sites in the store; window_chunks: chunks per site and window.
    """

    layout: Layout
    unit_ids: Ints
    unit_rows: Ints
    sites: tuple[int, ...]
    window_chunks: int
    lanes: int
    batch: int
    seed: int

    @cached_property
    def rows_per_site(self) -> int:
        return int(self.unit_rows.sum())

    @property
    def n_elements(self) -> int:
        """Rows that an epoch delivers, over all sites."""
        return len(self.sites) * self.rows_per_site

    @property
    def n_batches(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-self.n_elements // self.batch)

    def windows(self, epoch: int, first_row: int = 0) -> Iterator[Window]:
        """An epoch's windows, from the one that holds a site's row `first_row` on."""
        start = 0
        for number, units in enumerate(self._groups(epoch)):
            rows = int(self.unit_rows[units].sum())
            if start + rows > first_row:
                yield from self._windows_of(epoch, number, units, start, first_row)
            start += rows

    def _groups(self, epoch: int) -> Iterator[Ints]:
        """Positions of each group's units."""
        n, size = len(self.unit_ids), group_units(self.layout)
        for first in range(0, n, size):
            yield bijection(np.arange(first, min(n, first + size), dtype=np.int64), n, self.seed, UNITS, epoch)

    def _windows_of(self, epoch: int, number: int, units: Ints, start: int, first_row: int) -> Iterator[Window]:
        places = self._places(epoch, number, units)
        for w, first in enumerate(range(0, len(places.valid), self.window_chunks)):
            here = slice(first, first + self.window_chunks)
            valid = places.valid[here]
            if start + int(valid.sum()) > first_row:
                key = (self.seed, ROWS, epoch, number, w)
                yield self._window(epoch, start, places.unit[:, here], places.chunk[:, here], valid, key)
            start += int(valid.sum())

    def _places(self, epoch: int, group: int, units: Ints) -> _Places:
        rows = self.layout.chunk_rows
        counts = -(-self.unit_rows[units] // rows)
        unit = np.repeat(units, counts)
        chunk = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        valid = np.minimum(self.unit_rows[unit] - chunk * rows, rows)
        in_order = valid[permutation(len(unit), self.seed, CHUNKS, epoch, group, -1)]
        by_class = _stable_argsort(in_order, rows)
        members = np.empty((len(self.sites), len(unit)), np.int64)
        for i, site in enumerate(self.sites):
            shuffled = permutation(len(unit), self.seed, CHUNKS, epoch, group, site)
            members[i, by_class] = shuffled[_stable_argsort(valid[shuffled], rows)]
        return _Places(self.unit_ids[unit][members], chunk[members], in_order)

    def _window(self, epoch: int, start: int, unit: Ints, chunk: Ints, valid: Ints, key: tuple[int, ...]) -> Window:
        """Each lane's rows permuted, the lanes taking turns (a lane that has no rows left is passed over)."""
        rows, n, lanes = self.layout.chunk_rows, len(self.sites), self.lanes
        first_ids = unit * self.layout.capacity + chunk * rows
        first_slots = np.arange(n)[:, None] * (self.window_chunks * rows)
        slots = [_slots(valid[lane::lanes], range(lane, len(valid), lanes), rows) for lane in range(lanes)]
        longest = max(len(lane_slots) for lane_slots in slots)
        source = np.empty((longest, lanes, n), np.int64)
        row = np.empty_like(source)
        there = np.arange(longest)[:, None] < [len(lane_slots) for lane_slots in slots]
        for lane, own in enumerate(slots):
            perm = permutations(len(own), [key64(*key, lane, site) for site in self.sites])
            place, offset = np.divmod(own, rows)
            ids = first_ids[:, place] + offset
            source[: len(own), lane] = (own[perm] + first_slots).T
            row[: len(own), lane] = np.take_along_axis(ids, perm, axis=1).T
        lane_of = np.broadcast_to(np.arange(lanes), there.shape)
        if there.all():
            return Window(epoch, start, unit, chunk, source.reshape(-1, n), row.reshape(-1, n), lane_of.reshape(-1))
        return Window(epoch, start, unit, chunk, source[there], row[there], lane_of[there])


class _Places(NamedTuple):
    """Of a group, in streaming order: unit and chunk [n_sites, n], valid rows [n]."""

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
    parts = [place * chunk_rows + np.arange(n, dtype=np.int64) for place, n in zip(places, valid, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _stable_argsort(counts: Ints, largest: int) -> Ints:
    """Sixteen-bit keys take numpy's radix sort: a fifth of the time."""
    keys = counts.astype(np.uint16) if largest < 1 << 16 else counts
    return np.argsort(keys, kind="stable")
