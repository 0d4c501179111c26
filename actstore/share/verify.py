"""Every object's bytes against its recorded digest; those under no digest against what they follow from.

Objects that nothing in the store names (a killed worker's leftovers, another program's files) are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import layout as at
from actstore.format.shard import decode_plain
from actstore.share.derived import Derived, Finding, derived_objects
from actstore.store import Store
from schemas.manifest import Generation, ObjectRecord, UnitRecord

_UNCHECKED = "; the objects it names are not checked, copy it from another copy of the store"


class Verified(NamedTuple):
    """What `verify` found; `problems` has a line for each bad object, `repaired` the keys of those written anew."""

    objects: int
    bytes: int
    problems: list[str]
    repaired: list[str]


def verify(
    store: Store, threads: int = 4, progress: Callable[[int, int], None] | None = None, *, repair: bool = False
) -> Verified:
    """Read all objects of a store, records and metadata included, and compare them with what they must be.

    repair: write those anew whose content is known without them (`zarr.json` of groups and arrays).
    """
    recorded = dict(store.manifest.files)
    blocks: dict[int, UnitRecord] = {}
    problems: list[str] = []
    n_records, n_bytes, repaired = 0, 0, []
    for i, generation in enumerate(store.manifest.generations):
        found, bad = _generation(store, i, generation)
        n_records += generation.n_units
        problems += bad
        for record in found:
            recorded |= record.objects
            if at.chunk_key("tokens", record.unit, 0) in record.objects:
                blocks[record.unit] = record
    every = [Derived(key, partial(_recorded, store, key, one)) for key, one in recorded.items()]
    every += derived_objects(store, blocks)
    with ThreadPoolExecutor(threads) as pool:
        for done, (one, finding) in enumerate(zip(every, pool.map(lambda one: one.check(), every), strict=True), 1):
            n_bytes += finding.n_bytes
            if repair and finding.repair is not None:
                store.storage.put(one.key, finding.repair)
                repaired.append(one.key)
            elif finding.problem is not None:
                problems.append(finding.problem)
            if progress is not None:
                progress(done, len(every))
    return Verified(n_records + len(every), n_bytes, problems, repaired)


def _generation(store: Store, index: int, generation: Generation) -> tuple[list[UnitRecord], list[str]]:
    """Records of a generation's units; one that is missing or not the one committed is a problem of its own."""
    records: list[UnitRecord] = []
    problems: list[str] = []
    digest = blake3()
    for unit in range(generation.first_unit, generation.first_unit + generation.n_units):
        key = at.unit_key(unit, index)
        try:
            data = store.storage.read(key)
            digest.update(data)
            records.append(UnitRecord.model_validate_json(data))
        except (ObjectError, StorageError) as error:
            problems.append(f"missing  {error}{_UNCHECKED}")
        except ValueError as error:
            problems.append(f"corrupt  {store.url}/{key}: not a unit record: {error}{_UNCHECKED}")
    if not problems and digest.hexdigest() != generation.units_digest:
        changed = _changed(store, generation)
        for unit in changed:
            key = at.unit_key(unit, index)
            problems.append(f"corrupt  {store.url}/{key}: it is not the record that was committed{_UNCHECKED}")
        records = [record for record in records if record.unit not in changed]
        if not changed:
            problems.append(
                f"corrupt  {store.url}/{generation.units}: the records' digest is {digest.hexdigest()}, "
                f"the manifest says {generation.units_digest}"
            )
    return records, problems


def _changed(store: Store, generation: Generation) -> list[int]:
    """A generation's units whose records are not those that the column of digests was made from."""
    n, key = (
        store.manifest.n_units,
        at.chunk_key(f"{at.columns_prefix(len(store.manifest.generations) - 1)}/digests", 0, 0),
    )
    try:
        column = decode_plain(store.storage.read(key), (n, 32), np.uint8, key)
    except (ObjectError, CorruptError, StorageError):
        return []
    changed = []
    for unit in range(generation.first_unit, generation.first_unit + generation.n_units):
        state = b""
        for data in map(store.storage.read, store.record_keys(unit)):
            one = blake3(data).digest()
            state = blake3(state + one).digest() if state else one
        if state != column[unit].tobytes():
            changed.append(unit)
    return changed


def _recorded(store: Store, key: str, record: ObjectRecord) -> Finding:
    try:
        data = store.storage.read(key)
    except (ObjectError, StorageError) as error:
        return Finding(record.bytes, f"missing  {error}")
    if len(data) != record.bytes:
        return Finding(record.bytes, f"corrupt  {store.url}/{key}: {len(data)} bytes, recorded {record.bytes}")
    if blake3(data).hexdigest() != record.digest:
        return Finding(record.bytes, f"corrupt  {store.url}/{key}: its bytes are not those recorded")
    return Finding(record.bytes)
