"""The unit and block records that workers have committed, whether or not the store is
finished.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from actstore.errors import CorruptError, UnfinishedError
from actstore.format import keys
from actstore.format.json_records import parsed_record, read_record
from actstore.format.manifest_checks import check_record
from actstore.format.object_sizes import (
    RECORD_JSON,
    SMALL_JSON,
)
from actstore.format.storage import Storage
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, StoreManifest, UnitRecord

_RECORD = re.compile(r"[a-z]+(?:-\d+)?/(\d{5,10})\.json", re.ASCII)


class Committed(NamedTuple):
    """A unit's record and the bytes that it stands in, which the digests are of."""

    record: UnitRecord
    data: bytes


def committed_records(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> list[Committed]:
    """The records of a generation's units, in order. Raises UnfinishedError with those
    that are missing.
    """
    wanted = wanted_units(storage, plan, parent)
    if wanted is None:
        raise UnfinishedError(
            f"{storage.url}: the corpus has not been read to its end; run the same"
            " harvest again"
        )
    done = committed_units(storage, plan.generation)
    missing = [unit for unit in wanted if unit not in done]
    if missing:
        raise UnfinishedError(
            f"{storage.url}: {len(missing)} units are missing"
            f" ({', '.join(map(str, missing[:8]))}, ...); run the same harvest again,"
            " it goes on from there"
        )
    committed = []
    for unit in wanted:
        key = keys.unit_key(unit, plan.generation)
        where, data = f"{storage.url}/{key}", storage.read(key, RECORD_JSON)
        committed.append(Committed(parsed_record(UnitRecord, data, where), data))
        check_record(plan, plan.generation, unit, committed[-1].record, where)
    return committed


def wanted_units(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> range | None:
    """The units that a generation must have; None while the corpus' end is not known."""
    if plan.adds_sites and parent is not None:
        return range(parent.n_units)
    last = [
        unit
        for unit, block in committed_blocks(storage).items()
        if block.last and unit >= plan.first_unit
    ]
    return range(plan.first_unit, last[0] + 1) if last else None


def committed_units(storage: Storage, generation: int) -> set[int]:
    """Units whose record is there."""
    return set(_by_unit(storage, keys.units_prefix(generation)))


def committed_blocks(storage: Storage) -> dict[int, BlockRecord]:
    """Records of the token blocks that are there, by unit."""
    found = {}
    for unit, key in _by_unit(storage, "blocks").items():
        found[unit] = read_record(storage, key, BlockRecord, SMALL_JSON)
        if found[unit].unit != unit:
            raise CorruptError(
                f"{storage.url}/{key}: it is of unit {found[unit].unit}, not the record"
                " that was committed"
            )
    return found


def _by_unit(storage: Storage, folder: str) -> dict[int, str]:
    """Keys of the records of units in a folder; other files (such as `._00001.json`)
    are not looked at.
    """
    return {
        int(m[1]): m[0] for key in storage.list(folder) if (m := _RECORD.fullmatch(key))
    }
