"""One Zarr v3 shard to and from bytes; numpy only, and the only hot code that knows the
format.

A shard is its chunks' bytes one behind the other, then an index: uint64 [n_chunks, 2]
of (offset, length), both 2^64 - 1 for a chunk that is absent, and the index' crc32c. A
chunk is Blosc (lz4 or zstd, bit-shuffled) or the plain values, and the crc32c of that.
zarr-python, tensorstore and zarrs read and write the same bytes; they are just slower.

Blosc runs single-threaded, since its multi-threaded output varies; parallelism is over
chunks, laid down in order.
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
from actstore.format.dtypes import bits
from schemas.harvest import Codec

ABSENT = 2**64 - 1
CRC_BYTES = 4
BLOSC_BYTES = 16  # its header, and the most by which it makes a chunk larger
LARGEST_OFFSET = 1 << 48  # no file system or object store holds larger objects
CLEVEL = 5

blosc.use_threads = False


class ShardIndex(NamedTuple):
    """Where each chunk lies in its shard: uint64 [n_chunks]; ABSENT in both for a chunk
    that is not there.
    """

    offset: NDArray[np.uint64]
    length: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ShardCodec:
    """How one array's rows [*, d] become shards of `unit_chunks` chunks of `chunk_rows`
    rows.
    """

    codec: Codec
    dtype: np.dtype[Any]
    chunk_rows: int
    d: int
    unit_chunks: int

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
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
        """A shard, as buffers to be written one behind the other.

        rows: [n, d]; permutation: slot i of the shard gets rows[permutation[i]]. Chunks
        behind the last row are absent, the last one is filled up with zeros.
        """
        source = bits(np.ascontiguousarray(rows))
        order = np.arange(len(rows)) if permutation is None else permutation
        n = -(-len(order) // self.chunk_rows)
        jobs = (
            order[i * self.chunk_rows : (i + 1) * self.chunk_rows] for i in range(n)
        )
        mapped: Iterable[bytes] = (pool.map if pool else map)(
            lambda job: self._encode_chunk(source, job), jobs
        )
        chunks = list(mapped)
        index = np.full((self.unit_chunks, 2), ABSENT, dtype="<u8")
        index[:n, 1] = [len(chunk) + CRC_BYTES for chunk in chunks]
        index[:n, 0] = np.concatenate([[0], np.cumsum(index[:n, 1])[:-1]]) if n else []
        # A chunk and its checksum are two buffers: joining them would copy the whole
        # shard once more.
        parts = [part for chunk in chunks for part in (chunk, checksum(chunk))]
        return [*parts, with_checksum(index.tobytes())]

    def read_index(self, raw: bytes, n_chunks: int | None = None) -> ShardIndex:
        """The index from the last `index_bytes` bytes of a shard, in which `n_chunks`
        are present (None: not known). Raises CorruptError.
        """
        if len(raw) != self.index_bytes:
            raise CorruptError(
                f"the shard index has {len(raw)} bytes, wanted {self.index_bytes}"
            )
        body = checked(raw, "the shard index")
        pairs = np.frombuffer(body, dtype="<u8").reshape(self.unit_chunks, 2)
        index = ShardIndex(pairs[:, 0].copy(), pairs[:, 1].copy())
        self._check_index(index, n_chunks)
        return index

    def _check_index(self, index: ShardIndex, n_chunks: int | None) -> None:
        """A right checksum over wrong entries must not lead to reads that no machine
        can do, nor to another chunk's rows: the first chunks are there, one behind the
        other.
        """
        absent = (index.offset == ABSENT) & (index.length == ABSENT)
        most = self.chunk_bytes + BLOSC_BYTES + CRC_BYTES
        bad = ~absent & (
            (index.offset >= LARGEST_OFFSET)
            | (index.length > most)
            | (index.length <= CRC_BYTES)
        )
        if bad.any():
            chunk = int(np.flatnonzero(bad)[0])
            offset, length = int(index.offset[chunk]), int(index.length[chunk])
            raise CorruptError(
                f"the shard index has chunk {chunk} at offset {offset} with {length}"
                f" bytes; a chunk has at most {most}"
            )
        present = int(np.count_nonzero(~absent))
        if n_chunks is not None and present != n_chunks:
            raise CorruptError(
                f"the shard index has {present} chunks; the unit's rows fill {n_chunks}"
            )
        lengths = index.length[:present].astype(np.int64)
        if (
            absent[:present].any()
            or (
                index.offset[:present].astype(np.int64) != np.cumsum(lengths) - lengths
            ).any()
        ):
            raise CorruptError(
                "the shard index has chunks that do not lie one behind the other, the"
                " first ones first"
            )
        if self.codec == "raw" and (lengths != self.chunk_bytes + CRC_BYTES).any():
            raise CorruptError(
                "the shard index has chunks of other lengths than"
                f" {self.chunk_bytes + CRC_BYTES} bytes"
            )

    def check_chunk(self, raw: NDArray[np.uint8] | bytes) -> NDArray[np.uint8]:
        """One chunk's bytes without their checksum, if they are whole and hold what a
        chunk holds; nothing is decoded. Raises CorruptError.
        """
        data = np.frombuffer(raw, dtype=np.uint8) if isinstance(raw, bytes) else raw
        body = data[:-CRC_BYTES]
        if len(data) <= CRC_BYTES or google_crc32c.value(body) != int(
            data[-CRC_BYTES:].view("<u4")[0]
        ):
            raise CorruptError("the chunk's checksum does not match its bytes")
        if self.codec == "raw":
            if len(body) != self.chunk_bytes:
                raise CorruptError(
                    f"the chunk has {len(body)} bytes, wanted {self.chunk_bytes}"
                )
            return body
        holds = int(body[4:8].view("<u4")[0]) if len(body) >= BLOSC_BYTES else 0
        # Blosc would fill a part of the rows and leave the rest as it was
        if holds != self.chunk_bytes:
            raise CorruptError(
                f"the chunk decodes to {holds} bytes, wanted {self.chunk_bytes}"
            )
        # Blosc would read on behind the chunk
        if (size := int(body[12:16].view("<u4")[0])) != len(body):
            raise CorruptError(
                f"the chunk has {len(body)} compressed bytes, its header says {size}"
            )
        return body

    def decode_chunk(self, raw: NDArray[np.uint8] | bytes, out: NDArray[Any]) -> None:
        """Check one chunk's bytes and decode them into `out`, contiguous [chunk_rows,
        d]. Raises CorruptError.
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
        """The array's `zarr.json`; `more`: see `array_metadata`."""
        codecs: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}}
        ]
        if self.dtype.itemsize == 1:
            codecs = [{"name": "bytes"}]
        if self.codec != "raw":
            codecs.append({"name": "blosc", "configuration": self._blosc()})
        codecs.append({"name": "crc32c"})
        sharding = {
            "chunk_shape": [self.chunk_rows, self.d],
            "codecs": codecs,
            "index_codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": "end",
        }
        grid = (self.chunk_rows * self.unit_chunks, self.d)
        return array_metadata(
            (n_rows, self.d),
            grid,
            self.dtype,
            0,
            [_named("sharding_indexed", sharding)],
            more,
        )

    def _blosc(self) -> dict[str, Any]:
        return {
            "typesize": self.dtype.itemsize,
            "cname": self.codec,
            "clevel": CLEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }

    def _encode_chunk(self, source: NDArray[Any], order: NDArray[np.int64]) -> bytes:
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
    """Bytes and their crc32c, as the `crc32c` codec writes them."""
    return data + checksum(data)


