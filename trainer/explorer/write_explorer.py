"""Writes the explorer's files of a run: Parquet by latents, and then the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.store.store import Store
from schemas.explorer import ExplorerRecord, ExplorerRun
from trainer.evaluation.metric_definitions import spread
from trainer.explorer.explorer_tables import (
    BESIDE,
    CONTEXTS,
    LATENTS,
    META,
    ROW_GROUP,
    TOKENS,
    TOKENS_SCHEMA,
    TOP,
    Contexts,
    contexts_schema,
    latents_schema,
    quantiles,
    shown_contexts,
)
from trainer.explorer.gather_contexts import Gathered, Tick
from trainer.explorer.kept_firings import AFTER, BEFORE
from trainer.explorer.nearest import NEAREST, Nearest, decoder_norms, nearest
from trainer.explorer.token_effects import BINS, Effects, Unembedding, effects_of
from trainer.explorer.token_windows import texts_of
from trainer.runs.trained_sae import TrainedSae

Arrays = dict[str, NDArray[Any]]
_MOST_TOKENS = 1 << 24  # ids of tokens, more than any vocabulary has


@dataclass(frozen=True)
class Sources:
    """All that the files are made of.

    Attributes:
        sae: The SAE.
        store: Its store.
        found: What the pass over the rows found.
        record: What is going to be written last.
        own: The SAE's directions of length 1, [m, d].
        others: Those of the other runs.
        through: The unembedding, or None.
        tokenizer: Of the store; None where there is none.
        memory: Bytes for blocks of cosines and of logits.
    """

    sae: TrainedSae
    store: Store
    found: Gathered
    record: ExplorerRecord
    own: Tensor
    others: Sequence[Tensor]
    through: Unembedding | None
    tokenizer: Any
    memory: int


def record_of(
    sae: TrainedSae,
    store: Store,
    found: Gathered,
    others: Sequence[TrainedSae],
    no_logits: str | None,
) -> ExplorerRecord:
    """Return the record of a run's explorer."""
    beside = [
        ExplorerRun(name=name_of(one), n_latents=one.n_latents, sites=one.sites)
        for one in others
    ]
    return ExplorerRecord(
        name=name_of(sae),
        kind=sae.spec.kind,
        model=store.manifest.spec.model.name,
        content_id=store.manifest.content_id,
        n_latents=sae.n_latents,
        layers=found.layers,
        outputs=sae.sites if sae.of_all_sites else ("all",),
        split=found.split,
        rows=found.rows,
        sketch_tokens=found.sketch.share,
        row_group=ROW_GROUP,
        before=BEFORE,
        after=AFTER,
        no_logits=no_logits,
        beside=tuple(beside),
    )


def name_of(sae: TrainedSae) -> str:
    """Return the name of a run: its own, or that of its folder."""
    return sae.record.name or sae.url.rstrip("/").rsplit("/", 1)[-1]


def write_explorer(sources: Sources, folder: Path, tick: Tick | None = None) -> None:
    """Write all files into a local folder; the record last.

    Args:
        sources: What they are made of.
        folder: Where they go; files of an earlier explorer are replaced.
        tick: Is told how many latents are done, and how many there are.
    """
    record = sources.record
    used = np.zeros(0, bool)
    (folder / META).unlink(missing_ok=True)
    options = {"compression": "zstd"}
    latents_file = pq.ParquetWriter(folder / LATENTS, latents_schema(record), **options)
    contexts_file = pq.ParquetWriter(
        folder / CONTEXTS, contexts_schema(record), **options
    )
    with latents_file, contexts_file:
        for first, effects in zip(
            range(0, record.n_latents, ROW_GROUP), _effects(sources), strict=True
        ):
            end = min(first + ROW_GROUP, record.n_latents)
            arrays = sources.found.arrays.mapped(first, end)
            contexts = shown_contexts(arrays)
            tokens = sources.found.tokens.windows(contexts.sequence, contexts.position)
            columns = _columns(sources, arrays, contexts, tokens, first)
            columns |= _effect_columns(effects, end - first)
            _write(latents_file, columns)
            _write(contexts_file, _context_columns(contexts, tokens, first))
            shown = [tokens.ravel(), columns["token"]]
            if effects is not None:
                shown += [effects.boosted.ravel(), effects.suppressed.ravel()]
            used = _marked(used, np.concatenate(shown))
            if tick is not None:
                tick(end, record.n_latents)
    ids = np.flatnonzero(used)
    texts = texts_of(ids, sources.tokenizer)
    table = pa.table({"token": ids, "text": texts}).cast(TOKENS_SCHEMA)
    pq.write_table(table, folder / TOKENS, compression="zstd")
    (folder / META).write_text(record.to_json())


