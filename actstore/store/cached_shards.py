"""A store's bytes by way of a local cache.

Kept are chunks, not whole shards: a window takes a few chunks of every shard of its
units, so that with shards the first batch would wait for all of these units.

The key of a range is a digest of the store's URL and server, the digest of the unit's
record, the object's key and the range. The record has the object's own digest, so that
other bytes have another key: a store that is harvested again at the same URL finds
nothing of the one before. The digests of all records are one column, read once. URL and
server are in it since a chunk alone cannot be held against the digest of its shard:
what a stranger's store says of itself counts for that store only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from blake3 import blake3

from actstore.cache.ledger import LEDGER_BYTES
from actstore.cache.local_cache import LocalCache
from actstore.cache.shared_caches import shared_cache
from actstore.errors import CorruptError, SpecError
from actstore.format.shard import CRC_BYTES, check_chunk_checksum
from actstore.format.storage import Part, Storage
from actstore.machine import command_values
from actstore.store.shard_bytes import ByteRange, ShardBytes, shard_key


class Cached(Protocol):
    """The parts of a store that a cache of its bytes needs.

    Attributes:
        shards: What gives its bytes without the cache.
        storage: Where it lies.
    """

    shards: ShardBytes
    storage: Storage

    def unit_digest(self, unit: int) -> bytes:
        """Return the digest of a unit's records, 32 bytes."""
        ...


class CachedShards:
    """The bytes of a store, from a cache where they are there.

    Attributes:
        cache: Where they are kept.
    """

    def __init__(self, store: Cached, cache: LocalCache) -> None:
        self.cache = cache
        self._far = store.shards
        self._digest_of = store.unit_digest
        self._origin = store.storage.origin

    def read(self, site: str, unit: int, ranges: Sequence[ByteRange]) -> list[Part]:
        """Return some ranges of a shard, as `ShardBytes` says."""
        start = self._key_of_object(unit, shard_key(site, unit))

        def fetch(positions: list[int]) -> list[Part]:
            return self._far.read(site, unit, [ranges[i] for i in positions])

        return self.cache.read(
            [_key_of_range(start, one) for one in ranges],
            [length for _, length in ranges],
            fetch,
            has_checksum,
        )

    def whole(self, unit: int, key: str, size: int) -> bytes:
        """Return a whole object of a unit, as `ShardBytes` says."""
        start = self._key_of_object(unit, key)

        def fetch(_: list[int]) -> list[bytes]:
            return [self._far.whole(unit, key, size)]

        one = _key_of_range(start, (0, size))
        return bytes(self.cache.read([one], [size], fetch, has_checksum)[0])

    def check_windows(self, window_bytes: int) -> None:
        """Check that the cache can hold the window in use and the one that loads.

        In a smaller one, what was loaded would go before it is used again.

        Raises:
            SpecError: It cannot.
        """
        wanted = 2 * window_bytes + LEDGER_BYTES
        if self.cache.size < wanted:
            raise SpecError(
                f"cache {self.cache.path}: its size is {self.cache.size:,} bytes; the"
                f" stream's two windows, with the ledger, may take {wanted:,}. Give"
                " cache_size (--cache-size) that much or more, or make the windows"
                " smaller"
            )

    def _key_of_object(self, unit: int, key: str) -> blake3:
        # What a command was told to cache does something from here on.
        command_values.use(command_values.CACHE)
        command_values.use(command_values.CACHE_SIZE)
        start = blake3(f"{self._origin}\0{key}\0".encode())
        start.update(self._digest_of(unit))
        return start


def _key_of_range(start: blake3, one: ByteRange) -> bytes:
    """Return the key of a range of an object."""
    key = start.copy()
    key.update(f"{one[0]}+{one[1]}".encode())
    digest: bytes = key.digest()
    return digest


def has_checksum(data: Part) -> bool:
    """Return whether bytes end with their own crc32c, as every chunk and index does."""
    values = np.frombuffer(data, np.uint8)
    try:
        check_chunk_checksum(values[:-CRC_BYTES], values[-CRC_BYTES:])
    except CorruptError:
        return False
    return True


def cache_for(
    storage: Storage, folder: str | None, size: int | None
) -> LocalCache | None:
    """Return the cache for a store that is opened; None: it is read without one.

    Args:
        storage: Where the store lies.
        folder: The cache's folder; None: that of `ACTSTORE_CACHE`, if it is set.
        size: The bytes that it may take; None: those of `ACTSTORE_CACHE_SIZE`.

    Raises:
        SpecError: The store lies on this machine, or the cache cannot be what is asked
            for.
    """
    if storage.local is not None:
        # What the environment says is meant for stores that lie elsewhere.
        if folder is not None or size is not None:
            raise SpecError(
                f"{storage.url}: cache (--cache) does nothing for a store on this"
                " machine; leave it out"
            )
        return None
    folder = folder or os.environ.get(command_values.CACHE)
    if not folder:
        if size is not None:
            raise SpecError(
                "cache_size (--cache-size): there is no cache; give its folder too"
                " (--cache)"
            )
        return None
    return shared_cache(folder, _size_from_environment() if size is None else size)


def _size_from_environment() -> int | None:
    from schemas.base import parse_size

    text = os.environ.get(command_values.CACHE_SIZE)
    if not text:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise SpecError(f"{command_values.CACHE_SIZE}: {error}") from None
