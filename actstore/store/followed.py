"""A store that is still being harvested, read as far as it is committed.

A stream takes its units in unit order, a group at a time, once all of the group is
committed. What a finished store has in its manifest comes from the plan and from the
first group: the norms of that group stand for all rows, for as long as the stream is
used. So a stream that follows is the same whether the harvest has ended or not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NoReturn

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import NotAStoreError, SpecError
from actstore.format import object_keys
from actstore.format.content_id import FOLLOWED
from actstore.format.json_records import read_record
from actstore.format.layout import held_out
from actstore.format.manifest import check_no_copy, read_plan
from actstore.format.manifest_checks import MOST_UNITS, check_record, is_tokenizer_file
from actstore.format.object_sizes import (
    OTHER_FILE,
    RECORD_JSON,
    SMALL_JSON,
    stats_bytes,
)
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.store.stored_objects import StoredObjects
from actstore.store.streamed_store import StreamedStore
from schemas.harvest import Plan
from schemas.manifest import (
    HELD_OUT_EVERY,
    BlockRecord,
    Generation,
    NormStats,
    StoreManifest,
    UnitRecord,
)
from schemas.source import Site

# A group is as large as batches of this many rows need ...
MIXED_BATCH_ROWS = 4096
# ... to hold at most this share fewer sequences than independent draws would.
MIXING_SHORTFALL = 0.02
# Seconds between two looks for units that are not committed yet: a unit takes longer
# than that to harvest, and each look is a request to the storage.
POLL_S = 0.5


def open_followed(
    url: str | os.PathLike[str], options: dict[str, Any] | None = None
) -> FollowedStore:
    """Open a store that is (or was) being harvested, once its first group is committed.

    Args:
        url: Any fsspec URL, or a folder.
        options: What the file system is given.

    Raises:
        NotAStoreError: No harvest has begun there.
        UnfinishedError: What has begun is a copy, which cannot be followed.
        SpecError: More units are planned than can be followed.
    """
    storage = Storage(str(url), options)
    if not storage.exists(object_keys.MANIFEST):
        check_no_copy(storage)
    if not storage.exists(object_keys.plan_key()):
        raise NotAStoreError(
            f"{storage.url}: no harvest has begun there (no {object_keys.plan_key()});"
            " start it first"
        )
    plan = read_plan(storage)
    if plan.layout.n_units > MOST_UNITS:
        raise SpecError(
            f"{storage.url}: {plan.layout.n_units} units are planned; up to"
            f" {MOST_UNITS} can be followed"
        )
    return FollowedStore(storage, plan)


def followed_group_units(plan: Plan) -> int:
    """Return how many units are streamed together while a harvest goes on.

    Enough that sites, which share the group's units, mix within 2 % at 4,096 rows (see
    `stream/mixing.py`), but at most an eighth of the harvest. In numbers: units of 64
    sequences need 4096 / (2 * 64 * 0.02) = 1,600 units; of 1,000 that are planned, the
    group has 125.
    """
    layout = plan.layout
    units_needed = math.ceil(
        MIXED_BATCH_ROWS / (2 * layout.unit_sequences * MIXING_SHORTFALL)
    )
    return max(1, min(units_needed, layout.n_units // 8))


class GrowingObjects(StoredObjects):
    """The objects of a store's committed units.

    `unit_rows` is 0 for a unit that is not committed yet, and is filled in as it is.
    """

    def __init__(
        self, storage: Storage, manifest: StoreManifest, unit_rows: NDArray[np.int32]
    ) -> None:
        super().__init__(storage, manifest)
        self._committed_rows = unit_rows
        self._digests: dict[int, bytes] = {}

    @cached_property
    def unit_rows(self) -> NDArray[np.int32]:
        """Valid rows of each unit so far, int32 [n_units]."""
        return self._committed_rows

    def unit_digest(self, unit: int) -> bytes:
        """Return the digest of a committed unit's record, 32 bytes."""
        if unit not in self._digests:
            data = self.storage.read(object_keys.unit_key(unit), RECORD_JSON)
            self._digests[unit] = blake3(data).digest()
        return self._digests[unit]


