"""Stream speed against sequential reads: `python -m tests.benchmarks.stream [--rows N]
[--codecs lz4,raw] [--out DIR]`.

Store: 12 sites of d 768 in bfloat16, made through the real writer, page-cached.
Candidate: `store.stream()` to consumed mixed batches of 4,096 rows at the default
window, in its steady state (one epoch, timed from the second on). Floor: the same
chunks in file order into one reused window-sized buffer, checksums verified, decoded by
the same codec in as many threads, no shuffle. The two alternate; the ratio is the
median of the rounds' ratios. On a machine that others use too, the stream's third
thread wins it a larger share of the cores than the floor gets: the CPU seconds per GB
tell.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.chunk_reader import ChunkReader
from actstore.store.store import Store
from actstore.stream.stream import Stream
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.support import make_store

N_SITES = 12
D = 768
CONTEXT = 128
BATCH = 4096
# Different rows of the store: more would take memory and change nothing.
POOL = 1 << 13


def benchmark_store(
    folder: Path | str,
    codec: str,
    rows: int,
    dtype: str,
    chunk_rows: int | None = None,
) -> Store:
    """Gaussian rows whose norm differs by site: bit-shuffled they shrink about as much
    as real activations do.
    """
    pool = np.random.default_rng(0).standard_normal((POOL, D)).astype(np.float32)
    sites = {f"blocks.{i}.hook_mlp_out": D for i in range(N_SITES)}
    numbers = {site: i for i, site in enumerate(sites)}

    def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        i = numbers[site]
        which = (sequence * CONTEXT + position + 997 * i) % POOL
        return pool[which] * np.float32(1 + i)

    sequences = rows // CONTEXT
    unit = max(1, sequences // 32)
    return make_store(
        folder,
        sites,
        values,
        n_units=sequences // unit,
        unit_sequences=unit,
        context=CONTEXT,
        codec=codec,
        dtype=dtype,
        chunk_rows=chunk_rows,
    )


class Spent(NamedTuple):
    """Seconds by the clock, and CPU seconds of all threads."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Spent:
    wall = time.perf_counter()
    cpu = time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def floor(store: Store, window_chunks: int, threads: int) -> Callable[[], None]:
    """Reads the stream's shards in file order."""
    reader = ChunkReader(store, store.sites)
    chunk_rows = store.layout.chunk_rows
    window = np.zeros((window_chunks * N_SITES, chunk_rows, D), reader.dtype)
    chunks_per_unit = -(-store.unit_rows // chunk_rows)
    chunks = []
    for unit in store.units("train"):
        for site in range(N_SITES):
            chunks += [(site, unit, chunk) for chunk in range(chunks_per_unit[unit])]

    def read(part: int) -> None:
        for i in range(part, len(chunks), threads):
            reader.read(*chunks[i], window[i % len(window)])

    def run() -> None:
        workers = [
            threading.Thread(target=read, args=(part,)) for part in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def epoch(stream: Stream) -> Callable[[], None]:
    """Takes as many batches as an epoch has."""

    def run() -> None:
        for _ in range(stream.batches_per_epoch):
            next(stream)

    return run


def measure(
    store: Store, codec: str, threads: int, rounds: int, window_chunks: int | None
) -> None:
    spec = StreamSpec(
        batch=BATCH, dtype="bfloat16", epochs=None, window_chunks=window_chunks
    )
    began = time.perf_counter()
    stream = store.stream(spec, threads=threads)
    next(stream)
    first = time.perf_counter() - began
    gigabytes = stream.rows_per_epoch * D * 2 / 1e9
    window = stream.window_chunks
    read = floor(store, window, threads)
    consume = epoch(stream)
    floors = []
    streams = []
    with stream:
        for _ in range(rounds + 1):
            floors.append(timed(read))
            # While it is not asked, the stream loads ahead: what it has goes by before
            # its clock starts.
            consume()
            streams.append(timed(consume))
    pairs = list(zip(floors, streams, strict=True))[1:]  # the first round warms up
    by_clock = statistics.median(f.wall for f, _ in pairs)
    by_cpu = statistics.median(f.cpu for f, _ in pairs)
    value = statistics.median(s.wall for _, s in pairs)
    ratio = statistics.median(f.wall / s.wall for f, s in pairs)
    _print(
        f"{codec}_{threads}_threads_window_{window}",
        gigabytes / value,
        "GB/s",
        gigabytes / by_clock,
        ratio,
    )
    value = statistics.median(s.cpu for _, s in pairs)
    ratio = statistics.median(s.cpu / f.cpu for f, s in pairs)
    _print(f"{codec}_cpu", value / gigabytes, "CPU s/GB", by_cpu / gigabytes, ratio)
    window_rows = window * store.layout.chunk_rows * N_SITES
    load = by_clock * window_rows / stream.rows_per_epoch
    _print(
        f"{codec}_first_batch_against_one_window_read", first, "s", load, first / load
    )


def _print(case: str, value: float, unit: str, base: float, ratio: float) -> None:
    record = BenchRecord(
        bench="stream", case=case, value=value, unit=unit, floor=base, ratio=ratio
    )
    print(record.model_dump_json(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=131_072, help="rows per site (131,072 make 2.4 GB)"
    )
    parser.add_argument("--codecs", default="lz4,raw")
    parser.add_argument("--dtype", default="bfloat16", help="of the store")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--window", type=int, help="chunks per site (default: the stream's own choice)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the stores, kept (default: a temporary one)",
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for codec in arguments.codecs.split(","):
            where = (
                arguments.out or Path(folder)
            ) / f"{codec}-{arguments.dtype}-{arguments.rows}"
            if (where / "manifest.json").exists():
                import actstore

                store = actstore.open(where)
            else:
                store = benchmark_store(where, codec, arguments.rows, arguments.dtype)
            measure(store, codec, arguments.threads, arguments.rounds, arguments.window)


if __name__ == "__main__":
    main()
