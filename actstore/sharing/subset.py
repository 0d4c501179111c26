"""A part of a store as a store of its own: some sites, some units, or both.

Objects of values are copied as they are. What follows from the choice is made anew: the
plan, records, statistics of the kept sites, and at the end, as for a harvest, columns,
merged statistics, norms, the card and the manifest. Units keep their numbers; one that
is left out stands there without rows (`docs/FORMAT.md`, "Subsets").
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from actstore.errors import SpecError
from actstore.format import object_keys, object_sizes
from actstore.format.manifest import read_plan
from actstore.format.shard import encode_plain
from actstore.format.site_patterns import match_sites
from actstore.format.statistics import UnitStats
from actstore.format.stored_dtypes import encode_int8, numpy_dtype
from actstore.sharing.copied_objects import CopiedObject, known, mapped_ahead
from actstore.sharing.unit_selection import UnitRanges, has, in_both, unit_ranges
from actstore.sharing.whole_copy import unit_block, unit_records
from actstore.store.store import Store
from schemas.harvest import Plan, Subset
from schemas.manifest import FORMAT_MINOR, BlockRecord, ObjectRecord, UnitRecord
from schemas.source import Imported, Site


def subset_plan(
    store: Store, patterns: tuple[str, ...] | None, units: str | None
) -> Plan | None:
    """Return the plan of a part of a store; None where nothing is left out.

    Args:
        store: The whole.
        patterns: Names of the kept sites, or patterns over them; None: all.
        units: The kept units, see `unit_ranges`; None: all.

    Raises:
        SiteError: A pattern matches no site.
        SpecError: There are no such units, or they have no rows.
    """
    manifest = store.manifest
    kept_sites = manifest.sites
    if patterns is not None:
        names = set(match_sites(patterns, store.sites))
        kept_sites = tuple(site for site in manifest.sites if site.name in names)
    kept_units = _kept_units(store, units)
    has_all_units = kept_units == _units_there(store)
    if has_all_units and kept_sites == manifest.sites:
        return None
    n_units = kept_units[-1][1]
    layout = manifest.layout
    n_sequences = min(layout.n_sequences, n_units * layout.unit_sequences)
    update = {
        "sites": tuple(site.name for site in kept_sites),
        "tokens": min(manifest.spec.tokens, n_sequences * layout.context),
    }
    first_plan = read_plan(store.storage)
    # The tokenizer is kept by the first generation; a later one may be without.
    tokenizer = {"tokenizer_digest": first_plan.model.tokenizer_digest}
    return Plan(
        format_version=manifest.format_version,
        format_minor=FORMAT_MINOR,
        spec=manifest.spec.model_copy(update=update),
        sites=kept_sites,
        layout=layout.model_copy(
            update={"n_sequences": n_sequences, "n_units": n_units}
        ),
        model=manifest.model.model_copy(update=tokenizer),
        corpus_digest=first_plan.corpus_digest,
        separator_token=first_plan.separator_token,
        numerics=manifest.numerics,
        imported=_kept_arrays(manifest.imported, update["sites"]),
        subset=Subset(parent=manifest.content_id, units=kept_units),
    )


def _units_there(store: Store) -> UnitRanges:
    """Return the units that a store has; a subset has not all up to its last one."""
    manifest = store.manifest
    if manifest.subset is None:
        return ((0, manifest.n_units),)
    return manifest.subset.units


def _kept_units(store: Store, units: str | None) -> UnitRanges:
    there = _units_there(store)
    if units is None:
        return there
    kept = in_both(unit_ranges(units, store.manifest.n_units), there)
    n_rows = sum(store.unit_rows[first:end].sum() for first, end in kept)
    if not n_rows:
        raise SpecError(
            f"--units {units!r}: these units of {store.url} have no rows; choose others"
        )
    return kept


def _kept_arrays(imported: Imported | None, sites: object) -> Imported | None:
    """Return where imported activations come from, of the kept sites only."""
    if imported is None:
        return None
    assert isinstance(sites, tuple)
    arrays = tuple(array for array in imported.arrays if array.site in sites)
    return imported.model_copy(update={"arrays": arrays})


class SubsetObjects:
    """Lists the objects of a part of a store that is described by a plan.

    Attributes:
        store: The whole.
        plan: The part's.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        assert plan.subset is not None
        self.store = store
        self.plan = plan
        self._units = plan.subset.units
        self._digests = store.column("digests")
        self._fill = _FillObjects(plan)
        names = {site.name for site in plan.sites}
        # Values of a site lie under these beginnings of keys.
        self._prefixes = tuple(
            f"{array(name)}/"
            for name in names
            for array in (
                object_keys.acts_key,
                object_keys.norm_key,
                object_keys.scale_key,
                object_keys.step_key,
            )
        )

    def objects(self, threads: int) -> Iterator[CopiedObject]:
        """Yield the objects of all units, records and token blocks among them.

        Raises:
            CorruptError: A record or statistics are not those that were committed.
        """
        every_unit = range(self.plan.layout.n_units)
        with ThreadPoolExecutor(threads, thread_name_prefix="records") as pool:
            for of_unit in mapped_ahead(pool, self._unit, every_unit, 2 * threads):
                yield from of_unit

    def n_bytes(self) -> int:
        """Return about how many bytes the kept units have."""
        manifest = self.store.manifest
        column = self.store.column("bytes")
        of_units = sum(int(column[first:end].sum()) for first, end in self._units)
        width = sum(site.d for site in manifest.sites)
        return of_units * sum(site.d for site in self.plan.sites) // width

    def _unit(self, unit: int) -> list[CopiedObject]:
        if has(self._units, unit):
            return self._kept(unit)
        return self._left_out(unit)

    def _kept(self, unit: int) -> list[CopiedObject]:
        """Return the objects of a unit that is copied."""
        records = unit_records(self.store, unit, self._digests[unit].tobytes())
        first = records[0].record  # the one that has the tokens
        _, block = unit_block(self.store, first)
        recorded: dict[str, ObjectRecord] = {}
        for committed in records:
            recorded |= committed.record.objects
        objects = [
            CopiedObject(key, one.bytes, one.digest)
            for key, one in recorded.items()
            if key.startswith((*self._prefixes, "tokens/", "rows/"))
        ]
        stats = self._statistics(unit, recorded)
        objects.append(known(object_keys.unit_stats_key(unit), stats.to_bytes()))
        record = first.model_copy(update={"objects": _recorded(objects)})
        return [*objects, *self._records(record, block.n_tokens, block)]

    def _left_out(self, unit: int) -> list[CopiedObject]:
        """Return the objects of a unit without rows."""
        objects = self._fill.objects(unit)
        record = UnitRecord(
            unit=unit, n_sequences=0, n_rows=0, objects=_recorded(objects)
        )
        return [*objects, *self._records(record, 0, None)]

    def _records(
        self, record: UnitRecord, n_tokens: int, block: BlockRecord | None
    ) -> list[CopiedObject]:
        """Return the records of a unit and of its tokens."""
        layout = self.plan.layout
        unit = record.unit
        block = BlockRecord(
            unit=unit,
            n_sequences=record.n_sequences,
            n_tokens=n_tokens,
            tokens=record.objects[object_keys.chunk_key("tokens", unit, 0)],
            cursor={"sequence": (unit + 1) * layout.unit_sequences},
            last=unit == layout.n_units - 1,
            skipped_documents=0 if block is None else block.skipped_documents,
        )
        return [
            known(object_keys.unit_key(unit), record.to_json().encode()),
            known(object_keys.block_key(unit), block.to_json().encode()),
        ]

    def _statistics(self, unit: int, recorded: dict[str, ObjectRecord]) -> UnitStats:
        """Return the kept sites' statistics of a unit, from those of all generations.

        Raises:
            CorruptError: The bytes of one are not those recorded.
        """
        by_site = {}
        for generation in self.store.generations_of(unit):
            key = object_keys.unit_stats_key(unit, generation)
            data = self.store.recorded_bytes(key, recorded[key])
            sites = self.store.manifest.generations[generation].sites
            where = f"{self.store.url}/{key}"
            by_site.update(UnitStats.from_bytes(sites, data, where).sites)
        stats = UnitStats(self.plan.sites)
        stats.sites = {site.name: by_site[site.name] for site in self.plan.sites}
        return stats