class FollowedStore:
    """A store while it grows: the units of its first harvest, as they are committed.

    It can be streamed (`StreamSpec(follow=True)`) and trained from. What needs all rows
    of a store, such as `rows` and `read`, raises SpecError until the harvest has ended
    and the store is opened as a finished one.

    Attributes:
        storage: Where the store lies.
        plan: What the harvest is going to do.
        poll_s: Seconds between two looks for units that are not committed yet.
        group_units: Units that are streamed together.
        manifest: What is planned, with the norms of the first group of units.
        layout: Sizes of its units and chunks.
        sites: Names of its sites.
        norms: Statistics of the norms of the first group's rows, by site.
        statistics: The first group's statistics: what rescaling uses, for good.
        objects: The objects of the units that are committed so far.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        poll_s: float = POLL_S,
    ) -> None:
        self.storage = storage
        self.plan = plan
        self.poll_s = poll_s
        self.group_units = followed_group_units(plan)
        self._unit_rows = np.zeros(plan.layout.n_units, np.int32)
        self._committed: set[int] = set()
        # The token blocks before this one are known not to be the corpus' last.
        self._next_block = 0
        # Not a list: a plan may have millions of units.
        every_unit = range(plan.layout.n_units)
        training = (unit for unit in every_unit if not held_out(unit))
        first_group = list(islice(training, self.group_units))
        # Norms are needed before the first batch: rescaling divides by them.
        self._wait(first_group, stopped=lambda: False)
        committed = [unit for unit in first_group if unit in self._committed]
        self.statistics = _merged_statistics(storage, plan, committed)
        self.manifest = _planned_manifest(plan, self.statistics)
        self.objects = GrowingObjects(storage, self.manifest, self._unit_rows)
        self.layout = self.objects.layout
        self.sites = self.objects.sites
        self.norms: dict[str, NormStats] = {
            norms.site: norms for norms in self.manifest.norms
        }

    def __repr__(self) -> str:
        return (
            f"FollowedStore({self.url!r}, {len(self.sites)} sites,"
            f" {len(self._committed)} units so far)"
        )

    def _repr_html_(self) -> str:
        from actstore.console.notebook import table
        from actstore.store.description import describe

        return table(f"Store {self.url}", describe(self)[1:])

    def __getattr__(self, name: str) -> NoReturn:
        # Python asks here only for what is not found otherwise. A public name that a
        # finished store has is one that needs all rows.
        if hasattr(Store, name) and not name.startswith("_"):
            raise _rows_not_known(self.url)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    @property
    def url(self) -> str:
        """The store's address."""
        return self.storage.url

    def site(self, name: str) -> Site:
        """Return a site by name. Raises SiteError with the sites there are."""
        return self.objects.site(name)

    def units(self, split: str | None = None) -> list[int]:
        """Return the planned units of a split ("train", "held_out"), or all of them."""
        every_unit = range(self.manifest.n_units)
        if split is None:
            return list(every_unit)
        wanted = split == "held_out"
        return [unit for unit in every_unit if held_out(unit) == wanted]

    def mean(self, site: str) -> NDArray[np.float64]:
        """Return the mean activation over the first group's rows, float64 [d]."""
        name = self.site(site).name
        return self.statistics.sites[name].moments().mean

    def variance(self, site: str) -> NDArray[np.float64]:
        """Return each channel's variance over the first group's rows, float64 [d]."""
        name = self.site(site).name
        return self.statistics.sites[name].moments().variance

    def tokenizer(self, *, trust_remote_code: bool = False) -> Any:
        """Return the model's tokenizer as it was kept (see `Store.tokenizer`)."""
        from actstore.store.tokenizer_files import stored_tokenizer

        files = {
            key.rpartition("/")[2]: self.storage.read(key, OTHER_FILE)
            for key in self.storage.list("tokenizer")
            if is_tokenizer_file(key)
        }
        return stored_tokenizer(
            files,
            self.manifest.spec.model.name,
            f"{self.url}/tokenizer",
            trust=trust_remote_code,
        )

    # The function of a finished store: it hands the store and what it is given to a
    # `Stream`.
    stream = Store.stream

    def rows_in(self, unit: int) -> int:
        """Return a unit's valid rows, 0 where it is not committed yet."""
        return int(self._unit_rows[unit])

    def released_rows(
        self, units: NDArray[np.int64], stopped: Callable[[], bool]
    ) -> NDArray[np.int64] | None:
        """Wait until some units are committed; return their valid rows, int64 [n].

        Args:
            units: int64 [n].
            stopped: Tells whether to wait no longer.

        Returns:
            The rows of each unit, 0 for those that the corpus ended before; None where
            it ended before all of them, or where `stopped` said so.
        """
        if not self._wait(units.tolist(), stopped):
            return None
        rows = self._unit_rows[units].astype(np.int64)
        return rows if rows.any() else None

    def _wait(
        self,
        units: Sequence[int],
        stopped: Callable[[], bool],
    ) -> bool:
        """Wait until these units are committed, or the corpus has ended before them.

        Returns False where `stopped` said to give up.
        """
        while True:
            # Only up to the first that is missing: on an object store each look costs.
            missing = next(
                (unit for unit in units if not self._is_committed(unit)), None
            )
            if missing is None or self._ended_before(missing):
                return True
            if stopped():
                return False
            time.sleep(self.poll_s)

    def _is_committed(self, unit: int) -> bool:
        """Return whether a unit is committed; if so, remember its rows."""
        if unit in self._committed:
            return True
        # The record is written after all of a unit's objects: with it they are there.
        key = object_keys.unit_key(unit)
        if not self.storage.exists(key):
            return False
        record = read_record(self.storage, key, UnitRecord)
        check_record(self.plan, 0, unit, record, f"{self.storage.url}/{key}")
        self._unit_rows[unit] = record.n_rows
        self._committed.add(unit)
        return True

    def _ended_before(self, unit: int) -> bool:
        """Return whether the corpus ended before a unit.

        It did if a token block before the unit is the last one: all blocks before it
        are there by then. Each block's record is read once.
        """
        while self._next_block < unit:
            key = object_keys.block_key(self._next_block)
            if not self.storage.exists(key):
                return False
            if read_record(self.storage, key, BlockRecord, SMALL_JSON).last:
                return True
            self._next_block += 1
        return False


