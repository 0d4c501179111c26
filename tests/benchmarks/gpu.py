"""On one GPU, each figure against a floor of the same run: `python -m
tests.benchmarks.gpu [--parts copies,kernels,steps,fed,harvest]`.

- `copies`: bytes on the device (read and written), and from page-locked host memory to
  it: what other floors are made of.
- `kernels`: each sparse product by Triton, against its eager twin.
- `steps`: a whole training step of each kind, against its matrix products alone, as
  `training.py` has them.
- `fed`: training from a local store to the end, against the same step on a batch that
  is there already; and the stream alone.
- `harvest`: tokens/s, against the bare forward on the same batches.

Clocks are read when the device has ended. Stores go to a temporary folder (`TMPDIR`).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import actstore
from actstore.format.storage import Storage
from actstore.harvesting.progress import Progress
from actstore.machine.glibc_malloc import keep_freed_memory
from schemas.records import BenchRecord
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from tests.benchmarks import stream, training
from trainer.kernels.backend import products
from trainer.kernels.nonzeros import Pattern
from trainer.runs import journal
from trainer.training.train_group import train_group

DEVICE = "cuda"
K = 32
BATCH = 4096
QUEUED = 10  # calls that are timed together
SIZES = {"small": (768, 24_576), "wide": (768, 49_152), "deep": (2304, 65_536)}
HARVESTS = {
    # name: layers, width, heads, batch, batches, sites, dtype
    "gpt2_12_sites_float32": (12, 768, 12, 64, 48, "blocks.*.hook_mlp_out"),
    "gpt2_12_sites_bfloat16": (12, 768, 12, 64, 96, "blocks.*.hook_mlp_out"),
    "gpt2_1_site_bfloat16": (12, 768, 12, 64, 384, "blocks.6.hook_mlp_out"),
    "gpt2_xl_3_sites_bfloat16": (48, 1600, 25, 64, 32, "blocks.{12..14}.hook_mlp_out"),
}
VOCABULARY, CONTEXT = 50257, 128


def main() -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="copies,kernels,steps,fed,harvest")
    parser.add_argument("--sizes", default="small,wide,deep", help="of the steps")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one timing")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_float32_matmul_precision("highest")  # torch's default
    for part in options.parts.split(","):
        PARTS[part](options)


def tell(
    case: str, value: float, unit: str, floor: float, ratio: float | None = None
) -> None:
    """Print a line; the ratio is `value / floor` unless one is given."""
    record = BenchRecord(
        bench="gpu",
        case=case,
        value=value,
        unit=unit,
        floor=floor,
        ratio=value / floor if ratio is None else ratio,
    )
    print(record.model_dump_json(), flush=True)


def milliseconds(call: Callable[[], object], least: float = 0.15) -> float:
    """Median time of a call among others of its kind, by events."""
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < least or len(times) < 5:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(QUEUED):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / QUEUED)
    return statistics.median(times)


def copies(options: argparse.Namespace) -> None:
    """Measure copies; each is its own floor."""
    here = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    other = torch.empty_like(there)
    rates = {
        "on_the_device": 2 * len(here) / milliseconds(lambda: other.copy_(there)),
        "host_to_device": len(here)
        / milliseconds(lambda: there.copy_(here, non_blocking=True)),
        "device_to_host": len(here)
        / milliseconds(lambda: here.copy_(there, non_blocking=True)),
    }
    for name, rate in rates.items():
        tell(f"copy_{name}", rate / 1e6, "GB/s", rate / 1e6)


def usual_pattern(m: int) -> Pattern:
    """K nonzeros a row; some latents are on many rows, most on few."""
    g = torch.Generator(DEVICE).manual_seed(0)
    often = torch.randn(m, device=DEVICE, generator=g)
    each = torch.randn(BATCH, m, device=DEVICE, generator=g) + often
    latents = each.topk(K, dim=1).indices.sort(dim=1).values
    return Pattern.per_row(latents, m)


def sparse_products(
    made: Any, pattern: Pattern, d: int
) -> dict[str, Callable[[], Tensor]]:
    """Return the three sparse products of a step, as calls."""
    table = torch.randn(pattern.n_latents, d, device=DEVICE)
    rows = torch.randn(BATCH, d, device=DEVICE)
    weight = torch.randn(BATCH * K, device=DEVICE)
    by_latent = weight[pattern.order]
    of_rows = (pattern.latents, pattern.row_start, weight)
    of_latents = (pattern.rows_by_latent, pattern.latent_start, by_latent)
    pairs = (rows, pattern.rows, table, pattern.latents, pattern.row_start)
    return {
        "decode": lambda: made.gather_sum(table, *of_rows),
        "weight_gradient": lambda: made.gather_sum(rows, *of_latents, uneven=True),
        "code_gradient": lambda: made.row_dots(*pairs),
    }


def kernels(options: argparse.Namespace) -> None:
    """Triton (value) against eager (floor), in milliseconds: below 1 is faster."""
    for d, m in ((64, 1024), (256, 4096), *SIZES.values()):
        pattern = usual_pattern(m)
        ours, twins = (
            sparse_products(products(name), pattern, d) for name in ("triton", "eager")
        )
        for case, call in ours.items():
            tell(
                f"kernel_{case}_d{d}_m{m}",
                milliseconds(call),
                "ms",
                milliseconds(twins[case]),
            )


def steps(options: argparse.Namespace) -> None:
    """Rows/s of whole steps, of each kind, size and precision."""
    for size in options.sizes.split(","):
        d, m = SIZES[size]
        shape = argparse.Namespace(d=d, latents=m, batch=BATCH, device=DEVICE)
        for precision in training.DTYPES:
            for kind in training.KINDS:
                ways: dict[str, dict[str, object]] = {"": {}}
                if "k" in training.KINDS[kind]:
                    ways["_triton"] = {"kernels": "triton"}
                elif size == "small":
                    ways["_compiled"] = {"compile": True}
                for way, more in ways.items():
                    case = f"step_{kind}_d{d}_m{m}_{precision}{way}"
                    one_step(case, kind, precision, shape, options, more)


def one_step(
    case: str,
    kind: str,
    precision: str,
    shape: argparse.Namespace,
    options: argparse.Namespace,
    more: dict[str, object],
) -> None:
    """Print rows/s of a step and of its floor, which take turns."""
    try:
        step = training.candidate(kind, precision, shape, **more)
        floor = training.products(kind, precision, shape)
        for _ in range(3):
            step()
            floor()
        torch.cuda.synchronize()
        pairs = [
            tuple(
                BATCH / training.seconds(call, DEVICE, options.seconds)
                for call in (step, floor)
            )
            for _ in range(options.rounds)
        ]
    except (torch.OutOfMemoryError, RuntimeError) as error:
        print(f"{case}: {str(error)[:200]}", file=sys.stderr, flush=True)
        return
    finally:
        step = floor = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    value, base = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    tell(case, value, "rows/s", base, ratio)


def fed(options: argparse.Namespace) -> None:
    """Rows/s of training from a local store, against the step alone."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = stream.benchmark_store(
            Path(folder) / "store", "lz4", 131_072, "bfloat16"
        )
        print(f"store made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        spec = StreamSpec(batch=BATCH, epochs=None)
        rates = []
        with store.stream(spec, device=DEVICE) as rows:
            next(rows)
            for _ in range(3):
                began = time.perf_counter()
                for _ in range(rows.batches_per_epoch):
                    next(rows)
                torch.cuda.synchronize()
                rates.append(rows.rows_per_epoch / (time.perf_counter() - began))
        alone = statistics.median(rates[1:])
        for kind, precision, more in (
            ("topk", "float32", {}),
            ("topk", "bfloat16", {}),
            ("topk", "bfloat16", {"kernels": "triton"}),
            ("batch_topk", "bfloat16", {}),
            ("jumprelu", "bfloat16", {}),
        ):
            way = "_triton" if more else ""
            case = f"{kind}_d768_m24576_{precision}{way}"
            shape = argparse.Namespace(
                d=768, latents=24_576, batch=BATCH, device=DEVICE
            )
            step = training.candidate(kind, precision, shape, **more)
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            base = BATCH / training.seconds(step, DEVICE, 1.0)
            del step
            value = trained(store, kind, precision, folder, more)
            tell(f"fed_{case}", value, "rows/s", base)
            tell(f"fed_stream_alone_over_step_{case}", alone, "rows/s", base)


def trained(
    store: actstore.Store,
    kind: str,
    precision: str,
    folder: str,
    more: dict[str, Any],
) -> float:
    """Rows/s of a run in its steady state, as its journal has them."""
    out = Path(folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    raw = {
        "store": store.url,
        "sae": {**training.KINDS[kind], "n_latents": 24_576},
        "precision": precision,
        "rows": 700 * BATCH,
        "stream": {"batch": BATCH, "epochs": None, "rescale": "linear"},
        "log_every": 50,
        "checkpoint_every": 10_000,
        **more,
    }
    spec = TrainSpec.model_validate(raw)
    train_group(store, {str(out): spec}, device=DEVICE)
    lines = journal.read(Storage(str(out)))[2:]
    print(
        f"{kind} {precision}: rows/s {[round(x.rows_per_s) for x in lines]},"
        f" stall {[round(x.stall, 2) for x in lines]},"
        f" dead {[x.dead for x in lines]}",
        file=sys.stderr,
        flush=True,
    )
    return statistics.median(line.rows_per_s for line in lines)


def harvest(options: argparse.Namespace) -> None:
    """Tokens/s of a harvest, against the bare forward."""
    for name, (layers, width, heads, batch, batches, sites) in HARVESTS.items():
        torch.manual_seed(0)
        dtype = torch.float32 if name.endswith("float32") else torch.bfloat16
        config = GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        with torch.device(DEVICE):
            model = GPT2LMHeadModel(config).to(dtype).eval()
        shape = (batches * batch, CONTEXT)
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, shape)
        tokens = tokens.astype(np.int32)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "store"
            bare(model, tokens[: 4 * batch], batch)
            harvested(model, tokens[: 4 * batch], batch, sites, out)
            floors, values = [], []
            for _ in range(options.rounds):
                floors.append(bare(model, tokens, batch))
                values.append(harvested(model, tokens, batch, sites, out))
        ratio = statistics.median(a / b for a, b in zip(values, floors, strict=True))
        value, base = statistics.median(values), statistics.median(floors)
        tell(f"harvest_{name}", value, "tokens/s", base, ratio)
        del model
        torch.cuda.empty_cache()


@torch.inference_mode()
def bare(model: GPT2LMHeadModel, tokens: np.ndarray, batch: int) -> float:
    """Tokens per second of the bare transformer body."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for start in range(0, len(tokens), batch):
        ids = torch.from_numpy(tokens[start : start + batch]).long().to(DEVICE)
        model.transformer(ids, use_cache=False)
    torch.cuda.synchronize()
    return tokens.size / (time.perf_counter() - began)


def harvested(
    model: nn.Module, tokens: np.ndarray, batch: int, sites: str, out: Path
) -> float:
    """Tokens per second from the first batch until the store is finished."""
    shutil.rmtree(out, ignore_errors=True)
    marks: list[float] = []

    def report(now: Progress) -> None:
        if now.stage == "reading the corpus":
            marks.append(time.perf_counter())

    spec = {"sites": sites, "batch": batch}
    actstore.harvest(
        spec, str(out), model=model, tokens=tokens, device=DEVICE, progress=report
    )
    return tokens.size / (time.perf_counter() - marks[0])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "copies": copies,
    "kernels": kernels,
    "steps": steps,
    "fed": fed,
    "harvest": harvest,
}


if __name__ == "__main__":
    main()
