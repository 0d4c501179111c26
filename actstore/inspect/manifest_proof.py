"""Whether a manifest follows from what it names: plans, unit records, columns and
statistics.

Opening a store has shown that the manifest fits itself. Here its figures are made anew
from the plans and records, whose bytes are those recorded, and its norms from the
statistics; what differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import keys
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
from actstore.format.statistics import SiteStats, UnitStats
from actstore.store.store import Store
from schemas.base import differences
from schemas.harvest import Layout, Plan
from schemas.manifest import NormStats, StoreManifest, StratumNorms, UnitRecord

_SAME = 1e-9  # of figures that another machine, or another writer, rounds differently
_SHOWN = 8
_PINNED = ("context", "dtype", "codec", "seed")  # of every generation's spec


class Committed(NamedTuple):
    """A unit's record and the blake3 digest of its bytes."""

    record: UnitRecord
    digest: bytes


Records = list[list[Committed]]  # of each generation, in unit order


def manifest_problems(store: Store, records: Records) -> list[str]:
    """Lines about what in the manifest does not follow from its plans and records."""
    m, where = store.manifest, f"{store.url}/{keys.MANIFEST}"
    try:
        plans = _plans(store)
    except CorruptError as error:
        return [f"corrupt  {error}"]
    lines = differences(m.model_copy(update=_wanted(m, plans, records)), m)
    lines += _tokenizer_differences(store, plans[0])
    shown = "; ".join(lines[:_SHOWN]) + (
        f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    )
    return (
        [f"corrupt  {where}: it does not follow from its plans and records: {shown}"]
        if lines
        else []
    )


