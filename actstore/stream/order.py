"""The order in which a stream's rows come: pure arithmetic, which waits for nothing.

It is a function of the seed, the epoch and the units that it is told of (a
`UnitSource` tells them, group by group). It does no I/O, changes nothing, and needs no
torch.

An epoch is one sequence of elements g = 0, 1, ... n * T - 1 over n *columns*, with T
the rows per column: element g is row g // n of column g mod n, so every stretch of it
holds the columns in equal shares (+-1), and batch b is its elements [b B, (b + 1) B). A
column is a site; or several that are read at the same tokens (aligned and pair modes);
a site of weight w has w columns, each with other chunks of it. The rows of a column
come window by window:

- the epoch is cut into *groups* of units, so that every shard is opened in one group
  only: by a keyed bijection over the units, or, in a stream that follows a harvest, in
  unit order;
- in a group the chunks are shuffled, for every site by another permutation, but so that
  in each *cell* every column has a chunk with the same number of rows (a unit's last
  chunk may be partial, a filter may leave rows out): windows then begin and end at the
  same row for all columns;
- a *window* is the next `window_chunks` cells of the group; its cell i belongs to
  *lane* i mod `lanes`;
- inside a window each lane's rows are permuted and the lanes take turns. Rank r of R
  serves the lanes r, r + R, ..., so the global batches are the same for every R that
  divides the lanes.

With weights that differ, an epoch ends with the sites of the largest weight: it visits
their rows once (but for at most weight - 1 chunks per group and number of rows), and
those of the others at most once. How well that mixes is a number: see `mixing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.permutation import bijection, key64, mix64, permutation
from schemas.harvest import Layout

# Stages of the key, so that no two draws share one.
UNITS = 11
CHUNKS = 12
ROWS = 13
# Chunks of one site in a group. They bound the memory that ordering a group takes.
GROUP_CHUNKS = 1 << 17
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Ints = NDArray[np.int64]


class Rank(NamedTuple):
    """Which of several processes reads, and how many share the lanes.

    Attributes:
        number: 0 to world - 1.
        world: How many processes there are.
    """

    number: int
    world: int

    def serves(self, lane: int) -> bool:
        """Tell whether this process delivers the rows of a lane."""
        return lane % self.world == self.number


class UnitGroup(NamedTuple):
    """Units whose chunks are shuffled together.

    Attributes:
        number: 0 for the epoch's first group.
        unit: int64 [n], in the group's order.
        rows: Valid rows of each unit, int64 [n].
    """

    number: int
    unit: Ints
    rows: Ints


class Chunk(NamedTuple):
    """One chunk of a window.

    Attributes:
        column: The column that reads it.
        unit: The unit that it lies in.
        chunk: Its number in that unit's shard.
        cell: Where it lies in the window's buffer, counted in chunks.
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
        source: Where each row lies in the flattened buffer, in the order in which the
            rows come, int64 [n_rows, n_columns].
        row: Row ids, likewise.
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
        """Return the chunks that one process needs; `lanes`: how many there are."""
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
class KeptRows:
    """The rows that a filter keeps.

    Attributes:
        unit: The units, ascending, int64 [n_units].
        mask: One bit per row, uint8 [n_units, unit_chunks, ceil(chunk_rows / 8)].
        counts: Rows that are kept of each chunk, int64 [n_units, unit_chunks].
    """

    unit: Ints
    mask: NDArray[np.uint8]
    counts: Ints

    def positions(self, unit: Ints) -> Ints:
        """Return where units lie in the arrays, in the shape of `unit`."""
        return np.searchsorted(self.unit, unit)


