"""Checks the bytes of every object of a store.

They are compared with the recorded digests; objects that no digest covers, with what
they follow from.

Objects that nothing in the store names (a killed worker's leftovers, another program's
files) are not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import object_keys
from actstore.format.json_records import parsed_record
from actstore.format.manifest_checks import CARD_FILES, check_record
from actstore.format.object_sizes import RECORD_JSON
from actstore.inspect.manifest_proof import (
    DigestedRecord,
    Records,
    manifest_problems,
    statistics_problems,
)
from actstore.inspect.remade_objects import CheckedObject, Finding, derived_objects
from actstore.store.open_store import opened_without_cache
from actstore.store.store import Store
from schemas.manifest import Generation, ObjectRecord, UnitRecord

_UNCHECKED = (
    "; the objects it names are not checked, copy it from another copy of the store"
)

_CARD = (object_keys.README, *CARD_FILES)


class Verified(NamedTuple):
    """The result of `verify`.

    Attributes:
        objects: Number of objects that were read, records included.
        bytes: Bytes of the objects whose bytes were checked.
        problems: A line for each bad object.
        repaired: Keys of the objects that were written anew.
    """

    objects: int
    bytes: int
    problems: list[str]
    repaired: list[str]


@checked(
    threads=arguments.count,
    progress=optional(arguments.callback),
    repair=arguments.flag,
)
def verify(
    store: Store | str | os.PathLike[str],
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
    *,
    repair: bool = False,
) -> Verified:
    """Read all objects of a store and compare them with what they must be.

    Records and metadata are among them.

    Args:
        store: An open store, or its folder or URL.
        threads: Objects that are read at a time.
        progress: Called with the number of objects that are done, and of all.
        repair: Write those anew whose content is known without them (`zarr.json` of
            groups and arrays), if what they follow from is as it must be.

    Returns:
        How much was read, and a line for each bad object.

    Raises:
        SpecError: It is neither a store nor a folder or URL.
        StoreError: There is no finished store.

    Examples:
        >>> import actstore
        >>> actstore.verify("stores/small").problems
        []
    """
    store = opened_without_cache(store, "verify")
    # Records come first: they say which objects there are, and with which digests.
    recorded = dict(store.manifest.files)
    with_tokens: dict[int, UnitRecord] = {}
    problems: list[str] = []
    records: Records = []
    for i, generation in enumerate(store.manifest.generations):
        of_generation, problems_there = _generation_records(store, i, generation)
        records.append(of_generation)
        problems += problems_there
        for record, _ in of_generation:
            recorded |= record.objects
            if object_keys.chunk_key("tokens", record.unit, 0) in record.objects:
                with_tokens[record.unit] = record
    under_digest = [
        CheckedObject(key, partial(_compare_digest, store, key, record))
        for key, record in recorded.items()
    ]
    derived = derived_objects(store, with_tokens)
    results = _Results(len(under_digest) + len(derived), progress)
    with ThreadPoolExecutor(threads) as pool:
        # What the manifest and the metadata are held against comes first: bad objects
        # prove nothing.
        bad_keys = results.check(under_digest, pool)
        # Without all records sums cannot add up, which says nothing new.
        doubts = [] if problems else _doubts(store, records, bad_keys)
        evidence_is_good = not any(_is_evidence(key) for key in bad_keys)
        proven = not problems and not doubts and evidence_is_good
        results.check(derived, pool, store if repair and proven else None)
    # Several objects can be in doubt for the same bad one, which is told once.
    problems = list(dict.fromkeys(problems + doubts + results.problems))
    if repair and not proven:
        problems.append(
            f"refused  {store.url}: nothing is repaired, for what it would follow from"
            " is itself in doubt"
        )
    n_records = sum(generation.n_units for generation in store.manifest.generations)
    return Verified(
        n_records + results.n_done, results.n_bytes, problems, results.repaired
    )


class _Results:
    """The results of the objects that were checked so far."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total = total
        self.progress = progress
        self.n_done = 0
        self.n_bytes = 0
        self.problems: list[str] = []
        self.repaired: list[str] = []

    def check(
        self,
        objects: Sequence[CheckedObject],
        pool: Executor,
        repair: Store | None = None,
    ) -> list[str]:
        """Check some objects; return the keys of bad ones.

        repair: the store in which bad ones are written anew, those that can be.
        """
        bad_keys = []
        # In the order of the objects, whichever is read first.
        findings = pool.map(lambda checkable: checkable.check(), objects)
        for checked_object, finding in zip(objects, findings, strict=True):
            self.n_done += 1
            self.n_bytes += finding.n_bytes
            if self.progress is not None:
                self.progress(self.n_done, self.total)
            if finding.problem is None:
                continue
            if repair is not None and self._repair(repair, checked_object.key, finding):
                continue
            self.problems.append(finding.problem)
            bad_keys.append(checked_object.key)
        return bad_keys

    def _repair(self, store: Store, key: str, finding: Finding) -> bool:
        """Write a bad object anew; return whether that could be done."""
        if finding.repair is None:
            return False
        try:
            store.storage.put(key, finding.repair)
        except CorruptError:  # a link that leads out of the store
            return False
        self.repaired.append(key)
        return True


