"""The bytes of each object of a store, worked out from the store's sizes.

A damaged store could name any size. So no more than these bytes are read of an object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from actstore.format import object_keys
from actstore.format.layout import n_chunks
from actstore.format.shard import BLOSC_BYTES, CRC_BYTES, ShardCodec
from actstore.format.stored_dtypes import numpy_dtype
from schemas.harvest import HarvestSpec, Layout
from schemas.manifest import Generation
from schemas.source import Site

HISTOGRAM_BINS = 2048
STRATA = 2  # position 0 and special tokens; the rest
SUMS = 5  # count, non-finite rows, sum, sum of squares and maximum of norms
MANIFEST_JSON = 32 << 20  # a manifest, of some 10,000 sites
RECORD_JSON = 32 << 20
SMALL_JSON = 1 << 20  # a block's record, an array's metadata, a claim
OTHER_FILE = 256 << 20  # a tokenizer's vocabulary, a page for people

COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows": ("<i4", ("unit",)),
    "bytes": ("<i8", ("unit",)),
    "digests": ("|u1", ("unit", "byte")),
    "sums": ("<f8", ("unit", "site", "stratum", "figure")),
}
"""The unit columns: dtype and dimensions of each."""

Range = tuple[int, int]
"""The least and the most bytes that an object can have."""


def plain(shape: Iterable[int], itemsize: int) -> int:
    """Return the bytes of a chunk of an array that is not sharded."""
    return math.prod(shape) * itemsize + CRC_BYTES


def stats_bytes(sites: Iterable[Site]) -> int:
    """Return the bytes of the statistics of some sites."""
    # Every figure has 8 bytes; each channel has a mean and a sum of squared deviations.
    total = 0
    for site in sites:
        figures_per_stratum = SUMS + 2 * site.d + HISTOGRAM_BINS
        total += 8 * STRATA * figures_per_stratum
    return total


class GrownSizes(NamedTuple):
    """The sizes of a store after a generation, which writes its columns anew.

    Attributes:
        n_units: Units of the store.
        n_sites: Sites of the store.
        stats_bytes: Bytes of the statistics of all its sites.
    """

    n_units: int
    n_sites: int
    stats_bytes: int


def sizes_by_generation(generations: Iterable[Generation]) -> Iterator[GrownSizes]:
    """Yield what a store has after each of its generations.

    A harvest of 2 sites in 4 units, extended by 3 sites and then by 6 units, has 4
    units of 2 sites, 4 units of 5 sites, and 10 units of 5 sites.
    """
    n_units = 0
    n_sites = 0
    bytes_of_sites = 0
    for generation in generations:
        n_units = max(n_units, generation.first_unit + generation.n_units)
        # A generation that begins at unit 0 brings sites, a later one brings units.
        if generation.first_unit == 0:
            n_sites += len(generation.sites)
            bytes_of_sites += stats_bytes(generation.sites)
        yield GrownSizes(n_units, n_sites, bytes_of_sites)


def column_bytes(
    generation: int,
    n_units: int,
    n_sites: int,
) -> dict[str, int]:
    """Return the bytes of each unit column's only chunk, by key."""
    by_key = {}
    for name, (dtype, _) in COLUMNS.items():
        shape = column_shape(name, n_units, n_sites)
        key = column_key(generation, name)
        by_key[key] = plain(shape, np.dtype(dtype).itemsize)
    return by_key


def column_shape(
    name: str,
    n_units: int,
    n_sites: int,
) -> tuple[int, ...]:
    """Return the shape of a unit column."""
    sizes = {
        "unit": n_units,
        "byte": 32,
        "site": n_sites,
        "stratum": STRATA,
        "figure": SUMS,
    }
    _, dimensions = COLUMNS[name]
    return tuple(sizes[dimension] for dimension in dimensions)


def column_key(generation: int, name: str) -> str:
    """Return the key of a unit column's only chunk."""
    _, dimensions = COLUMNS[name]
    array = f"{object_keys.columns_prefix(generation)}/{name}"
    first_chunk = [0] * len(dimensions)
    return object_keys.chunk_key(array, *first_chunk)


def column_metadata(generation: int) -> tuple[str, ...]:
    """Return the keys of the unit columns' `zarr.json`, and of their group's."""
    prefix = object_keys.columns_prefix(generation)
    return (f"{prefix}/zarr.json", *(f"{prefix}/{name}/zarr.json" for name in COLUMNS))


def codec(spec: HarvestSpec, layout: Layout, d: int) -> ShardCodec:
    """Return how the rows of a site of width d are stored."""
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
    """Return the least and most bytes of each object of a unit, by key.

    Args:
        spec: The spec of the harvest.
        layout: The layout of the store.
        sites: Those of the unit's generation.
        unit: The unit.
        n_rows: Its valid rows.
        stats: Key of its statistics.
        tokens: Whether its generation writes `tokens` and `rows`.
    """
    sites = tuple(sites)
    capacity = layout.capacity
    exact = {stats: stats_bytes(sites)}
    if tokens:
        tokens_shape = (layout.unit_sequences, layout.context)
        exact[object_keys.chunk_key("tokens", unit, 0)] = plain(tokens_shape, 4)
        exact[object_keys.chunk_key("rows", unit, 0)] = plain((capacity, 2), 4)
    for site in sites:
        norm_key = object_keys.chunk_key(object_keys.norm_key(site.name), unit)
        exact[norm_key] = plain((capacity,), 4)
        if spec.dtype == "int8":
            scale_key = object_keys.chunk_key(object_keys.scale_key(site.name), unit)
            exact[scale_key] = plain((capacity,), 2)
            step_key = object_keys.chunk_key(
                object_keys.step_key(site.name), unit, 0, 0
            )
            exact[step_key] = plain((2, site.d), 4)
    ranges: dict[str, Range] = {key: (n, n) for key, n in exact.items()}
    # Only a shard has a size that depends on its values.
    unit_chunks = n_chunks(n_rows, layout.chunk_rows)
    for site in sites:
        shard_key = object_keys.chunk_key(object_keys.acts_key(site.name), unit, 0)
        shard = codec(spec, layout, site.d)
        ranges[shard_key] = shard_bytes(shard, unit_chunks)
    return ranges


def shard_bytes(shard: ShardCodec, n_chunks: int) -> Range:
    """Return the least and most bytes of a shard with so many chunks."""
    plain_chunk = shard.chunk_bytes + CRC_BYTES
    if shard.codec == "raw":
        exact = n_chunks * plain_chunk + shard.index_bytes
        return exact, exact
    # A compressed chunk has at least Blosc's header, and is never longer than the plain
    # values by more than that.
    least = n_chunks * (BLOSC_BYTES + CRC_BYTES) + shard.index_bytes
    most = n_chunks * (plain_chunk + BLOSC_BYTES) + shard.index_bytes
    return least, most
