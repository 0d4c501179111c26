"""Our shards are Zarr's: three other implementations read what we write, and we read
what zarr-python writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore.errors import CorruptError
from actstore.format.shard import ShardCodec, ShardIndex, with_checksum
from actstore.format.storage import Storage
from actstore.format.stored_dtypes import (
    bits,
    decode_int8,
    encode_int8,
    numpy_dtype,
    to_float32,
)
from schemas.harvest import Codec
from schemas.source import StorageDtype

DTYPES: tuple[StorageDtype, ...] = get_args(StorageDtype)
CODECS: tuple[Codec, ...] = get_args(Codec)
QUICK = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
shapes = st.tuples(st.integers(1, 24), st.integers(1, 9), st.integers(1, 5), st.data())


def values(n: int, d: int, dtype: StorageDtype, seed: int) -> Any:
    x = np.random.default_rng(seed).standard_normal((n, d)) * 20
    return x.astype(np.float32).astype(numpy_dtype(dtype))


def write(
    folder: Path, dtype: StorageDtype, codec: Codec, shape: Any
) -> tuple[ShardCodec, Any]:
    """An array of two shards, the second partly filled; returns the rows it should
    hold.
    """
    chunk_rows, d, unit_chunks, data = shape
    one = ShardCodec(codec, numpy_dtype(dtype), chunk_rows, d, unit_chunks)
    capacity = chunk_rows * unit_chunks
    n = data.draw(st.integers(0, capacity))
    whole = np.zeros((2 * capacity, d), numpy_dtype(dtype))
    storage = Storage(str(folder))
    storage.put("zarr.json", json.dumps(one.metadata(2 * capacity)).encode())
    for unit, rows in ((0, capacity), (1, n)):
        x, order = (
            values(rows, d, dtype, unit),
            np.random.default_rng(unit).permutation(rows),
        )
        whole[unit * capacity : unit * capacity + rows] = x[order]
        storage.put(f"c/{unit}/0", one.encode(x, order))
    return one, whole


def equal(a: Any, b: Any) -> bool:
    return bool((bits(np.ascontiguousarray(a)) == bits(np.ascontiguousarray(b))).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
@QUICK
@given(shape=shapes)
def test_zarr_python_zarrs_and_tensorstore_read_ours(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: StorageDtype,
    codec: Codec,
    shape: Any,
) -> None:
    import tensorstore

    folder = tmp_path_factory.mktemp("array")
    _, whole = write(folder, dtype, codec, shape)
    assert equal(zarr.open_array(Storage(str(folder)).zarr_store(), mode="r")[:], whole)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    assert equal(tensorstore.open(spec).result().read().result(), whole)
    import zarrs  # noqa: F401 (registers its pipeline)

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        assert equal(zarr.open_array(str(folder), mode="r")[:], whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
@QUICK
@given(shape=shapes)
def test_we_read_what_zarr_python_writes(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: StorageDtype,
    codec: Codec,
    shape: Any,
) -> None:
    chunk_rows, d, unit_chunks, data = shape
    folder = tmp_path_factory.mktemp("array")
    one = ShardCodec(codec, numpy_dtype(dtype), chunk_rows, d, unit_chunks)
    storage = Storage(str(folder))
    storage.put(
        "zarr.json", json.dumps(one.metadata(chunk_rows * unit_chunks)).encode()
    )
    n = data.draw(st.integers(1, chunk_rows * unit_chunks))
    x = values(n, d, dtype, 3)
    zarr.open_array(storage.zarr_store(), mode="r+")[:n] = x
    raw = storage.read("c/0/0")
    index = one.read_index(raw[-one.index_bytes :])
    out = np.empty((chunk_rows, d), one.dtype)
    for chunk in range(-(-n // chunk_rows)):
        wanted = x[chunk * chunk_rows : (chunk + 1) * chunk_rows]
        offset, length = int(index.offset[chunk]), int(index.length[chunk])
        if length == 2**64 - 1:  # zarr-python leaves out a chunk that is all fill
            assert not to_float32(wanted).any()
            continue
        one.decode_chunk(raw[offset : offset + length], out)
        assert equal(out[: len(wanted)], wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_do_not_depend_on_threads(codec: Codec) -> None:
    one = ShardCodec(codec, numpy_dtype("bfloat16"), 256, 64, 8)
    x, order = (
        values(2000, 64, "bfloat16", 0),
        np.random.default_rng(1).permutation(2000),
    )
    alone = b"".join(one.encode(x, order))
    with ThreadPoolExecutor(4) as pool:
        assert all(b"".join(one.encode(x, order, pool)) == alone for _ in range(8))


def read_all(
    one: ShardCodec, raw: bytes, index: ShardIndex, out: Any, index_too: bool
) -> None:
    """Decode both chunks, or the index."""
    if index_too:
        one.read_index(raw[-one.index_bytes :])
    for offset, length in zip(index.offset, index.length, strict=True):
        one.decode_chunk(raw[int(offset) : int(offset + length)], out)


@pytest.mark.parametrize("codec", CODECS)
def test_any_flipped_bit_is_caught(codec: Codec) -> None:
    one = ShardCodec(codec, numpy_dtype("bfloat16"), 16, 8, 2)
    raw = b"".join(one.encode(values(32, 8, "bfloat16", 0)))
    index, out = one.read_index(raw[-one.index_bytes :]), np.empty((16, 8), one.dtype)
    end = int(index.offset[1] + index.length[1])
    for at in range(0, len(raw) * 8, 3):
        bad = bytearray(raw)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptError):
            read_all(one, bytes(bad), index, out, at // 8 >= end)


@pytest.mark.parametrize("codec", CODECS[:2])
def test_a_chunk_shorter_than_its_header_says_is_not_read_behind_its_end(
    codec: Codec,
) -> None:
    one = ShardCodec(codec, np.dtype(np.float32), 4096, 64, 1)
    raw = b"".join(one.encode(values(4096, 64, "float32", 0)))
    chunk = raw[: -one.index_bytes - 4]
    # not compressed, and nearly nothing is there
    stored = bytes([chunk[0], chunk[1], chunk[2] | 2, *chunk[3:17]])
    for body in (chunk[:40], stored, chunk + bytes(4)):
        with pytest.raises(CorruptError, match="its header says"):
            one.decode_chunk(with_checksum(body), np.zeros((4096, 64), np.float32))


@pytest.mark.parametrize("first", ["import actstore.format.zarr_bfloat16", ""])
def test_zarr_python_reads_bfloat16_in_another_process(
    tmp_path: Path, first: str
) -> None:
    """With the line that docs/FORMAT.md gives; and without it by those that load entry
    points.
    """
    if not first and zarr.__version__.startswith("3.1."):
        pytest.skip("zarr-python 3.1 loads no entry points")
    one = ShardCodec("lz4", numpy_dtype("bfloat16"), 4, 3, 2)
    storage = Storage(str(tmp_path))
    storage.put("zarr.json", json.dumps(one.metadata(8)).encode())
    storage.put(
        "c/0/0",
        one.encode(np.arange(24, dtype=np.float32).reshape(8, 3).astype(one.dtype)),
    )
    code = (
        f"{first}\nimport zarr; print(zarr.open_array({str(tmp_path)!r})[7].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[21, 22, 23]" or json.loads(done.stdout) == [
        21.0,
        22.0,
        23.0,
    ]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_int8_error_is_bounded_by_half_a_step(n: int, d: int, seed: int) -> None:
    x = (
        np.random.default_rng(seed).standard_normal((n, d)) * np.exp(np.arange(d) / 10)
        + 5
    ).astype(np.float32)
    coded = encode_int8(x)
    error = np.abs(decode_int8(coded) - x)
    bound = 0.5 * coded.step[1] * coded.scale.astype(np.float32)[:, None]
    assert (error <= bound * 1.01 + 1e-5 * np.abs(x)).all()


def test_int8_keeps_a_bad_row_bad_and_the_others_good() -> None:
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    x[7, 3] = np.nan
    again = decode_int8(encode_int8(x))
    assert np.isnan(again[7]).all()
    good = np.arange(50) != 7
    assert np.abs(again[good] - x[good]).max() < 0.05


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1500, 130), (3000, 3)])
def test_int8_in_blocks_is_int8_of_the_whole(n: int, d: int) -> None:
    """Blocks are for memory only: bit for bit what one pass over all rows gives."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((n, d)) * np.exp(rng.standard_normal(d)) + 7).astype(
        np.float32
    )
    x[n // 2, 0] = np.nan
    finite = np.isfinite(x).all(axis=1)
    mean, step = np.zeros(d), np.ones(d)
    if finite.any():
        mean, step = (
            x[finite].mean(axis=0, dtype=np.float64),
            x[finite].std(axis=0, dtype=np.float64),
        )
    channels = np.stack([mean, np.where(step > 0, step, 1)]).astype(np.float32)
    coded = encode_int8(x)
    np.testing.assert_array_equal(coded.step, channels)
    y = (x[finite] - channels[0]) / channels[1]
    scale = coded.scale[finite].astype(np.float32)
    assert (scale >= np.abs(y).max(axis=1) / 127).all()
    np.testing.assert_array_equal(
        coded.values[finite], np.rint(y / scale[:, None]).clip(-127, 127)
    )
    assert np.isnan(coded.scale[~finite]).all()
