"""The order is arithmetic: no store is needed to test it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.format.permutation import key64, permutation
from actstore.stream import group_cells
from actstore.stream.group_cells import (
    CHUNKS,
    KeptRows,
    UnitGroup,
    default_group_units,
    positions_of_group,
)
from actstore.stream.order import ROWS, Chunk, Order, Rank, Window, permutations
from actstore.stream.unit_source import FinishedUnits
from actstore.stream.window_plan import elements_of_epoch, windows_of_epoch
from schemas.harvest import Layout

GOLDEN = Path(__file__).parents[1] / "golden" / "stream_order.json"


class Ordered(NamedTuple):
    """An order, and the units that it is told of."""

    order: Order
    units: FinishedUnits

    def windows(self, epoch: int, first_row: int = 0) -> Iterator[Window]:
        return windows_of_epoch(self.order, self.units, epoch, first_row)

    def elements(self, epoch: int) -> int:
        return elements_of_epoch(self.order, self.units, epoch)


def make_order(
    counts: list[int],
    *,
    columns: tuple[int, ...] = (0, 2, 5),
    window_chunks: int = 4,
    lanes: int = 2,
    seed: int = 3,
    kept: KeptRows | None = None,
) -> Ordered:
    """Every second unit of a store, with so many rows."""
    layout = Layout(
        context=8,
        n_sequences=2 * len(counts),
        unit_sequences=2,
        capacity=16,
        chunk_rows=4,
        n_units=99,
    )
    units = np.arange(len(counts)) * 2 + 1
    order = Order(
        layout=layout,
        columns=columns,
        window_chunks=window_chunks,
        lanes=lanes,
        seed=seed,
        kept=kept,
    )
    rows = np.array(counts, np.int64)
    return Ordered(order, FinishedUnits(units, rows, seed, default_group_units(layout)))


def rows(order: Ordered, epoch: int = 0, first: int = 0) -> np.ndarray:
    """Row ids [rows, n_sites] of an epoch in order, from a row on."""
    windows = list(order.windows(epoch, first))
    assert windows[0].start <= first < windows[0].stop
    return np.concatenate([window.row for window in windows])[
        first - windows[0].start :
    ]


counts = st.lists(st.integers(1, 16), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    counts,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2**40),
    st.integers(0, 3),
    st.sampled_from([4, 16, 99]),
)
def test_every_site_gives_each_of_its_rows_once(
    counts: list[int],
    lanes: int,
    per_lane: int,
    seed: int,
    epoch: int,
    group_chunks: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_cells, "GROUP_CHUNKS", group_chunks)
        order = make_order(
            counts, lanes=lanes, window_chunks=lanes * per_lane, seed=seed
        )
        got = rows(order, epoch)
    wanted = np.concatenate(
        [
            np.arange(n) + unit * 16
            for unit, n in zip(order.units.unit, counts, strict=True)
        ]
    )
    for site in range(3):
        np.testing.assert_array_equal(np.sort(got[:, site]), wanted)
    assert order.elements(epoch) == 3 * len(wanted)


@settings(max_examples=40, deadline=None)
@given(counts, st.data())
def test_windows_follow_from_a_row_alone(
    counts: list[int], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_cells, "GROUP_CHUNKS", 12)
        order = make_order(counts)
        first = data.draw(st.integers(0, sum(counts) - 1))
        np.testing.assert_array_equal(rows(order, 1, first), rows(order, 1)[first:])


@settings(max_examples=40, deadline=None)
@given(counts)
def test_the_chunks_to_load_hold_the_rows_that_come(counts: list[int]) -> None:
    for window in make_order(counts).windows(0):
        loaded = {(c.column, c.cell): c for c in window.chunks(Rank(0, 1), lanes=2)}
        site, slot = np.divmod(window.source, 4 * 4)
        np.testing.assert_array_equal(site, np.broadcast_to(np.arange(3), site.shape))
        for s, at, row in zip(site.flat, slot.flat, window.row.flat, strict=True):
            chunk = loaded[int(s), int(at // 4)]
            assert row == chunk.unit * 16 + chunk.chunk * 4 + at % 4


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_chunks_and_the_rows_out(world: int) -> None:
    order = make_order([16, 13, 16, 7, 16], lanes=4)
    for window in order.windows(0):
        every = {(c.column, c.cell) for c in window.chunks(Rank(0, 1), lanes=4)}
        parts = [
            {(c.column, c.cell) for c in window.chunks(Rank(rank, world), lanes=4)}
            for rank in range(world)
        ]
        assert sum(map(len, parts)) == len(every)
        assert set().union(*parts) == every
        site, slot = np.divmod(window.source, 4 * 4)
        for rank, mine in enumerate(parts):
            own = window.lane % world == rank
            assert set(zip(site[own].flat, (slot[own] // 4).flat, strict=True)) <= mine


def test_another_seed_or_epoch_is_another_order() -> None:
    order = make_order([16] * 6)
    first = rows(order)
    np.testing.assert_array_equal(first, rows(order))
    for other in (rows(order, 1), rows(make_order([16] * 6, seed=4))):
        assert (first == other).mean() < 0.1


def test_sites_have_orders_of_their_own_that_do_not_depend_on_each_other() -> None:
    three, one = rows(make_order([16] * 6)), rows(make_order([16] * 6, columns=(2,)))
    np.testing.assert_array_equal(three[:, 1], one[:, 0])
    assert (three[:, 0] == three[:, 1]).mean() < 0.1


@given(st.integers(1, 200), st.lists(st.integers(0, 2**60), min_size=1, max_size=4))
def test_many_permutations_at_once_are_those_of_the_layout(
    n: int, keys: list[int]
) -> None:
    together = permutations(n, [key64(1, key) for key in keys])
    for row, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(row, permutation(n, 1, key))


def test_a_long_permutation_is_that_of_the_layout() -> None:
    """The key is that of `tests/format/test_permutation.py` with which the lowest bits
    that stay of two draws decide.
    """
    n, key = 1 << 20, 42
    (order,) = permutations(n, [key64(key)])
    np.testing.assert_array_equal(order, permutation(n, key))


def test_the_order_is_the_one_that_runs_and_checkpoints_depend_on() -> None:
    """Checkpoints of training runs hold (epoch, batch) of this order: it may change
    with StreamState.version only.
    """
    golden = json.loads(GOLDEN.read_text())
    order = make_order(golden["unit_rows"])
    for epoch, wanted in enumerate(golden["epochs"]):
        assert rows(order, epoch).tolist() == wanted


class PlainWindow(NamedTuple):
    """A window, row by row: no arrays. Chunks are (unit, chunk) by column and cell."""

    start: int
    chunks: list[list[tuple[int, int]]]
    sources: list[list[int]]
    rows: list[list[int]]
    lanes: list[int]


def plain_cells(
    order: Order,
    epoch: int,
    group: UnitGroup,
    offsets: dict[tuple[int, int], list[int]],
) -> list[list[tuple[int, int]]]:
    """The chunk (unit, chunk) that each column reads in each cell of a group."""
    chunks = [key for key in offsets if key[0] in group.unit]
    chunks.sort(key=lambda key: (list(group.unit).index(key[0]), key[1]))
    key = (order.seed, CHUNKS, epoch, group.number)
    n_copies = max(order.columns.count(site) for site in order.columns)

    def by_class(site: int) -> dict[int, list[tuple[int, int]]]:
        classes: dict[int, list[tuple[int, int]]] = {}
        for index in permutation(len(chunks), *key, site):
            chunk = chunks[index]
            classes.setdefault(len(offsets[chunk]), []).append(chunk)
        return classes

    # A cell stands at the first of the `n_copies` chunks that its heaviest site reads.
    sizes = {rows: len(members) for rows, members in by_class(-1).items()}
    seen = dict.fromkeys(sizes, 0)
    cell_rows = []
    for index in permutation(len(chunks), *key, -1):
        n_rows = len(offsets[chunks[index]])
        if seen[n_rows] % n_copies == 0 and seen[n_rows] + n_copies <= sizes[n_rows]:
            cell_rows.append(n_rows)
        seen[n_rows] += 1
    columns = []
    for column, site in enumerate(order.columns):
        earlier = order.columns[:column].count(site)
        classes = by_class(site)
        numbers = [cell_rows[:cell].count(n) for cell, n in enumerate(cell_rows)]
        columns.append(
            [
                classes[n_rows][number * n_copies + earlier]
                for n_rows, number in zip(cell_rows, numbers, strict=True)
            ]
        )
    return columns


def plain_windows(ordered: Ordered, epoch: int) -> Iterator[PlainWindow]:
    """The windows of an epoch, as the module's description says it."""
    order = ordered.order
    chunk_rows, capacity = order.layout.chunk_rows, order.layout.capacity
    # The offsets of the rows that come of each chunk.
    offsets: dict[tuple[int, int], list[int]] = {}
    for unit, n_rows in zip(ordered.units.unit, ordered.units.rows, strict=True):
        for row in range(n_rows):
            chunk, offset = divmod(row, chunk_rows)
            if order.kept is not None:
                position = list(order.kept.unit).index(unit)
                byte = order.kept.mask[position, chunk, offset // 8]
                if not byte >> (7 - offset % 8) & 1:
                    continue
            offsets.setdefault((int(unit), chunk), []).append(offset)
    start = 0
    for group in ordered.units.groups(epoch):
        columns = plain_cells(order, epoch, group, offsets)
        for number, first in enumerate(range(0, len(columns[0]), order.window_chunks)):
            key = (order.seed, ROWS, epoch, group.number, number)
            window_columns = [
                cells[first : first + order.window_chunks] for cells in columns
            ]
            lanes = [
                plain_lane(order, window_columns, offsets, key, lane)
                for lane in range(order.lanes)
            ]
            window = PlainWindow(start, window_columns, [], [], [])
            for turn in range(max(map(len, lanes))):
                for lane, rows_of_lane in enumerate(lanes):
                    if turn < len(rows_of_lane):
                        sources, units, row_offsets = rows_of_lane[turn]
                        window.sources.append(sources)
                        window.rows.append(
                            [
                                unit * capacity + offset
                                for unit, offset in zip(units, row_offsets, strict=True)
                            ]
                        )
                        window.lanes.append(lane)
            start += len(window.lanes)
            yield window


def plain_lane(
    order: Order,
    window_columns: list[list[tuple[int, int]]],
    offsets: dict[tuple[int, int], list[int]],
    key: tuple[int, ...],
    lane: int,
) -> list[tuple[list[int], list[int], list[int]]]:
    """A lane's rows of a window: for each column its source, unit, offset in the unit."""
    chunk_rows = order.layout.chunk_rows
    by_column = []
    for column, cells in enumerate(window_columns):
        site = order.columns[column]
        earlier = order.columns[:column].count(site)
        own_rows = []
        for cell in range(lane, len(cells), order.lanes):
            unit, chunk = cells[cell]
            for offset in offsets[unit, chunk]:
                source = (column * order.window_chunks + cell) * chunk_rows + offset
                own_rows.append((source, unit, chunk * chunk_rows + offset))
        # A site's first column has the key that it would have alone.
        own_key = (*key, lane, site, earlier) if earlier else (*key, lane, site)
        by_column.append([own_rows[i] for i in permutation(len(own_rows), *own_key)])
    rows_of_lane = []
    for row in zip(*by_column, strict=True):
        sources, units, row_offsets = zip(*row, strict=True)
        rows_of_lane.append((list(sources), list(units), list(row_offsets)))
    return rows_of_lane


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=9),
    st.sampled_from([(0,), (0, 2, 5), (1, 4, 1), (3, 3, 0, 3)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**40),
    st.integers(0, 3),
    st.sampled_from([4, 12, 99]),
    st.none() | st.lists(st.integers(0, 2**16 - 1), min_size=9, max_size=9),
)
def test_windows_are_those_of_the_description(
    counts: list[int],
    columns: tuple[int, ...],
    lanes: int,
    per_lane: int,
    seed: int,
    epoch: int,
    group_chunks: int,
    words: list[int] | None,
) -> None:
    """Runs and checkpoints depend on every order: of weights and filters too."""
    kept = None
    if words is not None:
        bits = [[word >> i & 1 for i in range(16)] for word in words[: len(counts)]]
        mask = np.array(bits, bool).reshape(-1, 4, 4)
        mask &= (np.arange(16) < np.array(counts)[:, None]).reshape(mask.shape)
        units = np.arange(len(counts)) * 2 + 1
        kept = KeptRows(units, np.packbits(mask, axis=-1), mask.sum(axis=-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_cells, "GROUP_CHUNKS", group_chunks)
        ordered = make_order(
            counts,
            columns=columns,
            lanes=lanes,
            window_chunks=lanes * per_lane,
            seed=seed,
            kept=kept,
        )
    windows = list(ordered.windows(epoch))
    plain = list(plain_windows(ordered, epoch))
    n_rows = sum(len(window.lanes) for window in plain)
    assert ordered.elements(epoch) == n_rows * len(columns)
    for window, wanted in zip(windows, plain, strict=True):
        assert window.epoch == epoch
        assert (window.start, window.stop) == (
            wanted.start,
            wanted.start + len(wanted.lanes),
        )
        both = np.stack([window.unit, window.chunk], axis=-1)
        assert both.tolist() == np.array(wanted.chunks).tolist()
        assert window.source.tolist() == wanted.sources
        assert window.row.tolist() == wanted.rows
        assert window.lane.tolist() == wanted.lanes
        arrays = (window.source, window.row, window.lane)
        assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


@pytest.mark.parametrize("chunk_rows", [(1 << 16) + 4, (1 << 17) - 4, 1 << 17])
def test_chunks_of_many_rows_are_sorted_as_those_of_few(chunk_rows: int) -> None:
    """Numbers of rows that need more than 16 bits, the lower ones of which agree."""
    layout = make_order([16]).order.layout.model_copy(
        update={"chunk_rows": chunk_rows, "capacity": chunk_rows}
    )
    n_rows = np.array([4, (1 << 16) + 4, 4, (1 << 16) + 4, 4])
    group = UnitGroup(0, np.arange(5), n_rows)
    for seed in range(3):
        order = Order(layout, (0, 1, 2), window_chunks=5, lanes=2, seed=seed)
        (window,) = order.windows(0, group, start=0, first_row=0)
        sizes = n_rows[window.unit]
        for column in range(3):
            assert sizes[column].tolist() == sizes[0].tolist()
            units = window.row[:, column] // chunk_rows
            np.testing.assert_array_equal(np.bincount(units), n_rows)


def test_the_rows_of_a_chunk() -> None:
    plain = make_order([16]).order.cells
    assert [plain.rows_of_chunk(1, chunk, 9) for chunk in range(4)] == [4, 4, 1, 0]
    counts = np.array([[4, 3, 0, 1], [2, 0, 4, 4]])
    kept = KeptRows(np.array([1, 3]), np.zeros((2, 4, 1), np.uint8), counts)
    filtered = make_order([16, 16], kept=kept).order.cells
    assert [filtered.rows_of_chunk(1, chunk, 16) for chunk in range(4)] == [4, 3, 0, 1]
    assert [filtered.rows_of_chunk(3, chunk, 16) for chunk in range(4)] == [2, 0, 4, 4]


def test_a_rank_needs_the_chunks_of_its_lanes() -> None:
    units = np.array([[5, 7, 9], [7, 9, 5]])
    chunks = np.array([[0, 1, 2], [1, 2, 0]])
    none = np.zeros(0, np.int64)
    window = Window(0, 0, units, chunks, none, none, none)
    # Cells 0, 1 and 2 are of lanes 0, 1 and 0.
    assert window.chunks(Rank(0, 2), lanes=2) == [
        Chunk(column=0, unit=5, chunk=0, cell=0),
        Chunk(column=0, unit=9, chunk=2, cell=2),
        Chunk(column=1, unit=7, chunk=1, cell=0),
        Chunk(column=1, unit=5, chunk=0, cell=2),
    ]
    assert window.chunks(Rank(1, 2), lanes=2) == [
        Chunk(column=0, unit=7, chunk=1, cell=1),
        Chunk(column=1, unit=9, chunk=2, cell=1),
    ]


def test_a_group_of_a_finished_store_has_131072_chunks_or_one_unit() -> None:
    layout = make_order([16]).order.layout
    assert default_group_units(layout) == 131072 // 4
    wide = layout.model_copy(update={"chunk_rows": 1, "capacity": 1 << 18})
    assert default_group_units(wide) == 1


def test_groups_have_each_unit_once() -> None:
    groups = [positions_of_group(number, 2, 5, 0, 0).tolist() for number in range(3)]
    assert groups == [[2, 1], [4, 3], [0]]


if __name__ == "__main__":  # writes the golden
    unit_rows = [16, 16, 5, 16, 9]
    epochs = [rows(make_order(unit_rows), epoch).tolist() for epoch in range(2)]
    GOLDEN.write_text(json.dumps({"unit_rows": unit_rows, "epochs": epochs}) + "\n")
