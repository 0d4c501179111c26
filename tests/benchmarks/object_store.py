"""A store on a real S3 server against plain requests: `python -m
tests.benchmarks.object_store [--rows N] [--distance]`.

Server: Ceph's RADOS Gateway (tests/s3_server), on the same machine, so that it takes
its share of the cores. Store: as in `stream.py`, smaller.

Stream: one epoch of consumed batches in the steady state; floor: one ranged GET for
every chunk of it, as many at a time, by the better of the clients in the round. They
alternate; the ratio is the median of the rounds' ratios. First batch: from the URL to
the first batch, libraries loaded. Upload: units committed by the store writer; floor:
PUTs of the same objects. The server takes the same cores as decoding, shuffling and
encoding do, so further floors are the seconds of requests and of these, one after the
other: of the chunks' decoding, and of the same stream from a copy on the disk. Requests
are counted in `Storage`.

`--distance`: the same with 20 ms of latency and a bandwidth limit in between
(`servers/slow_line.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import actstore
from actstore.format.object_records import object_record
from actstore.format.storage import Storage
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.uploads import UPLOADS
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.shard_bytes import shard_key
from actstore.store.store import Store
from actstore.stream import chunk_fetch
from actstore.stream.stream import Stream
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from tests.benchmarks.servers.counted_requests import READS, WRITES, Requests
from tests.benchmarks.servers.raw_requests import Get, Run, raw_gets, raw_puts
from tests.benchmarks.servers.slow_line import slow_line
from tests.benchmarks.stream import BATCH, D, benchmark_store
from tests.benchmarks.writing import Work
from tests.s3_server.server import missing, server


def chunks_of(store: Store) -> list[Get]:
    """Where every chunk of the training units lies."""
    gets = []
    for unit in store.units("train"):
        n_chunks = -(-store.rows_in(unit) // store.layout.chunk_rows)
        for site in store.sites:
            index = store.index(site, unit)
            gets += [
                (shard_key(site, unit), int(index.offset[i]), int(index.length[i]))
                for i in range(n_chunks)
            ]
    return gets


def decoding(store: Store, gets: list[Get], threads: int) -> Run:
    """Decodes as many chunks as those, one chunk's bytes over and over."""
    key, offset, length = gets[0]
    raw = store.storage.read_ranges(key, [(offset, length)])[0]
    codec = store.codec(store.sites[0])

    def some(n: int) -> None:
        out = np.empty((codec.chunk_rows, codec.d), codec.dtype)
        for _ in range(n):
            codec.decode_chunk(raw, out)

    def run() -> float:
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(some, [len(gets) // threads] * threads))
            return time.perf_counter() - began

    return run


def epoch(stream: Stream) -> float:
    """Seconds for as many batches as an epoch has."""
    began = time.perf_counter()
    for _ in range(stream.batches_per_epoch):
        next(stream)
    return time.perf_counter() - began


def best(runs: dict[str, Run]) -> float:
    """Seconds of the fastest client."""
    seconds = {name: run() for name, run in runs.items()}
    note(", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items()))
    return min(seconds.values())


def measure_stream(
    url: str, case: str, requests: Requests, options: argparse.Namespace
) -> None:
    spec = StreamSpec(batch=BATCH, dtype="bfloat16", epochs=None)
    firsts = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        with actstore.open(url).stream(spec, threads=options.threads) as stream:
            next(stream)
            firsts.append(time.perf_counter() - began)
    store = actstore.open(url)
    gets = chunks_of(store)
    gigabytes = sum(length for _, _, length in gets) / 1e9
    in_flight = chunk_fetch.REQUESTS
    raw = raw_gets(url, gets, in_flight)
    floors, decoded, local, streams = [], [], [], []
    decode = decoding(store, gets, options.threads)
    stream = store.stream(spec, threads=options.threads)
    folder = tempfile.TemporaryDirectory()
    actstore.copy(url, f"{folder.name}/store")
    on_disk = actstore.open(f"{folder.name}/store").stream(
        spec, threads=options.threads
    )
    note(
        f"{gigabytes:.2f} GB, {len(gets)} chunks, windows of {stream.window_chunks}"
        f" chunks, first batch {statistics.median(firsts):.2f} s"
    )
    with folder, on_disk, stream:
        epoch(stream)
        epoch(on_disk)
        for _ in range(options.rounds):
            floors.append(best(raw))
            decoded.append(decode())
            epoch(on_disk)
            local.append(epoch(on_disk))
            # What it has loaded and fetched ahead meanwhile goes by before its clock
            # starts.
            epoch(stream)
            epoch(stream)
            streams.append(epoch(stream))
            note(
                f"decoding {decoded[-1]:.2f} s, stream from disk {local[-1]:.2f} s,"
                f" stream {streams[-1]:.2f} s"
            )
    report(f"{case}_stream_{in_flight}_in_flight", gigabytes, floors, streams)
    both = [get + decoding for get, decoding in zip(floors, decoded, strict=True)]
    report(f"{case}_stream_against_gets_and_decoding", gigabytes, both, streams)
    both = [get + disk for get, disk in zip(floors, local, strict=True)]
    report(f"{case}_stream_against_gets_and_disk_stream", gigabytes, both, streams)
    one_window = (
        statistics.median(floors)
        * stream.window_chunks
        / (len(gets) / len(store.sites))
    )
    first = statistics.median(firsts)
    line(f"{case}_first_batch", first, "s", one_window, first / one_window)
    requests.taken(READS)
    once = StreamSpec(batch=BATCH, dtype="bfloat16", epochs=1)
    with actstore.open(url).stream(once, threads=options.threads) as stream:
        for _ in stream:
            pass
    # With opening the store, and the index of each shard.
    per_gb = requests.taken(READS) / gigabytes
    line(
        f"{case}_requests_read",
        per_gb,
        "requests/GB",
        len(gets) / gigabytes,
        per_gb * gigabytes / len(gets),
    )


def measure_upload(
    url: str, case: str, requests: Requests, options: argparse.Namespace
) -> None:
    work = Work(options.units)
    commit(work, f"{url}/upload")
    written = Storage(f"{url}/upload")
    objects = {f"raw/{key}": written.read(key) for key in written.list()}
    gigabytes = sum(map(len, objects.values())) / 1e9
    raw = raw_puts(url, objects, UPLOADS)
    floors, encoded, uploads = [], [], []
    n = 0
    for round_number in range(options.rounds):
        floors.append(best(raw))
        encoded.append(encode(work, options.threads))
        requests.taken(WRITES)
        uploads.append(commit(work, f"{url}/upload-{round_number}"))
        n = requests.taken(WRITES)
        note(f"encoding {encoded[-1]:.2f} s, upload {uploads[-1]:.2f} s")
    report(f"{case}_upload", gigabytes, floors, uploads)
    both = [put + encoding for put, encoding in zip(floors, encoded, strict=True)]
    report(f"{case}_upload_against_puts_and_encoding", gigabytes, both, uploads)
    per_unit = n / options.units
    line(
        f"{case}_requests_written",
        per_unit,
        "requests/unit",
        len(objects) / options.units,
        per_unit * options.units / len(objects),
    )


def commit(work: Work, url: str) -> float:
    """Seconds to commit all units, as a harvest does: the next one is encoded while
    the one before it is written.
    """
    writer = StoreWriter.create(Storage(url), work.plan)
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as commits:
        done = [
            commits.submit(writer.commit, writer.begin(unit, block))
            for unit, block in work.units(writer)
        ]
        for record in done:
            record.result()
    seconds = time.perf_counter() - began
    writer.close()
    return seconds


def encode(work: Work, threads: int) -> float:
    """Seconds to encode all shards and digest them, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Storage(folder), work.plan)
        codec = writer.codec(D)
        writer.close()

    def one(values: NDArray[Any]) -> None:
        object_record(codec.encode(values, work.order))

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(one, list(work.values.values()) * work.n_units))
        return time.perf_counter() - began


def report(
    case: str, gigabytes: float, floors: list[float], values: list[float]
) -> None:
    ratio = statistics.median(f / v for f, v in zip(floors, values, strict=True))
    line(
        case,
        gigabytes / statistics.median(values),
        "GB/s",
        gigabytes / statistics.median(floors),
        ratio,
    )


def line(case: str, value: float, unit: str, floor: float, ratio: float) -> None:
    record = BenchRecord(
        bench="object_store",
        case=case,
        value=value,
        unit=unit,
        floor=floor,
        ratio=ratio,
    )
    print(record.model_dump_json(), flush=True)


def note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Print JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=65_536, help="rows per site (65,536 make 1 GB)"
    )
    parser.add_argument("--codec", default="lz4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--units", type=int, default=3, help="units that are uploaded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distance", action="store_true")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds, each way")
    parser.add_argument("--rate", type=float, default=2e9, help="bits per second")
    parser.add_argument("--only", choices=["stream", "upload"])
    options = parser.parse_args()
    keep_freed_memory()
    why = missing()
    if why is not None:
        note(why)
        return
    requests = Requests()
    with server("bluestore") as names, contextlib.ExitStack() as stack:
        os.environ.update(names)
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        case = f"{options.codec}_loopback"
        if options.distance:
            stack.enter_context(slow_line(options.delay, options.rate))
            case = f"{options.codec}_{2000 * options.delay:.0f}ms"
        url = f"s3://{names['S3_BUCKET']}/bench"
        if options.only != "upload":
            benchmark_store(f"{url}/store", options.codec, options.rows, "bfloat16")
            measure_stream(f"{url}/store", case, requests, options)
        if options.only != "stream":
            measure_upload(url, case, requests, options)


if __name__ == "__main__":
    main()
