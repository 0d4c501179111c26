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

Mixing. A batch of B rows draws from the sequences that its window holds, M = window_chunks * sequences per unit per
site (at most the group's), instead of from all: two rows of a batch then fall on the same sequence more often, and
the batch holds about a share B / 2M fewer distinct sequences than an i.i.d. draw (B^2 / 2M expected coincidences in
the birthday problem). `mixing_shortfall` is that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.layout import bijection, n_chunks, permutation
from schemas.harvest import Layout

UNITS, CHUNKS, ROWS = 11, 12, 13  # stages of the key, so that no two draws share one
GROUP_CHUNKS = 1 << 17
WANTED_MIXING = 10

Ints = NDArray[np.int64]


class Chunk(NamedTuple):
    """One chunk of a window: where it lies in the store, and its place in the window's buffer."""

    site: int
    unit: int
    chunk: int
    place: int


@dataclass(frozen=True, slots=True)
class Window:
    """The chunks that are in memory together.

    start: its first row, counted per site from the epoch's beginning. unit, chunk: [n_sites, n_chunks]; slot: [n_rows],
    the window row (place * chunk_rows + offset) that comes as the p-th, by site [n_sites, n_rows]; lane: [n_rows].
    """

    number: int
    start: int
    unit: Ints
    chunk: Ints
    slot: Ints
    lane: Ints

    @property
    def n_rows(self) -> int:
        return len(self.lane)

    def chunks(self, rank: int, world: int, lanes: int) -> list[Chunk]:
        """The chunks that a rank needs, each site's one after the other."""
        n_sites, n = self.unit.shape
        return [
            Chunk(s, int(self.unit[s, i]), int(self.chunk[s, i]), i)
            for i in range(n)
            if i % lanes % world == rank
            for s in range(n_sites)
        ]


@dataclass(frozen=True)
class Order:
    """The order of one epoch.

    unit_ids, unit_rows: the units streamed and their valid rows [n_units]; sites: indices of the sites in the store;
    window_chunks: chunks per site and window, a multiple of the lanes.
    """

    unit_ids: Ints
    unit_rows: Ints
    sites: tuple[int, ...]
    chunk_rows: int
    window_chunks: int
    lanes: int
    batch: int
    seed: int
    epoch: int

    @property
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

    @cached_property
    def _groups(self) -> list[Ints]:
        """Unit positions of each group."""
        n = len(self.unit_ids)
        most = max(1, n_chunks(int(self.unit_rows.max(initial=1)), self.chunk_rows))
        size = max(1, GROUP_CHUNKS // most)
        order = bijection(np.arange(n, dtype=np.int64), n, self.seed, UNITS, self.epoch)
        return [order[i : i + size] for i in range(0, n, size)]

    @cached_property
    def _group_starts(self) -> Ints:
        rows = [int(self.unit_rows[group].sum()) for group in self._groups]
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    def windows(self, first_row: int = 0) -> list[tuple[int, int]]:
        """(group, window in it) of every window, from the one that holds a site's row `first_row` on."""
        out = []
        for group in range(len(self._groups)):
            if self._group_starts[group + 1] <= first_row:
                continue
            ends = np.cumsum(self._window_rows(group)) + self._group_starts[group]
            out += [(group, w) for w, end in enumerate(ends) if end > first_row]
        return out

    def window(self, group: int, number: int) -> Window:
        """One window, from nothing but the numbers above."""
        place, first = self._places(group), number * self.window_chunks
        here = slice(first, first + self.window_chunks)
        valid = place.valid[here]
        before = int(place.valid[: here.start].sum())
        lane, orders = self._interleave(valid, group, number)
        return Window(
            number=number,
            start=int(self._group_starts[group]) + before,
            unit=self.unit_ids[place.unit[:, here]],
            chunk=place.chunk[:, here],
            slot=orders,
            lane=lane,
        )

    def _window_rows(self, group: int) -> Ints:
        valid = self._shape(group)[2]
        return np.add.reduceat(valid, np.arange(0, len(valid), self.window_chunks))

    def _shape(self, group: int) -> tuple[Ints, Ints, Ints, Ints]:
        """(unit position, chunk, valid rows in streaming order, that order) of a group's chunks."""
        units = self._groups[group]
        counts = -(-self.unit_rows[units] // self.chunk_rows)
        unit = np.repeat(units, counts)
        chunk = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        valid = np.minimum(self.unit_rows[unit] - chunk * self.chunk_rows, self.chunk_rows)
        base = permutation(len(unit), self.seed, CHUNKS, self.epoch, group, -1)
        return unit, chunk, valid[base], base

    def _places(self, group: int) -> _Places:
        if getattr(self, "_kept", (None,))[0] == group:
            kept: tuple[int, _Places] = self._kept  # type: ignore[attr-defined]
            return kept[1]
        unit, chunk, in_order, base = self._shape(group)
        valid = np.empty_like(in_order)
        valid[base] = in_order
        by_class = np.argsort(in_order, kind="stable")
        members = np.empty((len(self.sites), len(unit)), np.int64)
        for i, site in enumerate(self.sites):
            shuffled = permutation(len(unit), self.seed, CHUNKS, self.epoch, group, site)
            members[i, by_class] = shuffled[np.argsort(valid[shuffled], kind="stable")]
        places = _Places(unit[members], chunk[members], in_order)
        object.__setattr__(self, "_kept", (group, places))
        return places

    def _interleave(self, valid: Ints, group: int, number: int) -> tuple[Ints, Ints]:
        """lane [n_rows] and slot [n_sites, n_rows]: each lane's rows permuted, the lanes taking turns."""
        n_sites = len(self.sites)
        per_lane = [_slots(valid, range(lane, len(valid), self.lanes), self.chunk_rows) for lane in range(self.lanes)]
        longest = max(len(rows) for rows in per_lane)
        table = np.full((n_sites, longest, self.lanes), -1, np.int64)
        for lane, rows in enumerate(per_lane):
            for i, site in enumerate(self.sites):
                key = (self.seed, ROWS, self.epoch, group, number, lane, site)
                table[i, : len(rows), lane] = rows[permutation(len(rows), *key)]
        there = table[0].reshape(-1) >= 0
        lanes = np.tile(np.arange(self.lanes, dtype=np.int64), longest)[there]
        return lanes, table.reshape(n_sites, -1)[:, there]


class _Places(NamedTuple):
    """Of a group, in streaming order: unit position and chunk [n_sites, n], valid rows [n]."""

    unit: Ints
    chunk: Ints
    valid: Ints


def _slots(valid: Ints, places: range, chunk_rows: int) -> Ints:
    """Window rows of some chunks: the valid ones of each."""
    parts = [place * chunk_rows + np.arange(valid[place], dtype=np.int64) for place in places]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def window_chunks(
    layout: Layout, n_units: int, n_sites: int, chunk_bytes: int, batch: int, lanes: int, memory: int
) -> int:
    """Chunks per site and window: enough for M >= 10 B, within the memory of two windows, a multiple of the lanes."""
    wanted = -(-WANTED_MIXING * batch // layout.unit_sequences)
    most = memory // (2 * n_sites * chunk_bytes)
    there = n_units * layout.unit_chunks
    return max(lanes, min(wanted + -wanted % lanes, most - most % lanes, there + -there % lanes))


def mixing_shortfall(layout: Layout, n_units: int, chunks: int, batch: int) -> float:
    """Share by which a batch falls short of an i.i.d. draw in distinct sequences: about B / 2M."""
    return batch / (2 * min(chunks, n_units) * layout.unit_sequences)
