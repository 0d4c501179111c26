"""Streams from an object store: the same rows in the same order as from a disk, many
requests at a time, bytes in memory bounded, errors named, and no hang however it ends.
"""

from __future__ import annotations

import faulthandler
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format.storage import Part
from actstore.machine.byte_room import ByteRoom
from actstore.store.shard_bytes import ByteRange, StoredShards, shard_key
from actstore.store.store import Store
from actstore.stream import chunk_fetch
from actstore.stream.chunk_fetch import ChunkFetch
from actstore.stream.order import Rank
from actstore.stream.stream import StreamWarning
from actstore.stream.window_plan import WindowLoad
from schemas.stream import StreamSpec
from tests.support import make_store

SITES = {"a": 8, "b": 8, "c": 8}
LAYOUT: dict[str, Any] = {
    "n_units": 12,
    "unit_sequences": 2,
    "context": 64,
    "chunk_rows": 8,
}
SPEC = StreamSpec(batch=40, window_chunks=16, lanes=2, epochs=2)
ONE_EPOCH = SPEC.model_copy(update={"epochs": 1})


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [one for one in set(threading.enumerate()) - before if one.is_alive()]
    assert [one.name for one in left if one.name.startswith("stream")] == []


class WatchedShards(StoredShards):
    """Shards that tell what was read of them, at what time beside what."""

    def __init__(self, store: Store, before: Callable[[], None] | None = None) -> None:
        super().__init__(store.storage)
        self.before = before
        self.read_ranges: list[tuple[str, int, list[ByteRange]]] = []
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def read(self, site: str, unit: int, ranges: Sequence[ByteRange]) -> list[Part]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.read_ranges.append((site, unit, list(ranges)))
        try:
            if self.before is not None:
                self.before()
            return super().read(site, unit, ranges)
        finally:
            with self._lock:
                self.now -= 1


def watched(
    store: Store, before: Callable[[], None] | None = None
) -> tuple[Store, WatchedShards]:
    shards = WatchedShards(store, before)
    return Store(store.storage, store.manifest, shards), shards


def rows(store: Store, spec: StreamSpec = SPEC) -> list[tuple[bytes, ...]]:
    """Every batch of a stream."""
    with store.stream(spec, threads=2) as stream:
        return [
            (x.numpy().tobytes(), layer.numpy().tobytes(), row.numpy().tobytes())
            for x, layer, row, _, _ in stream
        ]


@pytest.mark.parametrize(
    ("place", "codec", "dtype"),
    [
        ("memory_url", "lz4", "bfloat16"),
        ("memory_url", "lz4", "int8"),
        ("memory_url", "raw", "bfloat16"),
        ("memory_url", "raw", "int8"),
        # a server is asked in two ways: for what an index says, and without one
        ("s3_url", "lz4", "int8"),
        ("s3_url", "raw", "bfloat16"),
    ],
)
def test_the_rows_are_those_of_a_local_store(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, codec: str, dtype: str
) -> None:
    url = request.getfixturevalue(place)
    made: dict[str, Any] = {**LAYOUT, "codec": codec, "dtype": dtype, "padded": True}
    local = make_store(tmp_path / "store", SITES, **made)
    remote = make_store(f"{url}/store", SITES, **made)
    for spec in (SPEC, SPEC.model_copy(update={"mode": "aligned", "window_chunks": 5})):
        assert rows(remote, spec) == rows(local, spec)
    ids = np.random.default_rng(0).permutation(local.rows())[:200]
    np.testing.assert_array_equal(remote.read("b", ids), local.read("b", ids))


@pytest.mark.real_s3
def test_the_rows_are_those_of_a_local_store_on_a_real_server(
    real_s3_url: str, tmp_path: Path
) -> None:
    local = make_store(tmp_path / "store", SITES, **LAYOUT)
    assert rows(make_store(f"{real_s3_url}/store", SITES, **LAYOUT)) == rows(local)


@pytest.fixture
def remote(memory_url: str) -> Store:
    return make_store(f"{memory_url}/store", SITES, codec="lz4", **LAYOUT)


def test_every_chunk_is_asked_for_once_an_epoch(remote: Store) -> None:
    store, shards = watched(remote)
    rows(store, ONE_EPOCH)
    chunks = [
        (site, unit, one)
        for site, unit, ranges in shards.read_ranges
        for one in ranges
        if one[0] >= 0
    ]
    indexes = [
        (site, unit) for site, unit, ranges in shards.read_ranges if ranges[0][0] < 0
    ]
    per_unit = LAYOUT["unit_sequences"] * LAYOUT["context"] // LAYOUT["chunk_rows"]
    assert len(chunks) == len(set(chunks)) == 3 * len(store.units("train")) * per_unit
    assert sorted(indexes) == sorted(set(indexes))
    # Neighbours come together.
    assert len(shards.read_ranges) - len(indexes) < len(chunks)


def test_raw_shards_need_no_index(memory_url: str) -> None:
    remote = make_store(f"{memory_url}/store", SITES, codec="raw", **LAYOUT)
    store, shards = watched(remote)
    rows(store)
    store.read("a", slice(0, 100))
    offsets = [one[0] for _, _, ranges in shards.read_ranges for one in ranges]
    assert min(offsets) >= 0


def test_many_requests_are_under_way_with_one_thread_that_decodes(
    remote: Store,
) -> None:
    """All of them wait until a dozen have come."""
    dozen = threading.Barrier(12)

    def together() -> None:
        # Only the first ones: the last dozen may not be whole.
        if not dozen.broken:
            try:
                dozen.wait(30)
            except threading.BrokenBarrierError:
                return
            dozen.abort()

    store, shards = watched(remote, together)
    with store.stream(SPEC, threads=1) as stream:
        next(stream)
    assert 12 <= shards.most <= chunk_fetch.REQUESTS


