"""Reads the chunks of a store's shards and decodes them.

This is the one way from a shard's bytes to rows, for `Store.read` and for streams.

Needs numpy only: no torch, no zarr. Where a chunk lies is known from its shard's index,
which the store keeps; with the `raw` codec it is arithmetic. Local bytes come by
`preadv` into a buffer that each thread uses again and again (for `raw`: straight to
where they are wanted), since fresh memory costs more than decoding.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError
from actstore.format.shard import (
    ABSENT,
    CRC_BYTES,
    ShardCodec,
    check_chunk_checksum,
)
from actstore.format.storage import Part
from actstore.format.stored_dtypes import Int8Rows, decode_int8
from actstore.store.shard_bytes import ByteRange, shard_key

if TYPE_CHECKING:
    from actstore.store.stored_objects import StoredObjects

# Bytes of int8 scales that are kept, since chunks of one unit come near each other.
KEPT_SCALE_BYTES = 64 << 20
# Chunks that are asked for together from an object store, where each request waits.
CHUNKS_PER_REQUEST = 16

Fetched = Callable[[], Part]
"""Gives the bytes of a chunk, once they have come."""


class ChunkReader:
    """Reads and decodes chunks of some sites of a store.

    Safe to use from several threads.

    Attributes:
        store: Where the chunks lie.
        sites: The names of the sites; methods take a site by its number in these.
        codecs: How each site's rows are stored.
        dtype: The dtype of the rows that `read` gives: float32 for int8 stores.
    """

    def __init__(self, store: StoredObjects, sites: tuple[str, ...]) -> None:
        self.store = store
        self.sites = sites
        self.codecs: list[ShardCodec] = [store.codec(site) for site in sites]
        self.dtype = self.codecs[0].dtype
        if self.dtype == np.int8:
            self.dtype = np.dtype(np.float32)
        self._int8_parts: dict[
            tuple[int, int], tuple[NDArray[np.float16], NDArray[np.float32]]
        ] = {}
        self._threads = threading.local()

    def read(
        self,
        site: int,
        unit: int,
        chunk: int,
        out: NDArray[Any],
        fetched: Fetched | None = None,
    ) -> None:
        """Read one chunk into `out`, contiguous [chunk_rows, d].

        Args:
            site: Number of the site in `sites`.
            unit: The unit.
            chunk: Number of the chunk in the unit's shard.
            out: Memory for the chunk, in the dtype that is stored; or float32 for an
                int8 store, whose rows are then decoded.
            fetched: Gives the chunk's bytes, where they are on their way already; what
                it raises is raised as what reading raises.

        Raises:
            CorruptError: Names unit, site and chunk.
            ObjectError: The shard cannot be read.
        """
        codec = self.codecs[site]
        # Also int8 into int8: a GPU decodes these itself.
        if codec.dtype == out.dtype:
            self._read_stored(site, unit, chunk, out, fetched)
            return
        buffer = self._buffer("stored", codec.chunk_bytes)
        stored = buffer.view(codec.dtype).reshape(out.shape)
        self._read_stored(site, unit, chunk, stored, fetched)
        scale, step = self.int8_parts(site, unit, chunk)
        out[:] = decode_int8(Int8Rows(stored, scale, step))

    def read_slots(
        self, site: int, unit: int, slots: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Return rows of a unit as they are stored, [n, d], by their slots, int64 [n].

        Each chunk that has some of them is read once. `site` is a number in `sites`;
        errors are those of `read`.
        """
        codec = self.codecs[site]
        chunk_of_slot = slots // codec.chunk_rows
        chunks = np.unique(chunk_of_slot).tolist()
        stored_chunks = self._stored_bytes(site, unit, chunks)
        decoded = np.empty((0, codec.d), codec.dtype)
        out = np.empty((0, codec.d), codec.dtype)
        for chunk in chunks:
            with self._errors_named(site, unit, chunk):
                stored = next(stored_chunks)
                if not len(decoded):
                    # Memory is taken once a chunk has shown that it holds what the
                    # manifest says, never on the manifest's word alone.
                    codec.check_chunk(stored)
                    decoded = np.empty((codec.chunk_rows, codec.d), codec.dtype)
                    out = np.empty((len(slots), codec.d), codec.dtype)
                codec.decode_chunk(stored, decoded)
            in_chunk = chunk_of_slot == chunk
            out[in_chunk] = decoded[slots[in_chunk] % codec.chunk_rows]
        return out

    def byte_ranges(
        self, site: int, unit: int, chunks: Sequence[int]
    ) -> list[ByteRange]:
        """Return where some chunks of a unit lie in their shard.

        Raises:
            CorruptError: They do not; without the name of the shard.
            ObjectError: The shard cannot be read.
        """
        codec = self.codecs[site]
        if not self._needs_index(site):
            # All have the same length: with chunks of 1,000 bytes and checksums of 4,
            # chunk 3 begins at byte 3,012.
            length = codec.chunk_bytes + CRC_BYTES
            return [(chunk * length, length) for chunk in chunks]
        index = self.store.index(self.sites[site], unit)
        if any(index.offset[chunk] == ABSENT for chunk in chunks):
            raise CorruptError("the chunk is absent, but rows of it are valid")
        return [(int(index.offset[i]), int(index.length[i])) for i in chunks]

    def is_prepared(self, site: int, unit: int) -> bool:
        """Return whether all that decoding a unit's chunks needs has been read."""
        lacks_index = self._needs_index(site) and not self.store.has_index(
            self.sites[site], unit
        )
        is_int8 = self.codecs[site].dtype == np.int8
        return not lacks_index and (not is_int8 or (site, unit) in self._int8_parts)

    def prepare(self, site: int, unit: int) -> None:
        """Read what decoding a unit's chunks needs, its index and int8 parts.

        They are kept. What cannot be read is told of where it is needed.
        """
        with contextlib.suppress(CorruptError, ObjectError):
            if self._needs_index(site):
                self.store.index(self.sites[site], unit)
            if self.codecs[site].dtype == np.int8:
                self.int8_parts(site, unit, 0)

    def int8_parts(
        self, site: int, unit: int, chunk: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Return what a chunk of an int8 store is decoded with.

        Returns:
            The scale of each of the chunk's rows, float16 [chunk_rows]; and its unit's
            channel mean and step, float32 [2, d].
        """
        of_unit = self._int8_parts.get((site, unit))
        if of_unit is None:
            of_unit = self.store.int8_parts(self.sites[site], unit)
            unit_bytes = sum(array.nbytes for array in of_unit)
            kept_bytes = len(self._int8_parts) * unit_bytes
            if kept_bytes + unit_bytes > KEPT_SCALE_BYTES:
                # All at once: to know the oldest, threads would have to take turns.
                self._int8_parts.clear()
            self._int8_parts[site, unit] = of_unit
        scale, step = of_unit
        chunk_rows = self.codecs[site].chunk_rows
        first = chunk * chunk_rows
        return scale[first : first + chunk_rows], step

    def _read_stored(
        self,
        site: int,
        unit: int,
        chunk: int,
        out: NDArray[Any],
        fetched: Fetched | None,
    ) -> None:
        """Read one chunk into `out`, of the dtype that is stored."""
        codec = self.codecs[site]
        with self._errors_named(site, unit, chunk):
            if fetched is not None:
                codec.decode_chunk(fetched(), out)
            elif codec.codec == "raw" and self.store.storage.local is not None:
                self._read_raw(codec, self._key(site, unit), chunk, out)
            else:
                stored = next(self._stored_bytes(site, unit, [chunk]))
                codec.decode_chunk(stored, out)

    def _read_raw(
        self, codec: ShardCodec, key: str, chunk: int, out: NDArray[Any]
    ) -> None:
        """Read a chunk of a local `raw` shard straight into `out`."""
        values = out.reshape(-1).view(np.uint8)
        checksum = self._buffer("checksum", CRC_BYTES)
        offset = chunk * (codec.chunk_bytes + CRC_BYTES)
        n_read = self._preadv(key, [values, checksum], offset)
        if n_read != len(values) + CRC_BYTES:
            raise CorruptError("the shard ends before the chunk does")
        check_chunk_checksum(values, checksum)

    def _stored_bytes(
        self, site: int, unit: int, chunks: Sequence[int]
    ) -> Iterator[NDArray[np.uint8] | Part]:
        """Yield the bytes of some chunks of a unit.

        Those of a local chunk stay as they are until the next one is asked for.
        """
        key = self._key(site, unit)
        byte_ranges = self.byte_ranges(site, unit, chunks)
        if self.store.storage.local is None:
            for first in range(0, len(byte_ranges), CHUNKS_PER_REQUEST):
                together = byte_ranges[first : first + CHUNKS_PER_REQUEST]
                yield from self.store.shards.read(self.sites[site], unit, together)
            return
        for offset, length in byte_ranges:
            buffer = self._buffer("encoded", length)
            n_read = self._preadv(key, [buffer], offset)
            yield buffer[:n_read]

    def _needs_index(self, site: int) -> bool:
        """Return whether the index tells where a site's chunks lie.

        With the `raw` codec it is arithmetic. (Where memory is taken before bytes have
        come, the index is read all the same: it proves how long a chunk is.)
        """
        is_local = self.store.storage.local is not None
        return is_local or self.codecs[site].codec != "raw"

    def _preadv(
        self,
        key: str,
        buffers: list[Any],
        offset: int,
    ) -> int:
        """Fill buffers from a local object; return how many bytes there were."""
        with self.store.storage.opened(key) as file:
            return os.preadv(file.fd, buffers, offset)

    def _key(self, site: int, unit: int) -> str:
        """Return the key of the shard with a site's rows of a unit."""
        return shard_key(self.sites[site], unit)

    @contextlib.contextmanager
    def _errors_named(
        self,
        site: int,
        unit: int,
        chunk: int,
    ) -> Iterator[None]:
        """Say in errors which chunk could not be read, and what helps."""
        try:
            yield
        except CorruptError as error:
            raise CorruptError(
                f"{self.store.url}/{self._key(site, unit)}: unit {unit}, site"
                f" {self.sites[site]}, chunk {chunk}: {error}; `actstore verify` lists"
                " every bad object"
            ) from error
        except ObjectError as error:
            raise ObjectError(
                f"{error}; `actstore verify` lists what is missing"
            ) from error

    def _buffer(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        """Return this thread's buffer of that name, grown when needed."""
        # Chunks differ in length where they are compressed: the longest one counts.
        kept: NDArray[np.uint8] | None = getattr(self._threads, name, None)
        if kept is None or len(kept) < n_bytes:
            kept = np.empty(n_bytes, np.uint8)
            setattr(self._threads, name, kept)
        return kept[:n_bytes]