def _effects(sources: Sources) -> Iterator[Effects | None]:
    """Yield the effects on output tokens of each row group; None without them."""
    m = sources.record.n_latents
    for first in range(0, m, ROW_GROUP):
        if sources.through is None:
            yield None
            continue
        block = sources.sae.decoder[first : min(first + ROW_GROUP, m)]
        parts = list(effects_of(block, sources.through, sources.memory))
        yield Effects(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _columns(
    sources: Sources,
    arrays: Arrays,
    contexts: Contexts,
    tokens: NDArray[np.int32],
    first: int,
) -> Arrays:
    """Return the columns of some latents, but for those of output tokens."""
    n = len(arrays["firings"])
    here = slice(first, first + n)
    firings = np.asarray(arrays["firings"])
    total = firings.sum(axis=1)
    rows = sources.record.rows
    sums = np.asarray(arrays["sums"])
    norms = decoder_norms(sources.sae)[here].cpu().numpy()
    near = nearest(sources.own[here], sources.own, NEAREST, sources.memory, first)
    beside = _beside(sources, here)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sum(axis=1) / total
        layer_means = sums / firings
        shares = firings / total[:, None]
    if sources.sae.of_all_sites:
        # Its latents fire at all sites alike; they differ in what they write there.
        shares = norms / np.maximum(norms.sum(axis=1, keepdims=True), 1e-30)
    shares = np.nan_to_num(shares).astype(np.float64)
    wide = spread(torch.from_numpy(shares).T).numpy()
    most = np.asarray(arrays["most"])
    token, same = _common_token(contexts, tokens, n)
    return {
        "latent": np.arange(first, first + n),
        "firings": total,
        "density": total / (rows * len(sources.record.layers)),
        "spread": wide,
        "norm": np.sqrt(np.square(norms).sum(axis=1)),
        "most": most.max(axis=1),
        "mean": means,
        "strength": _strength(sources, most, norms),
        "same_token": same,
        "alone": _alone(contexts, n),
        "max_cosine": _largest_cosine(beside.cosine),
        "token": token,
        "trajectory_tokens": np.asarray(arrays["trajectory_tokens"]),
        "layer_firings": firings,
        "layer_means": layer_means,
        "layer_most": most,
        "trajectory": _or_nan(arrays),
        "output_norms": norms,
        "histogram": np.asarray(arrays["histogram"]),
        "quantiles": quantiles(arrays),
        "near": near.latent,
        "near_cosine": near.cosine,
        "beside": beside.latent,
        "beside_cosine": beside.cosine,
        "together": np.asarray(arrays["together"]) - 1,
        "together_cosine": np.asarray(arrays["together_cosine"]),
        "together_share": np.asarray(arrays["together_share"]),
    }


def _beside(sources: Sources, here: slice) -> Nearest:
    """Return the nearest latents of the other runs, run by run."""
    found = [
        nearest(sources.own[here], other, BESIDE, sources.memory)
        for other in sources.others
    ]
    n = len(sources.own[here])
    latents = [np.zeros((n, 0), np.int32), *(one.latent for one in found)]
    cosines = [np.zeros((n, 0), np.float32), *(one.cosine for one in found)]
    return Nearest(np.concatenate(latents, axis=1), np.concatenate(cosines, axis=1))


def _largest_cosine(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest cosine of each latent, NaN where there is none."""
    kept = np.where(np.isnan(cosines), -np.inf, cosines)
    largest = kept.max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(largest), largest, np.nan).astype(np.float32)


def _or_nan(arrays: Arrays) -> NDArray[np.float32]:
    """Return the trajectories, NaN for a latent that no sampled token has."""
    seen = np.asarray(arrays["trajectory_tokens"])[:, None] > 0
    return np.where(seen, arrays["trajectory"], np.nan).astype(np.float32)


def _strength(
    sources: Sources, most: NDArray[np.float32], norms: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what a latent's largest activation writes, over the norm of its layer.

    It is activation * decoder norm / scale, in original units, over the layer's mean
    norm; of the layers the largest. most: [n, n_layers]; norms: [n, n_outputs].
    """
    sae = sources.sae
    written_to = sae.record.targets or sae.sites
    layer_norms = [sources.store.norms[site].all.mean_norm for site in written_to]
    scale = sae.scale_out.cpu().numpy()
    by_layer = most * norms / (scale * np.maximum(layer_norms, 1e-30))
    largest: NDArray[np.float32] = by_layer.max(axis=1).astype(np.float32)
    return largest


def _common_token(
    contexts: Contexts, tokens: NDArray[np.int32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each latent's commonest token among its strongest contexts, and its share.

    -1 and 0 for a latent without contexts. Of equally common ones it is the smallest.
    """
    top = contexts.group == TOP
    latent = contexts.latent[top]
    token = tokens[top, BEFORE].astype(np.int64)
    pair, counts = np.unique(latent * _MOST_TOKENS + token + 1, return_counts=True)
    order = np.lexsort((-pair, counts))
    best = np.full(n, -1, np.int64)
    share = np.zeros(n, np.float32)
    # Written from the rarest to the commonest, so that the last one stays.
    best[pair[order] // _MOST_TOKENS] = pair[order] % _MOST_TOKENS - 1
    share[pair[order] // _MOST_TOKENS] = counts[order]
    n_contexts = np.maximum(np.bincount(latent, minlength=n), 1)
    return best, (share / n_contexts).astype(np.float32)


def _alone(contexts: Contexts, n: int) -> NDArray[np.float32]:
    """Return the mean share of a firing in the activations of its window.

    1: the strongest contexts' other tokens are silent. 0 without contexts.
    """
    top = contexts.group == TOP
    sums = np.nansum(contexts.values[top], axis=1)
    share = contexts.value[top] / np.maximum(sums, 1e-30)
    latent = contexts.latent[top]
    counts = np.maximum(np.bincount(latent, minlength=n), 1)
    return (np.bincount(latent, share, n) / counts).astype(np.float32)


def _effect_columns(effects: Effects | None, n: int) -> Arrays:
    """Return the columns of output tokens; empty ones without them."""
    if effects is None:
        none = np.zeros((n, 0))
        nan = np.full(n, np.nan)
        return {
            "boosted": none,
            "boosted_logits": none,
            "suppressed": none,
            "suppressed_logits": none,
            "logit_low": nan,
            "logit_high": nan,
            "logit_histogram": np.zeros((n, BINS)),
        }
    return {
        "boosted": effects.boosted,
        "boosted_logits": effects.boosted_logits,
        "suppressed": effects.suppressed,
        "suppressed_logits": effects.suppressed_logits,
        "logit_low": effects.ends[:, 0],
        "logit_high": effects.ends[:, 1],
        "logit_histogram": effects.histogram,
    }


def _context_columns(
    contexts: Contexts, tokens: NDArray[np.int32], first: int
) -> Arrays:
    columns: Arrays = dict(contexts._asdict())
    columns["latent"] = contexts.latent + first
    columns["tokens"] = tokens
    return columns


def _write(writer: pq.ParquetWriter, columns: Arrays) -> None:
    """Write columns as one row group, in the schema's types; none if they are empty."""
    schema = writer.schema
    arrays = [_array(columns[field.name], field.type) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    if table.num_rows:
        writer.write_table(table, row_group_size=table.num_rows)


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return a column of numbers, or of lists where values are [n, k]."""
    values = np.ascontiguousarray(values)
    if values.ndim == 1:
        return pa.array(values).cast(kind)
    flat = pa.array(values.ravel()).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, flat, type=kind)


def _marked(used: NDArray[np.bool_], tokens: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which tokens have been used, with some more."""
    more = np.unique(tokens[tokens >= 0]).astype(np.int64)
    if not len(more):
        return used
    if more[-1] >= len(used):
        used = np.pad(used, (0, int(more[-1]) + 1 - len(used)))
    used[more] = True
    return used
