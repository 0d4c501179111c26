"""A store of 100,000 units opens like one of 1,000: which objects it touches, and the
memory of the order.

Its shards are links to one file, and only those that the first two windows need are
there: whatever else a stream would open before its first batch would be missing. How
long it takes is a benchmark's matter (`tests/benchmarks/opening.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.synthetic import OneShard, link_first_windows, linked_store

UNITS = 100_000
# chunks of 256 bytes, from each of 4 sites
SPEC = StreamSpec(batch=256, window_chunks=256)
# per unit: Order keeps 16; the rest is the lists and masks it is made from
UNIT_BYTES = 160
CHUNK_BYTES = 128  # per site and chunk of a group (2^17 chunks), while one is ordered


def store_of(folder: Path, n_units: int, codec: str) -> Store:
    return linked_store(
        folder,
        n_units=n_units,
        unit_rows=1024,
        chunk_rows=16,
        n_sites=4,
        d=8,
        codec=codec,
        links=(),
    )


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_the_first_batch_opens_the_manifest_the_rows_and_its_own_shards(
    tmp_path: Path, codec: str
) -> None:
    store = store_of(tmp_path / "store", UNITS, codec)
    units = link_first_windows(store, SPEC)
    said = child(store.url)
    assert said["rows"] == 256
    assert said["n_units"] == UNITS
    assert said["wrong"] == 0
    assert said["opened_to_open"] == ["manifest.json", "columns/rows/c/0"]
    opened = set(said["opened"])
    assert {key for key in opened if not key.startswith("acts/")} == set()
    shards = {key for key in opened if key.startswith("acts/")}
    in_windows = 2 * said["window_chunks"] * len(store.sites)
    assert shards <= {
        f"acts/{site}/c/{unit}/0" for site in store.sites for unit in units
    }
    assert in_windows / 2 * 0.9 < len(shards) <= in_windows, (
        "a window's chunks lie in almost as many shards"
    )
    # One descriptor a chunk, and with lz4 one for each shard's index; nothing is opened
    # again and again.
    assert said["n_opened"] <= in_windows + (len(shards) if codec == "lz4" else 0)


def child(url: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stream.test_open", url],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def traced_peak(url: str) -> int:
    """Peak of Python's and numpy's memory from opening a store to a stream's first
    batch.
    """
    tracemalloc.start()
    try:
        plain = actstore.open(url)
        with Store(OneShard(plain), plain.manifest).stream(SPEC, threads=1) as stream:
            next(stream)
            return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_of_the_order_does_not_grow_with_the_chunks(tmp_path: Path) -> None:
    few, many, more = (
        store_of(tmp_path / str(n), n, "raw") for n in (2_000, UNITS, 4 * UNITS)
    )
    traced_peak(few.url)  # what is imported and kept from now on
    small, large, largest = (traced_peak(store.url) for store in (few, many, more))
    # both small and large have one whole group of chunks to order
    of_a_group = 4 * CHUNK_BYTES << 17
    assert small < of_a_group
    assert large - small < UNIT_BYTES * UNITS
    assert largest - large < UNIT_BYTES * 3 * UNITS
    chunks = 4 * UNITS * many.layout.unit_chunks * len(many.sites)
    assert largest < chunks, "not even a byte for each chunk of the store"


def in_child(url: str) -> dict[str, Any]:
    """Open and take one batch; every object of the store that this process opens is
    written down.
    """
    import numpy as np

    import actstore.stream.stream  # what is opened from here on is the store's

    keys: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(url):
            keys.append(str(arguments[0])[len(url) + 1 :])

    sys.addaudithook(hook)
    store = actstore.open(url)
    to_open = list(keys)
    keys.clear()
    with store.stream(SPEC, threads=2) as stream:
        batch = next(stream)
        chunks = stream.window_chunks
    opened = list(keys)
    here = OneShard(store)
    truth = Store(here, store.manifest).read(
        store.sites[0], np.arange(store.layout.capacity)
    )
    wrong = batch.x.numpy() != truth[batch.row.numpy() % store.layout.capacity]
    return {
        "rows": len(batch.row),
        "n_units": store.manifest.n_units,
        "wrong": int(wrong.any(axis=1).sum()),
        "window_chunks": chunks,
        "opened_to_open": to_open,
        "opened": sorted(set(opened)),
        "n_opened": len(opened),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(in_child(sys.argv[1])))
