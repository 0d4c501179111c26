"""The size and digest that are recorded of every object.

Writing an object together with making its record is here as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from blake3 import blake3

from actstore.format.storage import Buffers, Storage
from schemas.manifest import ObjectRecord


def put(storage: Storage, key: str, data: Buffers) -> ObjectRecord:
    """Write an object; return its record."""
    record = object_record(data)
    storage.put(key, data)
    return record


def object_record(data: Buffers) -> ObjectRecord:
    """Return the size and blake3 digest of an object's bytes."""
    buffers = [data] if isinstance(data, bytes) else data
    digest = blake3()
    for buffer in buffers:
        digest.update(buffer)
    n_bytes = sum(len(buffer) for buffer in buffers)
    return ObjectRecord(bytes=n_bytes, digest=digest.hexdigest())


def files_digest(files: Mapping[str, bytes]) -> str:
    """Return the blake3 digest over some files, sorted by name.

    It covers their names, sizes and bytes.
    """
    state = blake3()
    for name, data in sorted(files.items()):
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return str(state.hexdigest())
