"""Stream speed over numbers of sites, chunk sizes and threads: `python -m
tests.benchmarks.stream_table [--rows N]`.

The store of `stream.py` (d 768, bfloat16, lz4, page-cached), written with several chunk
sizes; batches of 4,096 mixed rows, steady state. `floor`: the same at the defaults (12
sites, 1,024 rows, 2 threads), measured in turn with each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.benchmarks.stream import BATCH, D, benchmark_store

SITES = (1, 4, 12)
CHUNKS = (128, 256, 512, 1024, 2048)
THREADS = (1, 2, 3)


def gigabytes_per_second(store: Store, n_sites: int, threads: int) -> float:
    """Over a second after the first epoch, which warms up."""
    spec = StreamSpec(
        sites=store.sites[:n_sites], batch=BATCH, dtype="bfloat16", epochs=None
    )
    with store.stream(spec, threads=threads) as stream:
        for _ in range(stream.batches_per_epoch):
            next(stream)
        rows = 0
        began = time.perf_counter()
        while time.perf_counter() - began < 1.0:
            rows += len(next(stream).x)
        return rows * D * 2 / 1e9 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65_536, help="per site")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            rows: benchmark_store(
                Path(folder) / str(rows),
                "lz4",
                arguments.rows,
                "bfloat16",
                chunk_rows=rows,
            )
            for rows in CHUNKS
        }
        cases = [(12, rows, 2) for rows in CHUNKS] + [
            (n, 1024, threads) for n in SITES for threads in THREADS
        ]
        for case in dict.fromkeys(cases):
            n_sites, rows, threads = case
            values = []
            floors = []
            for _ in range(arguments.rounds):
                floors.append(gigabytes_per_second(stores[1024], 12, 2))
                values.append(gigabytes_per_second(stores[rows], n_sites, threads))
            record = BenchRecord(
                bench="stream_table",
                case=f"{n_sites} sites, chunks of {rows} rows, {threads} threads",
                value=statistics.median(values),
                unit="GB/s",
                floor=statistics.median(floors),
                ratio=statistics.median(
                    v / f for v, f in zip(values, floors, strict=True)
                ),
            )
            sys.stdout.write(record.model_dump_json() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
