"""Writing alone: units of 12 sites x 8,192 rows x 768 in bfloat16 (151 MB) committed to
a local store.

`python -m tests.benchmarks.writing [--units N] [--rounds N] [--out DIR]`. Floor: 1 /
(1/encode + 1/digest + 1/write), each measured alone in the same round with the same
threads: encode is permutation, default codec and checksums; digest is blake3; write
puts the encoded bytes as objects (with fsync). The rows are Gaussian, which compress
little. Cases: a folder on disk, and the memory file system where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from actstore.format.object_records import object_record
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.harvesting.store_writer import StoreWriter
from actstore.machine.glibc_malloc import keep_freed_memory
from schemas.manifest import BlockRecord
from schemas.records import BenchRecord
from tests.support import make_plan

N_SITES, SEQUENCES, CONTEXT, D = 12, 64, 128, 768
ROWS = SEQUENCES * CONTEXT
SHARED_MEMORY = Path("/dev/shm")


class Work:
    """One unit's rows, and the codec that stores them."""

    def __init__(self, n_units: int) -> None:
        sites = {f"blocks.{i}.hook_mlp_out": D for i in range(N_SITES)}
        self.n_units = n_units
        self.plan = make_plan(
            sites,
            n_units=n_units,
            unit_sequences=SEQUENCES,
            context=CONTEXT,
            chunk_rows=1024,
        )
        draws = np.random.default_rng(0)
        self.values = {
            site: draws.standard_normal((ROWS, D), np.float32).astype(
                ml_dtypes.bfloat16
            )
            for site in sites
        }
        self.rows = np.stack(
            [
                np.repeat(np.arange(SEQUENCES), CONTEXT),
                np.tile(np.arange(CONTEXT), SEQUENCES),
            ],
            1,
        )
        self.order = draws.permutation(ROWS)
        self.bytes = sum(array.nbytes for array in self.values.values())

    def commit(self, folder: Path) -> float:
        """Bytes per second of whole commits."""
        shutil.rmtree(folder, ignore_errors=True)
        writer = StoreWriter.create(Storage(str(folder)), self.plan)
        seconds = [
            _seconds(partial(writer.commit_unit, *unit)) for unit in self.units(writer)
        ]
        writer.close()
        return self.bytes / statistics.median(seconds)

    def units(self, writer: StoreWriter) -> Iterator[tuple[SealedUnit, BlockRecord]]:
        """The units, each with its token block, which is written before."""
        norms = {site: np.ones(ROWS, np.float32) for site in self.values}
        tokens = np.ones((SEQUENCES, CONTEXT), np.int32)
        for unit in range(self.n_units):
            last = unit == self.n_units - 1
            block = writer.commit_block(unit, tokens, {}, last)
            rows = self.rows.astype(np.int32)
            stats = UnitStats(self.plan.sites)
            values = dict(self.values)
            yield SealedUnit(unit, SEQUENCES, rows, values, norms, stats), block

    def alone(
        self, folder: Path, pool: ThreadPoolExecutor
    ) -> tuple[float, float, float]:
        """Bytes (of rows) per second of encoding, digests and writing by themselves."""
        shutil.rmtree(folder, ignore_errors=True)
        storage, codec = (
            Storage(str(folder)),
            StoreWriter(Storage(str(folder)), self.plan).codec(D),
        )
        shards: dict[str, list[bytes]] = {}

        def encode(item: tuple[str, NDArray[np.generic]]) -> None:
            shards[item[0]] = codec.encode(item[1], self.order)

        jobs: list[Callable[[], object]] = [
            lambda: list(pool.map(encode, self.values.items())),
            lambda: list(pool.map(object_record, shards.values())),
            lambda: list(
                pool.map(lambda key: storage.put(f"shards/{key}", shards[key]), shards)
            ),
        ]
        encoded, digested, written = (
            self.bytes / statistics.median(_seconds(job) for _ in range(3))
            for job in jobs
        )
        return encoded, digested, written


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def measure(case: str, folder: Path, n_units: int, rounds: int) -> None:
    work, values, floors = Work(n_units), [], []
    with ThreadPoolExecutor(2) as pool:
        work.commit(folder)  # the allocator and the page cache are warm from here on
        for _ in range(rounds):
            rates = work.alone(folder, pool)
            floors.append(1 / sum(1 / rate for rate in rates))
            values.append(work.commit(folder))
            text = ", ".join(
                f"{rate / 1e9:.2f}" for rate in (*rates, floors[-1], values[-1])
            )
            sys.stderr.write(
                f"{case}: encode, digest, write, floor, commit: {text} GB/s\n"
            )
    ratio = statistics.median(
        value / floor for value, floor in zip(values, floors, strict=True)
    )
    record = BenchRecord(
        bench="writing",
        case=case,
        value=statistics.median(values) / 1e9,
        unit="GB/s",
        floor=statistics.median(floors) / 1e9,
        ratio=ratio,
    )
    sys.stdout.write(record.model_dump_json() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the store on disk (default: a temporary one)",
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    places = {"disk": arguments.out} | (
        {"memory_file_system": SHARED_MEMORY} if SHARED_MEMORY.is_dir() else {}
    )
    for case, place in places.items():
        with tempfile.TemporaryDirectory(dir=place) as folder:
            measure(case, Path(folder) / "store", arguments.units, arguments.rounds)


if __name__ == "__main__":
    main()
