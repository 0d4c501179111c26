"""A sweep of 8 SAEs over one stream against the sum of their compute, and how often it
reads the data.

Cost: seconds of the sweep's steps (data, rescaling, updates, logging), over the sum of
the seconds that each SAE takes alone for as many steps on batches in memory; both in
turn in one process, the median of the rounds. Data: the values that the reader decoded,
windows ahead included, over those of the same chunks counted once each.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.chunk_reader import ChunkReader, Fetched
from actstore.store.store import Store
from actstore.stream.stream import Batch
from schemas.records import BenchRecord
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.training.run_stream import shared_stream
from trainer.training.train_group import Progress, train_group

CHUNK_ROWS, UNITS = 128, 40
KINDS: list[dict[str, Any]] = [
    {"kind": "relu_l1", "l1": l1} for l1 in (0.1, 0.2, 0.4, 0.8)
]
KINDS += [{"kind": "topk", "k": k} for k in (8, 16, 32, 64)]


def main() -> None:
    """Print two JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    read = Counted()
    with tempfile.TemporaryDirectory() as folder:
        store = made_store(Path(folder), options)
        specs = [spec_of(store, kind, options) for kind in KINDS]
        batches = first_batches(store, specs[0], options.steps)
        pairs = []
        for n in range(options.rounds):
            read.chunks.clear()
            swept = sweep(
                store, {f"{folder}/{n}-{i}": spec for i, spec in enumerate(specs)}
            )
            pairs.append(
                (
                    swept,
                    sum(
                        alone(f"{folder}/alone{n}-{i}", one, batches)
                        for i, one in enumerate(specs)
                    ),
                )
            )
            gc.collect()
    value, floor = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    cost = BenchRecord(
        bench="sweep",
        case="8 SAEs over one stream",
        value=value,
        unit="s",
        floor=floor,
        ratio=ratio,
    )
    taken, once = sum(map(len, read.chunks.values())), len(read.chunks)
    size = CHUNK_ROWS * options.d * 2 / 1e6  # of values
    data = BenchRecord(
        bench="sweep",
        case="8 SAEs, data read",
        value=taken * size,
        unit="MB",
        floor=once * size,
        ratio=taken / once,
    )
    for record in (cost, data):
        sys.stdout.write(record.model_dump_json() + "\n")


def made_store(folder: Path, options: argparse.Namespace) -> Store:
    """4 sites, lz4; an epoch is about twice what the sweep takes, so that no chunk has
    reason to come again.
    """
    rows = 2 * (options.steps + 1) * options.batch // (4 * (UNITS - 2))
    chunks = max(1, -(-rows // CHUNK_ROWS))
    pool = (
        np.random.default_rng(0)
        .standard_normal((chunks * CHUNK_ROWS, options.d))
        .astype(np.float32)
    )
    return make_store(
        folder / "store",
        {f"blocks.{i}.hook_mlp_out": options.d for i in range(4)},
        lambda _site, _sequence, position: pool[position],
        n_units=UNITS,
        unit_sequences=1,
        context=len(pool),
        chunk_rows=CHUNK_ROWS,
    )


class Counted:
    """Counts what every reader of this process reads: (site, unit, chunk) -> a place
    for each time.
    """

    def __init__(self) -> None:
        chunks: dict[tuple[int, int, int], list[int]] = {}
        plain = ChunkReader.read

        def read(
            self: ChunkReader,
            site: int,
            unit: int,
            chunk: int,
            out: NDArray[Any],
            fetched: Fetched | None = None,
        ) -> None:
            chunks.setdefault((site, unit, chunk), []).append(1)
            plain(self, site, unit, chunk, out, fetched)

        self.chunks = chunks

        ChunkReader.read = read  # type: ignore[method-assign]


def spec_of(
    store: Store, kind: dict[str, Any], options: argparse.Namespace
) -> TrainSpec:
    """One of the sweep's SAEs; all of them see about half of an epoch."""
    raw = {
        "store": store.url,
        "sae": {**kind, "n_latents": options.latents},
        "stream": {"batch": options.batch, "rescale": "linear", "window_chunks": 8},
        "rows": (options.steps + 1) * options.batch,
        "init": "random",
        "log_every": 2,
    }
    return TrainSpec.model_validate(raw)


def first_batches(store: Store, spec: TrainSpec, n: int) -> list[Batch]:
    """The stream's first batches, in memory."""
    with store.stream(shared_stream(spec)) as stream:
        return [next(stream) for _ in range(n + 1)]


class Clock:
    """Times of the steps of a run, as a progress report."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, _: Progress) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From behind the first step to behind the last."""
        return self.times[-1] - self.times[0]


def sweep(store: Store, specs: dict[str, TrainSpec]) -> float:
    """Seconds of all steps but the first, in one group."""
    clock = Clock()
    train_group(store, specs, report=clock)
    return clock.seconds


def alone(url: str, spec: TrainSpec, batches: list[Batch]) -> float:
    """Seconds of the same steps for one SAE, on batches in memory."""
    from actstore.store.open_store import open as open_store
    from actstore.stream.rescale import rescaling
    from trainer.saes.build import build
    from trainer.training.learner import Learner

    store = open_store(spec.store)
    factors = rescaling(store, store.sites, spec.stream.rescale)
    sae = build(spec.sae, batches[0].x.shape[1], spec.seed, len(store.sites))
    variance = torch.ones(len(store.sites))
    learner = Learner(
        spec, sae, factors, variance, len(batches), torch.device("cpu"), variance
    )
    learner.update(batches[0].x, batches[0].layer)
    began = time.perf_counter()
    for batch in batches[1:]:
        learner.update(batch.x, batch.layer)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