def statistics_problems(store: Store, records: Records) -> Iterator[str]:
    """Lines about columns, merged statistics and norms that do not follow from the
    units' records and statistics.
    """
    m, sums = store.manifest, _Sums()
    for i in range(len(m.generations)):
        sums.add(store, i, records[i])
        n_units, n_sites = sums.columns["sums"].shape[:2]
        for key, size in column_bytes(i, n_units, n_sites).items():
            if (
                store.storage.read(key, size)[:-4]
                != sums.columns[key.split("/")[1]].tobytes()
            ):
                yield (
                    f"corrupt  {store.url}/{key}: it does not follow from the units'"
                    " records and statistics"
                )
        key, sites = keys.merged_stats_key(i), m.sites[:n_sites]
        found = UnitStats.from_bytes(
            sites, store.storage.read(key, stats_bytes(sites)), f"{store.url}/{key}"
        )
        if not all(
            _close(sums.merged.sites[name], one) for name, one in found.sites.items()
        ):
            yield (
                f"corrupt  {store.url}/{key}: it is not the sum of the statistics of"
                f" generations 0 to {i}"
            )
    wrong = [
        a.site
        for a, b in zip(store.statistics.norms(), m.norms, strict=True)
        if not _same_norms(a, b)
    ]
    if wrong:
        names = ", ".join(wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
        yield (
            f"corrupt  {store.url}/{keys.MANIFEST}: its norms of {names} are not those"
            " of the merged statistics"
        )


def _plans(store: Store) -> list[Plan]:
    """Every generation's plan, if they can be those. Raises CorruptError."""
    m, found = store.manifest, list[Plan]()
    for i, generation in enumerate(m.generations):
        where = f"{store.url}/{keys.plan_key(i)}"
        plan = parsed_record(Plan, store.file(keys.plan_key(i)), where)
        check_plan(plan, where)
        fields: dict[str, tuple[Any, Any]] = {
            "generation": (i, plan.generation),
            "parent": (content_id(m.generations[:i]) if i else None, plan.parent),
            "first_unit": (generation.first_unit, plan.first_unit),
            "format_version": (m.format_version, plan.format_version),
            "format_minor": (m.format_minor, plan.format_minor),
            "layout": (
                _layout_on(found[-1], plan) if found else plan.layout,
                plan.layout,
            ),
            "weights_digest": (m.model.weights_digest, plan.model.weights_digest),
            **{
                f"spec.{name}": (getattr(m.spec, name), getattr(plan.spec, name))
                for name in _PINNED
            },
        }
        if wrong := [
            f"{name}: wanted {a}, there is {b}"
            for name, (a, b) in fields.items()
            if a != b
        ]:
            raise CorruptError(
                f"{where}: it is not the plan of generation {i}: {'; '.join(wrong)}"
            )
        found.append(plan)
    return found


def _tokenizer_differences(store: Store, plan: Plan) -> list[str]:
    """Whether the tokenizer's files that the manifest names are the plan's, all of
    them.
    """
    try:
        files = {
            key.rpartition("/")[2]: store.file(key) for key in store.tokenizer_keys()
        }
    except (ObjectError, StorageError):  # a bad object, which is told as such
        return []
    found, told = files_digest(files) if files else None, plan.model.tokenizer_digest
    return (
        []
        if found == told
        else [f"files: the tokenizer's digest is {found}, the plan says {told}"]
    )


def _layout_on(before: Plan, plan: Plan) -> Layout:
    """The layout that an extension has: the store's, grown by units where it adds
    tokens.
    """
    return (
        before.layout
        if plan.adds_sites
        else grown(before.layout, plan.first_unit, plan.spec.tokens)
    )


def _wanted(m: StoreManifest, plans: list[Plan], records: Records) -> dict[str, Any]:
    """What plans and records say of the manifest's fields: all that opening a store
    cannot tell.
    """
    rows = {one.record.unit: one.record.n_rows for some in records for one in some}
    layout, spec = plans[-1].layout, plans[0].spec
    if len(plans) > 1:
        tokens = sum(plan.spec.tokens for plan in plans if not plan.adds_sites)
        spec = spec.model_copy(
            update={"sites": tuple(site.name for site in m.sites), "tokens": tokens}
        )
    elif m.imported is not None and m.n_sequences < layout.n_sequences:
        # of an iterator, which says no number before
        layout = layout.model_copy(
            update={"n_sequences": m.n_sequences, "n_units": m.n_units}
        )
        spec = spec.model_copy(update={"tokens": m.n_sequences * layout.context})
    generations = [
        generation.model_copy(
            update={
                "sites": plan.sites,
                "n_sequences": sum(one.record.n_sequences for one in some),
                "n_rows": sum(one.record.n_rows for one in some),
            }
        )
        for generation, plan, some in zip(m.generations, plans, records, strict=True)
    ]
    return {
        "spec": spec,
        "layout": layout,
        "model": plans[-1].model,
        "numerics": plans[0].numerics,
        "imported": plans[0].imported,
        "generations": tuple(generations),
        "n_rows": sum(rows.values()),
        "n_train_rows": sum(n for unit, n in rows.items() if not held_out(unit)),
        "n_bytes": sum(
            size.bytes
            for some in records
            for one in some
            for size in one.record.objects.values()
        ),
    }


class _Sums:
    """Columns and merged statistics of the generations so far, made anew."""

    def __init__(self) -> None:
        self.merged = UnitStats(())
        self.columns: dict[str, NDArray[Any]] = {}

    def add(self, store: Store, generation: int, committed: list[Committed]) -> None:
        """One more generation."""
        g = store.manifest.generations[generation]
        adds_sites = generation > 0 and g.first_unit == 0
        first = len(self.merged.sites) if adds_sites else 0
        self._grow(g.first_unit + g.n_units, first + len(g.sites))
        mine = UnitStats(g.sites) if adds_sites or generation == 0 else self.merged
        for one in committed:
            key = keys.unit_stats_key(one.record.unit, generation)
            stats = UnitStats.from_bytes(
                g.sites,
                store.storage.read(key, stats_bytes(g.sites)),
                f"{store.url}/{key}",
            )
            self._fill(one, stats, first, again=adds_sites)
            if not held_out(one.record.unit):
                mine.merge(stats)
        self.merged.sites.update(mine.sites)

    def _grow(self, n_units: int, n_sites: int) -> None:
        for name, (dtype, _) in COLUMNS.items():
            made = np.zeros(column_shape(name, n_units, n_sites), dtype)
            if (old := self.columns.get(name)) is not None:
                made[tuple(slice(n) for n in old.shape)] = old
            self.columns[name] = made

    def _fill(
        self, one: Committed, stats: UnitStats, first_site: int, *, again: bool
    ) -> None:
        unit, digest = one.record.unit, one.digest
        if again:
            digest = blake3(self.columns["digests"][unit].tobytes() + digest).digest()
        self.columns["rows"][unit] = one.record.n_rows
        self.columns["bytes"][unit] += sum(
            size.bytes for size in one.record.objects.values()
        )
        self.columns["digests"][unit] = np.frombuffer(digest, np.uint8)
        for j, site in enumerate(stats.sites.values(), first_site):
            self.columns["sums"][unit, j] = np.stack(site.arrays()[:SUMS], axis=1)


def _close(a: SiteStats, b: SiteStats) -> bool:
    """Whether statistics are the same but for rounding, which goes with the size of the
    values summed.
    """
    size = float(max(a.max_norm.max(), b.max_norm.max()))
    scales = (0, 0, 0, 0, 0, size, size * size * max(1, int(a.count.sum())), 0)
    return all(
        np.allclose(x, y, rtol=_SAME, atol=_SAME * scale, equal_nan=True)
        for x, y, scale in zip(a.arrays(), b.arrays(), scales, strict=True)
    )


def _same_norms(a: NormStats, b: NormStats) -> bool:
    return all(
        _same_figures(getattr(a, name), getattr(b, name))
        for name in ("all", "special", "rest")
    )


def _same_figures(a: StratumNorms, b: StratumNorms) -> bool:
    """Whether figures are the same but for rounding; those of no rows are 0 or NaN.
    `outliers` came later.
    """
    counts = {"count", "non_finite", "outliers"} & b.model_fields_set
    if any(getattr(a, name) != getattr(b, name) for name in counts):
        return False
    pairs = zip(_figures(a), _figures(b), strict=True)
    return a.count == 0 or all(math.isclose(x, y, rel_tol=_SAME) for x, y in pairs)


def _figures(one: StratumNorms) -> tuple[float, ...]:
    return (one.mean_norm, one.mean_sq_norm, one.max_norm, *one.quantiles)
