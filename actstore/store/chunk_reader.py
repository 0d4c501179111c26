"""Chunks of a store straight into buffers. numpy only: no torch, no zarr.

A shard's index is read once and kept; with the `raw` codec it is arithmetic. Local
bytes come by `preadv` into a buffer that each thread reuses (for `raw`: into the place
where they are wanted), since fresh memory costs more than decoding.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError
from actstore.format import keys
from actstore.format.dtypes import Int8Rows, decode_int8
from actstore.format.shard import ABSENT, CRC_BYTES, ShardCodec, ShardIndex
from actstore.store.store import Store

KEPT_INDEXES = 1 << 14
# bytes of int8 scales that are kept, since chunks of one unit come near each other
KEPT_PARTS = 64 << 20


class ChunkReader:
    """Reads and decodes chunks of some sites of a store; safe to use from several
    threads.
    """

    def __init__(self, store: Store, sites: tuple[str, ...]) -> None:
        self.store = store
        self.sites = sites
        self.codecs: list[ShardCodec] = [store.codec(site) for site in sites]
        self.dtype = (
            np.dtype(np.float32)
            if self.codecs[0].dtype == np.int8
            else self.codecs[0].dtype
        )
        self._indexes: dict[tuple[int, int], ShardIndex] = {}
        self._parts: dict[
            tuple[int, int], tuple[NDArray[np.float16], NDArray[np.float32]]
        ] = {}
        self._threads = threading.local()

    def read(self, site: int, unit: int, chunk: int, out: NDArray[Any]) -> None:
        """One chunk into `out`, contiguous [chunk_rows, d]; int8 stores are decoded to
        float32 if `out` is that.

        Raises CorruptError that names unit, site and chunk.
        """
        codec = self.codecs[site]
        target = (
            out
            if codec.dtype == out.dtype
            else self._buffer("decoded", codec.chunk_bytes).view(codec.dtype)
        )
        self._read(site, unit, chunk, target)
        if target is not out:
            scale, step = self.int8_parts(site, unit, chunk)
            out[:] = decode_int8(Int8Rows(target.reshape(out.shape), scale, step))

    def int8_parts(
        self, site: int, unit: int, chunk: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Row scales [chunk_rows] of a chunk, and its unit's channel mean and step [2,
        d].
        """
        parts = self._parts.get((site, unit))
        if parts is None:
            parts = self.store.int8_parts(self.sites[site], unit)
            if (len(self._parts) + 1) * sum(part.nbytes for part in parts) > KEPT_PARTS:
                self._parts.clear()
            self._parts[site, unit] = parts
        rows = self.codecs[site].chunk_rows
        return parts[0][chunk * rows : (chunk + 1) * rows], parts[1]

    def _read(self, site: int, unit: int, chunk: int, target: NDArray[Any]) -> None:
        codec = self.codecs[site]
        key = keys.chunk_key(keys.acts_key(self.sites[site]), unit, 0)
        try:
            if codec.codec == "raw" and self.store.storage.local is not None:
                self._read_raw(codec, key, chunk, target)
            else:
                offset, length = self._place(site, unit, chunk)
                codec.decode_chunk(self._bytes(key, offset, length), target)
        except CorruptError as error:
            raise CorruptError(
                f"{self.store.url}/{key}: unit {unit}, site {self.sites[site]}, chunk"
                f" {chunk}: {error}; `actstore verify` lists every bad object"
            ) from error

    def _read_raw(
        self, codec: ShardCodec, key: str, chunk: int, target: NDArray[Any]
    ) -> None:
        flat, tail = target.reshape(-1).view(np.uint8), self._buffer("tail", CRC_BYTES)
        n = self._preadv(key, [flat, tail], chunk * (codec.chunk_bytes + CRC_BYTES))
        if n != len(flat) + CRC_BYTES or google_crc32c.value(flat) != int(
            tail.view("<u4")[0]
        ):
            raise CorruptError("the chunk's checksum does not match its bytes")

    def _place(self, site: int, unit: int, chunk: int) -> tuple[int, int]:
        index = self._indexes.get((site, unit))
        if index is None:
            index = self.store.read_index(self.sites[site], unit)
            if len(self._indexes) >= KEPT_INDEXES:
                self._indexes.clear()
            self._indexes[site, unit] = index
        if index.offset[chunk] == ABSENT:
            raise CorruptError("the chunk is absent, but rows of it are valid")
        return int(index.offset[chunk]), int(index.length[chunk])

    def _bytes(self, key: str, offset: int, length: int) -> NDArray[np.uint8] | bytes:
        if self.store.storage.local is None:
            return self.store.storage.read_ranges(key, [(offset, length)])[0]
        raw = self._buffer("raw", length)
        n = self._preadv(key, [raw], offset)
        return raw[:n]

    def _preadv(self, key: str, buffers: list[Any], offset: int) -> int:
        try:
            with self.store.storage.opened(key) as file:
                return os.preadv(file.fd, buffers, offset)
        except CorruptError:
            raise
        except ObjectError as error:
            raise ObjectError(
                f"{error} ({key}); `actstore verify` lists what is missing"
            ) from error

    def _buffer(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        """This thread's buffer of that name, grown when needed."""
        kept: NDArray[np.uint8] | None = getattr(self._threads, name, None)
        if kept is None or len(kept) < n_bytes:
            kept = np.empty(n_bytes, np.uint8)
            setattr(self._threads, name, kept)
        return kept[:n_bytes]
