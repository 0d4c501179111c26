"""The windows that a stream loads, one after the other, and the chunks of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from actstore.stream.order import Chunk, Order, Rank, Window
from actstore.stream.unit_source import Stopped, UnitSource, never


class WindowLoad(NamedTuple):
    """A window, and the chunks of it that a process reads."""

    window: Window
    chunks: list[Chunk]


WindowPlan = Callable[[Stopped], Iterator[WindowLoad]]
"""Yields the windows to load, given a function that tells whether to stop."""


def elements_of_epoch(order: Order, units: UnitSource, epoch: int) -> int:
    """Return the elements of an epoch: its rows, over all columns."""
    rows_per_column = 0
    for group in units.groups(epoch):
        rows_per_column += order.cells.rows_in(group)
    return len(order.columns) * rows_per_column


def planned_elements(order: Order, units: UnitSource, epoch: int) -> int:  # noqa: ARG001 (they are alike)
    """Return the elements of an epoch if every planned unit has all of its rows."""
    layout = order.layout
    rows_per_unit = layout.unit_sequences * layout.context
    return len(order.columns) * len(units.unit) * rows_per_unit


def windows_of_epoch(
    order: Order,
    units: UnitSource,
    epoch: int,
    first_row: int = 0,
    stopped: Stopped = never,
) -> Iterator[Window]:
    """Yield an epoch's windows, from the one that holds a column's row `first_row` on.

    Waits for units that a harvest still adds; `stopped` tells whether to wait no
    longer.
    """
    start = 0
    for group in units.groups(epoch, stopped):
        n_rows = order.cells.rows_in(group)
        # Groups that end before the first row are passed over, not put in order.
        if start + n_rows > first_row:
            yield from order.windows(epoch, group, start, first_row)
        start += n_rows


def planned_loads(
    order: Order,
    units: UnitSource,
    epoch: int,
    first_row: int,
    epochs: int | None,
    rank: Rank,
    stopped: Stopped,
) -> Iterator[WindowLoad]:
    """Yield the windows that a process loads, over the ends of epochs.

    It holds no stream, which it may outlive.

    Args:
        order: The order of the rows.
        units: The units that they come from.
        epoch: The first epoch.
        first_row: A row of a column in it: windows that end before it are left out.
        epochs: How many epochs the stream has; None: no end.
        rank: The process.
        stopped: Tells whether to wait no longer for units.
    """
    # No pause between epochs: the first window of the next one loads while the last of
    # this one is used.
    while epochs is None or epoch < epochs:
        for window in windows_of_epoch(order, units, epoch, first_row, stopped):
            yield WindowLoad(window, window.chunks(rank, order.lanes))
        epoch += 1
        first_row = 0
