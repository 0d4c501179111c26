"""Unit columns: one figure of every unit (rows, bytes, digests, sums) as one array.

With them opening a store reads four objects, and not one for each unit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import NoRowsError, NumericsError
from actstore.format import zarr_metadata
from actstore.format.object_records import put
from actstore.format.object_sizes import COLUMNS, SUMS, column_key, column_shape
from actstore.format.shard import encode_plain
from actstore.format.statistics import UnitStats, none_finite
from actstore.format.storage import Storage
from actstore.store.committed_units import CommittedRecord
from actstore.store.stored_objects import StoredObjects
from schemas.harvest import Plan
from schemas.manifest import ObjectRecord, StoreManifest

# The rows of a unit that no generation has filled in yet.
_NOT_FILLED = -1


class UnitColumns(NamedTuple):
    """The figures of all units of a store, as long as it has units.

    Attributes:
        rows: Rows of each unit, int32 [n_units].
        bytes: Bytes of its objects, over all generations, int64 [n_units].
        digests: blake3 of its record, uint8 [n_units, 32]. Where several generations
            added to the unit, of the earlier digest and the newer record's.
        sums: By site and stratum, float64 [n_units, n_sites, 2, 5].
    """

    rows: NDArray[Any]
    bytes: NDArray[Any]
    digests: NDArray[Any]
    sums: NDArray[Any]


def unit_columns(
    storage: Storage, parent: StoreManifest | None, n_units: int, n_sites: int
) -> UnitColumns:
    """Return columns of the final size, with those of the parent filled in."""
    columns = UnitColumns(
        *(
            np.zeros(column_shape(name, n_units, n_sites), dtype)
            for name, (dtype, _) in COLUMNS.items()
        )
    )
    columns.rows[:] = _NOT_FILLED
    if parent is None:
        return columns
    parent_objects = StoredObjects(storage, parent)
    for name, column in columns._asdict().items():
        earlier = parent_objects.column(name)
        # The parent has fewer units, or fewer sites: it is one corner of the array.
        corner = tuple(slice(length) for length in earlier.shape)
        column[corner] = earlier
    return columns


def fill_unit(
    columns: UnitColumns,
    committed: CommittedRecord,
    stats: UnitStats,
    first_site: int,
) -> None:
    """Fill in what a generation committed of one unit.

    Args:
        columns: Those of the whole store.
        committed: The unit's record.
        stats: The statistics of the generation's sites over the unit's rows.
        first_site: The index of the generation's first site among the store's.
    """
    record = committed.record
    unit = record.unit
    digest = blake3(committed.data).digest()
    if columns.rows[unit] < 0:
        columns.rows[unit] = record.n_rows
        columns.bytes[unit] = 0
    else:
        earlier = columns.digests[unit].tobytes()
        digest = blake3(earlier + digest).digest()
    columns.bytes[unit] += sum(written.bytes for written in record.objects.values())
    columns.digests[unit] = np.frombuffer(digest, np.uint8)
    for site, site_stats in enumerate(stats.sites.values(), first_site):
        # By stratum: finite rows, other rows, sum of norms, sum of squared norms, and
        # the largest norm.
        sums = site_stats.arrays()[:SUMS]
        columns.sums[unit, site] = np.stack(sums, axis=1)


def check_finite(plan: Plan, columns: UnitColumns, first_site: int) -> None:
    """Check that a generation has rows to train on.

    Raises:
        NoRowsError: No row was kept.
        NumericsError: Of one of its sites, no row is finite.
    """
    if not columns.rows.any():
        raise NoRowsError(
            "no row was kept: every token is left out by skip_first, exclude_tokens or"
            " as padding"
        )
    for i, site in enumerate(plan.sites, first_site):
        counts = columns.sums[:, i, :, :2].sum(axis=(0, 1))
        n_finite = int(counts[0])
        n_not_finite = int(counts[1])
        if n_not_finite and not n_finite:
            raise NumericsError(none_finite(site.name, f"its {n_not_finite:,} rows"))


def write_columns(
    storage: Storage, plan: Plan, columns: UnitColumns
) -> dict[str, ObjectRecord]:
    """Write the columns as Zarr arrays; return the records of their objects, by key."""
    n_units = columns.sums.shape[0]
    n_sites = columns.sums.shape[1]
    files = zarr_metadata.column_files(plan, n_units, n_sites)
    for name, column in columns._asdict().items():
        key = column_key(plan.generation, name)
        files[key] = encode_plain(column, column.shape, 0)
    return {key: put(storage, key, data) for key, data in files.items()}
