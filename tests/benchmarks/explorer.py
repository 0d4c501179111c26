"""Gathering contexts against reading and encoding the same rows.

`python -m tests.benchmarks.explorer [--latents N] [--rows N] [--rounds N]`.

An explorer has to read every row and encode it, and nothing that keeps all latents can
do with less: that is the floor, with the gatherer's own reading, its own blocks and its
own encoder, whose nonzeros are thrown away. `gathering` is the pass up to, and with,
its counts; `after the pass` is what it does once, whatever the number of rows (in
seconds, and its floor is the pass). `stream` sets the pass beside a plain stream of the
same rows, which encodes nothing. Weights are random: TopK with k 32, d 128.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from schemas.records import BenchRecord, RunRecord
from schemas.sae import TopK
from tests.support import make_store
from trainer.explorer.firings import block_rows, codes_of
from trainer.explorer.gather_contexts import MEMORY, gather
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import build

D, K, CONTEXT, UNIT_SEQUENCES, N_SITES = 128, 32, 128, 16, 2


def random_sae_of(store: Store, n_latents: int, d: int = D) -> TrainedSae:
    """A TopK of random directions, without a rescaling."""
    spec = TopK(k=K, n_latents=n_latents)
    record = RunRecord(
        sae=spec,
        d=d,
        n_latents=n_latents,
        sites=store.sites,
        rescale="none",
        center=False,
        store=store.url,
        content_id=store.manifest.content_id,
        model="synthetic",
        steps=0,
        rows=0,
        seed=0,
    )
    torch.manual_seed(0)
    return TrainedSae(record, build(spec, d), torch.ones(len(store.sites)), None)


def some_store(folder: Path, rows: int) -> Store:
    """A store whose rows are drawn by chance, in units of 2,048."""
    n_units = max(1, rows // (CONTEXT * UNIT_SEQUENCES))

    def values(site: str, sequence: np.ndarray, _position: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([int(sequence[0]), len(site)])
        return rng.standard_normal((len(sequence), D))

    sites = {f"blocks.{i}.hook_mlp_out": D for i in range(N_SITES)}
    return make_store(
        folder,
        sites,
        values,
        n_units=n_units,
        unit_sequences=UNIT_SEQUENCES,
        context=CONTEXT,
        chunk_rows=512,
    )


def reading_and_encoding(sae: TrainedSae, store: Store) -> float:
    """Seconds for all rows, unit by unit."""
    size = block_rows(sae.n_latents, MEMORY // 8)
    began = time.perf_counter()
    for unit in store.units("train"):
        for index, site in enumerate(store.sites):
            codes_of(sae, store.read_unit(site, unit), index, size)
    return time.perf_counter() - began


def gathering(sae: TrainedSae, store: Store) -> tuple[float, float]:
    """Seconds of the pass, and of what comes once after it."""
    last = 0.0

    def tick(done: int, total: int) -> None:
        nonlocal last
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        gather(sae, store, Path(scratch), split="train", tick=tick)
        ended = time.perf_counter()
    return last - began, ended - last


def streaming(store: Store) -> float:
    """Seconds for the same rows, shuffled."""
    began = time.perf_counter()
    n_rows = 0
    with store.stream(batch=1024) as stream:
        while n_rows < len(store.rows("train")) * N_SITES:
            n_rows += len(next(stream).row)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        store = some_store(Path(folder) / "store", options.rows)
        sae = random_sae_of(store, options.latents)
        n_rows = len(store.rows("train")) * N_SITES
        reading_and_encoding(sae, store)  # warms up
        floors, passes, after, streams = [], [], [], []
        for _ in range(options.rounds):
            floors.append(n_rows / reading_and_encoding(sae, store))
            taken, more = gathering(sae, store)
            # All of it is counted: the last rows are, after the last tick.
            passes.append(n_rows / (taken + more))
            after.append(more)
            streams.append(n_rows / streaming(store))
    name = f"{options.latents} latents"
    _print(f"gathering, {name}", passes, floors, "rows/s")
    _print(f"gathering beside a stream, {name}", passes, streams, "rows/s")
    seconds = [n_rows / rate for rate in passes]
    _print(f"after the last rows, {name}", after, seconds, "s")


def _print(case: str, values: list[float], floors: list[float], unit: str) -> None:
    record = BenchRecord(
        bench="explorer",
        case=case,
        value=statistics.median(values),
        unit=unit,
        floor=statistics.median(floors),
        ratio=statistics.median(a / b for a, b in zip(values, floors, strict=True)),
    )
    print(record.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
