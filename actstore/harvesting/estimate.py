"""Estimates what a harvest will take, before it is run.

The figures come from a few calibration batches and arithmetic. Nothing is written.

Sizes are those of real rows under each codec; times are this machine's. One reading of
the store is what decoding takes on all cores, or what the bandwidth allows where that
is less. Storing beats rerunning the model from n SAE runs on, the smallest n with

    harvest + n reading < n forward

A harvest of 100 s beside a forward of 40 s and a reading of 10 s: from 4 runs on, since
100 + 4 * 10 < 4 * 40 and 100 + 3 * 10 > 3 * 40. In money the same, with storage, PUT
and GET requests and hours of the device priced.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import CorpusError, SpecError
from actstore.format.statistics import UnitStats
from actstore.harvesting.codec_timing import time_codec
from actstore.harvesting.harvest_plan import (
    UNITS_IN_FLIGHT,
    make_layout,
    shard_bytes,
    unit_bytes,
)
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.inert_fields import check_acts
from actstore.harvesting.process_memory import resident
from actstore.harvesting.run_plan import checked_tap
from actstore.harvesting.store_size import (
    n_gets,
    n_objects,
    objects_per_unit,
    raw_bytes,
    stored_bytes,
)
from actstore.harvesting.trial_batches import Calibration, calibrate
from actstore.model.load_model import load_or_wrap
from actstore.model.model_info import tokenizer_files
from actstore.text.corpus_size import corpus_estimate, layout_for_corpus
from actstore.text.separators import check_separator
from actstore.text.sequences import separator_token, sequencer
from schemas.harvest import Codec, HarvestSpec, Layout
from schemas.records import (
    CodecEstimate,
    CorpusEstimate,
    HarvestEstimate,
    MemoryEstimate,
)
from schemas.source import Site

CODECS: tuple[Codec, ...] = ("lz4", "zstd", "raw")
GB = 1e9


# Rows of all of them are in memory together.
MOST_BATCHES = 1000


class Prices(NamedTuple):
    """The prices of storage and of the device, in any currency.

    Those of storage are the list prices of Amazon S3 Standard in US East (N. Virginia)
    for the first 50 TB, in US dollars (aws.amazon.com/s3/pricing, as of November 2026).

    Attributes:
        storage: The price of 1 GB for a month.
        put: The price of 1,000 PUT requests.
        get: The price of 1,000 GET requests.
        egress: The price of 1 GB that is read from outside of the storage's region.
        device: The price of the device for an hour.
        months: How long the store is kept.
    """

    storage: float = 0.023
    put: float = 0.005
    get: float = 0.0004
    egress: float = 0.09
    device: float = 2.0
    months: float = 1.0


class _Times(NamedTuple):
    """The seconds that a harvest and its parts take.

    Attributes:
        forward: The model alone, over all tokens.
        harvest: The whole harvest.
        read: One reading of the store.
    """

    forward: float
    harvest: float
    read: float


@checked(
    model=optional(arguments.module),
    device=arguments.device,
    batches=arguments.count_up_to(MOST_BATCHES),
    bandwidth=optional(arguments.positive),
    prices=optional(arguments.one_of(Prices)),
)
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
    """Estimate what a harvest will take, from a few batches; nothing is written.

    Args:
        spec: As in `harvest`.
        model: As in `harvest`.
        tokens: As in `harvest`.
        tokenizer: As in `harvest`.
        device: As in `harvest`.
        batches: How many batches the model is run on.
        bandwidth: Bytes per second of the storage, where it is slow; None: it is no
            slower than decoding.
        prices: What storage and device cost.

    Returns:
        Rows, bytes under each codec, objects, memory, seconds, costs, and the number of
        SAE runs from which storing beats rerunning the model.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError: As `harvest` does
            for a spec, a model, a site or a corpus that cannot be used.

    Examples:
        >>> import actstore
        >>> spec = {
        ...     "model": "builtin:mini",
        ...     "corpus": "builtin:stdlib",
        ...     "sites": "blocks.*.hook_mlp_out",
        ...     "tokens": 1_000_000,
        ... }
        >>> estimate = actstore.estimate(spec)
        >>> estimate.rows
        1000064
        >>> estimate.codecs["lz4"].ratio < 1
        True
    """
    _check_prices(prices or Prices())
    harvest_spec = resolve_spec(spec, model, tokens)
    loaded = load_or_wrap(harvest_spec.model, model, tokenizer, device)
    loaded.check_context(harvest_spec.context)
    check_acts(harvest_spec, loaded, model)
    source, corpus = sequencer(
        harvest_spec, loaded.tokenizer, tokens, loaded.info.vocabulary
    )
    check_separator(separator_token(source), loaded.info.vocabulary)
    source.seek(None)
    sample = source.take(batches * harvest_spec.batch)
    if len(sample.tokens) == 0:
        raise CorpusError(
            f"corpus {harvest_spec.corpus.name!r} holds no context of"
            f" {harvest_spec.context} tokens"
        )
    corpus_size = corpus_estimate(harvest_spec, source, corpus, sample)
    with checked_tap(loaded, harvest_spec) as tap:
        tap.check_padding(sample.tokens)
        sites = tap.sites
        layout = layout_for_corpus(make_layout(harvest_spec, tap), corpus_size)
        process_bytes = resident()
        calibration = calibrate(harvest_spec, loaded, tap, sample.tokens)
        n_files = len(tokenizer_files(loaded.tokenizer))
    return _estimate(
        harvest_spec,
        sites,
        layout,
        calibration,
        corpus_size,
        objects=n_objects(harvest_spec, sites, layout) + n_files,
        process_bytes=process_bytes,
        bandwidth=bandwidth,
        prices=prices or Prices(),
    )


def _check_prices(prices: Prices) -> None:
    for name, price in prices._asdict().items():
        is_number = isinstance(price, (int, float)) and not isinstance(price, bool)
        if not is_number or not 0 <= price < math.inf:
            raise SpecError(
                f"estimate: prices: {name}: wanted 0 or more, got {price!r}"
            )


def _estimate(
    spec: HarvestSpec,
    sites: tuple[Site, ...],
    layout: Layout,
    calibration: Calibration,
    corpus_size: CorpusEstimate,
    *,
    objects: int,
    process_bytes: int,
    bandwidth: float | None,
    prices: Prices,
) -> HarvestEstimate:
    n_tokens = layout.n_sequences * layout.context
    codecs: dict[str, CodecEstimate] = {
        codec: _codec_estimate(codec, spec, sites, layout, calibration)
        for codec in CODECS
    }
    chosen = codecs[spec.codec]
    times = _times(layout, calibration, chosen, bandwidth)
    storage_per_month = chosen.bytes / GB * prices.storage
    put_cost = objects / 1000 * prices.put
    gets = n_gets(spec, sites, layout, calibration.kept)
    get_cost = gets / 1000 * prices.get
    device_second = prices.device / 3600
    store_cost = (
        times.harvest * device_second + storage_per_month * prices.months + put_cost
    )
    return HarvestEstimate(
        corpus=corpus_size,
        layout=layout,
        sites=sites,
        codec=spec.codec,
        rows=round(n_tokens * calibration.kept),
        kept=calibration.kept,
        non_finite=_non_finite(calibration.rows.stats),
        tried=len(calibration.rows.rows),
        objects=objects,
        codecs=codecs,
        memory=_memory(spec, sites, layout, calibration, process_bytes, chosen.ratio),
        forward_tokens_s=1 / calibration.forward_s,
        harvest_tokens_s=n_tokens / times.harvest,
        forward_s=times.forward,
        harvest_s=times.harvest,
        read_s=times.read,
        storage_per_month=storage_per_month,
        put_cost=put_cost,
        get_cost=get_cost,
        egress_cost=chosen.bytes / GB * prices.egress,
        gets_per_gb=gets / max(chosen.bytes / GB, 1e-9),
        puts_per_unit=objects_per_unit(spec, sites),
        break_even_runs=_break_even_runs(times.harvest, times.forward - times.read),
        break_even_runs_cost=_break_even_runs(
            store_cost, times.forward * device_second - get_cost
        ),
    )


def _codec_estimate(
    codec: Codec,
    spec: HarvestSpec,
    sites: tuple[Site, ...],
    layout: Layout,
    calibration: Calibration,
) -> CodecEstimate:
    """Return what a codec makes of the whole store, from the calibration's rows."""
    kept = calibration.kept
    timing = time_codec(codec, spec, layout, calibration.rows)
    raw = raw_bytes(spec, sites, layout, kept)
    stored = stored_bytes(codec, spec, sites, layout, timing, kept)
    return CodecEstimate(
        ratio=stored / max(raw, 1),
        bytes=round(stored),
        encode_gb_s=timing.raw_bytes / GB / max(timing.encode_s, 1e-9),
        decode_gb_s=timing.raw_bytes / GB / max(timing.decode_s, 1e-9),
    )


