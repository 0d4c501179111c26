"""The end of a harvest: columns over all units, merged statistics, and the manifest that makes a store of it.

A later generation starts from its parent's columns and statistics, so that extending costs what is new only. Merging
goes on in unit order, so the figures are those of one harvest of everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError, NoRowsError, NumericsError, UnfinishedError
from actstore.format import layout as at
from actstore.format.checks import check_manifest, check_record, content_id, is_tokenizer_file
from actstore.format.records import parsed_record, read_record
from actstore.format.shard import encode_plain
from actstore.format.sizes import COLUMNS, OTHER_FILE, RECORD_JSON, SMALL_JSON, column_key, column_shape, stats_bytes
from actstore.format.storage import Buffers, Storage
from actstore.harvesting import metadata
from actstore.harvesting.norms import UnitStats, none_finite
from actstore.objects import StoredObjects
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, Generation, ObjectRecord, StoreManifest, UnitRecord

_RECORD = re.compile(r"[a-z]+(?:-\d+)?/(\d{5,10})\.json", re.ASCII)
FOLLOWED = "followed-"  # begins the content id of a store that was not finished yet, by its plan's digest


class Committed(NamedTuple):
    """A unit's record and the bytes that it stands in, which the digests are of."""

    record: UnitRecord
    data: bytes


class Columns(NamedTuple):
    """Scalars of all units: int32 [n], int64 [n], uint8 [n, 32], float64 [n, sites, 2, 5]."""

    rows: NDArray[Any]
    bytes: NDArray[Any]
    digests: NDArray[Any]
    sums: NDArray[Any]


def finish(storage: Storage, plan: Plan, parent: StoreManifest | None = None) -> StoreManifest:
    """Write columns, statistics and the manifest. Raises UnfinishedError while a unit is missing."""
    committed = committed_records(storage, plan, parent)
    sites = plan.sites if parent is None else parent.sites + (plan.sites if plan.adds_sites else ())
    n_units = max(plan.first_unit + len(committed), parent.n_units if parent else 0)
    columns = _columns(storage, parent, n_units, len(sites))
    merged = _merged(storage, plan, parent)
    at_site = len(sites) - len(plan.sites)
    for one in committed:
        key = at.unit_stats_key(one.record.unit, plan.generation)
        stats = UnitStats.from_bytes(plan.sites, storage.read(key, stats_bytes(plan.sites)), key)
        _fill(columns, one, stats, at_site)
        if not at.held_out(one.record.unit):
            merged.merge(stats)
    _check_finite(plan, columns, at_site)
    if plan.adds_sites:
        old = _merged(storage, plan, parent, of_parent=True)
        old.sites.update(merged.sites)
        merged = old
    files = {**(parent.files if parent else {}), **_write_columns(storage, plan, columns)}
    key = at.merged_stats_key(plan.generation)
    files[key] = put(storage, key, merged.to_bytes())
    for key in [*filter(is_tokenizer_file, storage.list("tokenizer")), "README.md", at.plan_key(plan.generation)]:
        files[key] = object_record(storage.read(key, OTHER_FILE))
    manifest = _manifest(plan, parent, sites, committed, columns, merged, files)
    check_manifest(manifest, storage.url)  # what cannot be opened is not finished
    for key in storage.list("claims"):
        storage.delete(key)
    for key, data in metadata.group_files(manifest).items():
        storage.put(key, data)
    storage.put(at.MANIFEST, manifest.to_json().encode())
    return manifest


def committed_records(storage: Storage, plan: Plan, parent: StoreManifest | None) -> list[Committed]:
    """The records of a generation's units, in order. Raises UnfinishedError with those that are missing."""
    wanted = wanted_units(storage, plan, parent)
    if wanted is None:
        raise UnfinishedError(f"{storage.url}: the corpus has not been read to its end; run the same harvest again")
    done = committed_units(storage, plan.generation)
    missing = [unit for unit in wanted if unit not in done]
    if missing:
        raise UnfinishedError(
            f"{storage.url}: {len(missing)} units are missing ({', '.join(map(str, missing[:8]))}, ...); "
            "run the same harvest again, it goes on from there"
        )
    committed = []
    for unit in wanted:
        key = at.unit_key(unit, plan.generation)
        where, data = f"{storage.url}/{key}", storage.read(key, RECORD_JSON)
        committed.append(Committed(parsed_record(UnitRecord, data, where), data))
        check_record(plan, plan.generation, unit, committed[-1].record, where)
    return committed


def wanted_units(storage: Storage, plan: Plan, parent: StoreManifest | None) -> range | None:
    """The units that a generation must have; None while the corpus' end is not known."""
    if plan.adds_sites and parent is not None:
        return range(parent.n_units)
    last = [unit for unit, block in committed_blocks(storage).items() if block.last and unit >= plan.first_unit]
    return range(plan.first_unit, last[0] + 1) if last else None


def committed_units(storage: Storage, generation: int) -> set[int]:
    """Units whose record is there."""
    return set(_by_unit(storage, at.units_prefix(generation)))


