"""The end of a harvest, which makes a store of what was committed.

Unit columns, merged statistics and the manifest are written here.

A later generation starts from its parent's columns and statistics, so that extending a
store costs what is new only. Statistics are merged in the order of the units, so the
figures are those of one harvest of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from blake3 import blake3

from actstore.format import object_keys, zarr_metadata
from actstore.format.content_id import content_id
from actstore.format.layout import held_out
from actstore.format.manifest_checks import check_manifest, is_tokenizer_file
from actstore.format.object_records import object_record, put
from actstore.format.object_sizes import OTHER_FILE, stats_bytes
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.harvesting.card import card_files
from actstore.harvesting.unit_columns import (
    UnitColumns,
    check_finite,
    fill_unit,
    unit_columns,
    write_columns,
)
from actstore.machine.map_ahead import map_ahead
from actstore.store.committed_units import (
    CommittedRecord,
    committed_record,
    complete_units,
    reads_at_once,
)
from actstore.store.stored_objects import StoredObjects
from schemas.harvest import HarvestSpec, Plan
from schemas.manifest import Generation, ObjectRecord, StoreManifest
from schemas.source import Site

CARD_MINOR = 2  # the first minor version of the format that has a card


@dataclass(slots=True)
class _Totals:
    """What a generation's units come to together.

    Attributes:
        n_units: Units that were counted.
        n_sequences: Their sequences.
        n_rows: Their rows.
        halved: Those whose planned batch did not fit.
        records: The digest of their records, one behind the other.
    """

    n_units: int = 0
    n_sequences: int = 0
    n_rows: int = 0
    halved: list[int] = field(default_factory=list)
    records: blake3 = field(default_factory=blake3)

    def add(self, unit: CommittedRecord) -> None:
        """Count one unit more."""
        record = unit.record
        self.n_units += 1
        self.n_sequences += record.n_sequences
        self.n_rows += record.n_rows
        self.records.update(unit.data)
        if record.batch is not None:
            self.halved.append(record.unit)


def finish_generation(
    storage: Storage,
    plan: Plan,
    parent: StoreManifest | None = None,
    tokenizer_keys: Sequence[str] = (),
) -> StoreManifest:
    """Write columns, statistics and the manifest of a generation that is complete.

    Args:
        storage: Where the store is.
        plan: The generation's.
        parent: The manifest of the store that it adds to; None: it is the first.
        tokenizer_keys: Keys of tokenizer files that were written: a listing of an
            object store may not show them yet.

    Raises:
        UnfinishedError: A unit is missing.
        NoRowsError, NumericsError: See `check_finite`.
    """
    units = complete_units(storage, plan, parent)
    sites = _sites_of_store(plan, parent)
    n_units = plan.first_unit + len(units)
    if parent is not None:
        n_units = max(n_units, parent.n_units)
    # The generation's sites are the store's last ones, or all of them.
    first_site = len(sites) - len(plan.sites)
    columns = unit_columns(storage, parent, n_units, len(sites))
    merged = _starting_statistics(storage, plan, parent)
    totals = _Totals()
    # One after the other and none kept: there may be 100,000 units and more.
    read = partial(_read_unit, storage, plan)
    for unit, stats in map_ahead(read, units, reads_at_once(storage)):
        totals.add(unit)
        fill_unit(columns, unit, stats, first_site)
        # Statistics are of the rows that SAEs are trained on.
        if not held_out(unit.record.unit):
            merged.merge(stats)
    check_finite(plan, columns, first_site)
    if parent is not None and plan.adds_sites:
        all_sites = _parent_statistics(storage, parent)
        all_sites.sites.update(merged.sites)
        merged = all_sites
    files = _write_files(storage, plan, parent, columns, merged, tokenizer_keys)
    manifest = _manifest(plan, parent, sites, totals, columns, merged, files)
    manifest = _with_card(storage, manifest)
    # A store that could not be opened must not be finished.
    check_manifest(manifest, storage.url)
    claimed = map(object_keys.claim_key, totals.halved)
    for key in {*storage.list("claims"), *claimed}:
        storage.delete(key)
    for key, data in zarr_metadata.group_files(manifest).items():
        storage.put(key, data)
    # Last of all: its presence says that the store is finished.
    storage.put(object_keys.MANIFEST, manifest.to_json().encode())
    return manifest


def _with_card(storage: Storage, manifest: StoreManifest) -> StoreManifest:
    """Write the store's card; return the manifest with the records of its files.

    A store of an older format keeps the page that was written with its plan.
    """
    if manifest.format_minor < CARD_MINOR:
        return manifest
    files = dict(manifest.files)
    for key, data in card_files(storage, manifest).items():
        files[key] = put(storage, key, data)
    return manifest.model_copy(update={"files": dict(sorted(files.items()))})


def _sites_of_store(plan: Plan, parent: StoreManifest | None) -> tuple[Site, ...]:
    """Return the sites that the store has with this generation."""
    if parent is None:
        return plan.sites
    if plan.adds_sites:
        return parent.sites + plan.sites
    return parent.sites


def _read_unit(
    storage: Storage, plan: Plan, unit: int
) -> tuple[CommittedRecord, UnitStats]:
    """Read what a generation committed of one unit: its record and statistics."""
    record = committed_record(storage, plan, unit)
    key = object_keys.unit_stats_key(unit, plan.generation)
    data = storage.read(key, stats_bytes(plan.sites))
    return record, UnitStats.from_bytes(plan.sites, data, key)


def _starting_statistics(
    storage: Storage, plan: Plan, parent: StoreManifest | None
) -> UnitStats:
    """Return what the generation's units are merged into.

    For more units of the same sites these are the parent's statistics; new sites start
    with nothing.
    """
    if parent is None or plan.adds_sites:
        return UnitStats(plan.sites)
    return _parent_statistics(storage, parent)


def _parent_statistics(storage: Storage, parent: StoreManifest) -> UnitStats:
    key = object_keys.merged_stats_key(len(parent.generations) - 1)
    data = StoredObjects(storage, parent).file(key)
    return UnitStats.from_bytes(parent.sites, data, key)


def _write_files(
    storage: Storage,
    plan: Plan,
    parent: StoreManifest | None,
    columns: UnitColumns,
    merged: UnitStats,
    tokenizer_keys: Iterable[str],
) -> dict[str, ObjectRecord]:
    """Write columns and merged statistics; return the manifest's records of files.

    They are by key, and of every file that the manifest lists.
    """
    files = {} if parent is None else dict(parent.files)
    files.update(write_columns(storage, plan, columns))
    stats_key = object_keys.merged_stats_key(plan.generation)
    files[stats_key] = put(storage, stats_key, merged.to_bytes())
    already_there = [
        *filter(is_tokenizer_file, {*storage.list("tokenizer"), *tokenizer_keys}),
        object_keys.plan_key(plan.generation),
    ]
    if plan.format_minor < CARD_MINOR:
        already_there.append(object_keys.README)
    for key in already_there:
        files[key] = object_record(storage.read(key, OTHER_FILE))
    return dict(sorted(files.items()))


def _manifest(
    plan: Plan,
    parent: StoreManifest | None,
    sites: tuple[Site, ...],
    totals: _Totals,
    columns: UnitColumns,
    merged: UnitStats,
    files: dict[str, ObjectRecord],
) -> StoreManifest:
    plan_key = object_keys.plan_key(plan.generation)
    generation = Generation(
        plan=plan_key,
        units=object_keys.units_prefix(plan.generation) + "/",
        sites=plan.sites,
        first_unit=plan.first_unit,
        n_units=totals.n_units,
        n_sequences=totals.n_sequences,
        n_rows=totals.n_rows,
        plan_digest=files[plan_key].digest,
        units_digest=totals.records.hexdigest(),
    )
    generations: tuple[Generation, ...] = (generation,)
    n_sequences = generation.n_sequences
    if parent is not None:
        generations = (*parent.generations, generation)
        # New sites have the sequences that are counted already.
        if not plan.adds_sites:
            n_sequences += parent.n_sequences
    n_units = len(columns.rows)
    is_training = np.array([not held_out(unit) for unit in range(n_units)], bool)
    # The manifest names the model and the software of the first generation.
    first: Plan | StoreManifest = plan if parent is None else parent
    return StoreManifest(
        format_minor=plan.format_minor,
        content_id=content_id(generations),
        parent=None if parent is None else parent.content_id,
        spec=_spec_of_store(plan, parent, sites),
        sites=sites,
        layout=plan.layout,
        model=plan.model,
        numerics=first.numerics,
        generations=generations,
        n_units=n_units,
        n_sequences=n_sequences,
        n_rows=int(columns.rows.sum()),
        n_train_rows=int(columns.rows[is_training].sum()),
        n_bytes=int(columns.bytes.sum()),
        norms=merged.norms(),
        files=files,
        imported=first.imported,
        subset=first.subset,
    )


def _spec_of_store(
    plan: Plan, parent: StoreManifest | None, sites: tuple[Site, ...]
) -> HarvestSpec:
    """Return the spec that would have harvested the whole store at once."""
    if parent is None:
        return plan.spec
    changes: dict[str, object] = {"sites": tuple(site.name for site in sites)}
    if not plan.adds_sites:
        changes["tokens"] = parent.spec.tokens + plan.spec.tokens
    return parent.spec.model_copy(update=changes)
