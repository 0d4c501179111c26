"""What a harvest will take, before it is run: a few calibration batches, and
arithmetic.

Nothing is written. Bytes are those of real rows under each codec; times are this
device's. `read_s` is a pass over the store (decoding on all cores, or the bandwidth
where that is less). Storing beats rerunning the model from n SAE runs on, n the
smallest with harvest + n read < n forward; in money, with storage, PUT and GET requests
and hours of the device priced.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from actstore.errors import CorpusError
from actstore.format.dtypes import encode_int8, numpy_dtype, to_float32
from actstore.format.object_records import object_record
from actstore.format.permutation import unit_permutation
from actstore.format.shard import ShardCodec
from actstore.format.statistics import UnitStats
from actstore.harvesting.harvest_plan import (
    UNITS_IN_FLIGHT,
    make_layout,
    shard_bytes,
    unit_bytes,
)
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.inert_fields import check_acts
from actstore.harvesting.row_collector import RowCollector
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import UnitBuffer
from actstore.harvesting.worker import autocast, inputs
from actstore.model.forward import device_of
from actstore.model.load_model import LoadedModel, loaded_model, tokenizer_files
from actstore.model.loaded_weights import check_used
from actstore.model.open_tap import open_tap
from actstore.model.tap import Tap
from actstore.text.corpus_size import corpus_estimate, filled
from actstore.text.separators import check_known
from actstore.text.sequences import separator_token, sequencer
from schemas.harvest import Codec, HarvestSpec, Layout
from schemas.records import (
    CodecEstimate,
    CorpusEstimate,
    HarvestEstimate,
    MemoryEstimate,
)

CODECS: tuple[Codec, ...] = ("lz4", "zstd", "raw")
GB = 1e9
# the root, tokens' and rows' metadata, 9 of the columns, plan, manifest, README,
# statistics
FIXED_OBJECTS = 16


class Prices(NamedTuple):
    """storage: per GB and month; put, get: per 1,000 requests; device: per hour;
    months: that the store is kept.
    """

    storage: float = 0.023
    put: float = 0.005
    get: float = 0.0004
    device: float = 2.0
    months: float = 1.0


class _Calibration(NamedTuple):
    """forward, harvest: seconds per token; kept: share of tokens; rows: of the
    calibration batches.
    """

    forward: float
    harvest: float
    kept: float
    forward_bytes: int
    rows: SealedUnit
    device: str


def estimate(
    spec: HarvestSpec | Mapping[str, Any],
    *,
    model: nn.Module | None = None,
    tokens: Any = None,
    tokenizer: Any = None,
    device: str = "cpu",
    batches: int = 3,
    bandwidth: float | None = None,
    prices: Prices | None = None,
) -> HarvestEstimate:
    """Estimate a harvest; arguments as for `harvest`. bandwidth: bytes per second of
    the storage, where it is slow.

    Raises as `harvest` does for a spec, a model, a site or a corpus that cannot be
    used.
    """
    wanted = resolve_spec(spec, model, tokens)
    loaded = loaded_model(wanted.model, model, tokenizer, device)
    loaded.check_context(wanted.context)
    check_acts(wanted, loaded, model)
    source, corpus = sequencer(wanted, loaded.tokenizer, tokens, loaded.info.vocabulary)
    check_known(separator_token(source), loaded.info.vocabulary)
    source.seek(None)
    taken = source.take(batches * wanted.batch)
    sample = taken.tokens
    if not len(sample):
        raise CorpusError(
            f"corpus {wanted.corpus.name!r} holds no context of {wanted.context} tokens"
        )
    held = corpus_estimate(wanted, source, corpus, taken)
    tap = open_tap(
        loaded, wanted.sites, compiled=wanted.compile, context=wanted.context
    )
    try:
        check_used(loaded, tap)
        tap.check_padding(sample)
        layout = filled(make_layout(wanted, tap), held)
        before = resident()
        found = _calibrate(wanted, loaded, tap, sample)
        n_files = len(tokenizer_files(loaded.tokenizer))
    finally:
        tap.close()
    codecs: dict[str, CodecEstimate] = {
        codec: _codec(codec, wanted, layout, found) for codec in CODECS
    }
    objects = n_objects(wanted, tap, layout) + n_files
    return _estimate(
        wanted,
        tap,
        held,
        layout,
        found,
        codecs,
        objects,
        before,
        bandwidth,
        prices or Prices(),
    )


def _estimate(
    spec: HarvestSpec,
    tap: Tap,
    corpus: CorpusEstimate,
    layout: Layout,
    found: _Calibration,
    codecs: dict[str, CodecEstimate],
    objects: int,
    process: int,
    bandwidth: float | None,
    prices: Prices,
) -> HarvestEstimate:
    n_tokens = layout.n_sequences * layout.context
    chosen, raw = (
        codecs[spec.codec],
        codecs[spec.codec].bytes / codecs[spec.codec].ratio,
    )
    # On the CPU encoding takes the model's cores; beside a GPU it only has to keep up.
    encoding = raw / n_tokens / (chosen.encode_gb_s * GB)
    on_cpu = found.device == "cpu"
    per_token = found.harvest + encoding if on_cpu else max(found.harvest, encoding)
    forward_s, harvest_s = found.forward * n_tokens, per_token * n_tokens
    read_s = max(
        raw / (chosen.decode_gb_s * GB), chosen.bytes / bandwidth if bandwidth else 0.0
    )
    # the index, then runs of chunks
    gets = layout.n_units * len(tap.sites) * (1 + layout.unit_chunks / 16)
    month = chosen.bytes / GB * prices.storage
    put_cost, get_cost = objects / 1000 * prices.put, gets / 1000 * prices.get
    hour = prices.device / 3600
    fixed = harvest_s * hour + month * prices.months + put_cost
    return HarvestEstimate(
        corpus=corpus,
        layout=layout,
        sites=tap.sites,
        codec=spec.codec,
        rows=round(n_tokens * found.kept),
        kept=found.kept,
        non_finite=_non_finite(found.rows.stats),
        tried=len(found.rows.rows),
        objects=objects,
        codecs=codecs,
        memory=_memory(spec, tap, layout, process, found, chosen.ratio),
        forward_tokens_s=1 / found.forward,
        harvest_tokens_s=1 / per_token,
        forward_s=forward_s,
        harvest_s=harvest_s,
        read_s=read_s,
        storage_per_month=month,
        put_cost=put_cost,
        get_cost=get_cost,
        break_even_runs=_runs(harvest_s, forward_s - read_s),
        break_even_runs_cost=_runs(fixed, forward_s * hour - get_cost),
    )


def _non_finite(stats: UnitStats) -> dict[str, int]:
    counts = {name: int(one.non_finite.sum()) for name, one in stats.sites.items()}
    return {name: n for name, n in counts.items() if n}


def _memory(
    spec: HarvestSpec,
    tap: Tap,
    layout: Layout,
    process: int,
    found: _Calibration,
    ratio: float,
) -> MemoryEstimate:
    one = unit_bytes(layout, tap.sites, spec.dtype)
    threads = min(os.cpu_count() or 1, len(tap.sites))
    # beside the encoded shard; other dtypes encode from the buffers
    quantised = 1.0 if spec.dtype == "int8" else 0.0
    return MemoryEstimate(
        process=process,
        units=min(UNITS_IN_FLIGHT, layout.n_units) * one,
        encoding=round(
            threads
            * shard_bytes(layout, tap.sites, spec.dtype)
            * (min(1.0, ratio) + quantised)
        ),
        forward=found.forward_bytes,
        device=0 if found.device == "cpu" else 2 * one,
    )


def _runs(fixed: float, saved: float) -> int | None:
    """The smallest n with fixed < n * saved."""
    return math.floor(fixed / saved) + 1 if saved > 0 else None


def _calibrate(
    spec: HarvestSpec, loaded: LoadedModel, tap: Tap, sample: NDArray[np.int32]
) -> _Calibration:
    """Run the batches with and without keeping rows, in turn behind one warm-up."""
    device = device_of(loaded.module)
    keep = TokenFilter.of(spec, loaded.info)
    special = np.array(loaded.info.special_tokens, np.int32)
    collector = RowCollector(tap.sites, special, device, filter=keep)
    buffer = UnitBuffer.make(
        tap.sites,
        sample.size,
        spec.dtype,
        device=device if device.type != "cpu" else None,
    )
    batches = [sample[i : i + spec.batch] for i in range(0, len(sample), spec.batch)]
    collector.begin(buffer)

    def run(
        batch: NDArray[np.int32], sink: Callable[[int, torch.Tensor], None]
    ) -> float:
        ids, mask = inputs(batch, loaded.pad, device)
        began = time.perf_counter()
        with autocast(spec.autocast, device):
            tap.run(ids, mask, sink)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    before = reset_peak()
    run(batches[0], lambda _site, _x: None)
    grown = max(0, peak() - before)
    plain, kept = [], []
    for i, batch in enumerate(batches):
        plain.append(run(batch, lambda _site, _x: None) / batch.size)
        collector.batch(batch, i * spec.batch)
        kept.append(run(batch, collector.take) / batch.size)
    if device.type != "cpu":
        buffer.values, buffer.norms = (
            [value.cpu() for value in buffer.values],
            buffer.norms.cpu(),
        )
    rows = collector.finish(0, len(sample)).rows()
    forward = float(np.median(plain))
    harvest = max(forward, float(np.median(kept)))
    return _Calibration(
        forward, harvest, len(rows.rows) / sample.size, grown, rows, device.type
    )


def _codec(
    codec: Codec, spec: HarvestSpec, layout: Layout, found: _Calibration
) -> CodecEstimate:
    """Encode and decode the calibration rows of every site."""
    dtype = numpy_dtype(spec.dtype)
    threads = os.cpu_count() or 1
    stored, raw, encode, decode = 0, 0, 0.0, 0.0
    n_kept = len(found.rows.rows)
    rows = min(layout.chunk_rows, max(1, n_kept))
    # whole chunks: fill would flatter
    order = unit_permutation(spec.seed, 0, n_kept)[: n_kept // rows * rows]
    with ThreadPoolExecutor(threads) as pool:
        for values in found.rows.sites.values():
            coded = (
                encode_int8(to_float32(values)).values
                if spec.dtype == "int8"
                else values
            )
            shard = ShardCodec(codec, dtype, rows, coded.shape[1], n_kept // rows)
            began = time.perf_counter()
            parts = shard.encode(coded, order, pool)
            object_record(parts)
            encode += time.perf_counter() - began
            chunks = [a + b for a, b in zip(parts[:-1:2], parts[1:-1:2], strict=True)]
            outs = [np.empty((rows, coded.shape[1]), dtype) for _ in chunks]
            began = time.perf_counter()
            list(pool.map(shard.decode_chunk, chunks, outs))
            decode += time.perf_counter() - began
            stored += sum(map(len, chunks))
            raw += sum(one.nbytes for one in outs)
    per_row = sum(site.d for site in found.rows.stats.sites.values()) * dtype.itemsize
    n_rows = layout.n_sequences * layout.context * found.kept
    written = n_rows
    # a unit's last chunk is filled up, and nothing makes the fill small
    if codec == "raw":
        last = layout.n_sequences - (layout.n_units - 1) * layout.unit_sequences
        chunks_of = [
            math.ceil(n * layout.context * found.kept / layout.chunk_rows)
            for n in (layout.unit_sequences, last)
        ]
        written = (
            (layout.n_units - 1) * chunks_of[0] + chunks_of[1]
        ) * layout.chunk_rows
    n_bytes = written * per_row * stored / max(raw, 1) + layout.n_units * _side_bytes(
        spec, layout, found.rows.stats
    )
    return CodecEstimate(
        ratio=n_bytes / max(n_rows * per_row, 1),
        bytes=round(n_bytes),
        encode_gb_s=raw / GB / max(encode, 1e-9),
        decode_gb_s=raw / GB / max(decode, 1e-9),
    )


def n_objects(spec: HarvestSpec, tap: Tap, layout: Layout) -> int:
    """Objects of the finished store, the tokenizer's files aside."""
    kinds = 4 if spec.dtype == "int8" else 2  # acts, norm; scale, step
    per_unit = kinds * len(tap.sites) + 5  # tokens, rows, statistics, two records
    return layout.n_units * per_unit + kinds * (len(tap.sites) + 1) + FIXED_OBJECTS


def _side_bytes(spec: HarvestSpec, layout: Layout, stats: UnitStats) -> int:
    """Bytes of a unit's objects that are not values: shard indexes, norms, int8 scales,
    rows, tokens, statistics.
    """
    per_site = (16 * layout.unit_chunks + 4) + (4 * layout.capacity + 4)
    if spec.dtype == "int8":
        per_site += 2 * layout.capacity + 4
    sites = stats.sites.values()
    steps = sum(8 * site.d + 4 for site in sites) if spec.dtype == "int8" else 0
    tokens = 4 * layout.unit_sequences * layout.context + 4
    return (
        len(sites) * per_site
        + steps
        + (8 * layout.capacity + 4)
        + tokens
        + len(stats.to_bytes())
    )


def resident() -> int:
    """Bytes of this process in memory now (0 where the system does not say)."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes of this process in memory since `reset_peak`, or since it began."""
    return _status("VmHWM")


def reset_peak() -> int:
    """Let `peak` count from now on (Linux); bytes in memory now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident()


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0
    )
