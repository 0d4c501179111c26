"""Measures the time from `actstore.open` to a stream's first batch.

`python -m tests.benchmarks.opening [--units N] [--rounds N]`.

Store: 12 sites of d 768 in bfloat16 (lz4), units of 64 chunks of 1.5 MiB; all shards
are links to one page-cached file, so that 100,000 units (117 TB) cost nothing. Floor:
the first window's chunks alone, read and decoded in as many threads.
`first_batch_of_many_units_...`: `value` is everything, at a window of so many chunks
per site; the smallest (one chunk a lane) shows what opening and ordering cost, the
default one what a user waits for. Medians, in seconds; ratio = floor / value.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

import actstore
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.chunk_reader import ChunkReader
from actstore.store.store import Store
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.synthetic import link_first_windows, linked_store

N_SITES, D, CHUNK_ROWS, UNIT_CHUNKS = 12, 768, 1024, 64


class Parts(NamedTuple):
    """Seconds: `actstore.open`, `Store.stream`, the first batch."""

    open: float
    stream: float
    batch: float


def many_units(folder: Path, n_units: int, spec: StreamSpec) -> Store:
    """A store of which only the shards of the first two windows exist."""
    store = linked_store(
        folder,
        n_units=n_units,
        unit_rows=CHUNK_ROWS * UNIT_CHUNKS,
        chunk_rows=CHUNK_ROWS,
        n_sites=N_SITES,
        d=D,
        codec="lz4",
        links=(),
    )
    link_first_windows(store, spec)
    return store


def first_batch_of_many_units(url: str, spec: StreamSpec, threads: int) -> Parts:
    """A handle and a stream of its own."""
    times = [time.perf_counter()]
    store = actstore.open(url)
    times.append(time.perf_counter())
    with store.stream(spec, threads=threads) as stream:
        times.append(time.perf_counter())
        next(stream)
        times.append(time.perf_counter())
    return Parts(*(b - a for a, b in pairwise(times)))


def one_window(store: Store, window_chunks: int, threads: int) -> float:
    """Seconds for as many chunks as a window has, one after the other, into memory
    that is there.
    """
    reader = ChunkReader(store, store.sites)
    window = np.zeros((N_SITES * window_chunks, CHUNK_ROWS, D), reader.dtype)

    def read(part: int) -> None:
        for i in range(part, len(window), threads):
            reader.read(i % N_SITES, 0, i // N_SITES % UNIT_CHUNKS, window[i])

    workers = [threading.Thread(target=read, args=(part,)) for part in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def measure(folder: Path, n_units: int, memory: int, threads: int, rounds: int) -> None:
    spec = StreamSpec(memory=memory)
    store = many_units(folder, n_units, spec)
    with store.stream(spec) as stream:
        window = stream.window_chunks
    first_batch_of_many_units(store.url, spec, threads)  # warms up
    taken = []
    floors = []
    for _ in range(rounds):
        taken.append(first_batch_of_many_units(store.url, spec, threads))
        floors.append(one_window(store, window, threads))
    floor = statistics.median(floors)
    value = statistics.median(sum(parts) for parts in taken)
    ratio = statistics.median(
        f / sum(parts) for f, parts in zip(floors, taken, strict=True)
    )
    name = f"first_batch_of_many_units_{n_units}_window_{window}"
    _print(name, value, floor, ratio)
    for part in Parts._fields:
        seconds = statistics.median(getattr(parts, part) for parts in taken)
        _print(f"{name}_{part}", seconds, floor, floor / seconds)


def _print(case: str, value: float, base: float, ratio: float) -> None:
    record = BenchRecord(
        bench="opening", case=case, value=value, unit="s", floor=base, ratio=ratio
    )
    print(record.model_dump_json(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    smallest = 2 * StreamSpec().lanes * N_SITES * CHUNK_ROWS * D * 2
    with tempfile.TemporaryDirectory() as folder:
        for n_units, memory in (
            (1000, smallest),
            (arguments.units, smallest),
            (arguments.units, StreamSpec().memory),
        ):
            measure(
                Path(folder) / f"{n_units}-{memory}",
                n_units,
                memory,
                arguments.threads,
                arguments.rounds,
            )


if __name__ == "__main__":
    main()
