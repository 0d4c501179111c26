"""What a store of 100,000 units and 26 sites costs: `python -m
tests.benchmarks.many_units [--units N] [--no-s3]`.

Values are not there; manifest, columns and statistics are as large as they would be (d
2,304). Each line is from a process of its own. Opening, `info` and the planning of a
stream: from a disk, and from a real S3 server on the same machine where one is
installed. Floor: the same with 1,000 units; the lines in MB are the most memory that
the process had, torch included from `stream` on.

`start` and `finish`: a worker that starts on a store whose 10,000 units are all
committed, and finishing it; records are made in memory when they are read, and have the size of 26
sites of d 64 (their histograms are most of the statistics). `--wait` lets each request
take so long, as over a network; with it 2,000 units are finished.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.records import BenchRecord

N_SITES, D = 26, 2304
FEW = 1000
FINISHED = 10_000  # a minute; the time of a unit does not depend on how many there are
Figures = dict[str, float]


def peak_mb() -> float:
    """The most memory that this process had."""
    # Not getrusage: what it says begins with the memory of the process that forked.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def timed(figures: Figures, name: str, work: Callable[[], Any]) -> Any:
    """Do something, and note its seconds and the memory so far."""
    began = time.perf_counter()
    result = work()
    figures[f"{name}_s"] = time.perf_counter() - began
    figures[f"{name}_mb"] = peak_mb()
    return result


def opened(url: str) -> Figures:
    """Open, describe and plan a stream."""
    import actstore
    from actstore.store.description import describe
    from schemas.stream import StreamSpec

    figures: Figures = {}
    store = timed(figures, "open", lambda: actstore.open(url))
    # Once more, with all libraries loaded.
    timed(figures, "open_again", lambda: actstore.open(url))
    timed(figures, "info", lambda: describe(store))
    import actstore.stream.stream  # torch is loaded before the clock runs

    stream = timed(figures, "stream", lambda: store.stream(StreamSpec()))
    stream.close()
    return figures


def finished(folder: str, n_units: int, wait_s: float) -> Figures:
    """Start a worker's blocks on committed units, and finish the store."""
    from actstore.harvesting.store_writer import StoreWriter
    from actstore.harvesting.token_blocks import TokenBlocks
    from actstore.harvesting.worker_share import Share
    from tests.synthetic import CommittedUnits

    sites = {f"site.{i}": 64 for i in range(N_SITES)}
    storage = CommittedUnits(Path(folder), n_units, sites)
    storage.wait_s = wait_s
    figures: Figures = {}
    made = timed(
        figures, "writer", lambda: StoreWriter(storage, storage.plan, threads=2)
    )
    timed(
        figures,
        "start_alone",
        lambda: TokenBlocks(storage.plan, made, None, Share()),
    )
    timed(
        figures,
        "start_of_1024",
        lambda: TokenBlocks(storage.plan, made, None, Share(3, 1024)),
    )
    timed(figures, "missing", made.missing_units)
    timed(figures, "finish", made.finish)
    made.close()
    return figures


def in_a_process(*words: str) -> Figures:
    """The figures that this module prints when it is called so."""
    command = [sys.executable, "-m", "tests.benchmarks.many_units", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def tell(name: str, figures: Figures, few: Figures) -> None:
    """Print a line for each figure."""
    for case, value in figures.items():
        record = BenchRecord(
            bench="many_units",
            case=f"{name}_{case}",
            value=value,
            unit="MB" if case.endswith("_mb") else "s",
            floor=few[case],
            ratio=value / max(few[case], 1e-9),
        )
        print(record.model_dump_json(), flush=True)


def made_store(folder: Path, n_units: int) -> str:
    """A finished store without values."""
    from tests.synthetic import linked_store

    store = linked_store(
        folder,
        n_units=n_units,
        unit_rows=2048,
        chunk_rows=256,
        n_sites=N_SITES,
        d=D,
        codec="lz4",
        links=(),
    )
    return store.url


def in_bucket(url: str, target: str) -> str:
    """Copy a store without its values to an object store."""
    from actstore.format.storage import Storage

    source, there = Storage(url), Storage(target)
    for key in source.list():
        if not key.startswith(("acts/", "norm/")):
            there.put(key, source.read(key))
    return target


def measure(n_units: int, *, with_s3: bool) -> None:
    """Print all lines."""
    from tests.s3_server.server import missing, server

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = made_store(folder / "few", FEW)
        many = made_store(folder / "many", n_units)
        tell(
            f"{n_units}_local",
            in_a_process("--open", many),
            in_a_process("--open", few),
        )
        reason = missing() if with_s3 else "left out"
        if reason is None:
            import os

            with server() as environment:
                os.environ.update(environment)
                urls = [
                    in_bucket(url, f"s3://test-bucket/{size}")
                    for size, url in (("many", many), ("few", few))
                ]
                tell(f"{n_units}_s3", *(in_a_process("--open", url) for url in urls))
        else:
            print(f"S3: {reason}", file=sys.stderr)
        shutil.rmtree(folder)
        folder.mkdir()
        finishing = [
            in_a_process("--finish", str(folder / str(n)), "--units", str(n))
            for n in (FINISHED, FEW)
        ]
        tell(f"{FINISHED}_committed", *finishing)
        waiting = [
            in_a_process(
                "--finish", str(folder / f"{wait}"), "--units", "2000", "--wait", wait
            )
            for wait in ("0.03", "0")
        ]
        tell("2000_committed_30ms", *waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--no-s3", action="store_true")
    parser.add_argument("--open", metavar="URL", help="measure this one alone")
    parser.add_argument("--finish", metavar="FOLDER", help="measure this alone")
    parser.add_argument("--wait", type=float, default=0.0, help="s for each request")
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(opened(arguments.open)))
    elif arguments.finish:
        done = finished(arguments.finish, arguments.units, arguments.wait)
        print(json.dumps(done))
    else:
        measure(arguments.units, with_s3=not arguments.no_s3)


if __name__ == "__main__":
    main()