def _times(
    layout: Layout,
    calibration: Calibration,
    codec: CodecEstimate,
    bandwidth: float | None,
) -> _Times:
    """Return what the whole harvest takes, and one reading of it.

    bandwidth: Bytes per second of the storage; None: it is no slower than decoding.
    """
    n_tokens = layout.n_sequences * layout.context
    raw = codec.bytes / codec.ratio
    encoding_s = raw / n_tokens / (codec.encode_gb_s * GB)
    # On the CPU encoding takes cores from the model, so their times add up. Beside a
    # GPU it only has to keep up.
    if calibration.device == "cpu":
        harvest_s = calibration.harvest_s + encoding_s
    else:
        harvest_s = max(calibration.harvest_s, encoding_s)
    read_s = raw / (codec.decode_gb_s * GB)
    if bandwidth:
        read_s = max(read_s, codec.bytes / bandwidth)
    return _Times(
        forward=calibration.forward_s * n_tokens,
        harvest=harvest_s * n_tokens,
        read=read_s,
    )


def _non_finite(stats: UnitStats) -> dict[str, int]:
    """Return how many rows are not finite, of the sites that have any."""
    counts = {name: int(site.non_finite.sum()) for name, site in stats.sites.items()}
    return {name: count for name, count in counts.items() if count > 0}


