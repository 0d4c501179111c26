"""Every object's bytes against the digest that was recorded for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from blake3 import blake3

from actstore.errors import ObjectError, StorageError
from actstore.format import layout as at
from actstore.store import Store
from schemas.manifest import Generation, ObjectRecord, UnitRecord


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
    for i, generation in enumerate(store.manifest.generations):
        found, bad = _generation(store, i, generation)
        objects += found
        problems += bad
    return objects, problems


def _generation(store: Store, index: int, generation: Generation) -> tuple[list[tuple[str, ObjectRecord]], list[str]]:
    objects: list[tuple[str, ObjectRecord]] = []
    problems: list[str] = []
    digest = blake3()
    for unit in range(generation.first_unit, generation.first_unit + generation.n_units):
        key = at.unit_key(unit, index)
        try:
            data = store.storage.read(key)
            digest.update(data)
            objects += UnitRecord.model_validate_json(data).objects.items()
        except (ObjectError, StorageError) as error:
            problems.append(str(error))
        except ValueError as error:
            problems.append(f"{store.url}/{key}: not a unit record: {error}")
    if not problems and digest.hexdigest() != generation.units_digest:
        problems.append(
            f"{store.url}/{generation.units}: the records' digest is {digest.hexdigest()}, "
            f"the manifest says {generation.units_digest}"
        )
    return objects, problems


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
