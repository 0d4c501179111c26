"""One Zarr v3 shard to bytes and back: the only hot code that knows the format.

It needs numpy only.

A shard is the bytes of its chunks one after the other, then an index: uint64 [n_chunks,
2] of (offset, length), both 2^64 - 1 for a chunk that is absent, and the index' crc32c.
A chunk is Blosc (lz4 or zstd, bit-shuffled) or the plain values, and the crc32c of
that. zarr-python, tensorstore and zarrs read and write the same bytes; they are just
slower.

For example 3 rows of one float32 each, `raw`, in chunks of 2 rows, where a unit has up
to 4 chunks: two chunks of 8 bytes and their checksums of 4 begin at 0 and 12, the index
of 4 * 16 + 4 = 68 bytes begins at 24, and the shard has 92 bytes. The index says (0,
12), (12, 12), and absent twice; the second chunk is filled up with a row of zeros.

Blosc runs single-threaded, since its multi-threaded output varies; parallelism is over
chunks, which are laid down in order.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format.stored_dtypes import bits
from schemas.harvest import Codec

ABSENT = 2**64 - 1
CRC_BYTES = 4
BLOSC_BYTES = 16  # Blosc's header: the most by which it makes a chunk larger
LARGEST_OFFSET = 1 << 48  # no file system or object store holds larger objects
CLEVEL = 5  # Blosc's compression level, 0 to 9

blosc.use_threads = False


class ShardIndex(NamedTuple):
    """The place of each chunk in its shard; ABSENT in both for one that is not there.

    Attributes:
        offset: First byte of each chunk, uint64 [n_chunks].
        length: Bytes of each chunk, its checksum included, uint64 [n_chunks].
    """

    offset: NDArray[np.uint64]
    length: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ShardCodec:
    """Encodes and decodes a site's rows [n, d] as shards, one for each unit.

    Attributes:
        codec: What compresses a chunk, or `raw`.
        dtype: The dtype of the stored values.
        chunk_rows: Rows of a chunk.
        d: Width of a row.
        unit_chunks: Chunks that a shard has room for.
    """

    codec: Codec
    dtype: np.dtype[Any]
    chunk_rows: int
    d: int
    unit_chunks: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.chunk_rows * self.d * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at a shard's end, checksum included."""
        return 16 * self.unit_chunks + CRC_BYTES

    def encode(
        self,
        rows: NDArray[Any],
        permutation: NDArray[np.int64] | None = None,
        pool: Executor | None = None,
    ) -> list[bytes]:
        """Return a shard, as buffers to be written one after the other.

        Chunks after the last row are absent, the last one is filled up with zeros.

        Args:
            rows: The unit's rows [n, d], of this codec's dtype.
            permutation: int64 [n]; slot i of the shard gets rows[permutation[i]].
                None: rows stay in their order.
            pool: Encodes several chunks at a time.
        """
        # Rows are copied as unsigned integers, which is faster than as bfloat16.
        source = bits(np.ascontiguousarray(rows))
        order = np.arange(len(rows)) if permutation is None else permutation
        n_chunks = -(-len(order) // self.chunk_rows)
        orders = (
            order[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            for chunk in range(n_chunks)
        )
        run = map if pool is None else pool.map
        encoded: Iterable[bytes] = run(
            lambda chunk_order: self._encode_chunk(source, chunk_order), orders
        )
        chunks = list(encoded)
        index = np.full((self.unit_chunks, 2), ABSENT, dtype="<u8")
        lengths = np.array([len(chunk) + CRC_BYTES for chunk in chunks], "<u8")
        index[:n_chunks, 0] = np.cumsum(lengths) - lengths
        index[:n_chunks, 1] = lengths
        # A chunk and its checksum are two buffers: joining them would copy the whole
        # shard once more.
        buffers = []
        for chunk in chunks:
            buffers += [chunk, checksum(chunk)]
        return [*buffers, with_checksum(index.tobytes())]

    def read_index(
        self, raw: bytes | memoryview, n_chunks: int | None = None
    ) -> ShardIndex:
        """Return the index of a shard, checked.

        Args:
            raw: The last `index_bytes` bytes of the shard.
            n_chunks: How many chunks it must have; None where that is not known.

        Raises:
            CorruptError: The checksum does not match, or an entry cannot be.
        """
        if len(raw) != self.index_bytes:
            raise CorruptError(
                f"the shard index has {len(raw)} bytes, wanted {self.index_bytes}"
            )
        body = checked(bytes(raw), "the shard index")
        pairs = np.frombuffer(body, dtype="<u8").reshape(self.unit_chunks, 2)
        offset = pairs[:, 0].copy()
        length = pairs[:, 1].copy()
        index = ShardIndex(offset, length)
        self._check_index(index, n_chunks)
        return index

    def _check_index(self, index: ShardIndex, n_chunks: int | None) -> None:
        """Check that the first chunks are there, one after the other, and no others.

        A right checksum over wrong entries must not lead to reads that no machine can
        do, nor to another chunk's rows.
        """
        absent = (index.offset == ABSENT) & (index.length == ABSENT)
        # Values that do not shrink are stored as they are, after Blosc's header.
        most = self.chunk_bytes + BLOSC_BYTES + CRC_BYTES
        impossible = (
            (index.offset >= LARGEST_OFFSET)
            | (index.length > most)
            | (index.length <= CRC_BYTES)
        )
        bad = impossible & ~absent
        if bad.any():
            chunk = int(np.flatnonzero(bad)[0])
            offset = int(index.offset[chunk])
            length = int(index.length[chunk])
            raise CorruptError(
                f"the shard index has chunk {chunk} at offset {offset} with {length}"
                f" bytes; a chunk has at most {most}"
            )
        present = int(np.count_nonzero(~absent))
        if n_chunks is not None and present != n_chunks:
            raise CorruptError(
                f"the shard index has {present} chunks; the unit's rows fill {n_chunks}"
            )
        offsets = index.offset[:present].astype(np.int64)
        lengths = index.length[:present].astype(np.int64)
        wanted = np.cumsum(lengths) - lengths
        if absent[:present].any() or (offsets != wanted).any():
            raise CorruptError(
                "the shard index has chunks that do not lie one after the other, the"
                " first ones first"
            )
        if self.codec == "raw" and (lengths != self.chunk_bytes + CRC_BYTES).any():
            raise CorruptError(
                "the shard index has chunks of other lengths than"
                f" {self.chunk_bytes + CRC_BYTES} bytes"
            )

    def check_chunk(
        self, raw: NDArray[np.uint8] | bytes | memoryview
    ) -> NDArray[np.uint8]:
        """Return a chunk's bytes without their checksum, uint8 [n].

        They are whole and hold what a chunk holds; nothing is decoded.

        Raises:
            CorruptError: They are not, or do not.
        """
        data = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
        body = data[:-CRC_BYTES]
        check_chunk_checksum(body, data[-CRC_BYTES:])
        if self.codec == "raw":
            if len(body) != self.chunk_bytes:
                raise CorruptError(
                    f"the chunk has {len(body)} bytes, wanted {self.chunk_bytes}"
                )
            return body
        # Blosc's header: bytes 4 to 8 are the decoded size, 12 to 16 the encoded size.
        decoded_bytes = 0
        if len(body) >= BLOSC_BYTES:
            decoded_bytes = int(body[4:8].view("<u4")[0])
        # Blosc would fill a part of the rows and leave the rest as it was.
        if decoded_bytes != self.chunk_bytes:
            raise CorruptError(
                f"the chunk decodes to {decoded_bytes} bytes, wanted {self.chunk_bytes}"
            )
        encoded_bytes = int(body[12:16].view("<u4")[0])
        # Blosc would read on after the end of the chunk.
        if encoded_bytes != len(body):
            raise CorruptError(
                f"the chunk has {len(body)} compressed bytes, its header says"
                f" {encoded_bytes}"
            )
        return body

    def decode_chunk(
        self,
        raw: NDArray[np.uint8] | bytes | memoryview,
        out: NDArray[Any],
    ) -> None:
        """Check a chunk's bytes and decode them.

        Args:
            raw: The chunk's bytes, its checksum included.
            out: Gets the rows, contiguous [chunk_rows, d], of this codec's dtype.

        Raises:
            CorruptError: The bytes are not a chunk.
        """
        body = self.check_chunk(raw)
        flat = out.reshape(-1).view(np.uint8)
        if self.codec == "raw":
            flat[:] = body
            return
        try:
            blosc.decompress(body, flat)
        except (RuntimeError, ValueError) as error:
            raise CorruptError(f"the chunk does not decode: {error}") from error

    def metadata(
        self, n_rows: int, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the array's `zarr.json`, for `n_rows` slots over all units.

        `more` is as for `array_metadata`.
        """
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        # Values of one byte have no byte order.
        one_byte = self.dtype.itemsize == 1
        codecs: list[dict[str, Any]] = [
            {"name": "bytes"} if one_byte else little_endian
        ]
        if self.codec != "raw":
            codecs.append(_named("blosc", self._blosc()))
        codecs.append({"name": "crc32c"})
        sharding = {
            "chunk_shape": [self.chunk_rows, self.d],
            "codecs": codecs,
            "index_codecs": [little_endian, {"name": "crc32c"}],
            "index_location": "end",
        }
        shard_shape = (self.chunk_rows * self.unit_chunks, self.d)
        return array_metadata(
            (n_rows, self.d),
            shard_shape,
            self.dtype,
            0,
            [_named("sharding_indexed", sharding)],
            more,
        )

    def _blosc(self) -> dict[str, Any]:
        """Return Blosc's settings as `zarr.json` has them."""
        return {
            "typesize": self.dtype.itemsize,
            "cname": self.codec,
            "clevel": CLEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }

    def _encode_chunk(
        self,
        source: NDArray[Any],
        order: NDArray[np.int64],
    ) -> bytes:
        """Return the chunk with rows source[order], without its checksum."""
        scratch = _scratch((self.chunk_rows, self.d), source.dtype)
        np.take(source, order, axis=0, out=scratch[: len(order)], mode="clip")
        scratch[len(order) :] = 0
        if self.codec == "raw":
            return scratch.tobytes()
        compressed: bytes = blosc.compress(
            scratch, self.codec.encode(), CLEVEL, blosc.BITSHUFFLE
        )
        return compressed


def with_checksum(data: bytes) -> bytes:
    """Return bytes and their crc32c, as the `crc32c` codec writes them."""
    return data + checksum(data)


def checksum(data: bytes) -> bytes:
    """Return the crc32c of some bytes, as it is stored."""
    return struct.pack("<I", google_crc32c.value(data))


def checked(data: bytes, what: str) -> bytes:
    """Return the bytes before a crc32c that matches.

    Raises:
        CorruptError: It does not match; `what` says of what.
    """
    body = data[:-CRC_BYTES]
    if len(data) < CRC_BYTES or checksum(body) != data[-CRC_BYTES:]:
        raise CorruptError(f"{what}: the checksum does not match the bytes")
    return body


def check_chunk_checksum(body: NDArray[np.uint8], stored: NDArray[np.uint8]) -> None:
    """Check the bytes of a chunk, uint8 [n], against its crc32c as stored, uint8 [4].

    Raises:
        CorruptError: They do not match, or there are none.
    """
    whole = len(body) > 0 and len(stored) == CRC_BYTES
    if not whole or google_crc32c.value(body) != int(stored.view("<u4")[0]):
        raise CorruptError("the chunk's checksum does not match its bytes")


def encode_plain(
    array: NDArray[Any],
    shape: tuple[int, ...],
    fill: float,
) -> bytes:
    """Return the bytes of the only chunk of an array that is not sharded.

    They are the values, little-endian, and then their crc32c.

    Args:
        array: The values, [...] of any stored dtype.
        shape: The shape of the chunk, at least that of `array` in each dimension.
        fill: The value that fills up the chunk.
    """
    whole = np.full(shape, fill, dtype=array.dtype.newbyteorder("<"))
    whole[tuple(slice(n) for n in array.shape)] = array
    return with_checksum(whole.tobytes())


def decode_plain(
    data: bytes, shape: tuple[int, ...], dtype: Any, what: str
) -> NDArray[Any]:
    """Return the values in the only chunk of an array that is not sharded.

    Args:
        data: The chunk's bytes, its crc32c included.
        shape: The shape of the chunk.
        dtype: The dtype of the values.
        what: The name of the object, for errors.

    Returns:
        [*shape], little-endian, of `dtype`.

    Raises:
        CorruptError: The checksum does not match, or the number of bytes is wrong.
    """
    body = checked(data, what)
    little_endian = np.dtype(dtype).newbyteorder("<")
    wanted = int(np.prod(shape)) * little_endian.itemsize
    if len(body) != wanted:
        raise CorruptError(f"{what}: {len(body)} bytes, wanted {wanted}")
    return np.frombuffer(body, dtype=little_endian).reshape(shape)


def plain_metadata(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: Any,
    fill: float,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the `zarr.json` of an array that is not sharded.

    Each of its chunks has a checksum.

    Args:
        shape: The shape of the array.
        chunk: Shape of a chunk.
        dtype: The dtype of the values.
        fill: The value of what is not written.
        more: As for `array_metadata`.
    """
    value = np.dtype(dtype)
    to_bytes: dict[str, Any] = {"name": "bytes"}
    if value.itemsize > 1:
        to_bytes = _named("bytes", {"endian": "little"})
    codecs = [to_bytes, {"name": "crc32c"}]
    return array_metadata(shape, chunk, value, fill, codecs, more)


def array_metadata(
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
    codecs: list[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an array's `zarr.json` in Zarr v3.

    Args:
        shape: The shape of the array.
        grid: Shape of what is one object: a chunk, or a shard.
        dtype: The dtype of the values.
        fill: The value of what is not written.
        codecs: What makes an object's bytes, in order.
        more: `dimension_names` and `attributes`, where it has them.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": _named("regular", {"chunk_shape": list(grid)}),
        "chunk_key_encoding": _named("default", {"separator": "/"}),
        "fill_value": int(fill) if dtype.kind in "iu" else float(fill),
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
        **(more or {}),
    }


def _named(name: str, configuration: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


_threads = threading.local()


def _scratch(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return this thread's buffer of that shape.

    With it, encoding allocates nothing large.
    """
    kept: NDArray[Any] | None = getattr(_threads, "scratch", None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = np.empty(shape, dtype)
        _threads.scratch = kept
    return kept