def _memory(
    spec: HarvestSpec,
    sites: tuple[Site, ...],
    layout: Layout,
    calibration: Calibration,
    process_bytes: int,
    ratio: float,
) -> MemoryEstimate:
    """Return the most memory that the harvest takes, by what takes it.

    ratio: What the chosen codec makes of a byte.
    """
    one_unit = unit_bytes(layout, sites, spec.dtype)
    # Each thread encodes one site's shard.
    threads = min(os.cpu_count() or 1, len(sites))
    held_per_byte = min(1.0, ratio)
    if spec.dtype == "int8":
        # The quantised rows lie beside their encoded shard. Other dtypes are encoded
        # out of the unit's buffer.
        held_per_byte += 1.0
    encoding = threads * shard_bytes(layout, sites, spec.dtype) * held_per_byte
    return MemoryEstimate(
        process=process_bytes,
        units=min(UNITS_IN_FLIGHT, layout.n_units) * one_unit,
        encoding=round(encoding),
        forward=calibration.forward_bytes,
        # Two staging buffers.
        device=0 if calibration.device == "cpu" else 2 * one_unit,
    )


def _break_even_runs(fixed: float, saved_per_run: float) -> int | None:
    """Return the smallest n with fixed < n * saved_per_run; None: there is none."""
    if saved_per_run <= 0:
        return None
    return math.floor(fixed / saved_per_run) + 1
