"""The program that the memory test runs in a process of its own.

It is a sweep of two SAEs, with the estimate for it.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actstore.harvesting.process_memory import peak, reset_peak
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.training.memory_estimate import fitting
from trainer.training.train_group import train_group

SITES = {"blocks.0.hook_mlp_out": 128, "blocks.1.hook_mlp_out": 128}
KINDS: dict[str, dict[str, Any]] = {"relu_l1": {"l1": 0.1}, "topk": {"k": 32}}
SIZES = {"relu_l1": (2048, 6144), "topk": (8192, 8192)}  # batch, latents


def main(folder: Path, kind: str) -> dict[str, float]:
    """Estimated parts and the growth of the peak, in bytes."""
    torch.set_num_threads(1)
    keep_freed_memory()
    draw = np.random.default_rng(0).standard_normal((2048, 128)).astype(np.float32)
    store = make_store(
        folder / "store",
        SITES,
        lambda _site, _sequence, position: draw[position],
        n_units=24,
        unit_sequences=16,
        context=64,
        chunk_rows=256,
    )
    batch, latents = SIZES[kind]
    for name in ("first", "second"):
        train_group(
            store, {str(folder / name): spec(store, kind, 128, 64, 1)}, threads=1
        )
    gc.collect()
    specs = {
        str(folder / f"run{seed}"): spec(store, kind, batch, latents, seed)
        for seed in range(2)
    }
    [group] = fitting(store, specs, 1 << 40, "cpu")
    before = reset_peak()
    train_group(store, specs, threads=1)
    parts = {name: float(value) for name, value in group.memory._asdict().items()}
    return {
        **parts,
        "total": float(group.memory.total),
        "grown": float(peak() - before),
    }


def spec(store: Store, kind: str, batch: int, latents: int, seed: int) -> TrainSpec:
    raw = {
        "store": store.url,
        "sae": {"kind": kind, "n_latents": latents, **KINDS[kind]},
        "stream": {"batch": batch, "window_chunks": 8 if batch < 1000 else 80},
        "rows": 3 * batch,
        "seed": seed,
        "init": "random",
    }
    return TrainSpec.model_validate(raw)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
