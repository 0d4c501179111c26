"""How many bytes each object has, by arithmetic: what is read on a store's word is read
up to these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from actstore.format import keys
from actstore.format.dtypes import numpy_dtype
from actstore.format.layout import n_chunks
from actstore.format.shard import BLOSC_BYTES, CRC_BYTES, ShardCodec
from schemas.harvest import HarvestSpec, Layout
from schemas.source import Site

HISTOGRAM_BINS = 2048
STRATA, SUMS = 2, 5
MANIFEST_JSON = RECORD_JSON = 32 << 20  # some 10,000 sites
SMALL_JSON = 1 << 20  # a block's record, an array's metadata, a claim
OTHER_FILE = 256 << 20  # a tokenizer's vocabulary, a page for people

COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows": ("<i4", ("unit",)),
    "bytes": ("<i8", ("unit",)),
    "digests": ("|u1", ("unit", "byte")),
    "sums": ("<f8", ("unit", "site", "stratum", "figure")),
}
"""The columns over all units: dtype and dimensions."""

Range = tuple[int, int]


def plain(shape: Iterable[int], itemsize: int) -> int:
    """Bytes of an unsharded chunk."""
    return math.prod(shape) * itemsize + CRC_BYTES


def stats_bytes(sites: Iterable[Site]) -> int:
    """Bytes of the statistics of some sites."""
    return sum(8 * STRATA * (SUMS + 2 * site.d + HISTOGRAM_BINS) for site in sites)


def column_bytes(generation: int, n_units: int, n_sites: int) -> dict[str, int]:
    """Bytes of each column's chunk, by key."""
    return {
        column_key(generation, name): plain(
            column_shape(name, n_units, n_sites), np.dtype(dtype).itemsize
        )
        for name, (dtype, _) in COLUMNS.items()
    }


def column_shape(name: str, n_units: int, n_sites: int) -> tuple[int, ...]:
    """The shape of a column."""
    sizes = {
        "unit": n_units,
        "byte": 32,
        "site": n_sites,
        "stratum": STRATA,
        "figure": SUMS,
    }
    return tuple(sizes[one] for one in COLUMNS[name][1])


def column_key(generation: int, name: str) -> str:
    """Key of a column's only chunk."""
    _, dimensions = COLUMNS[name]
    return keys.chunk_key(
        f"{keys.columns_prefix(generation)}/{name}", *([0] * len(dimensions))
    )


def column_metadata(generation: int) -> tuple[str, ...]:
    """Keys of the columns' `zarr.json`."""
    prefix = keys.columns_prefix(generation)
    return (f"{prefix}/zarr.json", *(f"{prefix}/{name}/zarr.json" for name in COLUMNS))


def codec(spec: HarvestSpec, layout: Layout, d: int) -> ShardCodec:
    """How a site of width d is stored."""
    return ShardCodec(
        spec.codec, numpy_dtype(spec.dtype), layout.chunk_rows, d, layout.unit_chunks
    )


def unit_bytes(
    spec: HarvestSpec,
    layout: Layout,
    sites: Iterable[Site],
    unit: int,
    n_rows: int,
    stats: str,
    *,
    tokens: bool,
) -> dict[str, Range]:
    """Least and most bytes of each object of a unit, by key. stats: key of its
    statistics; tokens: whether its generation writes `tokens` and `rows`.
    """
    sites = tuple(sites)
    found = {stats: stats_bytes(sites)}
    if tokens:
        found[keys.chunk_key("tokens", unit, 0)] = plain(
            (layout.unit_sequences, layout.context), 4
        )
        found[keys.chunk_key("rows", unit, 0)] = plain((layout.capacity, 2), 4)
    for site in sites:
        found[keys.chunk_key(keys.norm_key(site.name), unit)] = plain(
            (layout.capacity,), 4
        )
        if spec.dtype == "int8":
            found[keys.chunk_key(keys.scale_key(site.name), unit)] = plain(
                (layout.capacity,), 2
            )
            found[keys.chunk_key(keys.step_key(site.name), unit, 0, 0)] = plain(
                (2, site.d), 4
            )
    every: dict[str, Range] = {key: (n, n) for key, n in found.items()}
    for site in sites:
        shard = codec(spec, layout, site.d)
        every[keys.chunk_key(keys.acts_key(site.name), unit, 0)] = shard_bytes(
            shard, n_chunks(n_rows, layout.chunk_rows)
        )
    return every


def shard_bytes(shard: ShardCodec, n_chunks: int) -> Range:
    """Least and most bytes of a shard with so many chunks."""
    most = shard.chunk_bytes + CRC_BYTES
    if shard.codec == "raw":
        return n_chunks * most + shard.index_bytes, n_chunks * most + shard.index_bytes
    return (
        n_chunks * (BLOSC_BYTES + CRC_BYTES) + shard.index_bytes,
        n_chunks * (most + BLOSC_BYTES) + shard.index_bytes,
    )
