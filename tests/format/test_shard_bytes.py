"""The bytes of a shard, written and checked by hand."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from actstore.errors import CorruptError
from actstore.format.shard import (
    ABSENT,
    LARGEST_OFFSET,
    ShardCodec,
    checked,
    checksum,
    decode_plain,
    encode_plain,
    plain_metadata,
    with_checksum,
)

FLOAT = np.dtype("<f4")


def codec(name: str = "raw", **update: Any) -> ShardCodec:
    """Chunks of 2 rows of one float32, 4 of them in a unit."""
    sizes = {"dtype": FLOAT, "chunk_rows": 2, "d": 1, "unit_chunks": 4, **update}
    return ShardCodec(codec=name, **sizes)  # type: ignore[arg-type]


def crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


def index_of(*pairs: tuple[int, int]) -> bytes:
    """The index of a shard of 4 chunks, of which the first ones have these places."""
    absent = [(ABSENT, ABSENT)] * (4 - len(pairs))
    body = b"".join(struct.pack("<QQ", *pair) for pair in [*pairs, *absent])
    return body + crc(body)


def refused(message: str, call: Any, *args: Any) -> None:
    with pytest.raises(CorruptError) as error:
        call(*args)
    assert str(error.value) == message


def test_a_shard_of_three_rows() -> None:
    rows = np.array([[1], [2], [3]], FLOAT)
    chunks = [struct.pack("<ff", 1, 2), struct.pack("<ff", 3, 0)]
    wanted = b"".join(chunk + crc(chunk) for chunk in chunks) + index_of(
        (0, 12), (12, 12)
    )
    assert len(wanted) == 92
    shard = codec().encode(rows)
    assert b"".join(shard) == wanted
    order = np.array([2, 0, 1])
    with ThreadPoolExecutor(2) as pool:
        assert codec().encode(rows[[1, 2, 0]], order, pool) == shard
    # a chunk after one that was full: nothing of it is left over
    assert codec().encode(rows) == shard
    assert codec().encode(rows[:0]) == [index_of()]
    assert codec().chunk_bytes == 8
    assert codec().index_bytes == 68


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_a_compressed_chunk_is_blosc_of_the_rows(name: str) -> None:
    rows = np.arange(6, dtype="<f2").reshape(3, 2)
    it = codec(name, dtype=np.dtype("<f2"), d=2)
    body, chunk_crc, _, _, index = it.encode(rows)
    assert body == blosc.compress(rows[:2], name.encode(), 5, blosc.BITSHUFFLE)
    assert chunk_crc == crc(body)
    found = it.read_index(index, 2)
    assert found.offset[:2].tolist() == [0, len(body) + 4]
    assert found.length[0] == len(body) + 4
    out = np.empty((2, 2), "<f2")
    it.decode_chunk(body + chunk_crc, out)
    np.testing.assert_array_equal(out, rows[:2])


def test_an_index_is_read() -> None:
    for n_chunks in (2, None):
        index = codec().read_index(index_of((0, 12), (12, 12)), n_chunks)
        assert index.offset.tolist() == [0, 12, ABSENT, ABSENT]
        assert index.length.tolist() == [12, 12, ABSENT, ABSENT]
        assert index.offset.flags.writeable
        assert index.length.flags.writeable
    assert codec().read_index(index_of(), 0).offset.tolist() == [ABSENT] * 4
    # compressed, a chunk has more than its checksum, and at most 8 + 16 + 4 bytes
    index = codec("lz4").read_index(index_of((0, 5), (5, 28)), 2)
    assert index.length.tolist()[:2] == [5, 28]


ORDER = "the shard index has chunks that do not lie one after the other, the first ones first"
MOST = LARGEST_OFFSET - 1


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("lz4", [(0, 4)], "chunk 0 at offset 0 with 4 bytes; a chunk has at most 28"),
        ("lz4", [(0, 5), (5, 29)], "chunk 1 at offset 5 with 29 bytes; a chunk has at most 28"),
        ("lz4", [(1 << 48, 5)], f"chunk 0 at offset {1 << 48} with 5 bytes; a chunk has at most 28"),
        ("lz4", [(ABSENT, 5)], f"chunk 0 at offset {ABSENT} with 5 bytes; a chunk has at most 28"),
        ("lz4", [(0, ABSENT)], f"chunk 0 at offset 0 with {ABSENT} bytes; a chunk has at most 28"),
        ("lz4", [(0, 5)], "1 chunks; the unit's rows fill 2"),
        ("lz4", [(0, 5), (5, 5), (10, 5)], "3 chunks; the unit's rows fill 2"),
        ("lz4", [(5, 5), (0, 5)], ORDER.removeprefix("the shard index has ")),
        ("lz4", [(0, 5), (6, 5)], ORDER.removeprefix("the shard index has ")),
        ("lz4", [(0, 5), (MOST, 5)], ORDER.removeprefix("the shard index has ")),
        ("lz4", [(0, 5), (ABSENT, ABSENT), (5, 5)], ORDER.removeprefix("the shard index has ")),
        ("raw", [(0, 12), (12, 13)], "chunks of other lengths than 12 bytes"),
        ("raw", [(0, 11), (11, 12)], "chunks of other lengths than 12 bytes"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be(
    name: str, pairs: list[tuple[int, int]], message: str
) -> None:
    raw = index_of(*pairs)
    refused(f"the shard index has {message}", codec(name).read_index, raw, 2)


def test_an_index_of_other_bytes() -> None:
    raw = index_of((0, 12), (12, 12))
    for other in (raw[:-1], raw + b"\0"):
        message = f"the shard index has {len(other)} bytes, wanted 68"
        refused(message, codec().read_index, other)
    flipped = bytes([raw[0] ^ 1]) + raw[1:]
    message = "the shard index: the checksum does not match the bytes"
    refused(message, codec().read_index, flipped)


def header(decoded: int, encoded: int) -> bytes:
    """Blosc's header."""
    return struct.pack("<IIII", 0, decoded, 1 << 30, encoded)