@dataclass(frozen=True)
class Order:
    """The order of a stream's rows.

    Attributes:
        layout: Sizes of the store's units and chunks.
        columns: Index of each column's (first) site, in the order in which the columns
            take turns.
        window_chunks: Chunks per column and window.
        lanes: Fixed parts of every batch, which ranks share.
        seed: What the order depends on, besides the epoch.
        kept: The rows that a filter keeps; None: every valid row.
    """

    layout: Layout
    columns: tuple[int, ...]
    window_chunks: int
    lanes: int
    seed: int
    kept: KeptRows | None = None

    @cached_property
    def copies(self) -> int:
        """The largest number of columns that one site has."""
        return max(self.columns.count(site) for site in self.columns)

    def rows_in(self, group: UnitGroup) -> int:
        """Return the rows that each column delivers of a group."""
        if self.copies == 1:
            if self.kept is None:
                return int(group.rows.sum())
            positions = self.kept.positions(group.unit)
            return int(self.kept.counts[positions].sum())
        # A cell takes `copies` chunks of one number of rows from a heavy site. Of 5
        # chunks of 4 rows, two columns of one site fill 2 cells: 8 rows per column.
        chunks_by_rows = np.bincount(self._chunks_of(group).n_rows)
        cells_by_rows = chunks_by_rows // self.copies
        rows_of_a_cell = np.arange(len(cells_by_rows))
        return int((cells_by_rows * rows_of_a_cell).sum())

    def rows_of_chunk(self, unit: int, chunk: int, unit_rows: int) -> int:
        """Return the rows that come of one chunk of a unit with `unit_rows` rows."""
        if self.kept is not None:
            position = int(np.searchsorted(self.kept.unit, unit))
            return int(self.kept.counts[position, chunk])
        rows_from_chunk_on = unit_rows - chunk * self.layout.chunk_rows
        return min(max(rows_from_chunk_on, 0), self.layout.chunk_rows)

    def windows(
        self, epoch: int, group: UnitGroup, start: int, first_row: int
    ) -> Iterator[Window]:
        """Yield a group's windows, from the one that holds row `first_row` on.

        Args:
            epoch: The epoch that the group belongs to.
            group: Its units.
            start: The group's first row, counted per column in the epoch.
            first_row: Likewise; windows that end before it are left out.
        """
        cells = self._cells_of(epoch, group)
        first_cells = range(0, len(cells.n_rows), self.window_chunks)
        for number, first_cell in enumerate(first_cells):
            inside = slice(first_cell, first_cell + self.window_chunks)
            window_cells = _Cells(
                unit=cells.unit[:, inside],
                chunk=cells.chunk[:, inside],
                n_rows=cells.n_rows[inside],
            )
            n_rows = int(window_cells.n_rows.sum())
            if start + n_rows > first_row:
                key = (self.seed, ROWS, epoch, group.number, number)
                yield self._window(epoch, start, window_cells, key)
            start += n_rows

    def _chunks_of(self, group: UnitGroup) -> _Chunks:
        """Return a group's chunks of which rows come, in the order of its units."""
        chunk_rows = self.layout.chunk_rows
        if self.kept is not None:
            kept_counts = self.kept.counts[self.kept.positions(group.unit)]
            position, chunk = np.nonzero(kept_counts)
            return _Chunks(group.unit[position], chunk, kept_counts[position, chunk])
        # Units of 8 and 6 rows in chunks of 4: unit [0, 0, 1, 1], chunk [0, 1, 0, 1],
        # n_rows [4, 4, 4, 2].
        chunks_per_unit = -(-group.rows // chunk_rows)
        unit = np.repeat(group.unit, chunks_per_unit)
        first_of_unit = np.cumsum(chunks_per_unit) - chunks_per_unit
        first_chunk = np.repeat(first_of_unit, chunks_per_unit)
        chunk = np.arange(len(unit)) - first_chunk
        rows_from_chunk_on = np.repeat(group.rows, chunks_per_unit) - chunk * chunk_rows
        return _Chunks(unit, chunk, np.minimum(rows_from_chunk_on, chunk_rows))

    def _cells_of(self, epoch: int, group: UnitGroup) -> _Cells:
        """Return which chunk every column reads in each cell of a group.

        A *class* is all chunks of one number of rows. One permutation says of which
        class each cell is; then every site fills the cells of a class with its chunks
        of that class, in an order of its own.

        In numbers: the chunks 0, 1, 2, 3 have [4, 4, 4, 2] rows, and the first
        permutation puts them in the order 1, 3, 0, 2: the cells' rows are [4, 2, 4, 4].
        Cells sorted by class are [1 | 0, 2, 3]. A site whose own order is
        2, 0, 3, 1 has its chunks sorted by class as [3 | 2, 0, 1]: cell 1 gets its
        chunk 3, and cells 0, 2, 3 get 2, 0, 1. Whatever a site's order is, cell 1 holds
        the chunk of 2 rows.

        A site of two columns (`copies` 2) needs two chunks of a class for each cell: of
        the three chunks of 4 rows, [2 | 0] fill one cell, its columns read 2 and 0, and
        the third chunk comes in no cell of this epoch; nor does the one of 2 rows.
        """
        chunks = self._chunks_of(group)
        n_chunks = len(chunks.n_rows)
        key = (self.seed, CHUNKS, epoch, group.number)
        first_permutation = permutation(n_chunks, *key, -1)
        classes = self._classes(chunks.n_rows[first_permutation])
        # Which chunk of the group is in each cell.
        n_cells = len(classes.cell_rows)
        chosen = np.empty((len(self.columns), n_cells), np.int64)
        chunks_by_class: dict[int, Ints] = {}
        earlier_columns = self._earlier_columns()
        for column, site in enumerate(self.columns):
            if site not in chunks_by_class:
                own_order = permutation(n_chunks, *key, site)
                by_class = self._sorted_by_class(chunks.n_rows[own_order])
                chunks_by_class[site] = own_order[by_class]
            # The second column of a site takes the chunk after the first one's.
            number = classes.first_chunk + earlier_columns[column]
            chosen[column, classes.cells] = chunks_by_class[site][number]
        return _Cells(
            unit=chunks.unit[chosen],
            chunk=chunks.chunk[chosen],
            n_rows=classes.cell_rows,
        )

    def _classes(self, cell_rows: Ints) -> _Classes:
        """Return the cells of a group by class.

        `cell_rows`: the rows of a cell for each chunk, int64 [n_chunks]. Where a site
        has several columns there are fewer cells: `copies` chunks of a class make one.
        """
        cells = self._sorted_by_class(cell_rows)
        first_chunk = np.arange(len(cells))
        if self.copies == 1:
            return _Classes(cell_rows, cells, first_chunk)
        sorted_rows = cell_rows[cells]
        number_in_class = first_chunk - np.searchsorted(sorted_rows, sorted_rows)
        class_size = np.bincount(cell_rows)[sorted_rows]
        # With `copies` 2 and three chunks of a class, the cell of number 0 stays:
        # number 1 goes to the second column, and number 2 has none to go with.
        stays = number_in_class % self.copies == 0
        stays &= number_in_class + self.copies <= class_size
        is_cell = np.zeros(len(cells), bool)
        is_cell[cells[stays]] = True
        cell_rows = cell_rows[is_cell]
        return _Classes(cell_rows, self._sorted_by_class(cell_rows), first_chunk[stays])

    def _sorted_by_class(self, n_rows: Ints) -> Ints:
        """Return the stable order of chunks by their numbers of rows, int64 [n]."""
        # Sixteen-bit keys take numpy's radix sort: a fifth of the time.
        small = self.layout.chunk_rows < 1 << 16
        keys = n_rows.astype(np.uint16) if small else n_rows
        return np.argsort(keys, kind="stable")

    def _window(
        self,
        epoch: int,
        start: int,
        cells: _Cells,
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
        """Return the sources of each lane's rows; `n_rows`: of each cell."""
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
        cells: _Cells,
        sources: Ints,
        keys: list[np.uint64],
        kept_offsets: Ints | None,
    ) -> tuple[Ints, Ints]:
        """Return a lane's rows of a window, each column's permuted by its key.

        Two arrays, int64 [n_columns, n]: where they lie in the flattened buffer, and
        their ids.
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
        for site, earlier in zip(self.columns, self._earlier_columns(), strict=True):
            which_of_site = (earlier,) if earlier else ()
            keys.append(key64(*key, site, *which_of_site))
        return keys

    def _earlier_columns(self) -> list[int]:
        """Return, for each column, how many of the same site come before it."""
        return [
            self.columns[:column].count(site)
            for column, site in enumerate(self.columns)
        ]

    def _kept_offsets(self, cells: _Cells) -> Ints:
        """Return the offset in its chunk of each row that is kept.

        int64 [n_columns, n_cells * chunk_rows]: at cell * chunk_rows + i, that of
        the cell's i-th kept row.
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


class _Chunks(NamedTuple):
    """Chunks of a group, of any one site: unit, chunk and rows that come of it, [n]."""

    unit: Ints
    chunk: Ints
    n_rows: Ints


class _Cells(NamedTuple):
    """Cells in streaming order: unit and chunk [n_columns, n], rows that come [n]."""

    unit: Ints
    chunk: Ints
    n_rows: Ints


class _Classes(NamedTuple):
    """The cells of a group by class.

    Attributes:
        cell_rows: The rows of each cell, int64 [n_cells], in streaming order.
        cells: The cells sorted by that, int64 [n_cells].
        first_chunk: For each of these, the number of the chunk that a site's first
            column has there, where the site's chunks are sorted by class too.
    """

    cell_rows: Ints
    cells: Ints
    first_chunk: Ints


def default_group_units(layout: Layout) -> int:
    """Return the units of a group of a finished store."""
    return max(1, GROUP_CHUNKS // layout.unit_chunks)


def positions_of_group(
    number: int, group_units: int, n_units: int, seed: int, epoch: int
) -> Ints:
    """Return which units a group has in an epoch, int64 [n], as positions in all units.

    Each unit is in one group of an epoch. In numbers: 5 units in groups of 2 come, with
    seed 0, as [2, 1], [4, 3] and [0] in the first epoch.
    """
    first = number * group_units
    last = min(n_units, first + group_units)
    return bijection(np.arange(first, last), n_units, seed, UNITS, epoch)


def permutations(n: int, keys: list[np.uint64]) -> Ints:
    """Return several `permutation`s at once, by their keys: int64 [len(keys), n]."""
    index = np.arange(n, dtype=np.uint64)
    index_bits = max(1, (n - 1).bit_length())
    low = np.uint64((1 << index_bits) - 1)
    key_of_row = np.array(keys, np.uint64)[:, None]
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        draws = mix64(index * _GOLDEN + key_of_row)
    # In place: these arrays are as long as a lane, for every column.
    draws &= ~low
    draws |= index
    draws.sort(axis=1)
    draws &= low
    return draws.view(np.int64)
