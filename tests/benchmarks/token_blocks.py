"""Token blocks of 28,672 tokens: `python -m tests.benchmarks.token_blocks`.

`read`: tokens per second that one process reads, from text and from token ids in a
Parquet file, without writing; floor: the same with one thread of the tokenizer.
`committed`: blocks per second of the reader of a harvest of several workers, into a
folder and into a real S3 server on this machine, with 0, 20 and 100 ms of latency
(`servers/slow_line.py`); floor: one after the other, as a question, the tokens and the
record. The server works on the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.format.storage import Storage
from actstore.harvesting.block_reader import BlockReader
from actstore.harvesting.block_records import BlockRecords
from actstore.harvesting.block_source import BlockSource, first_block
from actstore.harvesting.store_writer import StoreWriter
from actstore.model.load_model import load_or_wrap
from actstore.text.sequences import Sequencer, sequencer
from schemas.records import BenchRecord
from schemas.source import CorpusSource, ModelSource
from tests.benchmarks.servers.slow_line import slow_line
from tests.s3_server.server import missing, server
from tests.support import make_plan

CONTEXT, SEQUENCES = 1024, 28
BLOCK_TOKENS = CONTEXT * SEQUENCES
DOCUMENT = 800  # tokens
FAST = 1e11  # bits per second: latency alone is asked about


def opened(corpus: str, n_blocks: int, folder: Path) -> Sequencer:
    """The corpus `text` or `ids`, cut into sequences."""
    plan = make_plan(n_units=1, unit_sequences=SEQUENCES, context=CONTEXT)
    tokenizer = None
    if corpus == "text":
        source = CorpusSource(name="builtin:stdlib")
        tokenizer = load_or_wrap(
            ModelSource(name="builtin:mini"), None, None, "cpu"
        ).tokenizer
    else:
        path = folder / f"{n_blocks}.parquet"
        if not path.exists():
            ids = np.random.default_rng(0).integers(
                1, 99, n_blocks * BLOCK_TOKENS + DOCUMENT, np.int32
            )
            documents = np.array_split(ids, len(ids) // DOCUMENT)
            pq.write_table(pa.table({"ids": documents}), path, row_group_size=1000)
        source = CorpusSource(name=str(path), token_column="ids")
    spec = plan.spec.model_copy(update={"corpus": source, "pack": True})
    return sequencer(spec, tokenizer)[0]


def read_rate(corpus: str, n_blocks: int, folder: Path) -> float:
    """Tokens per second that are read."""
    source = opened(corpus, n_blocks, folder)
    source.take(1)
    began = time.perf_counter()
    n_tokens = 0
    for _ in range(n_blocks - 1):
        block = source.take(SEQUENCES)
        n_tokens += block.tokens.size
        if block.ended:
            break
    return n_tokens / (time.perf_counter() - began)


def in_a_process(corpus: str, n_blocks: int, threads: int) -> float:
    """The same, by a tokenizer with so many threads: it asks for them once."""
    words = [sys.executable, "-m", "tests.benchmarks.token_blocks"]
    words += ["--read", corpus, "--blocks", str(n_blocks)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    environment["TOKENIZERS_PARALLELISM"] = "true"
    done = subprocess.run(
        words, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.splitlines()[-1])


def committed_rate(
    url: str, corpus: str, n_blocks: int, folder: Path, ahead: bool
) -> float:
    """Blocks per second that are read and committed."""
    plan = make_plan(n_units=n_blocks, unit_sequences=SEQUENCES, context=CONTEXT)
    model = plan.model.model_copy(update={"vocabulary": 0})
    plan = plan.model_copy(update={"model": model})
    storage = Storage(url)
    with contextlib.closing(StoreWriter(storage, plan, threads=1)) as writer:
        sequences = opened(corpus, n_blocks, folder)
        records = BlockRecords(writer, {}, is_alone=False)
        source = BlockSource(plan, writer, sequences, records)
        source.commit(0, first_block(sequences, plan))
        source.has_read(0)
        began = time.perf_counter()
        if ahead:
            reader = BlockReader(plan, writer, source, records, steps_back=False)
            reader.start(1)
            reader.finish()
            return (n_blocks - 1) / (time.perf_counter() - began)
        for unit in range(1, n_blocks):
            assert records.get(unit) is None
            block = source.read(unit)
            assert block is not None
            source.commit(unit, block)
        return (n_blocks - 1) / (time.perf_counter() - began)


def tell(case: str, value: float, floor: float, unit: str) -> None:
    """Print a line."""
    record = BenchRecord(
        bench="token_blocks",
        case=case,
        value=value,
        unit=unit,
        floor=floor,
        ratio=value / floor,
    )
    print(record.model_dump_json(), flush=True)


def measure_commits(place: str, url: str, n_blocks: int, folder: Path) -> None:
    """Print the lines of one place."""
    for corpus in ("text", "ids"):
        floor = committed_rate(f"{url}/{corpus}-one", corpus, n_blocks, folder, False)
        # A second is too short where 32 connections are opened first.
        many = 10 * n_blocks if corpus == "ids" else n_blocks
        rate = committed_rate(f"{url}/{corpus}-many", corpus, many, folder, True)
        tell(f"committed_{corpus}_{place}", rate, floor, "blocks/s")


def measure(n_blocks: int) -> None:
    """Print all lines."""
    cores = len(os.sched_getaffinity(0))
    for corpus in ("text", "ids"):
        one, all_cores = (in_a_process(corpus, n_blocks, n) for n in (1, cores))
        tell(f"read_{corpus}_{cores}_cores", all_cores, one, "tokens/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_commits("folder", str(folder / "store"), n_blocks, folder)
        why = missing()
        if why is not None:
            print(f"S3: {why}", file=sys.stderr)
            return
        with server() as environment:
            os.environ.update(environment)
            os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
            url = f"s3://{environment['S3_BUCKET']}/blocks"
            measure_commits("0ms", f"{url}-0", n_blocks, folder)
            for ms in (20, 100):
                os.environ.update(environment)
                with slow_line(ms / 2000, FAST):
                    measure_commits(f"{ms}ms", f"{url}-{ms}", n_blocks, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--read", choices=["text", "ids"], help="measure this alone")
    arguments = parser.parse_args()
    if arguments.read is None:
        measure(arguments.blocks)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(read_rate(arguments.read, arguments.blocks, Path(folder)))


if __name__ == "__main__":
    main()
