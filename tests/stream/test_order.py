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

from actstore.format.permutation import permutation
from actstore.stream import group_cells
from actstore.stream.group_cells import KeptRows, default_group_units
from actstore.stream.order import Order, Rank, Window, permutations
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
    from actstore.format.permutation import key64

    together = permutations(n, [key64(1, key) for key in keys])
    for row, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(row, permutation(n, 1, key))


def test_the_order_is_the_one_that_runs_and_checkpoints_depend_on() -> None:
    """Checkpoints of training runs hold (epoch, batch) of this order: it may change
    with StreamState.version only.
    """
    golden = json.loads(GOLDEN.read_text())
    order = make_order(golden["unit_rows"])
    for epoch, wanted in enumerate(golden["epochs"]):
        assert rows(order, epoch).tolist() == wanted


if __name__ == "__main__":  # writes the golden
    unit_rows = [16, 16, 5, 16, 9]
    epochs = [rows(make_order(unit_rows), epoch).tolist() for epoch in range(2)]
    GOLDEN.write_text(json.dumps({"unit_rows": unit_rows, "epochs": epochs}) + "\n")
