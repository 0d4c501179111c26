"""Writes the explorer's files of a run: Parquet by latents, and then the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.explorer import ExplorerRecord, ExplorerRun
from trainer.explorer.explorer_tables import (
    CONTEXTS,
    LATENTS,
    META,
    ROW_GROUP,
    TOKENS,
    TOKENS_SCHEMA,
    Contexts,
    contexts_schema,
    latents_schema,
    shown_contexts,
)
from trainer.explorer.gather_contexts import Gathered, Tick
from trainer.explorer.kept_firings import AFTER, BEFORE
from trainer.explorer.latent_columns import Sources, columns_of
from trainer.explorer.token_effects import BINS, Effects, effects_of
from trainer.explorer.token_windows import texts_of
from trainer.runs.run_data import name_of
from trainer.runs.trained_sae import TrainedSae

Arrays = dict[str, NDArray[Any]]


def record_of(
    sae: TrainedSae,
    store: Store,
    found: Gathered,
    others: Sequence[TrainedSae],
    no_logits: str | None,
) -> ExplorerRecord:
    """Return the record of a run's explorer."""
    beside = [
        ExplorerRun(
            name=name_of(one.url, one.record), n_latents=one.n_latents, sites=one.sites
        )
        for one in others
    ]
    return ExplorerRecord(
        name=name_of(sae.url, sae.record),
        kind=sae.spec.kind,
        model=store.manifest.spec.model.name,
        content_id=store.manifest.content_id,
        weights=weights_of(sae.url),
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


MOST_WEIGHTS = 1 << 40  # bytes


def weights_of(run: str) -> str:
    """Return the blake3 digest of a run's weights."""
    return Storage(run).digest("sae.safetensors", MOST_WEIGHTS)[1]


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
            columns = columns_of(sources, arrays, contexts, tokens, first)
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
