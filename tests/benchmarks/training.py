"""A whole optimiser step against the step's matrix products alone: same process, same
dtype, same allocator setting.

Floor of `relu_l1` and `jumprelu`: 5 dense products (encode, decode, two weight
gradients, the latents' gradient); of `gated`: 7 (its gate is decoded, too, and has a
gradient); of the TopK kinds: the one product that is dense by nature, the encoder's.
Rows per second; each printed line is the median of paired rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.machine.half_precision import slow_here
from actstore.stream.rescale import Rescaling
from schemas.records import BenchRecord
from schemas.train import TrainSpec
from trainer.saes.build import build, initialise_from
from trainer.training.learner import Learner

KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1", "l1": 1e-2},
    "topk": {"kind": "topk", "k": 32},
    "batch_topk": {"kind": "batch_topk", "k": 32},
    "matryoshka": {"kind": "matryoshka", "k": 32},
    "jumprelu": {"kind": "jumprelu"},
    "gated": {"kind": "gated"},
}
MOST_FIRST_ROWS = 8192  # rows that weights begin from, at most
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=6144)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    keep_freed_memory()
    slow = slow_here("bfloat16", options.device)
    # its ratios would be those of a product that nobody should use
    if slow is not None:
        sys.stderr.write(f"bfloat16 is left out: {slow}\n")
    for kind in KINDS:
        for precision in DTYPES if slow is None else ("float32",):
            sys.stdout.write(measure(kind, precision, options).model_dump_json() + "\n")
            sys.stdout.flush()


def measure(kind: str, precision: str, options: argparse.Namespace) -> BenchRecord:
    """Rows per second of a step, and of its floor, in turn."""
    step, floor = (
        candidate(kind, precision, options),
        products(kind, precision, options),
    )
    step()
    floor()
    pairs = [
        (
            options.batch / seconds(step, options.device),
            options.batch / seconds(floor, options.device),
        )
        for _ in range(options.rounds)
    ]
    value, bound = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return BenchRecord(
        bench="training",
        case=f"{kind} {precision}",
        value=value,
        unit="rows/s",
        floor=bound,
        ratio=ratio,
    )


def candidate(
    kind: str, precision: str, options: argparse.Namespace, **more: object
) -> Callable[[], None]:
    """One whole step: rescaling, forward, backward, clipping, Adam, decoder norms,
    running sums; `more` are fields of the spec.
    """
    spec = TrainSpec.model_validate(
        {
            "store": "none",
            "sae": {**KINDS[kind], "n_latents": options.latents},
            "precision": precision,
            **more,
        }
    )
    device = torch.device(options.device)
    x = torch.randn(options.batch, options.d, device=device)
    layer = torch.randint(0, 12, (options.batch,), device=device)
    sae = build(spec.sae, options.d).to(device)
    rows = min(options.latents, MOST_FIRST_ROWS)
    initialise_from(sae, torch.randn(rows, options.d, device=device))
    rescaling = Rescaling(np.linspace(0.5, 2, 12), None)
    learner = Learner(spec, sae, rescaling, torch.ones(12), 10**6, device)
    return lambda: learner.update(x, layer)


def products(
    kind: str, precision: str, options: argparse.Namespace
) -> Callable[[], None]:
    """The matrix products alone."""
    dtype = DTYPES[precision]
    device = options.device
    x = torch.randn(options.batch, options.d, device=device).to(dtype)
    f = torch.randn(options.batch, options.latents, device=device).to(dtype)
    w = torch.randn(options.d, options.latents, device=device).to(dtype)
    v = torch.randn(options.latents, options.d, device=device).to(dtype)

    def dense() -> None:
        _ = x @ w, f @ v, f.T @ x, x @ v.T, x.T @ f

    def seven() -> None:
        dense()
        _ = f @ v, x @ v.T

    def one() -> None:
        _ = x @ w

    return {"relu_l1": dense, "jumprelu": dense, "gated": seven}.get(kind, one)


def seconds(call: Callable[[], None], device: str = "cpu", least: float = 2.0) -> float:
    """Mean seconds of a call over about two seconds of calls, all of them ended."""
    on_gpu = device.startswith("cuda")
    n, began = 0, time.perf_counter()
    while time.perf_counter() - began < least or n < 2:
        call()
        n += 1
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / n


if __name__ == "__main__":
    main()
