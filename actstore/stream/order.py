"""The order in which a stream's rows come.

The order is arithmetic: it follows from the seed, the epoch and the units, which a
`UnitSource` gives group by group. Nothing here reads or waits, and torch is not needed.

A *column* is the sequence of rows that one site gives. The columns of a stream take
turns, row by row. Most sites have one column. A site of weight w has w columns, which
read different chunks of it. Sites that are read at the same tokens (aligned and pair
modes) share a column.

An epoch is one sequence of *elements*: n columns of T rows each make n * T elements.
Element g is row g // n of column g mod n. Batch b holds the elements from b * B up to,
and without, (b + 1) * B. So the columns have equal shares of every batch, up to one
row.

    In numbers: 3 columns, batches of 4 elements.
    batch      0         1         2
    element    0 1 2 3   4 5 6 7   8 9 ...
    column     0 1 2 0   1 2 0 1   2 0 ...
    row        0 0 0 1   1 1 2 2   2 3 ...

The rows of the columns are put in order in three stages:

1. The units of an epoch are divided into *groups* (`unit_source.py`), so that each
   shard is opened in one group only. A keyed bijection says which units a group has; a
   stream that follows a harvest takes the units as they come.
2. The chunks of a group are shuffled, for each site by another permutation, and put
   into *cells* (`group_cells.py`). A cell has one chunk of every column, and all of
   these have the same number of rows.
3. The next `window_chunks` cells of a group are a *window*: the chunks that are in
   memory together. Cell i of a window belongs to *lane* i mod `lanes`. The rows of each
   lane are permuted, and the lanes take turns, row by row (an example is at
   `Order._window`).

Process r of R reads the lanes r, r + R, r + 2R, ... The batches of all processes
together are therefore the same for every R that divides `lanes`.

If weights differ, a group ends when the site of the largest weight has too few chunks
left for another cell. In numbers: site A of weight 2 and site B of weight 1 have 5 full
chunks each. They fill 2 cells, with 4 chunks of A and 2 of B. The other chunks do not
come in this epoch. For how well rows are mixed, see `mixing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from actstore.format.permutation import key64, mix64
from actstore.stream.group_cells import CellOrder, Cells, Ints, KeptRows, UnitGroup
from schemas.harvest import Layout

# Stage of the key, other than those of `group_cells`, so that no two draws share one.
ROWS = 13
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Rank(NamedTuple):
    """One of several processes that share the lanes.

    Attributes:
        number: Its number, 0 to world - 1.
        world: How many processes there are.
    """

    number: int
    world: int

    def serves(self, lane: int) -> bool:
        """Return whether this process delivers the rows of a lane."""
        return lane % self.world == self.number


class Chunk(NamedTuple):
    """One chunk of a window.

    Attributes:
        column: The column that reads it.
        unit: The unit that it lies in.
        chunk: Its number in that unit's shard.
        cell: The cell of the window's buffer that it is read into.
    """

    column: int
    unit: int
    chunk: int
    cell: int


class Window(NamedTuple):
    """The chunks that are in memory together, and the order of their rows.

    Their memory is a buffer of [n_columns, window_chunks * chunk_rows] rows.

    Attributes:
        epoch: The epoch that it belongs to.
        start: Its first row, counted per column from the epoch's beginning.
        unit: Unit of the chunk in each cell, int64 [n_columns, n_cells].
        chunk: Number of that chunk in its unit, int64 [n_columns, n_cells].
        source: Index of each row in the flattened buffer, in the order in which the
            rows come, int64 [n_rows, n_columns].
        row: Row ids in the same order, int64 [n_rows, n_columns].
        lane: The lane of each row, int64 [n_rows].
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
        """The row after its last one, counted per column."""
        return self.start + len(self.lane)

    def chunks(self, rank: Rank, lanes: int) -> list[Chunk]:
        """Return the chunks that one process needs, where there are `lanes` lanes."""
        n_columns, n_cells = self.unit.shape
        cells = [cell for cell in range(n_cells) if rank.serves(cell % lanes)]
        return [
            Chunk(
                column,
                int(self.unit[column, cell]),
                int(self.chunk[column, cell]),
                cell,
            )
            for column in range(n_columns)
            for cell in cells
        ]


