"""Reads a unit column piece by piece, so that it is never in memory as a whole.

With 100,000 units and 26 sites the column of sums has 208 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format import object_sizes
from actstore.format.shard import CRC_BYTES
from actstore.store.stored_objects import StoredObjects

PIECE_BYTES = 8 << 20


def column_pieces(store: StoredObjects, name: str) -> Iterator[NDArray[Any]]:
    """Yield the figures of some units after the other, each [n, ...].

    What is made of them holds only once the last piece has come: only then it is known
    that the bytes are those recorded.

    Raises:
        CorruptError: They are not.
    """
    key = object_sizes.column_key(len(store.manifest.generations) - 1, name)
    record = store.manifest.files[key]
    dtype, _ = object_sizes.COLUMNS[name]
    n_units = store.manifest.n_units
    shape = object_sizes.column_shape(name, n_units, len(store.sites))
    unit_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    if record.bytes != n_units * unit_bytes + CRC_BYTES:
        raise CorruptError(
            f"{store.url}/{key}: {record.bytes} bytes recorded, wanted"
            f" {n_units * unit_bytes + CRC_BYTES}"
        )
    digest = blake3()
    step = max(1, PIECE_BYTES // unit_bytes)
    for first in range(0, n_units, step):
        units = min(step, n_units - first)
        wanted = (first * unit_bytes, units * unit_bytes)
        data = store.storage.read_ranges(key, [wanted])[0]
        if len(data) != wanted[1]:
            break  # it is too short: another digest
        digest.update(data)
        yield np.frombuffer(data, dtype).reshape(units, *shape[1:])
    # With one byte more than there should be, a longer object is found.
    end = store.storage.read_ranges(key, [(n_units * unit_bytes, CRC_BYTES + 1)])[0]
    digest.update(end)
    if digest.hexdigest() != record.digest:
        raise CorruptError(f"{store.url}/{key}: its bytes are not those recorded")
