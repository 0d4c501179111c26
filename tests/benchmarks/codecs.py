"""Measures what each way of storing rows costs and loses.

`python -m tests.benchmarks.codecs [--tokens N] [--steps N]`.

A harvest of the builtin model in float32 is written again in every dtype and codec, row
for row. Per store: bytes per value (with scales and steps), speed of a shuffled epoch
in rows per second, FVU floor (the share of variance lost by storing alone, worst site),
and the FVU that the same SAE (topk, same seeds) reaches on the float32 store's held-out
rows when it is trained from this store.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import actstore
import trainer
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from schemas.records import BenchRecord
from schemas.sae import TopK
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.training.train_group import train_group

WAYS = [
    ("float32", "raw"),
    ("float32", "lz4"),
    ("bfloat16", "raw"),
    ("bfloat16", "lz4"),
    ("bfloat16", "zstd"),
    ("float16", "lz4"),
    ("int8", "raw"),
    ("int8", "lz4"),
]
BATCH, UNIT_TOKENS = 512, 2048


def exact_store(folder: Path, tokens: int) -> Store:
    """float32 rows of the builtin model's MLP outputs."""
    spec = {
        "model": "builtin:tiny",
        "corpus": "builtin:stdlib",
        "sites": "blocks.*.hook_mlp_out",
        "dtype": "float32",
    }
    # no part of a unit
    whole = {
        "tokens": tokens // UNIT_TOKENS * UNIT_TOKENS,
        "unit_sequences": UNIT_TOKENS // 128,
    }
    return actstore.harvest({**spec, **whole, "codec": "raw"}, str(folder / "exact"))


def rewritten(exact: Store, folder: Path, dtype: str, codec: str) -> Store:
    """The same rows, stored another way."""
    layout = exact.layout

    def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        unit = int(sequence[0]) // layout.unit_sequences
        ids = np.arange(exact.unit_rows[unit]) + unit * layout.capacity
        where = exact.provenance(ids)
        order = np.lexsort((where.position, where.sequence))
        assert np.array_equal(where.sequence[order], sequence)
        assert np.array_equal(where.position[order], position)
        return exact.read(site, ids[order])

    sites = {site.name: site.d for site in exact.manifest.sites}
    return make_store(
        folder / f"{dtype}-{codec}",
        sites,
        values,
        n_units=layout.n_units,
        unit_sequences=layout.unit_sequences,
        context=layout.context,
        dtype=dtype,
        codec=codec,
        chunk_rows=None,
    )


def bytes_per_value(store: Store) -> float:
    parts = ("acts/", "scale/", "step/")
    stored = sum(
        one.bytes
        for unit in range(store.manifest.n_units)
        for key, one in store.record(unit).objects.items()
        if key.startswith(parts)
    )
    return stored / (
        store.manifest.n_rows * sum(site.d for site in store.manifest.sites)
    )


def fvu_floor(exact: Store, store: Store) -> float:
    """The worst site's squared error of storing over its variance, over held-out rows."""
    worst = 0.0
    for site in exact.sites:
        rows = exact.rows("held_out")
        x, y = exact.read(site, rows).astype(np.float64), store.read(site, rows)
        worst = max(
            worst, float(np.square(x - y).sum() / np.square(x - x.mean(axis=0)).sum())
        )
    return worst


def read_speed(store: Store) -> float:
    """Rows per second of a shuffled epoch behind the first."""
    with store.stream(StreamSpec(batch=BATCH * 8, epochs=None)) as stream:
        for _ in range(stream.batches_per_epoch):
            next(stream)
        began = time.perf_counter()
        rows = sum(len(next(stream).x) for _ in range(3 * stream.batches_per_epoch))
        return rows / (time.perf_counter() - began)


def final_fvu(exact: Store, store: Store, folder: Path, steps: int) -> float:
    """Of the SAE trained from `store`, on `exact`."""
    out = str(folder / f"run-{Path(store.url).name}")
    spec = TrainSpec(
        store=store.url,
        sae=TopK(k=16, expansion=4),
        stream=StreamSpec(batch=BATCH, epochs=None, rescale="unit"),
        rows=steps * BATCH,
    )
    train_group(store, {out: spec})
    return evaluate_rows(trainer.load(out), exact, split="held_out")[0].pooled.fvu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = exact_store(folder, arguments.tokens)
        base: dict[str, float] = {}
        for dtype, codec in WAYS:
            store = rewritten(exact, folder, dtype, codec)
            found = {
                "bytes per value": bytes_per_value(store),
                "read rows per second": read_speed(store),
                "FVU floor": fvu_floor(exact, store),
                "final FVU": final_fvu(exact, store, folder, arguments.steps),
            }
            base = base or found
            for what, value in found.items():
                ratio = value / base[what] if base[what] else 0.0
                case = f"{dtype} {codec}: {what}"
                record = BenchRecord(
                    bench="codecs",
                    case=case,
                    value=value,
                    unit="",
                    floor=base[what],
                    ratio=ratio,
                )
                sys.stdout.write(record.model_dump_json() + "\n")
            text = ", ".join(f"{what} {value:.6g}" for what, value in found.items())
            sys.stderr.write(f"{dtype} {codec}: {text}\n")


if __name__ == "__main__":
    main()