@dataclass(frozen=True)
class Order:
    """The order of a stream's rows.

    Attributes:
        layout: Sizes of the store's units and chunks.
        columns: Index of each column's (first) site, in the order in which the columns
            take turns.
        window_chunks: Chunks per column and window.
        lanes: Fixed parts of every batch, which ranks share.
        seed: All that the order depends on, besides the epoch and the units.
        kept: The rows that a filter keeps; None: every valid row.
    """

    layout: Layout
    columns: tuple[int, ...]
    window_chunks: int
    lanes: int
    seed: int
    kept: KeptRows | None = None

    @cached_property
    def cells(self) -> CellOrder:
        """The order of the chunks, from which that of the rows follows."""
        return CellOrder(self.layout, self.columns, self.seed, self.kept)

    def windows(
        self, epoch: int, group: UnitGroup, start: int, first_row: int
    ) -> Iterator[Window]:
        """Yield a group's windows, from the one that holds row `first_row` on.

        Args:
            epoch: The epoch that the group belongs to.
            group: Its units.
            start: The group's first row, counted per column in the epoch.
            first_row: A row counted in the same way; windows that end before it are
                left out.
        """
        cells = self.cells.cells_of(epoch, group)
        first_cells = range(0, len(cells.n_rows), self.window_chunks)
        for number, first_cell in enumerate(first_cells):
            inside = slice(first_cell, first_cell + self.window_chunks)
            window_cells = Cells(
                unit=cells.unit[:, inside],
                chunk=cells.chunk[:, inside],
                n_rows=cells.n_rows[inside],
            )
            n_rows = int(window_cells.n_rows.sum())
            if start + n_rows > first_row:
                key = (self.seed, ROWS, epoch, group.number, number)
                yield self._window(epoch, start, window_cells, key)
            start += n_rows

    def _window(
        self,
        epoch: int,
        start: int,
        cells: Cells,
        key: tuple[int, ...],
    ) -> Window:
        """Return a window: each lane's rows permuted, the lanes taking turns.

        In numbers: one column, chunks of 4 rows, 2 lanes, and four cells of [4, 4, 4,
        2] rows. A row's *source* is where it lies in the buffer: cell * 4 + its offset
        in the chunk. Lane 0 has cells 0 and 2, so the sources 0 1 2 3 8 9 10 11; lane 1
        has cells 1 and 3, so 4 5 6 7 12 13. Permuted they may be 9 2 0 11 3 8 1 10 and
        6 12 4 13 7 5. Taking turns, they come as 9 6 2 12 0 4 11 13 3 7 8 5 1 10: a
        lane without rows left is passed over.
        """
        lane_sources = self._sources_by_lane(cells.n_rows)
        lengths = [len(sources) for sources in lane_sources]
        kept_offsets = None if self.kept is None else self._kept_offsets(cells)
        # Turn by turn, a row of each lane; unset where a lane has no rows left.
        n_columns = len(self.columns)
        shape = (max(lengths), self.lanes, n_columns)
        source_by_turn = np.empty(shape, np.int64)
        row_by_turn = np.empty(shape, np.int64)
        for lane, sources in enumerate(lane_sources):
            keys = self._column_keys(*key, lane)
            source, row = self._rows_of_lane(cells, sources, keys, kept_offsets)
            source_by_turn[: len(sources), lane] = source.T
            row_by_turn[: len(sources), lane] = row.T
        is_row = np.arange(max(lengths))[:, None] < lengths
        lane_by_turn = np.broadcast_to(np.arange(self.lanes), is_row.shape)
        if is_row.all():
            # Lanes of one length need no copy of what is there.
            return Window(
                epoch,
                start,
                cells.unit,
                cells.chunk,
                source_by_turn.reshape(-1, n_columns),
                row_by_turn.reshape(-1, n_columns),
                lane_by_turn.reshape(-1),
            )
        return Window(
            epoch,
            start,
            cells.unit,
            cells.chunk,
            source_by_turn[is_row],
            row_by_turn[is_row],
            lane_by_turn[is_row],
        )

    def _sources_by_lane(self, n_rows: Ints) -> list[Ints]:
        """Return the sources of each lane's rows, int64 [n] for each lane.

        n_rows: Rows of each cell, int64 [n_cells].
        """
        sources_by_lane = []
        for lane in range(self.lanes):
            sources = [np.zeros(0, np.int64)]
            for cell in range(lane, len(n_rows), self.lanes):
                first_source = cell * self.layout.chunk_rows
                sources.append(first_source + np.arange(n_rows[cell], dtype=np.int64))
            sources_by_lane.append(np.concatenate(sources))
        return sources_by_lane

    def _rows_of_lane(
        self,
        cells: Cells,
        sources: Ints,
        keys: list[np.uint64],
        kept_offsets: Ints | None,
    ) -> tuple[Ints, Ints]:
        """Return a lane's rows of a window, each column's permuted by its key.

        Returns:
            Their indices in the flattened buffer, and their ids: int64 [n_columns, n]
            each.
        """
        chunk_rows = self.layout.chunk_rows
        first_ids = cells.unit * self.layout.capacity + cells.chunk * chunk_rows
        column_rows = self.window_chunks * chunk_rows
        first_sources = np.arange(len(self.columns))[:, None] * column_rows
        shuffled = permutations(len(sources), keys)
        cell, offset = np.divmod(sources, chunk_rows)
        if kept_offsets is None:
            source = sources[shuffled]
            ids = first_ids[:, cell] + offset
        else:
            # The i-th row that comes of a chunk is its i-th one that is kept.
            offsets = kept_offsets[:, sources]
            source = np.take_along_axis(cell * chunk_rows + offsets, shuffled, axis=1)
            ids = first_ids[:, cell] + offsets
        return source + first_sources, np.take_along_axis(ids, shuffled, axis=1)

    def _column_keys(self, *key: int) -> list[np.uint64]:
        """Return a key for each column.

        The first column of a site has the key that it would have alone, so that weights
        of 1 change no order.
        """
        keys = []
        for site, earlier in zip(
            self.columns, self.cells.earlier_columns(), strict=True
        ):
            which_of_site = (earlier,) if earlier else ()
            keys.append(key64(*key, site, *which_of_site))
        return keys

    def _kept_offsets(self, cells: Cells) -> Ints:
        """Return the offset in its chunk of each row that is kept.

        Returns:
            int64 [n_columns, n_cells * chunk_rows]. Entry cell * chunk_rows + i is the
            offset of the cell's i-th kept row. In numbers: chunks of 4 rows, of which
            cell 0 keeps the rows 1 and 3: the entries begin with 1, 3, 0, 0.
        """
        assert self.kept is not None
        chunk_rows = self.layout.chunk_rows
        n_columns, n_cells = cells.unit.shape
        positions = self.kept.positions(cells.unit)
        packed = self.kept.mask[positions, cells.chunk]
        bits = np.unpackbits(packed, axis=-1, count=chunk_rows)
        offset = np.nonzero(bits)[2]
        # Every column has as many kept rows in a cell, so one mask serves them all.
        is_kept = np.arange(chunk_rows) < cells.n_rows[:, None]
        filled = np.flatnonzero(is_kept)
        offsets = np.zeros((n_columns, n_cells * chunk_rows), np.int64)
        offsets[:, filled] = offset.reshape(n_columns, -1)
        return offsets


def permutations(n: int, keys: list[np.uint64]) -> Ints:
    """Return several `permutation`s at once, by their keys: int64 [len(keys), n]."""
    index = np.arange(n, dtype=np.uint64)
    index_bits = max(1, (n - 1).bit_length())
    low = np.uint64((1 << index_bits) - 1)
    key_of_row = np.array(keys, np.uint64)[:, None]
    # Products and sums of uint64 arrays are modulo 2^64, as they are meant here.
    draws = mix64(index * _GOLDEN + key_of_row)
    # In place: these arrays are as long as a lane, for every column.
    draws &= ~low
    draws |= index
    draws.sort(axis=1)
    draws &= low
    return draws.view(np.int64)
