"""The plan of an import, which an import that resumes must find again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actstore.format.layout import plan_layout
from actstore.format.stored_dtypes import numpy_dtype
from actstore.format.token_ids import LARGEST
from actstore.harvesting.harvest_plan import UNITS_IN_FLIGHT
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.unit_buffer import buffer_bytes
from actstore.importing.sequence_feed import Feed
from schemas.harvest import HarvestSpec, ModelInfo, Numerics, Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION

# Bytes of all sites in float32 that are read at a time: enough that the calls for each
# piece take little beside the bytes, and little beside the memory of a unit.
BATCH_BYTES = 32 << 20
UNKNOWN = "unknown"


def make_plan(feed: Feed, model: str, stored: Mapping[str, Any]) -> Plan:
    """Return the plan of an import.

    It is that of a harvest, with what is imported in place of a corpus.

    Args:
        feed: What is read.
        model: What the activations are of, as the user says.
        stored: How values are stored: fields of a HarvestSpec.

    Raises:
        SpecError: A field cannot have that value.
    """
    # An iterator may go on for as long as a store can: its end corrects the plan.
    n_sequences = LARGEST if feed.n_sequences is None else feed.n_sequences
    default_memory = HarvestSpec.model_fields["memory"].default
    memory = stored.get("memory", default_memory)
    # Read in pieces that are small beside the memory the user allows.
    values_per_token = sum(site.d for site in feed.sites)
    sequence_bytes = feed.context * 4 * values_per_token
    batch_bytes = min(BATCH_BYTES, memory // 8)
    batch = max(1, batch_bytes // sequence_bytes)
    spec = resolve_spec(
        {
            **stored,
            "model": {"name": model},
            "corpus": {"name": _corpus_name(feed), "kind": "imported"},
            "sites": tuple(site.name for site in feed.sites),
            "tokens": n_sequences * feed.context,
            "context": feed.context,
            # Sequences are taken as they come: nothing is put together or cut here.
            "pack": False,
            "batch": batch,
        }
    )
    widest = max(site.d for site in feed.sites)
    layout = plan_layout(
        spec.tokens,
        spec.context,
        widest * numpy_dtype(spec.dtype).itemsize,
        buffer_bytes(feed.sites, spec.dtype),
        spec.memory,
        UNITS_IN_FLIGHT,
        spec.unit_sequences,
        spec.chunk_rows,
    )
    return Plan(
        format_version=FORMAT_VERSION,
        format_minor=FORMAT_MINOR,
        spec=spec,
        sites=feed.sites,
        layout=layout,
        # No model is loaded, so nothing is known of it; 0 says so of a number.
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


def _corpus_name(feed: Feed) -> str:
    """Return what stands for a corpus' name: the first and the last file's."""
    arrays = feed.imported.arrays
    names = [name for array in arrays for name in array.files]
    if not names:
        return arrays[0].format
    if len(set(names)) == 1:
        return names[0]
    return f"{names[0]} ... {names[-1]}"