def checksum(data: bytes) -> bytes:
    """The crc32c of some bytes, as it is stored."""
    return struct.pack("<I", google_crc32c.value(data))


def checked(data: bytes, what: str) -> bytes:
    """The bytes before a crc32c that matches. Raises CorruptError."""
    body = data[:-CRC_BYTES]
    if (
        len(data) < CRC_BYTES
        or google_crc32c.value(body) != struct.unpack("<I", data[-CRC_BYTES:])[0]
    ):
        raise CorruptError(f"{what}: the checksum does not match the bytes")
    return body


def encode_plain(array: NDArray[Any], shape: tuple[int, ...], fill: float) -> bytes:
    """One chunk of an unsharded array: `array` grown to `shape` with `fill`,
    little-endian, then crc32c.
    """
    whole = np.full(shape, fill, dtype=array.dtype.newbyteorder("<"))
    whole[tuple(slice(n) for n in array.shape)] = array
    return with_checksum(whole.tobytes())


def decode_plain(
    data: bytes, shape: tuple[int, ...], dtype: Any, what: str
) -> NDArray[Any]:
    """The array of one unsharded chunk. Raises CorruptError."""
    body = checked(data, what)
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if len(body) != wanted:
        raise CorruptError(f"{what}: {len(body)} bytes, wanted {wanted}")
    return np.frombuffer(body, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)


def plain_metadata(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: Any,
    fill: float,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `zarr.json` of an unsharded array with checksummed chunks; `more`: see
    `array_metadata`.
    """
    one = np.dtype(dtype)
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [first if one.itemsize > 1 else {"name": "bytes"}, {"name": "crc32c"}]
    return array_metadata(shape, chunk, one, fill, codecs, more)


def array_metadata(
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
    codecs: list[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An array's `zarr.json` in Zarr v3; more: `dimension_names` and `attributes`,
    where it has them.
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
    """This thread's buffer of that shape: encoding allocates nothing large."""
    kept: NDArray[Any] | None = getattr(_threads, "scratch", None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = _threads.scratch = np.empty(shape, dtype)
    return kept
