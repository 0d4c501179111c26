"""The cells of a group of units: which chunk every column reads in each of them.

This is a stage of the order of `order.py`: arithmetic, like all of it. A cell holds one
chunk of every column. Each site has its chunks in an order of its own, but all chunks
of a cell have the same number of rows: so columns stay side by side, row by row. Chunks
differ in that number, since a unit's last chunk may be partial and a filter may leave
rows out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.permutation import bijection, permutation
from schemas.harvest import Layout

# Stages of the key, so that no two draws share one (`order.ROWS` is 13).
UNITS = 11
CHUNKS = 12
# Chunks of one site in a group. They bound the memory that ordering a group takes.
GROUP_CHUNKS = 1 << 17

Ints = NDArray[np.int64]


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
        """Return the positions of units int64 [...] in the arrays, int64 [...]."""
        return np.searchsorted(self.unit, unit)


class Cells(NamedTuple):
    """Cells in the order in which they are streamed.

    Attributes:
        unit: Unit of each column's chunk, int64 [n_columns, n_cells].
        chunk: Number of that chunk in its unit, int64 [n_columns, n_cells].
        n_rows: Rows of each cell that are streamed, int64 [n_cells].
    """

    unit: Ints
    chunk: Ints
    n_rows: Ints


@dataclass(frozen=True)
class CellOrder:
    """The order of a stream's chunks: which of them every column reads in each cell.

    Attributes:
        layout: Sizes of the store's units and chunks.
        columns: Index of each column's (first) site, in the order in which the columns
            take turns.
        seed: All that the order depends on, besides the epoch and the units.
        kept: The rows that a filter keeps; None: every valid row.
    """

    layout: Layout
    columns: tuple[int, ...]
    seed: int
    kept: KeptRows | None = None

    @cached_property
    def copies(self) -> int:
        """The largest number of columns that one site has."""
        return max(self.columns.count(site) for site in self.columns)

    def rows_in(self, group: UnitGroup) -> int:
        """Return how many rows of a group each column delivers."""
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
        """Return how many rows of a chunk are streamed.

        unit_rows: Valid rows of the chunk's unit.
        """
        if self.kept is not None:
            position = int(np.searchsorted(self.kept.unit, unit))
            return int(self.kept.counts[position, chunk])
        rows_from_chunk_on = unit_rows - chunk * self.layout.chunk_rows
        return min(max(rows_from_chunk_on, 0), self.layout.chunk_rows)

    def cells_of(self, epoch: int, group: UnitGroup) -> Cells:
        """Return which chunk every column reads in each cell of a group.

        A *class* is all chunks with the same number of rows. One permutation gives each
        cell its class. Then every site fills the cells of a class with its chunks of
        that class, in an order of its own.

        In numbers: the chunks 0, 1, 2, 3 have [4, 4, 4, 2] rows, and the first
        permutation puts them in the order 1, 3, 0, 2: the cells' rows are [4, 2, 4, 4].
        Cells sorted by class are [1 | 0, 2, 3]. A site whose own order is
        2, 0, 3, 1 has its chunks sorted by class as [3 | 2, 0, 1]: cell 1 gets its
        chunk 3, and cells 0, 2, 3 get 2, 0, 1. Whatever a site's order is, cell 1 holds
        the chunk of 2 rows.

        A site of two columns (`copies` 2) needs two chunks of a class for each cell.
        The site above has three chunks of 4 rows, 2, 0 and 1: the first two fill one
        cell, where its first column reads chunk 2 and its second one chunk 0. Chunk 1
        has no partner and does not come in this epoch; nor does chunk 3 of 2 rows.
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
        earlier_columns = self.earlier_columns()
        for column, site in enumerate(self.columns):
            if site not in chunks_by_class:
                own_order = permutation(n_chunks, *key, site)
                by_class = self._sorted_by_class(chunks.n_rows[own_order])
                chunks_by_class[site] = own_order[by_class]
            # The second column of a site takes the chunk after the first one's.
            number = classes.first_chunk + earlier_columns[column]
            chosen[column, classes.cells] = chunks_by_class[site][number]
        return Cells(
            unit=chunks.unit[chosen],
            chunk=chunks.chunk[chosen],
            n_rows=classes.cell_rows,
        )

    def earlier_columns(self) -> list[int]:
        """Return, for each column, how many of the same site come before it."""
        return [
            self.columns[:column].count(site)
            for column, site in enumerate(self.columns)
        ]

    def _chunks_of(self, group: UnitGroup) -> _Chunks:
        """Return the chunks of a group that have rows to stream, in order of units."""
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

    def _classes(self, cell_rows: Ints) -> _Classes:
        """Return the cells of a group by class.

        Args:
            cell_rows: Rows of the cell that each chunk would fill alone, int64
                [n_chunks]. If a site has several columns there are fewer cells:
                `copies` chunks of a class make one.
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


class _Chunks(NamedTuple):
    """The chunks that each site has in a group, in the order of units.

    Attributes:
        unit: The unit of each chunk, int64 [n_chunks].
        chunk: Its number in that unit, int64 [n_chunks].
        n_rows: Its rows that are streamed, at least one, int64 [n_chunks].
    """

    unit: Ints
    chunk: Ints
    n_rows: Ints


class _Classes(NamedTuple):
    """The cells of a group by class.

    Attributes:
        cell_rows: The rows of each cell, in streaming order, int64 [n_cells].
        cells: The numbers of the cells, sorted by class, int64 [n_cells].
        first_chunk: For each of `cells`, the chunk that a site's first column reads in
            it, as an index into the site's chunks sorted by class, int64 [n_cells].
    """

    cell_rows: Ints
    cells: Ints
    first_chunk: Ints


def default_group_units(layout: Layout) -> int:
    """Return how many units a group of a finished store has."""
    return max(1, GROUP_CHUNKS // layout.unit_chunks)


def positions_of_group(
    number: int, group_units: int, n_units: int, seed: int, epoch: int
) -> Ints:
    """Return the units of a group in an epoch, int64 [n], as positions in all units.

    Each unit is in one group of an epoch. In numbers: with seed 0, the groups of 2 out
    of 5 units are [2, 1], [4, 3] and [0] in the first epoch.
    """
    first = number * group_units
    last = min(n_units, first + group_units)
    return bijection(np.arange(first, last), n_units, seed, UNITS, epoch)
