"""Proves that a manifest follows from the plans, records and statistics that it names.

Opening a store has shown that the manifest fits itself. Here its figures are made anew
from the plans and records, whose bytes are those recorded, and its norms from the
statistics; what differs is named.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.console.short_lists import first_few
from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import object_keys
from actstore.format.content_id import content_id
from actstore.format.json_records import parsed_record
from actstore.format.layout import grown, held_out
from actstore.format.manifest_checks import check_plan
from actstore.format.object_records import files_digest
from actstore.format.object_sizes import (
    COLUMNS,
    SUMS,
    column_bytes,
    column_shape,
    stats_bytes,
)
from actstore.format.shard import CRC_BYTES
from actstore.format.statistics import SiteStats, UnitStats
from actstore.store.store import Store
from schemas.base import differences
from schemas.harvest import Layout, Plan
from schemas.manifest import NormStats, StoreManifest, StratumNorms, UnitRecord

# Relative difference below which figures are the same: another machine, or another
# writer, adds up in another order. A float64 has 16 digits, a sum over millions of rows
# loses some of them.
_SAME = 1e-9
_SHOWN = 8  # differences in a line
# The same in every generation's spec: rows of one store are read as one.
_PINNED = ("context", "dtype", "codec", "seed")


class DigestedRecord(NamedTuple):
    """A unit's record, with the digest of the bytes that it was read from.

    Attributes:
        record: What was committed.
        digest: blake3, 32 bytes.
    """

    record: UnitRecord
    digest: bytes


Records = list[list[DigestedRecord]]
"""The records of each generation, in unit order."""


def manifest_problems(store: Store, records: Records) -> list[str]:
    """Return what in the manifest does not follow from its plans and records.

    It is one line, or none.
    """
    manifest = store.manifest
    try:
        plans = _plans(store)
    except CorruptError as error:
        return [f"corrupt  {error}"]
    # Fields that nothing else tells stay as they are, and so do not differ.
    made_anew = _wanted_fields(manifest, plans, records)
    wanted = manifest.model_copy(update=made_anew)
    lines = differences(wanted, manifest)
    lines += _tokenizer_differences(store, plans[0])
    lines += _left_out_differences(plans[0], records)
    if not lines:
        return []
    shown = first_few(lines, _SHOWN, ";")
    where = f"{store.url}/{object_keys.MANIFEST}"
    what = f"it does not follow from its plans and records: {shown}"
    return [f"corrupt  {where}: {what}"]


def statistics_problems(store: Store, records: Records) -> Iterator[str]:
    """Yield lines about what does not follow from the units' records and statistics.

    Looked at are columns, merged statistics and norms.
    """
    manifest = store.manifest
    sums = _Sums()
    for i in range(len(manifest.generations)):
        sums.add(store, i, records[i])
        n_units, n_sites = sums.columns["sums"].shape[:2]
        for key, size in column_bytes(i, n_units, n_sites).items():
            name = key.split("/")[1]  # columns/<name>/c/0
            stored = store.storage.read(key, size)[:-CRC_BYTES]
            if stored != sums.columns[name].tobytes():
                yield (
                    f"corrupt  {store.url}/{key}: it does not follow from the units'"
                    " records and statistics"
                )
        key = object_keys.merged_stats_key(i)
        sites = manifest.sites[:n_sites]
        data = store.storage.read(key, stats_bytes(sites))
        merged = UnitStats.from_bytes(sites, data, f"{store.url}/{key}")
        # Not compared as bytes: others may have merged in another order.
        if not all(
            _are_close(sums.merged.sites[name], stats)
            for name, stats in merged.sites.items()
        ):
            yield (
                f"corrupt  {store.url}/{key}: it is not the sum of the statistics of"
                f" generations 0 to {i}"
            )
    from_statistics = store.statistics.norms()
    wrong = [
        wanted.site
        for wanted, norms in zip(from_statistics, manifest.norms, strict=True)
        if not _same_norms(wanted, norms)
    ]
    if wrong:
        names = ", ".join(wrong[:_SHOWN])
        if len(wrong) > _SHOWN:
            names += ", ..."
        yield (
            f"corrupt  {store.url}/{object_keys.MANIFEST}: its norms of {names} are not"
            " those of the merged statistics"
        )


def _plans(store: Store) -> list[Plan]:
    """Return every generation's plan.

    Raises:
        CorruptError: One cannot be the plan of its generation.
    """
    plans: list[Plan] = []
    for i in range(len(store.manifest.generations)):
        key = object_keys.plan_key(i)
        where = f"{store.url}/{key}"
        plan = parsed_record(Plan, store.file(key), where)
        check_plan(plan, where)
        wrong = _plan_differences(store.manifest, i, plan, plans)
        if wrong:
            raise CorruptError(
                f"{where}: it is not the plan of generation {i}: {'; '.join(wrong)}"
            )
        plans.append(plan)
    return plans


def _plan_differences(
    manifest: StoreManifest, i: int, plan: Plan, before: list[Plan]
) -> list[str]:
    """Return where a plan is not that of generation i.

    `before` are the plans of the generations before it.
    """
    parent = content_id(manifest.generations[:i]) if i else None
    layout = _extended_layout(before[-1], plan) if before else plan.layout
    wanted_and_found: dict[str, tuple[Any, Any]] = {
        "generation": (i, plan.generation),
        "parent": (parent, plan.parent),
        "first_unit": (manifest.generations[i].first_unit, plan.first_unit),
        "format_version": (manifest.format_version, plan.format_version),
        "format_minor": (manifest.format_minor, plan.format_minor),
        "layout": (layout, plan.layout),
        "weights_digest": (manifest.model.weights_digest, plan.model.weights_digest),
    }
    for name in _PINNED:
        pair = (getattr(manifest.spec, name), getattr(plan.spec, name))
        wanted_and_found[f"spec.{name}"] = pair
    return [
        f"{name}: wanted {wanted}, there is {found}"
        for name, (wanted, found) in wanted_and_found.items()
        if wanted != found
    ]


def _tokenizer_differences(store: Store, plan: Plan) -> list[str]:
    """Return a line where the tokenizer's files are not the plan's, all of them."""
    files = {}
    try:
        for key in store.tokenizer_keys():
            files[key.rpartition("/")[2]] = store.file(key)
    except (ObjectError, StorageError):  # a bad object, of which its own check tells
        return []
    digest = files_digest(files) if files else None
    planned = plan.model.tokenizer_digest
    if digest == planned:
        return []
    return [f"files: the tokenizer's digest is {digest}, the plan says {planned}"]


def _left_out_differences(plan: Plan, records: Records) -> list[str]:
    """Return a line where a subset has rows in a unit that it says it left out."""
    if plan.subset is None:
        return []
    firsts = [first for first, _ in plan.subset.units]
    lines = []
    for committed in records[0]:
        record = committed.record
        nearest = plan.subset.units[max(0, bisect_right(firsts, record.unit) - 1)]
        if record.n_rows and not nearest[0] <= record.unit < nearest[1]:
            lines.append(f"subset: unit {record.unit} was left out, and has rows")
    return lines


def _extended_layout(before: Plan, plan: Plan) -> Layout:
    """Return the layout that an extension has.

    It is the store's, grown by units where tokens are added.
    """
    if plan.adds_sites:
        return before.layout
    return grown(before.layout, plan.first_unit, plan.spec.tokens)


def _wanted_fields(
    manifest: StoreManifest, plans: list[Plan], records: Records
) -> dict[str, Any]:
    """Return what plans and records make of the manifest's fields.

    These are all fields of which opening a store cannot tell.
    """
    first_plan = plans[0]
    layout = plans[-1].layout
    spec = first_plan.spec
    if len(plans) > 1:
        # A store that was extended has one spec for all: every site, all tokens.
        sites = tuple(site.name for site in manifest.sites)
        tokens = sum(plan.spec.tokens for plan in plans if not plan.adds_sites)
        spec = spec.model_copy(update={"sites": sites, "tokens": tokens})
    elif (
        manifest.imported is not None
        and first_plan.subset is None
        and manifest.n_sequences < layout.n_sequences
    ):
        # Imported from an iterator, which does not say beforehand how much will come.
        came = {"n_sequences": manifest.n_sequences, "n_units": manifest.n_units}
        layout = layout.model_copy(update=came)
        n_tokens = manifest.n_sequences * layout.context
        spec = spec.model_copy(update={"tokens": n_tokens})
    rows_of_unit = {}
    n_bytes = 0
    generations = []
    in_order = zip(manifest.generations, plans, records, strict=True)
    for generation, plan, digested in in_order:
        unit_records = [committed.record for committed in digested]
        update = {
            "sites": plan.sites,
            "n_sequences": sum(record.n_sequences for record in unit_records),
            "n_rows": sum(record.n_rows for record in unit_records),
        }
        generations.append(generation.model_copy(update=update))
        for record in unit_records:
            rows_of_unit[record.unit] = record.n_rows
            n_bytes += _object_bytes(record)
    training_rows = [n for unit, n in rows_of_unit.items() if not held_out(unit)]
    return {
        "spec": spec,
        "layout": layout,
        "model": plans[-1].model,
        "numerics": first_plan.numerics,
        "imported": first_plan.imported,
        "subset": first_plan.subset,
        "generations": tuple(generations),
        "n_rows": sum(rows_of_unit.values()),
        "n_train_rows": sum(training_rows),
        "n_bytes": n_bytes,
    }


def _object_bytes(record: UnitRecord) -> int:
    """Return the bytes of a record's objects together."""
    return sum(recorded.bytes for recorded in record.objects.values())


