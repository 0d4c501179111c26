"""Finds the best peak learning rate, by kind, dictionary size and rows.

`python -m tests.benchmarks.learning_rates STORE`.

Every kind x size x number of rows is trained with each rate of a grid, all of a size
and a number of rows over one stream, and evaluated on held-out rows; one JSON line per
SAE goes to --results, and those that are there already are not done again, nor are
those of another batch or beta2 of Adam mixed up with them. `--fit` prints what lies
there instead: of each cell the best rate, by a parabola in logarithms through the three
best, its FVU, and the FVU at the rate of `lr: auto` over it, by the same parabola.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import actstore
from actstore.machine.glibc_malloc import keep_freed_memory
from schemas.train import Optimiser, TrainSpec
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.runs.trained_sae import load
from trainer.training.learning_rates import peak_rate
from trainer.training.train_group import train_group

KINDS = ("topk", "batch_topk", "matryoshka", "relu_l1", "gated", "jumprelu")
SIZES = (256, 512, 1024)
ROWS = (50_000, 200_000, 800_000)
RATES = (2.8e-3, 5.6e-3, 11.2e-3, 22.4e-3)
BETA2 = Optimiser().betas[1]
HELD_OUT = 2_000


def cell(
    store: actstore.Store,
    size: int,
    rows: int,
    kinds: list[str],
    rates: list[float],
    batch: int,
    beta2: float,
) -> list[dict[str, Any]]:
    """Train and evaluate every kind with every rate."""
    base = {
        "store": store.url,
        "rows": rows,
        "log_every": 1000,
        "checkpoint_every": 10**9,
        "stream": {"batch": batch},
    }
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            f"{folder}/{kind}-{lr}": (kind, lr)
            for kind, lr in itertools.product(kinds, rates)
        }
        specs = {
            url: TrainSpec.model_validate(
                {
                    **base,
                    "sae": {"kind": kind, "n_latents": size},
                    "optimiser": {"lr": lr, "betas": (0.9, beta2)},
                }
            )
            for url, (kind, lr) in cases.items()
        }
        train_group(store, specs, threads=1)
        return [
            measured(store, url, kind, lr, size, rows, batch, beta2)
            for url, (kind, lr) in cases.items()
        ]


def measured(
    store: actstore.Store,
    url: str,
    kind: str,
    lr: float,
    size: int,
    rows: int,
    batch: int,
    beta2: float,
) -> dict[str, Any]:
    """One line."""
    sae = load(url)
    record, _ = evaluate_rows(sae, store, max_rows=HELD_OUT)
    return {
        "kind": kind, "latents": size, "rows": rows, "batch": batch, "d": sae.d, "beta2": beta2, "lr": lr,
        "fvu": record.pooled.fvu, "l0": record.pooled.l0, "dead": record.dead / size,
    }  # fmt: skip


def fit(lines: list[dict[str, Any]]) -> None:
    """Print one line per cell."""
    cells: dict[tuple[str, int, int, int], dict[float, dict[str, Any]]] = {}
    for one in lines:
        if one["beta2"] == BETA2:
            cells.setdefault(
                (one["kind"], one["latents"], one["batch"], one["rows"]), {}
            )[one["lr"]] = one
    for (kind, size, batch, rows), cell in sorted(cells.items()):
        rates = sorted(cell)
        at, fvu = np.log(rates), np.log([matched(cell[lr]) for lr in rates])
        middle = min(max(int(fvu.argmin()), 1), len(rates) - 2)
        near = slice(middle - 1, middle + 2)
        curve = np.polynomial.Polynomial.fit(at[near], fvu[near], 2)
        grid = np.linspace(at[0], at[-1], 200)
        best = grid[curve(grid).argmin()]
        raw = {
            "store": "none",
            "sae": {"kind": kind, "n_latents": size},
            "stream": {"batch": batch},
        }
        auto = math.log(
            peak_rate(
                TrainSpec.model_validate(raw), cell[rates[0]]["d"], -(-rows // batch)
            )
        )
        loss = math.exp(curve(min(max(auto, at[0]), at[-1])) - curve(best)) - 1
        print(
            f"{kind:11} {size:5} latents {rows:9,} rows by {batch:5,}  best {math.exp(best):.1e} (FVU {math.exp(curve(best)):.4f})  "
            f"auto {math.exp(auto):.1e} ({loss:+.1%})"
        )


def matched(one: dict[str, Any]) -> float:
    """FVU moved to an L0 of 32 along the usual slope, for what is a per cent or two
    off.
    """
    return one["fvu"] * (one["l0"] / 32) ** 0.45


def main() -> None:
    """Train the grid, or fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", nargs="?")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--beta2", type=float, default=BETA2)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    if options.fit:
        fit([json.loads(line) for line in options.results.read_text().splitlines()])
        return
    keep_freed_memory()
    torch.set_num_threads(1)
    store = actstore.open(options.store)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    own = [
        one
        for one in map(json.loads, lines)
        if (one["batch"], one["beta2"]) == (options.batch, options.beta2)
    ]
    done = {(one["kind"], one["latents"], one["rows"], one["lr"]) for one in own}
    for rows, size in itertools.product(options.rows, options.sizes):
        rates = [
            lr
            for lr in options.rates
            if any((kind, size, rows, lr) not in done for kind in options.kinds)
        ]
        kinds = [
            kind
            for kind in options.kinds
            if any((kind, size, rows, lr) not in done for lr in rates)
        ]
        if not kinds:
            continue
        made = cell(store, size, rows, kinds, rates, options.batch, options.beta2)
        with options.results.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in made)


if __name__ == "__main__":
    main()