def committed_blocks(storage: Storage) -> dict[int, BlockRecord]:
    """Records of the token blocks that are there, by unit."""
    found = {}
    for unit, key in _by_unit(storage, "blocks").items():
        found[unit] = read_record(storage, key, BlockRecord, SMALL_JSON)
        if found[unit].unit != unit:
            raise CorruptError(
                f"{storage.url}/{key}: it is of unit {found[unit].unit}, not the record that was committed"
            )
    return found


def _by_unit(storage: Storage, folder: str) -> dict[int, str]:
    """Keys of the records of units in a folder; other files (such as `._00001.json`) are not looked at."""
    return {int(m[1]): m[0] for key in storage.list(folder) if (m := _RECORD.fullmatch(key))}


def put(storage: Storage, key: str, data: Buffers) -> ObjectRecord:
    """Write an object; its record."""
    record = object_record(data)
    storage.put(key, data)
    return record


def object_record(data: Buffers) -> ObjectRecord:
    """Size and blake3 digest of an object's bytes."""
    parts = [data] if isinstance(data, bytes) else data
    digest = blake3()
    for part in parts:
        digest.update(part)
    return ObjectRecord(bytes=sum(len(part) for part in parts), digest=digest.hexdigest())


def files_digest(files: Mapping[str, bytes]) -> str:
    """blake3 over some files' names, sizes and bytes, sorted by name."""
    state = blake3()
    for name, data in sorted(files.items()):
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return str(state.hexdigest())


def content_ids(manifest: StoreManifest) -> tuple[str, ...]:
    """Every content id that a store goes by, newest first: its own, those that it had before each `extend`, and what a
    stream that followed its first harvest called it."""
    kept = manifest.generations
    earlier = (content_id(kept[:n]) for n in range(len(kept) - 1, 0, -1))
    return (manifest.content_id, *earlier, f"{FOLLOWED}{kept[0].plan_digest}")


def non_finite(store: StoredObjects) -> dict[str, int]:
    """Rows of a store that hold a NaN or an infinity, training and held out, by site; other sites are left out."""
    counts = store.column("sums")[..., 1].sum(axis=(0, 2))
    if not (counts >= 0).all() or not (counts <= store.manifest.n_rows).all():
        raise CorruptError(f"{store.url}: the column `sums` has {counts.min()} to {counts.max()} non-finite rows")
    return {site: int(n) for site, n in zip(store.sites, counts, strict=True) if n}


def _fill(columns: Columns, committed: Committed, stats: UnitStats, at_site: int) -> None:
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
    """Raises NoRowsError where no row was kept, NumericsError for a site of which none is finite."""
    if not columns.rows.any():
        raise NoRowsError("no row was kept: every token is left out by skip_first, exclude_tokens or as padding")
    for j, site in enumerate(plan.sites, at_site):
        finite, others = columns.sums[:, j, :, :2].sum(axis=(0, 1))
        if others and not finite:
            raise NumericsError(none_finite(site.name, f"its {int(others):,} rows"))


def _columns(storage: Storage, parent: StoreManifest | None, n_units: int, n_sites: int) -> Columns:
    """Columns of the final size, with the parent's values in them; -1 rows where a unit is new."""
    made = Columns(*(np.zeros(column_shape(name, n_units, n_sites), dtype) for name, (dtype, _) in COLUMNS.items()))
    made.rows[:] = -1
    if parent is not None:
        store = StoredObjects(storage, parent)
        for name, column in made._asdict().items():
            old = store.column(name)
            column[tuple(map(slice, old.shape))] = old
    return made


def _merged(storage: Storage, plan: Plan, parent: StoreManifest | None, *, of_parent: bool = False) -> UnitStats:
    """Where merging starts: nothing for new sites, the parent's statistics for more units of the same ones."""
    if parent is None or (plan.adds_sites and not of_parent):
        return UnitStats(plan.sites)
    key = at.merged_stats_key(len(parent.generations) - 1)
    return UnitStats.from_bytes(parent.sites, StoredObjects(storage, parent).file(key), key)


def _write_columns(storage: Storage, plan: Plan, columns: Columns) -> dict[str, ObjectRecord]:
    written = metadata.column_files(plan, columns.sums.shape[0], columns.sums.shape[1])
    for name, column in columns._asdict().items():
        written[column_key(plan.generation, name)] = encode_plain(column, column.shape, 0)
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
        plan=at.plan_key(plan.generation),
        units=at.units_prefix(plan.generation) + "/",
        sites=plan.sites,
        first_unit=plan.first_unit,
        n_units=len(committed),
        n_sequences=sum(one.record.n_sequences for one in committed),
        n_rows=sum(one.record.n_rows for one in committed),
        plan_digest=files[at.plan_key(plan.generation)].digest,
        units_digest=blake3(b"".join(one.data for one in committed)).hexdigest(),
    )
    generations = (*(parent.generations if parent else ()), generation)
    base = parent.spec if parent else plan.spec
    more = {} if parent is None or plan.adds_sites else {"tokens": base.tokens + plan.spec.tokens}
    spec = base if parent is None else base.model_copy(update={"sites": tuple(s.name for s in sites), **more})
    training = np.array([not at.held_out(unit) for unit in range(len(columns.rows))], bool)
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