class _FillObjects:
    """The objects of a unit that has no rows; all such units have the same bytes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        layout = plan.layout
        tokens = np.empty((0, layout.context), np.int32)
        shape = (layout.unit_sequences, layout.context)
        self._tokens = encode_plain(tokens, shape, -1)
        rows = np.empty((0, 2), np.int32)
        self._rows = encode_plain(rows, (layout.capacity, 2), -1)
        self._stats = UnitStats(plan.sites).to_bytes()
        self._sites = {site.name: self._site(site) for site in plan.sites}

    def objects(self, unit: int) -> list[CopiedObject]:
        """Return the objects of a unit, its records excepted."""
        found = [
            known(object_keys.chunk_key("tokens", unit, 0), self._tokens),
            known(object_keys.chunk_key("rows", unit, 0), self._rows),
            known(object_keys.unit_stats_key(unit), self._stats),
        ]
        for by_array in self._sites.values():
            for array, (index, data) in by_array.items():
                key = object_keys.chunk_key(array, unit, *index)
                found.append(known(key, data))
        return found

    def _site(self, site: Site) -> dict[str, tuple[tuple[int, ...], bytes]]:
        """Return a site's chunks by array: (index after the unit's, bytes) of each."""
        spec = self._plan.spec
        layout = self._plan.layout
        slots = (layout.capacity,)
        no_rows = np.empty((0, site.d), numpy_dtype(spec.dtype))
        shard = object_sizes.codec(spec, layout, site.d).encode(no_rows)
        norms = encode_plain(np.empty(0, np.float32), slots, 0)
        found: dict[str, tuple[tuple[int, ...], bytes]] = {
            object_keys.acts_key(site.name): ((0,), b"".join(shard)),
            object_keys.norm_key(site.name): ((), norms),
        }
        if spec.dtype == "int8":
            parts = encode_int8(np.empty((0, site.d), np.float32))
            scale = encode_plain(parts.scale, slots, 0)
            step = encode_plain(parts.step[None], (1, *parts.step.shape), 0)
            found[object_keys.scale_key(site.name)] = ((), scale)
            found[object_keys.step_key(site.name)] = ((0, 0), step)
        return found


def _recorded(objects: list[CopiedObject]) -> dict[str, ObjectRecord]:
    """Return the records of objects, by key."""
    return {one.key: ObjectRecord(bytes=one.size, digest=one.digest) for one in objects}
