"""Reads the records of units and token blocks that workers have committed.

The store may be finished or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from actstore.errors import CorruptError, UnfinishedError
from actstore.format import object_keys
from actstore.format.json_records import parsed_record, read_record
from actstore.format.manifest_checks import check_record
from actstore.format.object_sizes import RECORD_JSON, SMALL_JSON
from actstore.format.storage import Storage
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, StoreManifest, UnitRecord

# Keys such as `units/00012.json`, `units-3/00012.json` or `blocks/00012.json`.
_RECORD = re.compile(r"[a-z]+(?:-\d+)?/(\d{5,10})\.json", re.ASCII)


class CommittedRecord(NamedTuple):
    """A unit's record, and the bytes that it was read from."""

    record: UnitRecord
    """The unit that was committed."""

    data: bytes
    """The record's JSON, of which the digests are made."""


def committed_records(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> list[CommittedRecord]:
    """Return the records of a generation's units, in order.

    Args:
        storage: Where the store lies.
        plan: The generation's plan.
        parent: The manifest of the store that the generation adds to, if it does.

    Raises:
        UnfinishedError: Some are missing; the message names them.
        CorruptError: One cannot be a record of its unit.
    """
    wanted = wanted_units(storage, plan, parent)
    if wanted is None:
        raise UnfinishedError(
            f"{storage.url}: the corpus has not been read to its end; run the same"
            " harvest again"
        )
    missing = missing_units(storage, plan.generation, wanted)
    # Records are read only once all are there: this is asked while workers still work.
    if missing:
        raise UnfinishedError(
            f"{storage.url}: {len(missing)} units are missing"
            f" ({', '.join(map(str, missing[:8]))}, ...); run the same harvest again,"
            " it goes on from there"
        )
    committed = []
    for unit in wanted:
        key = object_keys.unit_key(unit, plan.generation)
        where = f"{storage.url}/{key}"
        data = storage.read(key, RECORD_JSON)
        record = parsed_record(UnitRecord, data, where)
        check_record(plan, plan.generation, unit, record, where)
        committed.append(CommittedRecord(record, data))
    return committed


def wanted_units(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> range | None:
    """Return the units that a generation must have.

    None while nobody knows where the corpus ends.
    """
    if plan.adds_sites and parent is not None:
        # New sites are harvested at the tokens that the store has already.
        return range(parent.n_units)
    # A store that is extended has an earlier block that was the last one then.
    for unit, block in committed_blocks(storage).items():
        if block.last and unit >= plan.first_unit:
            return range(plan.first_unit, unit + 1)
    return None


def committed_units(storage: Storage, generation: int) -> set[int]:
    """Return the units whose record a listing shows.

    It may lag: see `missing_units`.
    """
    return set(_record_keys(storage, object_keys.units_prefix(generation)))


def missing_units(
    storage: Storage, generation: int, wanted: Iterable[int]
) -> list[int]:
    """Return those of some units whose record is not there; empty: all are.

    A listing of an object store may lag behind what was written, so what it does not
    show is asked for by name, until one is found to be missing indeed.
    """
    listed = committed_units(storage, generation)
    missing = [unit for unit in wanted if unit not in listed]
    if storage.local is not None:
        return missing
    for position, unit in enumerate(missing):
        if not storage.exists(object_keys.unit_key(unit, generation)):
            return missing[position:]
    return []


def committed_blocks(storage: Storage) -> dict[int, BlockRecord]:
    """Return the records of the token blocks that are there, by unit.

    They are committed in order. So where a listing lags, those that it does not show
    are asked for by name, up to the first that is not there.

    Raises:
        CorruptError: A record is of another unit than its key says.
    """
    keys = _record_keys(storage, "blocks")
    blocks = {unit: _block(storage, unit, key) for unit, key in keys.items()}
    unit = 0
    while storage.local is None:
        key = object_keys.block_key(unit)
        if unit not in blocks:
            if not storage.exists(key):
                break
            blocks[unit] = _block(storage, unit, key)
        unit += 1
    return blocks


def _block(storage: Storage, unit: int, key: str) -> BlockRecord:
    """Read the record of a unit's token block."""
    block = read_record(storage, key, BlockRecord, SMALL_JSON)
    if block.unit != unit:
        raise CorruptError(
            f"{storage.url}/{key}: it is of unit {block.unit}, not the record"
            " that was committed"
        )
    return block


def _record_keys(storage: Storage, folder: str) -> dict[int, str]:
    """Return the keys of the records in a folder, by unit.

    Other files (such as `._00001.json`) are not looked at.
    """
    by_unit = {}
    for key in storage.list(folder):
        match = _RECORD.fullmatch(key)
        if match:
            by_unit[int(match[1])] = key
    return by_unit
