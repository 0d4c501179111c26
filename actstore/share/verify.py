"""Every object's bytes against the digest that was recorded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from blake3 import blake3

from actstore.errors import ObjectError, StorageError
from actstore.format import layout as at
from actstore.store import Store
from schemas.manifest import ObjectRecord, UnitRecord


class Verified(NamedTuple):
    """What `verify` found; `problems` has a line for each bad object."""

    objects: int
    bytes: int
    problems: list[str]


def verify(store: Store, threads: int = 4, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read all objects of a store, units' records included, and compare sizes and digests."""
    records, problems = _records(store)
    every = [*records, *store.manifest.files.items()]
    n_bytes = 0
    with ThreadPoolExecutor(threads) as pool:
        checks = pool.map(lambda one: (one[1].bytes, _problem(store, *one)), every)
        for done, (size, problem) in enumerate(checks, 1):
            n_bytes += size
            problems += [problem] if problem else []
            if progress is not None:
                progress(done, len(every))
    return Verified(len(every), n_bytes, problems)


def _records(store: Store) -> tuple[list[tuple[str, ObjectRecord]], list[str]]:
    """Objects of all units; a unit whose record is missing or not the one committed is a problem of its own."""
    objects: list[tuple[str, ObjectRecord]] = []
    problems: list[str] = []
    digest = blake3()
    for data, unit in _unit_records(store):
        if isinstance(data, str):
            problems.append(data)
            continue
        digest.update(data)
        try:
            objects += UnitRecord.model_validate_json(data).objects.items()
        except ValueError as error:
            problems.append(f"{store.url}/{at.unit_key(unit)}: not a unit record: {error}")
    wanted = store.manifest.generations[0].units_digest
    if not problems and digest.hexdigest() != wanted:
        problems.append(f"{store.url}/units: the records' digest is {digest.hexdigest()}, the manifest says {wanted}")
    return objects, problems


def _unit_records(store: Store) -> Iterator[tuple[bytes | str, int]]:
    for unit in range(store.manifest.n_units):
        try:
            yield store.storage.read(at.unit_key(unit)), unit
        except (ObjectError, StorageError) as error:
            yield str(error), unit


def _problem(store: Store, key: str, record: ObjectRecord) -> str | None:
    try:
        data = store.storage.read(key)
    except (ObjectError, StorageError) as error:
        return f"missing  {error}"
    if len(data) != record.bytes:
        return f"corrupt  {store.url}/{key}: {len(data)} bytes, recorded {record.bytes}"
    if blake3(data).hexdigest() != record.digest:
        return f"corrupt  {store.url}/{key}: its bytes are not those recorded"
    return None