def _doubts(store: Store, records: Records, bad_keys: list[str]) -> list[str]:
    """Return lines about what does not follow from the records.

    Nothing is held against what is bad itself.
    """
    if any(key.startswith("plan") for key in bad_keys):
        return []
    doubts = manifest_problems(store, records)
    # Statistics are added up unit by unit, which tells nothing new of a bad manifest.
    if doubts or any(_is_evidence(key) for key in bad_keys):
        return doubts
    return list(statistics_problems(store, records))


def _is_evidence(key: str) -> bool:
    """Return whether the manifest is held against an object."""
    return key.endswith(".stats") or key.startswith(("plan", "columns"))


def _generation_records(
    store: Store, index: int, generation: Generation
) -> tuple[list[DigestedRecord], list[str]]:
    """Return the records of a generation's units, and lines about bad ones.

    A bad one is missing, or is not the one that was committed.
    """
    records: list[DigestedRecord] = []
    problems: list[str] = []
    digest = blake3()  # over all records, one after the other
    for unit in _units(generation):
        key = object_keys.unit_key(unit, index)
        where = f"{store.url}/{key}"
        try:
            data = store.storage.read(key, RECORD_JSON)
            digest.update(data)
            record = parsed_record(UnitRecord, data, where)
            check_record(store.manifest, index, unit, record, where)
        except CorruptError as error:
            problems.append(f"corrupt  {error}{_UNCHECKED}")
        except (ObjectError, StorageError) as error:
            problems.append(f"missing  {error}{_UNCHECKED}")
        else:
            records.append(DigestedRecord(record, blake3(data).digest()))
    if problems or digest.hexdigest() == generation.units_digest:
        return records, problems
    # Some record is another one, and valid. The column of digests tells which.
    changed = _changed_units(store, generation)
    for unit in changed:
        key = object_keys.unit_key(unit, index)
        problems.append(
            f"corrupt  {store.url}/{key}: it is not the record that was"
            f" committed{_UNCHECKED}"
        )
    if not changed:
        problems.append(
            f"corrupt  {store.url}/{generation.units}: the records' digest is"
            f" {digest.hexdigest()}, the manifest says {generation.units_digest}"
        )
    # Figures are made anew from what was committed, so the others are left out.
    unchanged = [
        digested for digested in records if digested.record.unit not in changed
    ]
    return unchanged, problems


def _changed_units(store: Store, generation: Generation) -> list[int]:
    """Return the units whose records the column of digests was not made from.

    There are none where that column cannot be read.
    """
    try:
        column = store.column("digests")
    except (ObjectError, StorageError):
        return []
    changed = []
    for unit in _units(generation):
        # With one record a unit's digest is that record's; each later generation that
        # has the unit makes it blake3(digest so far, the new record's digest).
        digest = b""
        for key in store.record_keys(unit):
            data = store.storage.read(key, RECORD_JSON)
            record_digest = blake3(data).digest()
            digest = (
                blake3(digest + record_digest).digest() if digest else record_digest
            )
        if digest != column[unit].tobytes():
            changed.append(unit)
    return changed


def _units(generation: Generation) -> range:
    """Return the units that a generation has records of."""
    return range(generation.first_unit, generation.first_unit + generation.n_units)


def _compare_digest(store: Store, key: str, record: ObjectRecord) -> Finding:
    """Check an object's size and digest against what was recorded."""
    try:
        n_bytes, digest = store.storage.digest(key, record.bytes)
    except CorruptError as error:
        if _is_ahead(store, key):
            return Finding(record.bytes)
        return Finding(record.bytes, f"corrupt  {error}")
    except (ObjectError, StorageError) as error:
        return Finding(record.bytes, f"missing  {error}")
    where = f"{store.url}/{key}"
    problem = None
    if (n_bytes, digest) != (record.bytes, record.digest) and _is_ahead(store, key):
        return Finding(n_bytes)
    if n_bytes != record.bytes:
        problem = f"corrupt  {where}: {n_bytes} bytes, recorded {record.bytes}"
    elif digest != record.digest:
        problem = f"corrupt  {where}: its bytes are not those recorded"
    return Finding(record.bytes, problem)


def _is_ahead(store: Store, key: str) -> bool:
    """Return whether an object may be that of an extension that has begun.

    Of what the manifest records only the card is written anew by one, just before its
    manifest.
    """
    if key not in _CARD:
        return False
    next_generation = len(store.manifest.generations)
    return store.storage.exists(object_keys.plan_key(next_generation))