def finished_store(store: StreamedStore) -> Store:
    """Return a store as a finished one.

    Raises:
        SpecError: It is one that is followed, so that its rows are not all known.
    """
    if isinstance(store, Store):
        return store
    raise _rows_not_known(store.url)


def _rows_not_known(url: str) -> SpecError:
    return SpecError(
        f"{url}: its rows are not all known yet; stream it with `follow`, or wait for"
        " the harvest"
    )


def _merged_statistics(storage: Storage, plan: Plan, units: Sequence[int]) -> UnitStats:
    """Return the statistics of some committed units together."""
    merged = UnitStats(plan.sites)
    for unit in units:
        key = object_keys.unit_stats_key(unit)
        data = storage.read(key, stats_bytes(plan.sites))
        merged.merge(UnitStats.from_bytes(plan.sites, data, key))
    return merged


def _planned_manifest(plan: Plan, statistics: UnitStats) -> StoreManifest:
    """Return a manifest of all that is planned, with the norms of some units."""
    layout = plan.layout
    n_units = layout.n_units
    # Of every 20 units the last is held out: 45 units have units 19 and 39.
    n_held_out = n_units // HELD_OUT_EVERY
    # Digests and ids of what is not complete begin with a word that no digest has, so
    # that nobody takes them for those of the finished store.
    digest = blake3(plan.to_json().encode()).hexdigest()
    generation = Generation(
        plan=object_keys.plan_key(),
        units=object_keys.units_prefix() + "/",
        sites=plan.sites,
        n_units=n_units,
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
        n_units=n_units,
        n_sequences=layout.n_sequences,
        n_rows=layout.n_slots,
        n_train_rows=(n_units - n_held_out) * layout.capacity,
        n_bytes=0,
        norms=statistics.norms(),
        files={},
        imported=plan.imported,
        subset=plan.subset,
    )
