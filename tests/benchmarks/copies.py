"""Copies to and from a real S3 server: a store of 6 units of 4 sites (about 150 MB).

`python -m tests.benchmarks.copies [--units N] [--rounds N]`. Floor: the same bytes as
raw PUTs, or raw GETs, of the store's objects by the same client with as many threads,
in the same round: no digests, no records, no local disk. Cases: push (local to S3),
pull (S3 to local).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import actstore
from actstore.format.storage import Storage
from actstore.sharing.copy_store import THREADS
from schemas.records import BenchRecord
from tests.s3_server import server
from tests.support import make_store

N_SITES, D = 4, 768


class Round(NamedTuple):
    """Seconds of one round."""

    push: float
    puts: float
    pull: float
    gets: float


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    why = server.missing()
    if why is not None:
        sys.exit(why)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        names = stack.enter_context(server.server("bluestore"))
        for name, value in names.items():
            environment.setenv(name, value)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        store = gaussian_store(folder / "s", options.units)
        bucket = f"s3://{names['S3_BUCKET']}"
        rounds = [one_round(store, bucket, i) for i in range(options.rounds)]
        report(rounds, store)


def gaussian_store(folder: Path, n_units: int) -> actstore.Store:
    """A store of rows that compress little, as activations do."""
    sites = {f"blocks.{i}.hook_mlp_out": D for i in range(N_SITES)}

    def values(_: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        draws = np.random.default_rng([int(sequence[0]), int(position[0])])
        return draws.standard_normal((len(sequence), D), np.float32)

    return make_store(
        folder,
        sites,
        values,
        n_units=n_units,
        unit_sequences=32,
        context=128,
        chunk_rows=1024,
    )


def one_round(store: actstore.Store, bucket: str, number: int) -> Round:
    """Copy to S3 and back, and move the same bytes without anything else."""
    there = f"{bucket}/{number}"
    objects = {key: store.storage.read(key) for key in store.storage.list()}
    raw = Storage(f"{there}-raw")
    push = timed(lambda: actstore.copy(store.url, there))
    puts = timed(lambda: in_threads(raw.put, objects.items()))
    back = Path(store.url).parent / "back"
    pull = timed(lambda: actstore.copy(there, back))
    gets = timed(lambda: in_threads(raw.read, ((key,) for key in objects)))
    shutil.rmtree(back)
    return Round(push, puts, pull, gets)


def in_threads(
    function: Callable[..., object], calls: Iterable[tuple[object, ...]]
) -> None:
    """Make all calls, as many at a time as a copy does."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda one: function(*one), calls))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(rounds: list[Round], store: actstore.Store) -> None:
    """Print a line for each case: the median round."""
    n_bytes = sum(store.storage.size(key) for key in store.storage.list())
    for case, floor in (("push", "puts"), ("pull", "gets")):
        ratios = [getattr(one, floor) / getattr(one, case) for one in rounds]
        middle = sorted(rounds, key=lambda one: getattr(one, case))[len(rounds) // 2]
        rate = n_bytes / getattr(middle, case) / 1e6
        record = BenchRecord(
            bench="copies",
            case=case,
            value=rate,
            unit="MB/s",
            floor=rate / statistics.median(ratios),
            ratio=statistics.median(ratios),
        )
        sys.stdout.write(record.model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
