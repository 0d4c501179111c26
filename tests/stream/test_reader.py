from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import actstore
from actstore.errors import CorruptError
from actstore.store.chunk_reader import ChunkReader
from tests.support import make_store

SITE = "blocks.1.hook_mlp_out"


def read_all(reader: ChunkReader, chunks: int, out: np.ndarray) -> None:
    for chunk in range(chunks):
        reader.read(0, 0, chunk, out)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "raw"])
def test_any_flipped_bit_is_caught(tmp_path: Path, codec: str) -> None:
    """Of 400 bits anywhere in a shard, its index included, every one that is read is
    caught.
    """
    store = make_store(tmp_path / "store", n_units=1, unit_sequences=8, codec=codec)
    path = tmp_path / "store" / f"acts/{SITE}/c/0/0"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    index_bytes = store.codec(SITE).index_bytes
    for bit in rng.integers(0, 8 * len(whole), 400):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        reader = ChunkReader(actstore.open(tmp_path / "store"), (SITE,))
        out = np.empty((16, 16), reader.dtype)
        if codec == "raw" and bit // 8 >= len(whole) - index_bytes:
            continue  # the index of `raw` is arithmetic, so it is not read
        with pytest.raises(CorruptError, match=f"unit 0, site {SITE}, chunk"):
            read_all(reader, store.layout.unit_chunks, out)


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_a_shard_cut_short_is_caught(tmp_path: Path, codec: str) -> None:
    make_store(tmp_path / "store", n_units=1, unit_sequences=8, codec=codec)
    path = tmp_path / "store" / f"acts/{SITE}/c/0/0"
    path.write_bytes(path.read_bytes()[:1000])
    reader = ChunkReader(actstore.open(tmp_path / "store"), (SITE,))
    with pytest.raises(CorruptError):
        reader.read(0, 0, 15, np.empty((16, 16), reader.dtype))


def test_reader_order_and_feed_load_no_torch() -> None:
    code = (
        "import sys, actstore.store.chunk_reader, actstore.stream.order; "
        "import actstore.stream.window_feed, actstore.stream.mixing; "
        "sys.exit(len({'torch', 'transformers', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
