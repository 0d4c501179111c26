"""A store that is still being harvested, read as far as it is committed.

Units are released in unit order, a group at a time, once all of it is committed. What a
finished store has in its manifest comes from the plan and from the first group: its
norms stand for all, for as long as the stream is used, so a stream that follows is the
same whether the harvest has ended or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import NotAStoreError, SpecError
from actstore.format import keys
from actstore.format.content_id import FOLLOWED
from actstore.format.json_records import read_record
from actstore.format.layout import held_out
from actstore.format.manifest import read_plan
from actstore.format.manifest_checks import MOST_UNITS, check_record, is_tokenizer_file
from actstore.format.object_sizes import OTHER_FILE, SMALL_JSON, stats_bytes
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.harvest import Plan
from schemas.manifest import (
    HELD_OUT_EVERY,
    BlockRecord,
    Generation,
    StoreManifest,
    UnitRecord,
)

BATCH, SHORTFALL = 4096, 0.02
POLL_S = 0.5


def open_followed(
    url: str | Path, options: dict[str, Any] | None = None
) -> FollowedStore:
    """Open a store that is (or was) being harvested; waits until its first group of
    units is committed.
    """
    storage = Storage(str(url), options)
    if not storage.exists(keys.plan_key()):
        raise NotAStoreError(
            f"{storage.url}: no harvest has begun there (no {keys.plan_key()}); start"
            " it first"
        )
    plan = read_plan(storage)
    if plan.layout.n_units > MOST_UNITS:
        raise SpecError(
            f"{storage.url}: {plan.layout.n_units} units are planned; up to"
            f" {MOST_UNITS} can be followed"
        )
    return FollowedStore(storage, plan)


def group_units(plan: Plan) -> int:
    """Units that are released together: enough that sites, which share them, mix within
    2 % at 4,096 rows (see `mixing.py`), but at most an eighth of the harvest.
    """
    wanted = math.ceil(BATCH / (2 * plan.layout.unit_sequences * SHORTFALL))
    return max(1, min(wanted, plan.layout.n_units // 8))


class FollowedStore(Store):
    """A store while it grows: the units of its first harvest, as far as they are
    released.
    """

    def __init__(self, storage: Storage, plan: Plan, poll_s: float = POLL_S) -> None:
        self.storage, self.plan, self.poll_s = storage, plan, poll_s
        self.group_units = group_units(plan)
        self._rows: dict[int, int] = {}
        self._next_block = 0  # all before it are known not to be the corpus' last
        first = list(
            islice(
                (unit for unit in range(plan.layout.n_units) if not held_out(unit)),
                self.group_units,
            )
        )
        self._wait(first, lambda: False)
        super().__init__(
            storage, self._provisional([unit for unit in first if unit in self._rows])
        )

    def __repr__(self) -> str:
        return (
            f"FollowedStore({self.url!r}, {len(self.sites)} sites, {len(self._rows)}"
            " units so far)"
        )

    @cached_property
    def unit_rows(self) -> NDArray[np.int32]:
        raise SpecError(
            f"{self.url}: its rows are not all known yet; stream it with `follow`, or"
            " wait for the harvest"
        )

    def rows_in(self, unit: int) -> int:
        return self._rows.get(unit, 0)

    def file(self, key: str) -> bytes:
        """An object that the manifest will record once there is one."""
        return self.storage.read(key, OTHER_FILE)

    def tokenizer_keys(self) -> list[str]:
        return [key for key in self.storage.list("tokenizer") if is_tokenizer_file(key)]

    @cached_property
    def statistics(self) -> UnitStats:
        """Of the first group: what rescaling uses, frozen."""
        return self._first_stats

    def releaser(
        self, units: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Callable[[NDArray[np.int64], Callable[[], bool]], bool]:
        """A function that waits for units (by position in `units`) and sets their
        `rows`; False behind the end.

        Its second argument tells whether to give up.
        """

        def released(positions: NDArray[np.int64], stopped: Callable[[], bool]) -> bool:
            wanted = [int(unit) for unit in units[positions]]
            if not self._wait(wanted, stopped):
                return False
            rows[positions] = [self._rows.get(unit, 0) for unit in wanted]
            return bool(rows[positions].any())

        return released

    def _wait(self, units: list[int], stopped: Callable[[], bool]) -> bool:
        """Until these units are committed, or the corpus has ended before them."""
        while True:
            # Up to the first that is missing only: on an object store every look costs.
            missing = next((unit for unit in units if not self._committed(unit)), None)
            if missing is None or self._ended_before(missing):
                return True
            if stopped():
                return False
            time.sleep(self.poll_s)

    def _committed(self, unit: int) -> bool:
        """Whether a unit is committed; remembers its rows."""
        key = keys.unit_key(unit)
        if unit not in self._rows and self.storage.exists(key):
            record = read_record(self.storage, key, UnitRecord)
            check_record(self.plan, 0, unit, record, f"{self.storage.url}/{key}")
            self._rows[unit] = record.n_rows
        return unit in self._rows

    def _ended_before(self, unit: int) -> bool:
        """Whether the corpus ended before a unit: whether a block before it (all are
        there by then) is the last one. Each block's record is read once.
        """
        while self._next_block < unit and self.storage.exists(
            keys.block_key(self._next_block)
        ):
            record = read_record(
                self.storage, keys.block_key(self._next_block), BlockRecord, SMALL_JSON
            )
            if record.last:
                return True
            self._next_block += 1
        return False

    def _provisional(self, units: list[int]) -> StoreManifest:
        """A manifest of what is planned, with the first group's norms."""
        plan = self.plan
        self._first_stats = UnitStats(plan.sites)
        for unit in units:
            key = keys.unit_stats_key(unit)
            data = self.storage.read(key, stats_bytes(plan.sites))
            self._first_stats.merge(UnitStats.from_bytes(plan.sites, data, key))
        digest = blake3(plan.to_json().encode()).hexdigest()
        n, layout = plan.layout.n_units, plan.layout
        generation = Generation(
            plan=keys.plan_key(),
            units=keys.units_prefix() + "/",
            sites=plan.sites,
            n_units=n,
            n_sequences=layout.n_sequences,
            n_rows=layout.n_slots,
            plan_digest=digest,
            units_digest=f"followed {digest}",
        )
        return StoreManifest(
            format_minor=plan.format_minor,
            content_id=f"{FOLLOWED}{digest}",
            spec=plan.spec,
            sites=plan.sites,
            layout=layout,
            model=plan.model,
            numerics=plan.numerics,
            generations=(generation,),
            n_units=n,
            n_sequences=layout.n_sequences,
            n_rows=layout.n_slots,
            n_train_rows=(n - n // HELD_OUT_EVERY) * layout.capacity,
            n_bytes=0,
            norms=self._first_stats.norms(),
            files={},
            imported=plan.imported,
        )
