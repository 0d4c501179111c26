"""Our stream against other loaders over a real S3 server, in one run: `python -m
tests.benchmarks.object_store_peers [--rows N] [--distance]`.

Server and store are those of `object_store.py`. Loaders take turns, each in its steady
state: ours; tensorstore and zarr-python with our order and windows, as many requests at
a time as ours (`peers/loaders.py`; from 3.4 on zarr-python has its fused pipeline); and
insitubatch, which shuffles on its own: whole shards of all sites, in blocks of 4 units
(with its default of 16, the whole store would stay in its memory). A line's `floor` is
the peer's rows/s and its `ratio` ours over the peer's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Generator, Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

import actstore
from actstore.format.stored_dtypes import to_torch
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from actstore.stream.chunk_fetch import REQUESTS
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.benchmarks.peers.link import Rate, note
from tests.benchmarks.servers.raw_requests import s3_store
from tests.benchmarks.servers.slow_line import slow_line
from tests.benchmarks.stream import BATCH, benchmark_store
from tests.benchmarks.stream_peers import Take, loaders, rate
from tests.s3_server.server import missing, server

BLOCK = 4  # units that insitubatch shuffles together


@contextlib.contextmanager
def insitubatch(store: Store) -> Iterator[Take]:
    """Endless batches of insitubatch, [about `BATCH`, d]: some tokens at all sites."""
    from insitubatch import InSituDataset, open_geometries, split_by_chunk
    from zarr.storage import ObjectStore

    import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

    there = ObjectStore(s3_store(f"{store.url}/acts"), read_only=True)
    geometries = open_geometries(there, list(store.sites))
    manifest = split_by_chunk(next(iter(geometries.values())), fractions=(1.0, 0, 0))
    data = InSituDataset(
        there,
        manifest,
        geometries,
        batch_size=BATCH // len(store.sites),
        block_chunks=BLOCK,
        max_inflight=REQUESTS,
    )

    def batches() -> Generator[torch.Tensor]:
        epoch = 0
        while True:
            data.set_epoch(epoch)
            for batch in data.train:
                rows = np.concatenate(list(batch.arrays.values()))
                yield to_torch(rows)
            epoch += 1

    endless = batches()
    try:
        yield lambda: next(endless)
    finally:
        endless.close()
        data.close()


def measure(store: Store, case: str, options: argparse.Namespace) -> None:
    with store.stream(StreamSpec(batch=BATCH)) as stream:
        window, epoch = stream.window_chunks, stream.batches_per_epoch
    untimed = 2 * window * store.layout.chunk_rows * len(store.sites) // BATCH
    turns = loaders(store, window, options)
    try:
        turns[f"insitubatch {version('insitubatch')}"] = partial(insitubatch, store)
    except ImportError as error:
        note(f"insitubatch is left out: {error}")
    rates: dict[str, list[Rate]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name, loader in turns.items():
            rates[name].append(rate(loader, untimed, epoch, 0))
            note(f"{name} {rates[name][-1].rows_per_s:,.0f} rows/s")
    own = [one.rows_per_s for one in rates.pop("ours")]
    for name, of_peer in rates.items():
        theirs = [one.rows_per_s for one in of_peer]
        record = BenchRecord(
            bench="object_store_peers",
            case=f"{case} {name}",
            value=statistics.median(own),
            unit="rows/s",
            floor=statistics.median(theirs),
            ratio=statistics.median(a / b for a, b in zip(own, theirs, strict=True)),
        )
        print(record.model_dump_json(), flush=True)


def main() -> None:
    """Print one JSON line per peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32_768, help="rows per site")
    parser.add_argument("--codec", default="lz4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window", type=int, help="chunks per site")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distance", action="store_true")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds, each way")
    parser.add_argument("--rate", type=float, default=2e9, help="bits per second")
    options = parser.parse_args()
    keep_freed_memory()
    why = missing()
    if why is not None:
        note(why)
        return
    with server("bluestore") as names, contextlib.ExitStack() as stack:
        os.environ.update(names)
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        case = f"{options.codec} loopback"
        if options.distance:
            stack.enter_context(slow_line(options.delay, options.rate))
            case = f"{options.codec} {2000 * options.delay:.0f}ms"
        url = f"s3://{names['S3_BUCKET']}/bench/store"
        benchmark_store(url, options.codec, options.rows, "bfloat16")
        measure(actstore.open(url), case, options)


if __name__ == "__main__":
    main()
