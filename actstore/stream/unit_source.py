"""The units that a stream takes its rows from.

They are those of a finished store, or those that a harvest still adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from actstore.errors import SpecError
from actstore.store.followed import FollowedStore, finished_store
from actstore.store.streamed_store import StreamedStore
from actstore.stream.group_cells import (
    Ints,
    UnitGroup,
    default_group_units,
    positions_of_group,
)
from schemas.stream import StreamSpec

Stopped = Callable[[], bool]
"""Tells whether to wait no longer for units."""


def never() -> bool:
    """Return False: wait for as long as it takes."""
    return False


class UnitSource(Protocol):
    """Tells an order which units there are, group by group.

    Attributes:
        unit: The units, ascending, int64 [n_units]; those that are planned, while a
            harvest goes on.
        group_units: Units that are shuffled together.
    """

    unit: Ints
    group_units: int

    def groups(self, epoch: int, stopped: Stopped = never) -> Iterator[UnitGroup]:
        """Yield an epoch's groups in order; waits for those that are still to come.

        Ends early where the harvest does, or where `stopped` says so.
        """
        ...

    def rows_in(self, unit: int) -> int:
        """Return the valid rows of a unit that a group has had."""
        ...


class FinishedUnits:
    """Units of a finished store, or of none: all are known, in any epoch's order.

    Attributes:
        unit: The units, ascending, int64 [n_units].
        rows: Their valid rows, int64 [n_units].
        seed: What the order of the units depends on, besides the epoch.
        group_units: Units that are shuffled together.
    """

    def __init__(
        self,
        unit: Ints,
        rows: Ints,
        seed: int,
        group_units: int,
    ) -> None:
        self.unit = unit
        self.rows = rows
        self.seed = seed
        self.group_units = group_units

    def groups(self, epoch: int, stopped: Stopped = never) -> Iterator[UnitGroup]:  # noqa: ARG002 (it waits for nothing)
        """Yield an epoch's groups, all of the units shuffled."""
        n_units = len(self.unit)
        n_groups = -(-n_units // self.group_units)
        for number in range(n_groups):
            positions = positions_of_group(
                number, self.group_units, n_units, self.seed, epoch
            )
            yield UnitGroup(number, self.unit[positions], self.rows[positions])

    def rows_in(self, unit: int) -> int:
        """Return a unit's valid rows."""
        position = np.searchsorted(self.unit, unit)
        return int(self.rows[position])


class FollowedUnits:
    """Units of a store that grows, in unit order, a group as soon as it is committed.

    Attributes:
        unit: The units that are planned, ascending, int64 [n_units].
        group_units: Units that are shuffled together.
    """

    def __init__(self, store: FollowedStore, unit: Ints) -> None:
        self._store = store
        self.unit = unit
        self.group_units = store.group_units

    def groups(self, epoch: int, stopped: Stopped = never) -> Iterator[UnitGroup]:  # noqa: ARG002 (a harvest is followed once)
        """Yield the groups as they are committed; ends where the harvest ends."""
        first_positions = range(0, len(self.unit), self.group_units)
        for number, first in enumerate(first_positions):
            # In unit order, since that is about the order in which they are committed.
            unit = self.unit[first : first + self.group_units]
            rows = self._store.released_rows(unit, stopped)
            if rows is None:
                return
            yield UnitGroup(number, unit, rows)

    def rows_in(self, unit: int) -> int:
        """Return a unit's valid rows, 0 where it is not committed yet."""
        return self._store.rows_in(unit)


def unit_source(store: StreamedStore, spec: StreamSpec) -> UnitSource:
    """Return the units that a stream of a store takes.

    Raises:
        SpecError: The split has no rows; or the stream is to follow a store that was
            not opened so, or the other way round.
    """
    units = np.array(store.units(spec.split), np.int64)
    source: UnitSource
    if spec.follow:
        if not isinstance(store, FollowedStore):
            raise SpecError(
                f"{store.url}: to `follow` a store, open it so: actstore.open(url,"
                " follow=True)"
            )
        source = FollowedUnits(store, units)
    else:
        # A harvest's own filter may have left a unit without rows.
        unit_rows = finished_store(store).unit_rows[units]
        units = units[unit_rows > 0]
        rows = unit_rows[unit_rows > 0].astype(np.int64)
        group_units = default_group_units(store.layout)
        source = FinishedUnits(units, rows, spec.seed, group_units)
    if not len(source.unit):
        raise SpecError(
            f"{store.url}: there are no {spec.split} rows; a store of fewer than 20"
            " units has none held out"
        )
    return source
