"""Lists the objects of a whole copy: every one that a store's manifest stands for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from blake3 import blake3

from actstore.errors import CorruptError
from actstore.format import object_keys, zarr_metadata
from actstore.format.json_records import parsed_record
from actstore.format.manifest_checks import check_record
from actstore.format.object_sizes import RECORD_JSON, SMALL_JSON
from actstore.sharing.copied_objects import CopiedObject, known, mapped_ahead
from actstore.store import true_features
from actstore.store.store import Store
from schemas.manifest import BlockRecord, UnitRecord

_DAMAGED = "copy from another copy of the store"


def whole_objects(store: Store, threads: int) -> Iterator[CopiedObject]:
    """Yield all objects of a store but its manifest.

    Unit records and token blocks are held against what they follow from as they are
    read.

    Raises:
        CorruptError: One of them is not the one that was committed.
    """
    manifest = store.manifest
    for key, record in manifest.files.items():
        yield CopiedObject(key, record.bytes, record.digest)
    # They follow from the manifest: the source's may be ahead of it.
    for key, data in zarr_metadata.metadata_files(manifest).items():
        yield known(key, data)
    yield from _features(store)
    digests = store.column("digests")
    with ThreadPoolExecutor(threads, thread_name_prefix="records") as pool:

        def read(unit: int) -> list[CopiedObject]:
            return _unit_objects(store, unit, digests[unit].tobytes())

        every_unit = range(manifest.n_units)
        for objects in mapped_ahead(pool, read, every_unit, 2 * threads):
            yield from objects


class CommittedOf(NamedTuple):
    """A unit's record of one generation.

    Attributes:
        key: Its key.
        data: Its bytes.
        record: What they say, checked.
    """

    key: str
    data: bytes
    record: UnitRecord


def unit_records(store: Store, unit: int, digest: bytes) -> list[CommittedOf]:
    """Return a unit's records, in order of generations.

    digest: what the store's column of digests says of the unit.

    Raises:
        CorruptError: They are not those that were committed.
    """
    found = []
    made = b""
    keys = store.record_keys(unit)
    for generation, key in zip(store.generations_of(unit), keys, strict=True):
        where = f"{store.url}/{key}"
        data = store.storage.read(key, RECORD_JSON)
        one = blake3(data).digest()
        # With one record it is that record's; each later one is chained to it.
        made = blake3(made + one).digest() if made else one
        record = parsed_record(UnitRecord, data, where)
        check_record(store.manifest, generation, unit, record, where)
        found.append(CommittedOf(key, data, record))
    if made != digest:
        raise CorruptError(
            f"{store.url}/{', '.join(keys)}: not what was committed of unit {unit};"
            f" {_DAMAGED}"
        )
    return found


def _unit_objects(store: Store, unit: int, digest: bytes) -> list[CopiedObject]:
    """Return the objects of a unit, its records and its token block among them."""
    objects = []
    records = unit_records(store, unit, digest)
    for key, data, record in records:
        for object_key, recorded in record.objects.items():
            objects.append(CopiedObject(object_key, recorded.bytes, recorded.digest))
        objects.append(known(key, data))
    # The first generation of a unit is the one that wrote its tokens.
    block, _ = unit_block(store, records[0].record)
    objects.append(known(object_keys.block_key(unit), block))
    return objects


def unit_block(store: Store, record: UnitRecord) -> tuple[bytes, BlockRecord]:
    """Return the token block of a unit: its bytes, and what they say.

    record: the unit's, of the generation that wrote its tokens.

    Raises:
        CorruptError: It is not that of the unit's tokens.
    """
    key = object_keys.block_key(record.unit)
    where = f"{store.url}/{key}"
    data = store.storage.read(key, SMALL_JSON)
    block = parsed_record(BlockRecord, data, where)
    tokens = record.objects[object_keys.chunk_key("tokens", record.unit, 0)]
    wanted = (record.unit, record.n_sequences, tokens)
    if (block.unit, block.n_sequences, block.tokens) != wanted:
        raise CorruptError(
            f"{where}: it is not the block of unit {record.unit}; {_DAMAGED}"
        )
    return data, block


def _features(store: Store) -> Iterator[CopiedObject]:
    """Yield the true features of toy data, which lie beside the store."""
    if true_features.read_true_features(store) is None:
        return
    for key in (true_features.TENSORS, true_features.RECORD):
        yield known(key, store.storage.read(key, store.storage.size(key)))
