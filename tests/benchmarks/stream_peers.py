"""Our stream against other loaders, in one run on the same rows: `python -m
tests.benchmarks.stream_peers [--rows N]`.

Store: that of `stream.py` (12 sites of d 768 in bfloat16, page-cached). Each loader
delivers batches of 4,096 shuffled rows of all sites: ours (`store.stream()`), and two
that read the chunks of the same windows in the same order with tensorstore and with
zarr-python (`peers/loaders.py`). SAELens holds one site per cache and knows no
bfloat16, so its loader gets the rows of the first site, in its own format as float16
(or `--saelens-dtypes`), with a mixing buffer of 65,536 and of 8,192 rows.

The loaders take turns, each alone and in its steady state: three windows untimed, then
at least an epoch timed. A line's `floor` is the peer's rows/s and its `ratio` ours over
the peer's, the median of the rounds' ratios. The `cpu` lines hold on a busy machine
too: CPU seconds of all threads per million rows, where less is better.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

import actstore
from actstore.format.stored_dtypes import to_float32
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.chunk_reader import ChunkReader
from actstore.store.store import Store
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.benchmarks.peers.link import Peer, PeerError, Rate, connect, note
from tests.benchmarks.peers.loaders import (
    Read,
    WindowLoader,
    tensorstore_reader,
    zarr_reader,
)
from tests.benchmarks.stream import BATCH, D, benchmark_store

Take = Callable[[], torch.Tensor]
Loader = Callable[[], AbstractContextManager[Take]]
BUFFERS = (65_536, 8_192)
TARGETS = {
    "tensorstore": 1.75,
    "zarr-python": 4.0,
    "saelens 65536": 10.0,
    "saelens 8192": 3.5,
}
CHECKED_BATCHES = 3


@contextmanager
def ours(store: Store, options: argparse.Namespace) -> Iterator[Take]:
    """`store.stream()`, as stored."""
    spec = StreamSpec(
        batch=BATCH, dtype="bfloat16", epochs=None, window_chunks=options.window
    )
    with store.stream(spec, threads=options.threads) as stream:
        yield lambda: next(stream).x


@contextmanager
def rival(store: Store, read: Read, window_chunks: int) -> Iterator[Take]:
    """The same batches, read by another package."""
    loader = WindowLoader(store, read, window_chunks, BATCH)
    try:
        yield lambda: next(loader)
    finally:
        loader.close()


def loaders(
    store: Store, window: int, options: argparse.Namespace
) -> dict[str, Loader]:
    """Ours and those that run in this process, checked to deliver the same rows."""
    found: dict[str, Loader] = {"ours": partial(ours, store, options)}
    for name, make in (
        ("tensorstore", tensorstore_reader),
        ("zarr-python", zarr_reader),
    ):
        try:
            found[name] = partial(rival, store, make(store, options.threads), window)
        except ImportError as error:
            note(f"{name} is left out: {error}")
            continue
        with found["ours"]() as take, found[name]() as other:
            assert all(torch.equal(take(), other()) for _ in range(CHECKED_BATCHES)), (
                f"{name} delivers other rows"
            )
    return found


def rate(loader: Loader, untimed: int, batches: int, seconds: float) -> Rate:
    """What a loader delivers over at least so many batches and seconds, after so many
    untimed batches.
    """
    with loader() as take:
        for _ in range(untimed):
            take()
        rows = 0
        done = 0
        cpu = time.process_time()
        began = time.perf_counter()
        while done < batches or time.perf_counter() - began < seconds:
            rows += len(take())
            done += 1
        return Rate(rows, time.perf_counter() - began, time.process_time() - cpu)


def saelens_cases(
    store: Store, folder: Path, options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Cases of SAELens' loader by name; the rows of the first site are written out for
    its worker to convert.
    """
    cases = {}
    for dtype in options.saelens_dtypes.split(","):
        rows = folder / f"{dtype}.npy"
        write_rows(store, rows, dtype)
        for buffer in BUFFERS:
            cases[f"saelens {buffer} {dtype}"] = {
                "what": "loader",
                "rows": str(rows),
                "d": D,
                "batch": BATCH,
                "buffer": buffer,
                "batches": 32,  # whole turns of either buffer
                "dtype": dtype,
                "threads": options.threads,
            }
    return cases


