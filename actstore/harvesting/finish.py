"""The end of a harvest: columns over all units, merged statistics, and the manifest
that makes a store of it.

A later generation starts from its parent's columns and statistics, so that extending
costs what is new only. Merging goes on in unit order, so the figures are those of one
harvest of everything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import NoRowsError, NumericsError
from actstore.format import keys, zarr_metadata
from actstore.format.content_id import content_id
from actstore.format.layout import held_out
from actstore.format.manifest_checks import check_manifest, is_tokenizer_file
from actstore.format.object_records import object_record, put
from actstore.format.object_sizes import (
    COLUMNS,
    OTHER_FILE,
    column_key,
    column_shape,
    stats_bytes,
)
from actstore.format.shard import encode_plain
from actstore.format.statistics import UnitStats, none_finite
from actstore.format.storage import Storage
from actstore.store.committed_units import Committed, committed_records
from actstore.store.stored_objects import StoredObjects
from schemas.harvest import Plan
from schemas.manifest import Generation, ObjectRecord, StoreManifest


class Columns(NamedTuple):
    """Scalars of all units: int32 [n], int64 [n], uint8 [n, 32], float64 [n, sites, 2,
    5].
    """

    rows: NDArray[Any]
    bytes: NDArray[Any]
    digests: NDArray[Any]
    sums: NDArray[Any]


def finish(
    storage: Storage, plan: Plan, parent: StoreManifest | None = None
) -> StoreManifest:
    """Write columns, statistics and the manifest. Raises UnfinishedError while a unit
    is missing.
    """
    committed = committed_records(storage, plan, parent)
    sites = (
        plan.sites
        if parent is None
        else parent.sites + (plan.sites if plan.adds_sites else ())
    )
    n_units = max(plan.first_unit + len(committed), parent.n_units if parent else 0)
    columns = _columns(storage, parent, n_units, len(sites))
    merged = _merged(storage, plan, parent)
    at_site = len(sites) - len(plan.sites)
    for one in committed:
        key = keys.unit_stats_key(one.record.unit, plan.generation)
        stats = UnitStats.from_bytes(
            plan.sites, storage.read(key, stats_bytes(plan.sites)), key
        )
        _fill(columns, one, stats, at_site)
        if not held_out(one.record.unit):
            merged.merge(stats)
    _check_finite(plan, columns, at_site)
    if plan.adds_sites:
        old = _merged(storage, plan, parent, of_parent=True)
        old.sites.update(merged.sites)
        merged = old
    files = {
        **(parent.files if parent else {}),
        **_write_columns(storage, plan, columns),
    }
    key = keys.merged_stats_key(plan.generation)
    files[key] = put(storage, key, merged.to_bytes())
    for key in [
        *filter(is_tokenizer_file, storage.list("tokenizer")),
        "README.md",
        keys.plan_key(plan.generation),
    ]:
        files[key] = object_record(storage.read(key, OTHER_FILE))
    manifest = _manifest(plan, parent, sites, committed, columns, merged, files)
    check_manifest(manifest, storage.url)  # what cannot be opened is not finished
    for key in storage.list("claims"):
        storage.delete(key)
    for key, data in zarr_metadata.group_files(manifest).items():
        storage.put(key, data)
    storage.put(keys.MANIFEST, manifest.to_json().encode())
    return manifest


def _fill(
    columns: Columns, committed: Committed, stats: UnitStats, at_site: int
) -> None:
    record, digest = committed.record, blake3(committed.data).digest()
    unit = record.unit
    if columns.rows[unit] < 0:
        columns.rows[unit], columns.bytes[unit] = record.n_rows, 0
    else:
        digest = blake3(columns.digests[unit].tobytes() + digest).digest()
    columns.bytes[unit] += sum(one.bytes for one in record.objects.values())
    columns.digests[unit] = np.frombuffer(digest, np.uint8)
    for j, one in enumerate(stats.sites.values(), at_site):
        columns.sums[unit, j] = np.stack(one.arrays()[:5], axis=1)


def _check_finite(plan: Plan, columns: Columns, at_site: int) -> None:
    """Raises NoRowsError where no row was kept, NumericsError for a site of which none
    is finite.
    """
    if not columns.rows.any():
        raise NoRowsError(
            "no row was kept: every token is left out by skip_first, exclude_tokens or"
            " as padding"
        )
    for j, site in enumerate(plan.sites, at_site):
        finite, others = columns.sums[:, j, :, :2].sum(axis=(0, 1))
        if others and not finite:
            raise NumericsError(none_finite(site.name, f"its {int(others):,} rows"))


def _columns(
    storage: Storage, parent: StoreManifest | None, n_units: int, n_sites: int
) -> Columns:
    """Columns of the final size, with the parent's values in them; -1 rows where a unit
    is new.
    """
    made = Columns(
        *(
            np.zeros(column_shape(name, n_units, n_sites), dtype)
            for name, (dtype, _) in COLUMNS.items()
        )
    )
    made.rows[:] = -1
    if parent is not None:
        store = StoredObjects(storage, parent)
        for name, column in made._asdict().items():
            old = store.column(name)
            column[tuple(map(slice, old.shape))] = old
    return made


def _merged(
    storage: Storage,
    plan: Plan,
    parent: StoreManifest | None,
    *,
    of_parent: bool = False,
) -> UnitStats:
    """Where merging starts: nothing for new sites, the parent's statistics for more
    units of the same ones.
    """
    if parent is None or (plan.adds_sites and not of_parent):
        return UnitStats(plan.sites)
    key = keys.merged_stats_key(len(parent.generations) - 1)
    return UnitStats.from_bytes(
        parent.sites, StoredObjects(storage, parent).file(key), key
    )


def _write_columns(
    storage: Storage, plan: Plan, columns: Columns
) -> dict[str, ObjectRecord]:
    written = zarr_metadata.column_files(
        plan, columns.sums.shape[0], columns.sums.shape[1]
    )
    for name, column in columns._asdict().items():
        written[column_key(plan.generation, name)] = encode_plain(
            column, column.shape, 0
        )
    return {key: put(storage, key, data) for key, data in written.items()}


def _manifest(
    plan: Plan,
    parent: StoreManifest | None,
    sites: tuple[Any, ...],
    committed: list[Committed],
    columns: Columns,
    merged: UnitStats,
    files: dict[str, ObjectRecord],
) -> StoreManifest:
    generation = Generation(
        plan=keys.plan_key(plan.generation),
        units=keys.units_prefix(plan.generation) + "/",
        sites=plan.sites,
        first_unit=plan.first_unit,
        n_units=len(committed),
        n_sequences=sum(one.record.n_sequences for one in committed),
        n_rows=sum(one.record.n_rows for one in committed),
        plan_digest=files[keys.plan_key(plan.generation)].digest,
        units_digest=blake3(b"".join(one.data for one in committed)).hexdigest(),
    )
    generations = (*(parent.generations if parent else ()), generation)
    base = parent.spec if parent else plan.spec
    more = (
        {}
        if parent is None or plan.adds_sites
        else {"tokens": base.tokens + plan.spec.tokens}
    )
    spec = (
        base
        if parent is None
        else base.model_copy(update={"sites": tuple(s.name for s in sites), **more})
    )
    training = np.array([not held_out(unit) for unit in range(len(columns.rows))], bool)
    added = 0 if parent is None or plan.adds_sites else parent.n_sequences
    return StoreManifest(
        format_minor=plan.format_minor,
        content_id=content_id(generations),
        parent=parent.content_id if parent else None,
        spec=spec,
        sites=sites,
        layout=plan.layout,
        model=plan.model,
        numerics=parent.numerics if parent else plan.numerics,
        generations=generations,
        n_units=len(columns.rows),
        n_sequences=added + generation.n_sequences,
        n_rows=int(columns.rows.sum()),
        n_train_rows=int(columns.rows[training].sum()),
        n_bytes=int(columns.bytes.sum()),
        norms=merged.norms(),
        files=dict(sorted(files.items())),
        imported=plan.imported if parent is None else parent.imported,
    )
