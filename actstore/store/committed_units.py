"""Reads the records of units and token blocks that workers have committed.

The store may be finished or not.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from functools import partial
from typing import NamedTuple

from actstore.errors import CorruptError, UnfinishedError
from actstore.format import object_keys
from actstore.format.json_records import parsed_record, read_record
from actstore.format.manifest_checks import check_record
from actstore.format.object_sizes import RECORD_JSON, SMALL_JSON
from actstore.format.storage import Storage
from actstore.machine.map_ahead import map_ahead
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, StoreManifest, UnitRecord

READS = 32  # requests for records under way at a time
# Keys such as `units/00012.json`, `units-3/00012.json` or `blocks/00012.json`.
_RECORD = re.compile(r"[a-z]+(?:-\d+)?/(\d{5,10})\.json", re.ASCII)


class CommittedRecord(NamedTuple):
    """A unit's record, and the bytes that it was read from."""

    record: UnitRecord
    """The unit that was committed."""

    data: bytes
    """The record's JSON, of which the digests are made."""


def complete_units(storage: Storage, plan: Plan, parent: StoreManifest | None) -> range:
    """Return the units of a generation whose units are all committed.

    Args:
        storage: Where the store lies.
        plan: The generation's plan.
        parent: The manifest of the store that the generation adds to, if it does.

    Raises:
        UnfinishedError: Some are missing; the message names them.
    """
    wanted = wanted_units(storage, plan, parent)
    if wanted is None:
        raise UnfinishedError(
            f"{storage.url}: the corpus has not been read to its end; run the same"
            " harvest again"
        )
    missing = missing_units(storage, plan.generation, wanted)
    if missing:
        raise UnfinishedError(
            f"{storage.url}: {len(missing)} units are missing"
            f" ({', '.join(map(str, missing[:8]))}, ...); run the same harvest again,"
            " it goes on from there"
        )
    return wanted


def committed_record(storage: Storage, plan: Plan, unit: int) -> CommittedRecord:
    """Read the record of a generation's unit.

    Raises:
        CorruptError: It cannot be a record of that unit.
    """
    key = object_keys.unit_key(unit, plan.generation)
    where = f"{storage.url}/{key}"
    data = storage.read(key, RECORD_JSON)
    record = parsed_record(UnitRecord, data, where)
    check_record(plan, plan.generation, unit, record, where)
    return CommittedRecord(record, data)


def wanted_units(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> range | None:
    """Return the units that a generation must have.

    None while nobody knows where the corpus ends.
    """
    if plan.adds_sites and parent is not None:
        # New sites are harvested at the tokens that the store has already.
        return range(parent.n_units)
    # Only the newest may be the last one; blocks before it may be missing still, and
    # with them their units. A store that is extended has an earlier block that was the
    # last one then.
    unit = max(_listed_units(storage, "blocks"), default=-1)
    unit = max(unit, plan.first_unit - 1)
    # What a listing that lags does not show is asked for by name.
    while storage.local is None and storage.exists(object_keys.block_key(unit + 1)):
        unit += 1
    if unit < plan.first_unit:
        return None
    newest = _block(storage, unit)
    return range(plan.first_unit, unit + 1) if newest.last else None


def committed_units(storage: Storage, generation: int) -> set[int]:
    """Return the units whose record a listing shows.

    It may lag: see `missing_units`.
    """
    return set(_listed_units(storage, object_keys.units_prefix(generation)))


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


def listed_blocks(storage: Storage) -> set[int]:
    """Return the units whose token block a listing shows; it may lag."""
    return set(_listed_units(storage, "blocks"))


def committed_blocks(
    storage: Storage, units: Container[int] | None = None
) -> dict[int, BlockRecord]:
    """Return the records of the token blocks that are there, by unit.

    Where a listing lags, those that it does not show are asked for by name, up to the
    first that is not there. Behind that one there may be more, which a harvest may
    commit once more.

    Args:
        storage: Where the store lies.
        units: Only blocks of these, and only what a listing shows; None: all of them.

    Raises:
        CorruptError: A record is of another unit than its key says.
    """
    listed = _listed_units(storage, "blocks")
    wanted = [unit for unit in listed if units is None or unit in units]
    threads = reads_at_once(storage)
    read = map_ahead(partial(_block, storage), wanted, threads)
    blocks = dict(zip(wanted, read, strict=True))
    unit = 0
    while units is None and storage.local is None:
        if unit not in blocks:
            if not storage.exists(object_keys.block_key(unit)):
                break
            blocks[unit] = _block(storage, unit)
        unit += 1
    return blocks


def reads_at_once(storage: Storage) -> int:
    """Return how many records are read at a time: over a network each one waits."""
    return 1 if storage.local is not None else READS


def _block(storage: Storage, unit: int) -> BlockRecord:
    """Read the record of a unit's token block."""
    key = object_keys.block_key(unit)
    block = read_record(storage, key, BlockRecord, SMALL_JSON)
    if block.unit != unit:
        raise CorruptError(
            f"{storage.url}/{key}: it is of unit {block.unit}, not the record"
            " that was committed"
        )
    return block


def _listed_units(storage: Storage, folder: str) -> list[int]:
    """Return the units whose records are in a folder, in order.

    Other files (such as `._00001.json`) are not looked at.
    """
    matches = map(_RECORD.fullmatch, storage.list(folder))
    return sorted({int(match[1]) for match in matches if match})