class _Sums:
    """Unit columns and merged statistics of the generations so far, made anew."""

    def __init__(self) -> None:
        self.merged = UnitStats(())
        self.columns: dict[str, NDArray[Any]] = {}

    def add(self, store: Store, generation: int, records: list[DigestedRecord]) -> None:
        """Add one more generation.

        It brings units or, at units that are there already, sites.
        """
        # Stores may have millions of units: statistics are read one by one, and only
        # their sums stay in memory.
        g = store.manifest.generations[generation]
        brings_sites = generation > 0 and g.first_unit == 0
        first_site = len(self.merged.sites) if brings_sites else 0
        self._grow(g.first_unit + g.n_units, first_site + len(g.sites))
        is_new = brings_sites or generation == 0
        merged = UnitStats(g.sites) if is_new else self.merged
        for digested in records:
            unit = digested.record.unit
            key = object_keys.unit_stats_key(unit, generation)
            data = store.storage.read(key, stats_bytes(g.sites))
            stats = UnitStats.from_bytes(g.sites, data, f"{store.url}/{key}")
            self._fill(digested, stats, first_site, again=brings_sites)
            if not held_out(unit):
                merged.merge(stats)
        self.merged.sites.update(merged.sites)

    def _grow(self, n_units: int, n_sites: int) -> None:
        """Make room for more units or sites; what is there stays."""
        for name, (dtype, _) in COLUMNS.items():
            grown_column = np.zeros(column_shape(name, n_units, n_sites), dtype)
            old = self.columns.get(name)
            if old is not None:
                grown_column[tuple(slice(n) for n in old.shape)] = old
            self.columns[name] = grown_column

    def _fill(
        self,
        digested: DigestedRecord,
        stats: UnitStats,
        first_site: int,
        *,
        again: bool,
    ) -> None:
        """Fill in the figures of one unit. again: it has figures of other sites."""
        record = digested.record
        digest = digested.digest
        unit = record.unit
        # Two generations have a record of such a unit, and its digest covers both.
        if again:
            before = self.columns["digests"][unit].tobytes()
            digest = blake3(before + digest).digest()
        self.columns["rows"][unit] = record.n_rows
        self.columns["bytes"][unit] += _object_bytes(record)
        self.columns["digests"][unit] = np.frombuffer(digest, np.uint8)
        for site, site_stats in enumerate(stats.sites.values(), first_site):
            figures = site_stats.arrays()[:SUMS]
            self.columns["sums"][unit, site] = np.stack(figures, axis=1)


