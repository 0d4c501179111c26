"""Computes how many objects and bytes a finished store will have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from actstore.format.object_sizes import stats_bytes
from actstore.format.shard import CRC_BYTES
from actstore.format.stored_dtypes import numpy_dtype
from actstore.harvesting.codec_timing import CodecTiming
from schemas.harvest import Codec, HarvestSpec, Layout
from schemas.source import Site

# Objects that every store has, whatever its units and sites: one of the root, two of
# metadata (tokens, rows), nine of columns, and plan, manifest, merged statistics and
# the three files of the card.
FIXED_OBJECTS = 18
# Objects that every unit has, whatever its sites: its tokens, rows and statistics, the
# record of its token block, and its own record.
_OBJECTS_PER_UNIT = 5


def n_objects(spec: HarvestSpec, sites: Sequence[Site], layout: Layout) -> int:
    """Return how many objects a finished store has, without the tokenizer's files.

    In numbers: 2 sites in float16, 10 units. Each unit has 2 * 2 + 5 = 9 objects; with
    6 of metadata and 18 fixed ones the store has 10 * 9 + 6 + 18 = 114.
    """
    # Every array has a `zarr.json`. So has each of the groups that hold all arrays of
    # one sort, such as the norms of all sites.
    metadata = _arrays_per_site(spec) * (len(sites) + 1)
    of_units = layout.n_units * objects_per_unit(spec, sites)
    return of_units + metadata + FIXED_OBJECTS


def objects_per_unit(spec: HarvestSpec, sites: Sequence[Site]) -> int:
    """Return how many objects each unit has: so many requests write it."""
    return _arrays_per_site(spec) * len(sites) + _OBJECTS_PER_UNIT


def n_gets(
    spec: HarvestSpec, sites: Sequence[Site], layout: Layout, kept: float
) -> int:
    """Return how many requests read all rows once from an object store, at most.

    One for each chunk (fewer, where chunks lie near each other), and for each shard one
    for its index, except with the `raw` codec, and two for the scales of int8.
    """
    per_shard = (spec.codec != "raw") + 2 * (spec.dtype == "int8")
    per_site = _n_chunks(layout, kept) + layout.n_units * per_shard
    return len(sites) * per_site


def _arrays_per_site(spec: HarvestSpec) -> int:
    """Return how many arrays a site has: its values and their norms.

    In int8 it also has the scales of rows and the steps of channels.
    """
    return 4 if spec.dtype == "int8" else 2


def raw_bytes(
    spec: HarvestSpec, sites: Sequence[Site], layout: Layout, kept: float
) -> float:
    """Return the bytes of all values in the storage dtype, before any codec.

    kept: Rows per token.
    """
    n_rows = layout.n_sequences * layout.context * kept
    return n_rows * _row_bytes(spec, sites)


def stored_bytes(
    codec: Codec,
    spec: HarvestSpec,
    sites: Sequence[Site],
    layout: Layout,
    timing: CodecTiming,
    kept: float,
) -> float:
    """Return the bytes of all units' objects under a codec.

    Args:
        codec: How chunks are compressed.
        spec: What is harvested.
        sites: The sites and their widths.
        layout: The sizes of units and chunks.
        timing: The sizes that the codec makes of some rows.
        kept: Rows per token.
    """
    n_rows = layout.n_sequences * layout.context * kept
    if codec == "raw":
        # `raw` does not compress the fill of a unit's last chunk.
        n_rows = _n_chunks(layout, kept) * layout.chunk_rows
    values = n_rows * _row_bytes(spec, sites)
    encoded = values * timing.stored_bytes / max(timing.raw_bytes, 1)
    return encoded + layout.n_units * _other_bytes(spec, sites, layout)


def _row_bytes(spec: HarvestSpec, sites: Sequence[Site]) -> int:
    """Return the bytes of one row's values at all sites."""
    return sum(site.d for site in sites) * numpy_dtype(spec.dtype).itemsize


def _n_chunks(layout: Layout, kept: float) -> int:
    """Return how many chunks one site has."""
    # All units are full but the last one.
    n_full = layout.n_units - 1
    sequences_of_last = layout.n_sequences - n_full * layout.unit_sequences

    def chunks_of(n_sequences: int) -> int:
        return math.ceil(n_sequences * layout.context * kept / layout.chunk_rows)

    return n_full * chunks_of(layout.unit_sequences) + chunks_of(sequences_of_last)


def _other_bytes(spec: HarvestSpec, sites: Sequence[Site], layout: Layout) -> int:
    """Return the bytes of all that a unit holds besides values.

    It holds shard indexes, norms, the scales and steps of int8, rows, tokens and
    statistics. Each array's object, and each index, ends with a checksum.
    """
    index = 16 * layout.unit_chunks + CRC_BYTES
    norms = 4 * layout.capacity + CRC_BYTES
    n_bytes = len(sites) * (index + norms)
    if spec.dtype == "int8":
        for site in sites:
            scales = 2 * layout.capacity + CRC_BYTES
            steps = 8 * site.d + CRC_BYTES
            n_bytes += scales + steps
    n_bytes += 8 * layout.capacity + CRC_BYTES
    n_bytes += 4 * layout.unit_sequences * layout.context + CRC_BYTES
    return n_bytes + stats_bytes(sites)
