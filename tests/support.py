"""A synthetic finished store, made through the real writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import actstore
from actstore.format.layout import plan_layout
from actstore.format.object_records import files_digest
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.format.stored_dtypes import numpy_dtype, to_float32
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.harvesting.store_writer import StoreWriter
from actstore.store.store import Store
from schemas.harvest import HarvestSpec, ModelInfo, Numerics, Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION
from schemas.source import CorpusSource, ModelSource, Site

SITES = {
    "blocks.0.hook_mlp_out": 16,
    "blocks.1.hook_mlp_out": 16,
    "blocks.2.hook_mlp_out": 16,
}
Values = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


def make_plan(
    sites: dict[str, int] | None = None,
    n_units: int = 24,
    unit_sequences: int = 4,
    context: int = 32,
    dtype: str = "bfloat16",
    codec: str = "lz4",
    seed: int = 0,
    chunk_rows: int | None = 16,
) -> Plan:
    sites = SITES if sites is None else sites
    n_tokens = n_units * unit_sequences * context
    spec = HarvestSpec.model_validate(
        {
            "model": ModelSource(name="synthetic"),
            "corpus": CorpusSource(name="synthetic", kind="memory"),
            "sites": tuple(sites),
            "tokens": n_tokens,
            "context": context,
            "dtype": dtype,
            "codec": codec,
            "seed": seed,
        }
    )
    item = numpy_dtype(spec.dtype).itemsize
    layout = plan_layout(
        n_tokens,
        context,
        max(sites.values()) * item,
        sum(sites.values()) * item,
        1 << 30,
        unit_sequences=unit_sequences,
        chunk_rows=chunk_rows,
    )
    return Plan(
        format_version=FORMAT_VERSION,
        format_minor=FORMAT_MINOR,
        spec=spec,
        sites=tuple(Site(name=name, d=d) for name, d in sites.items()),
        layout=layout,
        model=ModelInfo(
            architecture="synthetic",
            n_layers=3,
            d_model=16,
            vocabulary=100,
            weights_digest="0",
        ),
        numerics=Numerics(device="cpu", torch="0", dtype="float32", batch=1, threads=1),
    )


def low_rank(plan: Plan) -> Values:
    """Sparse combinations of a few directions; the norm grows with the layer."""
    directions = {
        s.name: _unit(np.random.default_rng(7).standard_normal((2 * s.d, s.d)))
        for s in plan.sites
    }
    scale = {s.name: 2.0 * (1 + i) for i, s in enumerate(plan.sites)}

    def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([int(sequence[0]), plan.spec.seed])
        m = len(directions[site])
        active = rng.random((len(sequence), m)) < 3 / m
        active[np.arange(len(sequence)), rng.integers(0, m, len(sequence))] = True
        codes = active * (1 + rng.random((len(sequence), m)))
        return scale[site] * (
            codes @ directions[site]
            + 0.01 * rng.standard_normal((len(sequence), len(directions[site][0])))
        )

    return values


def unit_rows(plan: Plan, unit: int, tokens: np.ndarray, values: Values) -> SealedUnit:
    """The rows of one unit as a harvest would hand them to the writer."""
    layout, dtype = plan.layout, numpy_dtype(plan.spec.dtype)
    sequence, position = np.nonzero(tokens >= 0)
    sequence = sequence + unit * layout.unit_sequences
    special = (position == 0) | (tokens[tokens >= 0] == 0)
    stats, sites, norms = UnitStats(plan.sites), {}, {}
    for site in plan.sites:
        exact = values(site.name, sequence, position).astype(np.float32)
        kept = exact if plan.spec.dtype == "int8" else exact.astype(dtype)
        wide = to_float32(kept)
        norms[site.name] = np.linalg.norm(wide, axis=1).astype(np.float32)
        stats.sites[site.name].add_rows(wide, norms[site.name], special)
        sites[site.name] = kept
    rows = np.stack([sequence, position], axis=1).astype(np.int32)
    return SealedUnit(unit, len(tokens), rows, sites, norms, stats)


def make_tokens(plan: Plan, unit: int) -> np.ndarray:
    layout = plan.layout
    rng = np.random.default_rng([unit, 3])
    n = min(layout.unit_sequences, layout.n_sequences - unit * layout.unit_sequences)
    tokens = rng.integers(1, 100, (n, layout.context)).astype(np.int32)
    tokens[:, 0] = 0
    return tokens


def make_store(
    url: Any,
    sites: dict[str, int] | None = None,
    values: Values | None = None,
    padded: bool = False,
    tokenizer_files: dict[str, bytes] | None = None,
    **options: Any,
) -> Store:
    """A finished store of `n_units` units; `padded` leaves unit-dependent numbers of
    rows out.
    """
    plan = make_plan(sites, **options)
    if tokenizer_files:
        model = plan.model.model_copy(
            update={"tokenizer_digest": files_digest(tokenizer_files)}
        )
        plan = plan.model_copy(update={"model": model})
    writer = StoreWriter.create(Storage(str(url)), plan, tokenizer_files)
    make = values or low_rank(plan)
    for unit in range(plan.layout.n_units):
        tokens = make_tokens(plan, unit)
        if padded:
            tokens[unit % len(tokens), plan.layout.context - 1 - unit % 5 :] = -1
        block = writer.commit_block(
            unit, tokens, {"unit": unit + 1}, last=unit == plan.layout.n_units - 1
        )
        writer.commit_unit(unit_rows(plan, unit, tokens, make), block)
    writer.finish()
    writer.close()
    return actstore.open(str(url))


def started(
    store: Store, sites: dict[str, int], n_units: int, dtype: str, **options: Any
) -> tuple[StoreWriter, Plan]:
    """A writer of a finished store's next generation: more sites on the units there
    are, or units up to `n_units`.
    """
    # loads torch, which most that make a store do without
    from actstore.harvesting.harvest_plan import extension_plan

    adds = n_units == store.manifest.n_units
    plan = make_plan(
        sites,
        n_units=n_units - (0 if adds else store.manifest.n_units),
        dtype=dtype,
        **options,
    )
    plan = extension_plan(plan, store.manifest, adds_sites=adds)
    return StoreWriter.create(store.storage, plan, parent=store.manifest), plan


def grow(
    store: Store, sites: dict[str, int], n_units: int, dtype: str, **options: Any
) -> Store:
    """The store with a generation more; units that are added end with padding."""
    writer, plan = started(store, sites, n_units, dtype, **options)
    for unit in range(plan.first_unit, n_units):
        tokens = make_tokens(plan, unit)
        if plan.adds_sites:
            block = writer.committed_blocks()[unit]
            tokens = writer.block_tokens(block)
        else:
            tokens[-1, plan.layout.context * 5 // 8 :] = -1
            cursor = (
                {"document": unit, "token": 3} if unit < n_units - 1 else {"end": True}
            )
            block = writer.commit_block(unit, tokens, cursor, last=unit == n_units - 1)
        writer.commit_unit(unit_rows(plan, unit, tokens, low_rank(plan)), block)
    writer.finish()
    writer.close()
    return actstore.open(store.url)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