def _are_close(a: SiteStats, b: SiteStats) -> bool:
    """Return whether statistics are the same but for rounding.

    How much that is goes with the size of the values summed.
    """
    largest = float(max(a.max_norm.max(), b.max_norm.max()))
    n_rows = max(1, int(a.count.sum()))
    # Means are as large as the values, and sums of squared deviations as their squares;
    # counts and sums of positive numbers need no allowance besides the relative one.
    allowances = {"mean": largest, "m2": largest * largest * n_rows}
    for name in SiteStats.FIGURES:
        allowed = _SAME * allowances.get(name, 0)
        x = getattr(a, name)
        y = getattr(b, name)
        if not np.allclose(x, y, rtol=_SAME, atol=allowed, equal_nan=True):
            return False
    return True


def _same_norms(a: NormStats, b: NormStats) -> bool:
    """Return whether the norms of a site are the same but for rounding."""
    return (
        _same_figures(a.all, b.all)
        and _same_figures(a.special, b.special)
        and _same_figures(a.rest, b.rest)
    )


def _same_figures(a: StratumNorms, b: StratumNorms) -> bool:
    """Return whether figures are the same but for rounding.

    Without rows they are 0 or NaN, and all the same.
    """
    # Old manifests do not have `outliers`.
    counts = {"count", "non_finite", "outliers"} & b.model_fields_set
    if any(getattr(a, name) != getattr(b, name) for name in counts):
        return False
    if a.count == 0:
        return True
    pairs = zip(_figures(a), _figures(b), strict=True)
    return all(math.isclose(x, y, rel_tol=_SAME) for x, y in pairs)


def _figures(norms: StratumNorms) -> tuple[float, ...]:
    """Return the figures that are not counts."""
    return (norms.mean_norm, norms.mean_sq_norm, norms.max_norm, *norms.quantiles)
