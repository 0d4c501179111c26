"""Every object's bytes against its recorded digest; those under no digest against what
they follow from.

Objects that nothing in the store names (a killed worker's leftovers, another program's
files) are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import keys
from actstore.format.json_records import parsed_record
from actstore.format.manifest_checks import check_record
from actstore.format.object_sizes import RECORD_JSON
from actstore.inspect.manifest_proof import (
    Committed,
    Records,
    manifest_problems,
    statistics_problems,
)
from actstore.inspect.remade_objects import Derived, Finding, derived_objects
from actstore.store.store import Store
from schemas.manifest import Generation, ObjectRecord, UnitRecord

_UNCHECKED = (
    "; the objects it names are not checked, copy it from another copy of the store"
)


class Verified(NamedTuple):
    """What `verify` found; `problems` has a line for each bad object, `repaired` the
    keys of those written anew.
    """

    objects: int
    bytes: int
    problems: list[str]
    repaired: list[str]


def verify(
    store: Store,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
    *,
    repair: bool = False,
) -> Verified:
    """Read all objects of a store, records and metadata included, and compare them with
    what they must be.

    repair: write those anew whose content is known without them (`zarr.json` of groups
    and arrays), if what they follow from is as it must be.
    """
    recorded = dict(store.manifest.files)
    blocks: dict[int, UnitRecord] = {}
    problems: list[str] = []
    records: Records = []
    for i, generation in enumerate(store.manifest.generations):
        found, bad = _generation(store, i, generation)
        records.append(found)
        problems += bad
        for record in (one.record for one in found):
            recorded |= record.objects
            if keys.chunk_key("tokens", record.unit, 0) in record.objects:
                blocks[record.unit] = record
    every = [
        Derived(key, partial(_recorded, store, key, one))
        for key, one in recorded.items()
    ]
    derived = derived_objects(store, blocks)
    looked = _Looked(len(every) + len(derived), progress)
    with ThreadPoolExecutor(threads) as pool:
        bad_keys = looked.at(every, pool)
        doubts = _doubts(store, records, bad_keys) if not problems else []
        proven = not problems and not doubts and not any(map(_is_evidence, bad_keys))
        looked.at(derived, pool, store if repair and proven else None)
    problems += doubts + looked.problems
    if repair and not proven:
        problems.append(
            f"refused  {store.url}: nothing is repaired, for what it would follow from"
            " is itself in doubt"
        )
    n_records = sum(generation.n_units for generation in store.manifest.generations)
    return Verified(n_records + looked.done, looked.n_bytes, problems, looked.repaired)


class _Looked:
    """What was found at the objects looked at so far."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total, self.progress = total, progress
        self.done, self.n_bytes = 0, 0
        self.problems: list[str] = []
        self.repaired: list[str] = []

    def at(
        self, objects: Sequence[Derived], pool: Executor, repair: Store | None = None
    ) -> list[str]:
        """Look at some objects; those that can be are made anew in `repair`. Returns
        the keys of bad ones.
        """
        bad = []
        for one, finding in zip(
            objects, pool.map(lambda one: one.check(), objects), strict=True
        ):
            self.done, self.n_bytes = self.done + 1, self.n_bytes + finding.n_bytes
            if self.progress is not None:
                self.progress(self.done, self.total)
            if (
                repair is not None
                and finding.repair is not None
                and self._repaired(repair, one.key, finding.repair)
            ):
                continue
            if finding.problem is not None:
                self.problems.append(finding.problem)
                bad.append(one.key)
        return bad

    def _repaired(self, store: Store, key: str, data: bytes) -> bool:
        try:
            store.storage.put(key, data)
        except CorruptError:  # a link that leads out of the store
            return False
        self.repaired.append(key)
        return True


def _doubts(store: Store, records: Records, bad_keys: list[str]) -> list[str]:
    """Lines about what does not follow from the records, as far as what it must follow
    from is not bad itself.
    """
    if any(key.startswith("plan") for key in bad_keys):
        return []
    doubts = manifest_problems(store, records)
    return (
        doubts
        if doubts or any(map(_is_evidence, bad_keys))
        else list(statistics_problems(store, records))
    )


def _is_evidence(key: str) -> bool:
    """Whether the manifest is held against an object."""
    return key.endswith(".stats") or key.startswith(("plan", "columns"))


def _generation(
    store: Store, index: int, generation: Generation
) -> tuple[list[Committed], list[str]]:
    """Records of a generation's units; one that is missing or not the one committed is
    a problem of its own.
    """
    records: list[Committed] = []
    problems: list[str] = []
    digest = blake3()
    for unit in range(
        generation.first_unit, generation.first_unit + generation.n_units
    ):
        key = keys.unit_key(unit, index)
        where = f"{store.url}/{key}"
        try:
            data = store.storage.read(key, RECORD_JSON)
            digest.update(data)
            record = parsed_record(UnitRecord, data, where)
            check_record(store.manifest, index, unit, record, where)
            records.append(Committed(record, blake3(data).digest()))
        except CorruptError as error:
            problems.append(f"corrupt  {error}{_UNCHECKED}")
        except (ObjectError, StorageError) as error:
            problems.append(f"missing  {error}{_UNCHECKED}")
    if not problems and digest.hexdigest() != generation.units_digest:
        changed = _changed(store, generation)
        for unit in changed:
            key = keys.unit_key(unit, index)
            problems.append(
                f"corrupt  {store.url}/{key}: it is not the record that was"
                f" committed{_UNCHECKED}"
            )
        records = [one for one in records if one.record.unit not in changed]
        if not changed:
            problems.append(
                f"corrupt  {store.url}/{generation.units}: the records' digest is"
                f" {digest.hexdigest()}, the manifest says {generation.units_digest}"
            )
    return records, problems


def _changed(store: Store, generation: Generation) -> list[int]:
    """A generation's units whose records are not those that the column of digests was
    made from.
    """
    try:
        column = store.column("digests")
    except (ObjectError, StorageError):
        return []
    changed = []
    for unit in range(
        generation.first_unit, generation.first_unit + generation.n_units
    ):
        state = b""
        for data in (
            store.storage.read(key, RECORD_JSON) for key in store.record_keys(unit)
        ):
            one = blake3(data).digest()
            state = blake3(state + one).digest() if state else one
        if state != column[unit].tobytes():
            changed.append(unit)
    return changed


def _recorded(store: Store, key: str, record: ObjectRecord) -> Finding:
    try:
        n_bytes, digest = store.storage.digest(key, record.bytes)
    except CorruptError as error:
        return Finding(record.bytes, f"corrupt  {error}")
    except (ObjectError, StorageError) as error:
        return Finding(record.bytes, f"missing  {error}")
    if n_bytes != record.bytes:
        return Finding(
            record.bytes,
            f"corrupt  {store.url}/{key}: {n_bytes} bytes, recorded {record.bytes}",
        )
    if digest != record.digest:
        return Finding(
            record.bytes,
            f"corrupt  {store.url}/{key}: its bytes are not those recorded",
        )
    return Finding(record.bytes)
