"""The size and digest that are recorded of every object, and writing an object with its
record.
"""

from __future__ import annotations

from collections.abc import Mapping

from blake3 import blake3

from actstore.format.storage import Buffers, Storage
from schemas.manifest import ObjectRecord


def put(storage: Storage, key: str, data: Buffers) -> ObjectRecord:
    """Write an object; its record."""
    record = object_record(data)
    storage.put(key, data)
    return record


def object_record(data: Buffers) -> ObjectRecord:
    """Size and blake3 digest of an object's bytes."""
    parts = [data] if isinstance(data, bytes) else data
    digest = blake3()
    for part in parts:
        digest.update(part)
    return ObjectRecord(
        bytes=sum(len(part) for part in parts), digest=digest.hexdigest()
    )


def files_digest(files: Mapping[str, bytes]) -> str:
    """blake3 over some files' names, sizes and bytes, sorted by name."""
    state = blake3()
    for name, data in sorted(files.items()):
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return str(state.hexdigest())
