"""The plan of an import, which its resume must find again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actstore.format.dtypes import numpy_dtype
from actstore.format.layout import plan_layout
from actstore.format.token_ids import LARGEST
from actstore.harvesting.harvest_plan import UNITS_IN_FLIGHT
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.unit_buffer import buffer_bytes
from actstore.importing.sequence_feed import Feed
from schemas.harvest import HarvestSpec, ModelInfo, Numerics, Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION

BATCH_BYTES = 32 << 20  # of all sites in float32, read at a time
UNKNOWN = "unknown"


def make_plan(feed: Feed, model: str, stored: Mapping[str, Any]) -> Plan:
    """The plan of an import: what a harvest's is, with what was imported in place of a
    corpus.
    """
    n = feed.n_sequences if feed.n_sequences is not None else LARGEST
    row_bytes = 4 * sum(site.d for site in feed.sites)
    memory = stored.get("memory", HarvestSpec.model_fields["memory"].default)
    spec = resolve_spec(
        {
            **stored,
            "model": {"name": model},
            "corpus": {"name": _name(feed), "kind": "imported"},
            "sites": tuple(site.name for site in feed.sites),
            "tokens": n * feed.context,
            "context": feed.context,
            "pack": False,
            "batch": max(
                1, min(BATCH_BYTES, memory // 8) // (feed.context * row_bytes)
            ),
        }
    )
    layout = plan_layout(
        spec.tokens, spec.context, max(site.d for site in feed.sites) * numpy_dtype(spec.dtype).itemsize,
        buffer_bytes(feed.sites, spec.dtype), spec.memory, UNITS_IN_FLIGHT, spec.unit_sequences, spec.chunk_rows,
    )  # fmt: skip
    return Plan(
        format_version=FORMAT_VERSION,
        format_minor=FORMAT_MINOR,
        spec=spec,
        sites=feed.sites,
        layout=layout,
        model=ModelInfo(
            architecture=UNKNOWN,
            n_layers=0,
            d_model=0,
            vocabulary=0,
            weights_digest=UNKNOWN,
        ),
        numerics=Numerics(
            device="cpu",
            torch=torch.__version__,
            dtype="float32",
            batch=spec.batch,
            threads=torch.get_num_threads(),
        ),
        imported=feed.imported,
    )


def _name(feed: Feed) -> str:
    """What stands for a corpus' name."""
    names = [name for one in feed.imported.arrays for name in one.files] or [
        feed.imported.arrays[0].format
    ]
    return names[0] if len(set(names)) == 1 else f"{names[0]} ... {names[-1]}"
