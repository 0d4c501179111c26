"""Which windows are loaded, over groups and over the ends of epochs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from actstore.stream.group_cells import UnitGroup
from actstore.stream.order import Rank
from actstore.stream.unit_source import Stopped, never
from actstore.stream.window_plan import (
    WindowLoad,
    planned_elements,
    planned_loads,
    windows_of_epoch,
)
from tests.stream.test_order import make_order

# 5 units of 16 rows, in groups of 2: the groups have 32, 32 and 16 rows, the windows 16.
ORDERED = make_order([16] * 5, lanes=2, window_chunks=4)
ALONE = Rank(0, 1)


class Groups:
    """Units in groups of two; remembers what it was asked."""

    def __init__(self) -> None:
        self.unit = ORDERED.units.unit
        self.group_units = 2
        self.asked: list[tuple[int, Stopped]] = []

    def groups(self, epoch: int, stopped: Stopped = never) -> Iterator[UnitGroup]:
        self.asked.append((epoch, stopped))
        for number in range(3):
            unit = self.unit[2 * number : 2 * number + 2]
            yield UnitGroup(number, unit, np.full(len(unit), 16))

    def rows_in(self, unit: int) -> int:
        raise NotImplementedError


def starts(first_row: int) -> list[int]:
    windows = windows_of_epoch(ORDERED.order, Groups(), 0, first_row)
    return [window.start for window in windows]


def loads(
    first_row: int, epochs: int | None, rank: Rank = ALONE
) -> Iterator[WindowLoad]:
    return planned_loads(ORDERED.order, Groups(), 0, first_row, epochs, rank, never)


@pytest.mark.parametrize(
    ("first_row", "wanted"),
    [
        (0, [0, 16, 32, 48, 64]),
        (15, [0, 16, 32, 48, 64]),
        (16, [16, 32, 48, 64]),
        (31, [16, 32, 48, 64]),
        (32, [32, 48, 64]),
        (79, [64]),
        (80, []),
    ],
)
def test_windows_begin_with_the_one_that_holds_a_row(
    first_row: int, wanted: list[int]
) -> None:
    assert starts(first_row) == wanted


def test_groups_that_end_before_the_row_are_not_put_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordered = []
    windows = type(ORDERED.order).windows

    def watched(order: object, epoch: int, group: UnitGroup, *rest: int) -> object:
        ordered.append(group.number)
        return windows(order, epoch, group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(ORDERED.order), "windows", watched)
    assert starts(32) == [32, 48, 64]
    assert ordered == [1, 2]


def test_the_first_row_is_0_if_none_is_told() -> None:
    windows = windows_of_epoch(ORDERED.order, Groups(), 3)
    first = next(windows)
    assert (first.epoch, first.start) == (3, 0)


def test_whether_to_wait_no_longer_is_passed_on() -> None:
    units = Groups()
    list(windows_of_epoch(ORDERED.order, units, 4))

    def stopped() -> bool:
        return True

    list(planned_loads(ORDERED.order, units, 5, 0, 6, ALONE, stopped))
    assert units.asked == [(4, never), (5, stopped)]


def test_loads_go_on_over_the_end_of_an_epoch() -> None:
    # The first epoch begins at a row, the next ones at their beginning.
    got = [(load.window.epoch, load.window.start) for load in loads(40, 2)]
    assert got == [(0, s) for s in (32, 48, 64)] + [(1, s) for s in (0, 16, 32, 48, 64)]
    assert list(loads(0, 0)) == []
    endless = list(islice(loads(0, None), 11))
    assert [load.window.epoch for load in endless] == [0] * 5 + [1] * 5 + [2]


def test_no_row_is_passed_over_at_an_epochs_beginning() -> None:
    single = make_order([1, 1, 1], lanes=1, window_chunks=1)
    windows = windows_of_epoch(single.order, single.units, 0)
    assert [window.start for window in windows] == [0, 1, 2]
    planned = planned_loads(single.order, single.units, 0, 2, 2, ALONE, never)
    got = [(load.window.epoch, load.window.start) for load in planned]
    assert got == [(0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_process_loads_the_chunks_of_its_lanes() -> None:
    for number in range(2):
        rank = Rank(number, 2)
        for load in loads(0, 1, rank):
            assert load.chunks == load.window.chunks(rank, 2)
            assert {chunk.cell % 2 for chunk in load.chunks} == {number}


def test_planned_units_count_with_all_of_their_rows() -> None:
    # 3 columns, 5 units, each planned with 2 sequences of 8 rows.
    assert planned_elements(ORDERED.order, Groups(), 0) == 3 * 5 * 2 * 8
