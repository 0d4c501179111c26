"""A store elsewhere by way of a cache, against the same store on this disk:
`python -m tests.benchmarks.cache [--rows N] [--codec lz4] [--dir DIR]`.

Store: that of `stream.py`, in a folder and on the real S3 server of the tests on the
loopback (`--memory`: in the process' memory instead, where there is no server).

second epoch: epochs of mixed batches from a full cache, in turn with those of the local
store, both in their steady state. first epoch of a process: the cache is full, and each
file is compared with its checksum. cold fill: an epoch that fills an empty cache, against
one without a cache. The ratio is the median of the rounds'. hit and fill: one chunk of
1 MiB after the other, against plain files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import actstore
from actstore.cache import shared_caches
from actstore.cache.local_cache import LocalCache
from actstore.format.storage import Storage
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from actstore.stream.stream import Stream
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.benchmarks.stream import BATCH, D, Spent, benchmark_store, epoch, timed
from tests.s3_server.server import missing, server

CHUNK = 1 << 20
N_CHUNKS = 200


def opened(store: Store, threads: int) -> Stream:
    """A stream of one epoch after the other, its first one done."""
    spec = StreamSpec(batch=BATCH, dtype="bfloat16", epochs=None)
    stream = store.stream(spec, threads=threads)
    epoch(stream)()
    return stream


def first_epoch(store: Store, threads: int) -> Spent:
    """Takes all batches of a first epoch, from opening the stream on."""
    spec = StreamSpec(batch=BATCH, dtype="bfloat16", epochs=1)
    with store.stream(spec, threads=threads) as stream:
        return timed(epoch(stream))


def copied(local: Path, url: str) -> None:
    """Copies a store to where it is read from."""
    here = Storage(local)
    there = Storage(url)
    for key in here.list():
        there.put(key, here.read(key))


@contextlib.contextmanager
def elsewhere(memory: bool) -> Iterator[str]:
    """A URL for the store: on a real server, or in this process' memory."""
    if memory or missing():
        yield "memory://benchmark/store"
        return
    with server("bluestore") as environment:
        os.environ.update(environment)
        yield f"s3://{environment.get('S3_SERVER_BUCKET', 'test-bucket')}/store"


def measure(local: Store, url: str, cache: Path, threads: int, rounds: int) -> None:
    """Prints what an epoch takes in each way."""
    gigabytes = local.manifest.n_train_rows * D * 2 * len(local.sites) / 1e9
    size = 4 * local.manifest.n_bytes + (64 << 20)
    plain, cold, fresh, near = [], [], [], []
    for _ in range(rounds):
        plain.append(first_epoch(actstore.open(url), threads))
        shared_caches.close_all()
        shutil.rmtree(cache, ignore_errors=True)
        store = actstore.open(url, cache=cache, cache_size=size)
        cold.append(first_epoch(store, threads))
        # as another process finds it, which compares each file with its checksum
        shared_caches.close_all()
        fresh.append(first_epoch(actstore.open(url, cache=cache), threads))
        near.append(first_epoch(local, threads))
    told("cold_fill_against_no_cache", gigabytes, cold, plain)
    told("first_epoch_of_a_process_against_local", gigabytes, fresh, near)
    warm: list[Spent] = []
    near = []
    with (
        opened(actstore.open(url, cache=cache), threads) as far,
        opened(local, threads) as here,
    ):
        for _ in range(2 * rounds):
            for stream, spent in ((far, warm), (here, near)):
                # What was loaded ahead goes by before the clock starts.
                epoch(stream)()
                spent.append(timed(epoch(stream)))
    told("second_epoch_against_local", gigabytes, warm, near)


def told(case: str, gigabytes: float, spent: list[Spent], floor: list[Spent]) -> None:
    """Prints rates by the clock, and CPU seconds per GB."""
    pairs = list(zip(spent, floor, strict=True))
    ratio = statistics.median(b.wall / a.wall for a, b in pairs)
    value = gigabytes / statistics.median(a.wall for a in spent)
    base = gigabytes / statistics.median(b.wall for b in floor)
    _print(case, value, "GB/s", base, ratio)
    ratio = statistics.median(a.cpu / b.cpu for a, b in pairs)
    value = statistics.median(a.cpu for a in spent) / gigabytes
    base = statistics.median(b.cpu for b in floor) / gigabytes
    _print(f"{case}_cpu", value, "CPU s/GB", base, ratio)


def measure_ledger(folder: Path) -> None:
    """Prints what a hit and a fill of 1 MiB cost, against plain files."""
    data = os.urandom(CHUNK)
    keys = [os.urandom(32) for _ in range(N_CHUNKS)]
    plain = folder / "plain"
    plain.mkdir()
    cache = LocalCache(folder / "cache", 1 << 30)
    writing, filling, reading, hitting = [], [], [], []
    for key in keys:
        path = plain / key.hex()
        writing.append(_seconds(lambda path=path: path.write_bytes(data)))
        one = ([key], [CHUNK], lambda _: [data])
        filling.append(_seconds(lambda one=one: cache.read(*one)))
    for key in keys:
        path = plain / key.hex()
        reading.append(_seconds(path.read_bytes))
        one = ([key], [CHUNK], lambda _: [data])
        hitting.append(_seconds(lambda one=one: cache.read(*one)))
    cache.close()
    for case, value, floor in (
        ("fill_of_1_MiB", filling, writing),
        ("hit_of_1_MiB", hitting, reading),
    ):
        typical, base = statistics.median(value), statistics.median(floor)
        _print(case, typical * 1e3, "ms", base * 1e3, base / typical)


def _seconds(work) -> float:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _print(case: str, value: float, unit: str, base: float, ratio: float) -> None:
    record = BenchRecord(
        bench="cache", case=case, value=value, unit=unit, floor=base, ratio=ratio
    )
    print(record.model_dump_json(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=32_768, help="rows per site (they make 0.6 GB)"
    )
    parser.add_argument("--codec", default="lz4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="no server")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = Path(name)
        measure_ledger(folder)
        benchmark_store(folder / "store", arguments.codec, arguments.rows, "bfloat16")
        local = actstore.open(folder / "store")
        with elsewhere(arguments.memory) as url:
            copied(folder / "store", url)
            measure(local, url, folder / "kept", arguments.threads, arguments.rounds)
        shared_caches.close_all()


if __name__ == "__main__":
    main()