def test_a_chunk_is_checked() -> None:
    raw = struct.pack("<ff", 1, 2)
    for data in (raw + crc(raw), np.frombuffer(raw + crc(raw), np.uint8)):
        assert codec().check_chunk(data).tobytes() == raw
    body = header(8, 20) + b"abcd"
    assert codec("lz4").check_chunk(body + crc(body)).tobytes() == body


NO_CHECKSUM = "the chunk's checksum does not match its bytes"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("raw", b"1234567", "the chunk has 7 bytes, wanted 8"),
        ("raw", b"123456789", "the chunk has 9 bytes, wanted 8"),
        ("raw", b"", NO_CHECKSUM),
        ("lz4", header(8, 15)[:15], "the chunk decodes to 0 bytes, wanted 8"),
        ("lz4", header(7, 16), "the chunk decodes to 7 bytes, wanted 8"),
        ("lz4", header(9, 16), "the chunk decodes to 9 bytes, wanted 8"),
        ("lz4", header(8, 17), "the chunk has 16 compressed bytes, its header says 17"),
        ("lz4", header(8, 15), "the chunk has 16 compressed bytes, its header says 15"),
    ],
)
def test_a_chunk_that_cannot_be(name: str, body: bytes, message: str) -> None:
    refused(message, codec(name).check_chunk, body + crc(body))
    refused(NO_CHECKSUM, codec(name).check_chunk, body + b"\1\2\3\4")
    refused(NO_CHECKSUM, codec(name).check_chunk, crc(body)[:3])


def test_a_chunk_that_does_not_decode() -> None:
    body = header(8, 16)
    with pytest.raises(CorruptError, match=r"^the chunk does not decode: ."):
        codec("lz4").decode_chunk(body + crc(body), np.empty((2, 1), FLOAT))
    raw = struct.pack("<ff", 1, 2)
    out = np.empty((2, 1), FLOAT)
    codec().decode_chunk(raw + crc(raw), out)
    assert out.tolist() == [[1], [2]]


# Arrays that are not sharded


def test_checksums() -> None:
    assert checksum(b"123456789") == struct.pack("<I", 0xE3069283)
    assert with_checksum(b"ab") == b"ab" + crc(b"ab")
    assert checked(b"ab" + crc(b"ab"), "it") == b"ab"
    assert checked(crc(b""), "it") == b""
    for data in (b"ab" + crc(b"ac"), b"abc", b""):
        refused("it: the checksum does not match the bytes", checked, data, "it")


def test_a_plain_chunk_is_filled_up() -> None:
    array = np.array([[1, 2], [3, 4]], ">i2")
    body = struct.pack("<6h", 1, 2, -1, 3, 4, -1)
    data = encode_plain(array, (2, 3), -1)
    assert data == body + crc(body)
    again = decode_plain(data, (2, 3), ">i2", "it")
    assert again.tolist() == [[1, 2, -1], [3, 4, -1]]
    refused("it: 12 bytes, wanted 16", decode_plain, data, (2, 4), "i2", "it")
    refused("it: 12 bytes, wanted 24", decode_plain, data, (2, 3), "i4", "it")
    message = "it: the checksum does not match the bytes"
    refused(message, decode_plain, data[1:], (2, 3), "i2", "it")


# What Zarr is told

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}


def array_of(**update: Any) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "attributes": {},
        "storage_transformers": [],
        **update,
    }


def grid(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


@pytest.mark.parametrize(
    ("dtype", "to_bytes", "fill"),
    [
        ("<i4", LITTLE, -1),
        ("i1", {"name": "bytes"}, -1),
        ("<f2", LITTLE, -1.0),
        ("<f4", LITTLE, -1.0),
    ],
)
def test_the_metadata_of_a_plain_array(
    dtype: str, to_bytes: dict[str, Any], fill: float
) -> None:
    found = plain_metadata((4, 3), (2, 3), dtype, -1)
    assert found == array_of(
        shape=[4, 3],
        data_type=np.dtype(dtype).name,
        chunk_grid=grid(2, 3),
        fill_value=fill,
        codecs=[to_bytes, CRC],
    )
    assert type(found["fill_value"]) is type(fill)
    more = {"attributes": {"a": 1}, "dimension_names": ["x", "y"]}
    assert plain_metadata((4, 3), (2, 3), dtype, -1, more) == {**found, **more}


@pytest.mark.parametrize("name", ["raw", "lz4"])
@pytest.mark.parametrize("dtype", ["<f2", "i1"])
def test_the_metadata_of_a_sharded_array(name: str, dtype: str) -> None:
    inner: list[dict[str, Any]] = [LITTLE if dtype == "<f2" else {"name": "bytes"}]
    if name == "lz4":
        settings = {
            "typesize": np.dtype(dtype).itemsize,
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        inner.append({"name": "blosc", "configuration": settings})
    sharding = {
        "chunk_shape": [2, 5],
        "codecs": [*inner, CRC],
        "index_codecs": [LITTLE, CRC],
        "index_location": "end",
    }
    wanted = array_of(
        shape=[24, 5],
        data_type=np.dtype(dtype).name,
        chunk_grid=grid(8, 5),
        fill_value=0,
        codecs=[{"name": "sharding_indexed", "configuration": sharding}],
    )
    it = codec(name, dtype=np.dtype(dtype), d=5)
    assert it.metadata(24) == wanted
    assert it.metadata(24, {"attributes": {"a": 1}}) == {
        **wanted,
        "attributes": {"a": 1},
    }
