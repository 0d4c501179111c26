"""Changes what a store holds, and makes every digest anew, as a forger would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import actstore
from actstore.format import object_keys
from actstore.format.shard import encode_plain
from actstore.format.stored_dtypes import NUMPY, to_float32
from actstore.store.store import Store
from tests.fuzz.mutations import sealed

Objects = dict[str, bytes]


class Forger:
    """A copy of a store in memory, to be changed.

    Attributes:
        store: The store as it was.
        objects: Its objects, by key.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.objects: Objects = {
            key: store.storage.read(key) for key in store.storage.list()
        }

    def values(self, site: str, unit: int, change: Callable[[Any], Any]) -> None:
        """Change a site's values in a unit, float32 [n, d], and its norms with them."""
        values = self.only_values(site, unit, change)
        norms = np.linalg.norm(values, axis=1).astype(np.float32)
        self.plain(object_keys.chunk_key(object_keys.norm_key(site), unit), norms, 0)

    def only_values(
        self, site: str, unit: int, change: Callable[[Any], Any]
    ) -> np.ndarray[Any, Any]:
        """Change a site's values in a unit, float32 [n, d]; return them as stored."""
        values = change(self.store.read_unit(site, unit))
        stored = values.astype(NUMPY[self.store.manifest.spec.dtype])
        shard = self.store.codec(site).encode(stored, np.arange(len(stored)))
        key = object_keys.chunk_key(object_keys.acts_key(site), unit, 0)
        self.objects[key] = b"".join(shard)
        return to_float32(stored)

    def pairs(self, unit: int, change: Callable[[Any], Any]) -> None:
        """Change where a unit's rows come from, int32 [n, 2]."""
        key = object_keys.chunk_key("rows", unit, 0)
        self.plain(key, change(self.store.pairs(unit).copy()).astype(np.int32), -1)

    def plain(self, key: str, values: np.ndarray[Any, Any], fill: float) -> None:
        """Replace the only chunk of an array, filled up to the unit's slots."""
        shape = (self.store.layout.capacity, *values.shape[1:])
        self.objects[key] = encode_plain(values, shape, fill)

    def write(self, folder: Path) -> Store:
        """Write the store with digests that fit, and open it."""
        shutil.rmtree(folder, ignore_errors=True)
        for key, data in sealed(self.objects).items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return actstore.open(folder)
