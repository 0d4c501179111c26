"""Which peak learning rate is best, by kind, dictionary size and rows: `python -m tests.benchmarks.learning_rates STORE`.

Every kind x size x number of rows is trained with each rate of a grid, all of a size and a number of rows over one
stream, and evaluated on held-out rows. Prints one JSON line per SAE; lines that are in --results already are not done
again. `--fit FILE` reads such lines and prints, per kind, the rule ln lr = a + b ln(latents) + c ln(updates) that
`trainer/training/rates.py` has, with how far the FVU at the rule's rate is above the best of the grid.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch

import actstore
from actstore.allocator import keep_freed_memory
from schemas.train import TrainSpec
from trainer.evaluate.rows import evaluate
from trainer.trained import load
from trainer.training.loop import train_group

KINDS = ("topk", "batch_topk", "matryoshka", "relu_l1", "gated", "jumprelu")
SIZES = (256, 512, 1024)
ROWS = (50_000, 200_000, 800_000)
RATES = (1.4e-3, 2.8e-3, 5.6e-3, 11.2e-3)
HELD_OUT = 2_000


def cell(store: actstore.Store, size: int, rows: int, kinds: list[str], rates: list[float], batch: int) -> list[dict]:
    """Train and evaluate every kind with every rate."""
    base = {"store": store.url, "rows": rows, "log_every": 1000, "checkpoint_every": 10**9, "stream": {"batch": batch}}
    with tempfile.TemporaryDirectory() as folder:
        cases = {f"{folder}/{kind}-{lr}": (kind, lr) for kind, lr in itertools.product(kinds, rates)}
        specs = {
            url: TrainSpec.model_validate({**base, "sae": {"kind": kind, "n_latents": size}, "optimiser": {"lr": lr}})
            for url, (kind, lr) in cases.items()
        }
        train_group(store, specs, threads=1)
        return [measured(store, url, kind, lr, size, rows, batch) for url, (kind, lr) in cases.items()]


def measured(store: actstore.Store, url: str, kind: str, lr: float, size: int, rows: int, batch: int) -> dict:
    """One line."""
    sae = load(url)
    record, _ = evaluate(sae, store, max_rows=HELD_OUT)
    return {
        "kind": kind, "latents": size, "rows": rows, "batch": batch, "d": sae.d, "lr": lr,
        "fvu": record.pooled.fvu, "l0": record.pooled.l0, "dead": record.dead / size,
    }  # fmt: skip


def main() -> None:
    """Train the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--batch", type=int, default=1024)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    store = actstore.open(options.store)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {(one["kind"], one["latents"], one["rows"], one["lr"]) for one in map(json.loads, lines)}
    for rows, size in itertools.product(options.rows, options.sizes):
        rates = [lr for lr in options.rates if any((kind, size, rows, lr) not in done for kind in options.kinds)]
        kinds = [kind for kind in options.kinds if any((kind, size, rows, lr) not in done for lr in rates)]
        if not kinds:
            continue
        made = cell(store, size, rows, kinds, rates, options.batch)
        with options.results.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in made)


if __name__ == "__main__":
    main()