def test_requests_go_on_into_the_next_window(remote: Store) -> None:
    """Two windows have memory; chunks of a third are fetched while none is used up."""
    store, shards = watched(remote)
    spec = SPEC.model_copy(update={"epochs": 1, "window_chunks": 8})
    with store.stream(spec, threads=1) as stream:
        next(stream)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            asked = sum(len(r) for _, _, r in shards.read_ranges if r[0][0] >= 0)
            if asked > 2 * 3 * 8:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no chunk of a third window was asked for")


@pytest.mark.parametrize("most", [1, 600, 5000])
def test_what_was_fetched_and_not_decoded_is_bounded(remote: Store, most: int) -> None:
    """Also below the size of a single chunk, of which there is then one at a time."""
    store, shards = watched(remote)
    with store.stream(ONE_EPOCH) as stream:
        reader = stream._gatherer._reader
        loads = list(stream._ordering.order.windows(0, *_first_group(stream)))
    plan = [WindowLoad(one, one.chunks(Rank(0, 1), SPEC.lanes)) for one in loads[:2]]
    planes = [list(range(3))]
    fetching = ChunkFetch(reader, planes, iter(plan), most_bytes=most)
    largest = 0
    n_chunks = 0
    held: queue.SimpleQueue[chunk_fetch.Fetch] = queue.SimpleQueue()
    n_bytes = 0
    while (window := fetching.next()) is not None:
        while True:
            try:
                fetch = window.fetches.get(timeout=0.02)
            except queue.Empty:
                if held.empty():
                    continue
                # Nothing more begins until what is held is given back.
                given = held.get_nowait()
                n_bytes -= given.n_bytes
                fetching.done(given)
                continue
            if fetch is None:
                break
            assert sum(map(len, fetch.answer.result())) <= fetch.n_bytes
            n_bytes += fetch.n_bytes
            n_chunks += len(fetch.cells)
            held.put(fetch)
            largest = max(largest, fetch.n_bytes)
            assert n_bytes <= max(most, largest)
    fetching.close()
    assert n_chunks == sum(len(load.chunks) for load in plan)


def _first_group(stream: Any) -> tuple[Any, int, int]:
    return next(iter(stream._ordering.units.groups(0))), 0, 0


def test_a_damaged_chunk_is_named_and_may_be_skipped(remote: Store) -> None:
    key = shard_key("b", 3)
    index = remote.index("b", 3)
    damaged = bytearray(remote.storage.read(key))
    damaged[int(index.offset[5]) + 3] ^= 1
    remote.storage.put(key, bytes(damaged))
    fresh = Store(remote.storage, remote.manifest)
    with pytest.raises(CorruptError, match=rf"{key}: unit 3, site b, chunk 5: "):
        rows(fresh)
    with fresh.stream(ONE_EPOCH, on_corrupt="skip") as stream:
        with pytest.warns(StreamWarning, match="skipped 1 chunks"):
            n = sum(len(batch.row) for batch in stream)
        # Its neighbours, which come by the same request, are not lost with it.
        assert stream.skipped_rows == 8
        assert n == stream.rows_per_epoch - 8


def test_a_missing_shard_is_named_and_may_be_skipped(remote: Store) -> None:
    remote.storage.delete(shard_key("b", 3))
    fresh = Store(remote.storage, remote.manifest)
    with pytest.raises(ObjectError, match=r"acts/b/c/3/0.*`actstore verify` lists"):
        rows(fresh)
    with fresh.stream(ONE_EPOCH, on_corrupt="skip") as stream:
        with pytest.warns(StreamWarning, match="skipped"):
            list(stream)
        assert stream.skipped_rows == 128


def test_another_error_ends_the_stream_and_is_raised_each_time(remote: Store) -> None:
    def fails() -> None:
        raise StorageError("the network is gone")

    store, _ = watched(remote, fails)
    with store.stream(SPEC) as stream:
        for _ in range(2):
            with pytest.raises(StorageError, match="the network is gone"):
                next(stream)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_closing_in_the_middle_ends_all_threads(remote: Store, after: int) -> None:
    """While requests wait for their answers, and others for room."""
    store, _ = watched(remote, lambda: time.sleep(0.02))
    stream = store.stream(SPEC)
    for _ in range(after):
        next(stream)
    state = stream.state()
    if not after:
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(next, stream)
            time.sleep(0.05)
            stream.close()
            with pytest.raises(actstore.errors.StoreError, match="closed while"):
                waiting.result()
    stream.close()
    stream.restore(state)
    wanted = rows(remote)[after]
    with stream:
        assert next(stream).row.numpy().tobytes() == wanted[2]


def test_a_process_ends_though_its_stream_was_never_closed() -> None:
    code = (
        "from tests.stream.test_chunk_fetch import LAYOUT, SITES, SPEC\n"
        "from tests.support import make_store\n"
        "store = make_store('memory://never/closed', SITES, **LAYOUT)\n"
        "stream = store.stream(SPEC)\n"
        "next(stream)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_room_is_never_exceeded(sizes: list[int], most: int) -> None:
    room = ByteRoom(most)
    lock = threading.Lock()
    taken = [0]
    seen: list[tuple[int, int]] = []

    def use(size: int) -> None:
        assert room.take(size)
        with lock:
            taken[0] += size
            seen.append((taken[0], size))
        with lock:
            taken[0] -= size
        room.give_back(size)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, sizes))
    assert all(total <= most or total == size for total, size in seen)
    room.close()
    assert not room.take(1)