def write_rows(store: Store, path: Path, dtype: str) -> None:
    """All rows of the first site, in the order of the store."""
    chunk_rows = store.layout.chunk_rows
    reader = ChunkReader(store, store.sites[:1])
    raw = np.empty((chunk_rows, D), reader.dtype)
    unit_rows = store.unit_rows.tolist()
    out = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (sum(unit_rows), D))
    first = 0
    for unit, n_rows in enumerate(unit_rows):
        for chunk in range(-(-n_rows // chunk_rows)):
            reader.read(0, unit, chunk, raw)
            valid = min(chunk_rows, n_rows - chunk * chunk_rows)
            out[first : first + valid] = to_float32(raw)[:valid]
            first += valid
    out.flush()


def saelens_rate(peer: Peer, case: dict[str, object], seconds: float) -> Rate:
    """What SAELens' loader delivers, its buffer filled."""
    peer.prepare(**case)
    return peer.run(seconds)


def measure(
    store: Store,
    codec: str,
    peer: Peer | None,
    folder: Path,
    options: argparse.Namespace,
) -> None:
    """Every loader in turn, `rounds` times; one record per peer."""
    turns: dict[str, Callable[[], Rate]] = {}
    with store.stream(StreamSpec(batch=BATCH, window_chunks=options.window)) as stream:
        window = stream.window_chunks
        epoch = stream.batches_per_epoch
    untimed = 3 * window * store.layout.chunk_rows * len(store.sites) // BATCH
    for name, loader in loaders(store, window, options).items():
        turns[name] = partial(rate, loader, untimed, epoch, options.seconds)
    if peer is not None:
        for name, case in saelens_cases(store, folder, options).items():
            turns[name] = partial(saelens_rate, peer, case, options.seconds)
    rates: dict[str, list[Rate]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name in list(rates):
            try:
                rates[name].append(turns[name]())
            except PeerError as error:
                note(f"{name} is left out: {error}")
                del rates[name]
        now = ", ".join(
            f"{name} {values[-1].rows_per_s:,.0f}" for name, values in rates.items()
        )
        note(f"{codec}: {now} rows/s")
    own = rates.pop("ours")
    for name, values in rates.items():
        ratio = report(
            f"{codec} {name}",
            "rows/s",
            [v.rows_per_s for v in own],
            [v.rows_per_s for v in values],
        )
        target = next(value for key, value in TARGETS.items() if name.startswith(key))
        note(f"{codec} {name}: {ratio:.2f}x, wanted {target}x")
        report(
            f"{codec} {name} cpu",
            "CPU s/Mrow",
            [1e6 * v.cpu / v.rows for v in own],
            [1e6 * v.cpu / v.rows for v in values],
        )


def report(case: str, unit: str, own: list[float], theirs: list[float]) -> float:
    """Print the medians, and return the median of the rounds' ratios."""
    ratio = statistics.median(a / b for a, b in zip(own, theirs, strict=True))
    value = statistics.median(own)
    floor = statistics.median(theirs)
    record = BenchRecord(
        bench="stream_peers",
        case=case,
        value=value,
        unit=unit,
        floor=floor,
        ratio=ratio,
    )
    print(record.model_dump_json(), flush=True)
    return ratio


def main() -> None:
    """Print one JSON line per peer and codec."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=131_072, help="rows per site (131,072 make 2.4 GB)"
    )
    parser.add_argument("--codecs", default="lz4")
    parser.add_argument("--saelens-dtypes", default="float16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--window", type=int, help="chunks per site (default: the stream's own choice)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="at least, per turn")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the stores, kept (default: a temporary one)",
    )
    options = parser.parse_args()
    keep_freed_memory()
    peer = connect("saelens")
    with tempfile.TemporaryDirectory() as folder:
        for codec in options.codecs.split(","):
            where = (options.out or Path(folder)) / f"{codec}-bfloat16-{options.rows}"
            done = (where / "manifest.json").exists()
            store = (
                actstore.open(where)
                if done
                else benchmark_store(where, codec, options.rows, "bfloat16")
            )
            measure(store, codec, peer, Path(folder), options)
    if peer is not None:
        peer.close()


if __name__ == "__main__":
    main()
