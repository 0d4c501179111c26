"""Harvest speed against the bare forward: `python -m tests.benchmarks.harvest [--tokens
N] [--out DIR]`.

Model: GPT-2-small's size with random weights (12 layers, d 768). Candidate: all 12 MLP
outputs to a local store with the default codec, statistics and digests included. Floor:
the same batches through the bare Hugging Face transformer body (SDPA, no logits, no
hooks). Both run under the same allocator setting, alternating; medians of tokens/s.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import actstore
from actstore.harvesting.progress import Progress
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.machine.half_precision import slow_here
from schemas.records import BenchRecord

CONTEXT, BATCH = 128, 32
VOCABULARY = 50257


def model(dtype: torch.dtype) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config).to(dtype).eval()


@torch.inference_mode()
def floor(module: GPT2LMHeadModel, tokens: np.ndarray) -> float:
    """Tokens per second of the bare transformer body."""
    body = module.transformer
    began = time.perf_counter()
    for start in range(0, len(tokens), BATCH):
        body(torch.from_numpy(tokens[start : start + BATCH]).long(), use_cache=False)
    return tokens.size / (time.perf_counter() - began)


def candidate(
    module: GPT2LMHeadModel, tokens: np.ndarray, out: Path
) -> tuple[float, float]:
    """(steady, whole) tokens per second: behind the first unit, and with planning and
    finishing included.
    """
    shutil.rmtree(out, ignore_errors=True)
    marks: list[tuple[float, int]] = []

    def report(now: Progress) -> None:
        if now.stage == "reading the corpus":
            marks.append((time.perf_counter(), 0))

    spec = {
        "sites": "blocks.*.hook_mlp_out",
        "batch": BATCH,
        "unit_sequences": 2 * BATCH,
    }
    whole = time.perf_counter()
    actstore.harvest(spec, str(out), model=module, tokens=tokens, progress=report)
    ended = time.perf_counter()
    return tokens.size / (ended - marks[0][0]), tokens.size / (ended - whole)


def measure(dtype: torch.dtype, n_batches: int, rounds: int, out: Path) -> None:
    module = model(dtype)
    tokens = (
        np.random.default_rng(0)
        .integers(0, VOCABULARY, (n_batches * BATCH, CONTEXT))
        .astype(np.int32)
    )
    floor(module, tokens[: 2 * BATCH])
    candidate(module, tokens[: 2 * BATCH], out)
    floors, steady, whole = [], [], []
    for _ in range(rounds):
        floors.append(floor(module, tokens))
        one, all_of_it = candidate(module, tokens, out)
        steady.append(one)
        whole.append(all_of_it)
        print(
            f"{dtype}: floor {floors[-1]:,.0f}, harvest {one:,.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )
    base = statistics.median(floors)
    name = str(dtype).removeprefix("torch.")
    for case, values in (
        (f"12_mlp_out_{name}", steady),
        (f"12_mlp_out_{name}_with_planning", whole),
    ):
        value = statistics.median(values)
        record = BenchRecord(
            bench="harvest",
            case=case,
            value=value,
            unit="tokens/s",
            floor=base,
            ratio=value / base,
        )
        print(record.model_dump_json(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batches", type=int, default=16, help="batches of 4,096 tokens per round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, help="folder for the store (default: a temporary one)"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    slow = slow_here("bfloat16", "cpu")
    # its ratios would be those of a model that nobody should run so
    if slow is not None:
        print(f"bfloat16 is left out: {slow}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        for dtype in (
            (torch.float32, torch.bfloat16) if slow is None else (torch.float32,)
        ):
            measure(dtype, arguments.batches, arguments.rounds, Path(folder) / "store")


if __name__ == "__main__":
    main()
