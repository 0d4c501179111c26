"""Checks a manifest as a whole, before anything is read on its word.

The checks are of names, bounds, and sums that must come out.

Pure arithmetic. What only other objects can tell (whether rows, records and plans are
those that it says) is told where they are read, and for all of them by `verify`.
`docs/FORMAT.md`, *What a reader checks*, is the normative text.

Functions whose names end in `_faults` yield a line for each thing that cannot be; each
relies on those before it having found nothing, so that callers stop at the first line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from actstore.errors import CorruptError, SpecError
from actstore.format import object_keys, object_sizes
from actstore.format.content_id import content_id
from actstore.format.layout import n_chunks
from actstore.format.norm_checks import norm_faults
from schemas.harvest import HarvestSpec, Layout, Plan, Subset
from schemas.manifest import Generation, StoreManifest, UnitRecord
from schemas.source import Site

MOST = 2**31 - 1  # sequences, positions and rows are int32
MOST_UNITS = 1 << 22
MOST_SLOTS = 1 << 28  # slots of a unit
MOST_D = 1 << 24
MOST_CHUNK = 1 << 30  # bytes of a decoded chunk
SITE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_FILE = re.compile(r"tokenizer/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
# Files for people and for search engines, since format 1.2.
CARD_FILES = ("norms.svg", "croissant.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CHANGED = "it was changed or badly written: copy the store again"

Faults = Iterator[str]


def check_manifest(m: StoreManifest, url: str) -> None:
    """Raise CorruptError with the first thing that cannot be."""
    for fault in _manifest_faults(m):
        raise CorruptError(f"{url}/{object_keys.MANIFEST}: {fault}; {_CHANGED}")


def check_plan(plan: Plan, where: str) -> None:
    """Raise CorruptError with the first thing that cannot be in a plan alone."""
    for fault in _plan_faults(plan):
        raise CorruptError(f"{where}: {fault}; {_CHANGED}")


def check_writable(plan: Plan) -> None:
    """Raise SpecError where a store of this plan could not be opened again."""
    for fault in _plan_faults(plan):
        raise SpecError(
            f"{fault}; choose other names, or other sizes of units and chunks"
        )
    # Rows that come from an iterator are of an unknown number: they are planned for as
    # many sequences as can be, and only what comes is written.
    from_iterator = plan.layout.n_sequences >= MOST
    if plan.layout.n_units > MOST_UNITS and not from_iterator:
        raise SpecError(
            f"{plan.layout.n_units} units; {MOST_UNITS} at most, choose a larger"
            " --unit-sequences"
        )


def check_record(
    m: StoreManifest | Plan, generation: int, unit: int, record: UnitRecord, where: str
) -> None:
    """Check a unit's record against the manifest or its generation's plan.

    Its counts must be possible, and its objects exactly those that such a unit has,
    with sizes that they can have.

    Raises:
        CorruptError: Names the first thing that cannot be; `where` is the record's URL.
    """
    for fault in _record_faults(m, generation, unit, record):
        raise CorruptError(f"{where}: {fault}; it is not the record that was committed")


def layout_faults(layout: Layout, sites: Sequence[Site], spec: HarvestSpec) -> Faults:
    """Yield a line for each size that no store can have.

    Some are too large, some do not fit each other.
    """
    limits = (
        ("context", layout.context, MOST),
        ("unit_sequences", layout.unit_sequences, MOST),
        ("n_sequences", layout.n_sequences, 4 * MOST),
        ("n_units", layout.n_units, 4 * MOST),
        ("capacity", layout.capacity, MOST_SLOTS),
        ("d", max(site.d for site in sites), MOST_D),
    )
    for name, value, most in limits:
        if value > most:
            yield f"{name} {_shown(value)}: at most {most} are possible"
    unit_rows = layout.unit_sequences * layout.context
    capacity = n_chunks(unit_rows, layout.chunk_rows) * layout.chunk_rows
    if layout.capacity != capacity:
        yield (
            f"capacity {layout.capacity}: {layout.unit_sequences} sequences of"
            f" {layout.context} in chunks of {_shown(layout.chunk_rows)} rows make"
            f" {_shown(capacity)}"
        )
    if spec.context != layout.context:
        yield f"spec.context is {spec.context}, layout.context {layout.context}"
    n_units = n_chunks(layout.n_sequences, layout.unit_sequences)
    if layout.n_units != n_units:
        yield (
            f"layout.n_units {layout.n_units}: {layout.n_sequences} sequences make"
            f" {n_units}"
        )
    for site in sites:
        chunk_bytes = object_sizes.codec(spec, layout, site.d).chunk_bytes
        if chunk_bytes > MOST_CHUNK:
            yield (
                f"site {site.name}: chunks of {chunk_bytes} bytes; at most {MOST_CHUNK}"
                " are possible"
            )


def _manifest_faults(m: StoreManifest) -> Faults:
    """Yield what is wrong with a manifest, from the names on."""
    yield from _name_faults(m.spec, m.sites)
    yield from layout_faults(m.layout, m.sites, m.spec)
    yield from _generation_faults(m)
    yield from _count_faults(m)
    yield from norm_faults(m)
    yield from _file_faults(m)
    own_id = content_id(m.generations)
    if m.content_id != own_id:
        yield f"content_id {m.content_id}: its generations make {own_id}"
    parent = None
    if len(m.generations) > 1:
        parent = content_id(m.generations[:-1])
    if m.parent != parent:
        yield f"parent {m.parent}: its generations make {parent}"
    if m.subset is not None:
        yield from _subset_faults(m.subset, m.n_units)
        if len(m.generations) > 1:
            yield "subset: a part of a store has one generation"


def _plan_faults(plan: Plan) -> Faults:
    """Yield what is wrong with a plan by itself."""
    yield from _name_faults(plan.spec, plan.sites)
    yield from layout_faults(plan.layout, plan.sites, plan.spec)
    if plan.first_unit > min(plan.layout.n_units, MOST_UNITS):
        yield f"first_unit {_shown(plan.first_unit)} of {plan.layout.n_units} units"
    if plan.subset is not None:
        yield from _subset_faults(plan.subset, plan.layout.n_units)
        if plan.generation:
            yield "subset: a part of a store has one generation"


def _subset_faults(subset: Subset, n_units: int) -> Faults:
    """Yield what is wrong with the ranges of units of a subset of `n_units` units."""
    if not _DIGEST.fullmatch(subset.parent):
        yield "subset.parent is no digest"
    end = 0
    for first, behind in subset.units:
        if not end <= first < behind:
            yield f"subset.units: {_shown(first)} to {_shown(behind)} after {end}"
        end = behind
    # What is left out behind the last one that was copied is not there at all.
    if end != n_units:
        yield f"subset.units end at {_shown(end)}, of {n_units} units"


def _name_faults(spec: HarvestSpec, sites: Sequence[Site]) -> Faults:
    """Yield what is wrong with the names of sites, model and corpus."""
    if not sites:
        yield "there are no sites"
    names = [site.name for site in sites]
    for name in names:
        if not is_site_name(name):
            yield f"site {name[:200]!r}: wanted letters, digits, `.`, `_` and `-`"
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        yield f"site {repeated[0]} is there twice"
    # Both are printed: control characters could change what a terminal shows.
    for text in (spec.model.name, spec.corpus.name):
        if _CONTROL.search(text):
            yield f"{text[:200]!r}: a name with control characters"


def is_site_name(name: str) -> bool:
    """Return whether a name can be a site's.

    It becomes a part of keys, of patterns, and of what is printed.
    """
    return SITE.fullmatch(name) is not None and name != "zarr.json"


def is_tokenizer_file(key: str) -> bool:
    """Return whether a key is that of a tokenizer file."""
    return _FILE.fullmatch(key) is not None


class _Sum(NamedTuple):
    """The totals of the generations so far.

    Attributes:
        sites: Their sites, in order.
        units: Number of units.
        sequences: Number of sequences.
        rows: Number of rows at each site.
    """

    sites: tuple[Site, ...] = ()
    units: int = 0
    sequences: int = 0
    rows: int = 0

    def with_(self, g: Generation) -> _Sum:
        """Return the sum with one more generation.

        Its `first_unit` says whether it brings sites (0) or units (above 0); the first
        one of all brings both.
        """
        if self.units and g.first_unit == 0:
            return self._replace(sites=self.sites + g.sites)
        return _Sum(
            sites=self.sites or g.sites,
            units=self.units + g.n_units,
            sequences=self.sequences + g.n_sequences,
            rows=self.rows + g.n_rows,
        )


def _generation_faults(m: StoreManifest) -> Faults:
    """Yield where the generations do not add up to what the manifest says."""
    before = _Sum()
    for i, g in enumerate(m.generations):
        if (
            g.plan != object_keys.plan_key(i)
            or g.units != f"{object_keys.units_prefix(i)}/"
        ):
            yield (
                f"generation {i}: plan {g.plan[:200]!r} and units {g.units[:200]!r} are"
                " not where they must be"
            )
        digests = (g.plan_digest, g.units_digest)
        if not all(_DIGEST.fullmatch(digest) for digest in digests):
            yield f"generation {i}: its digests are none"
        for fault in _added_faults(g, before, m.layout):
            yield f"generation {i}: {fault}"
        before = before.with_(g)
    if m.sites != before.sites:
        yield "its sites are not those of its generations, in their order"
    if (m.n_units, m.n_sequences, m.n_rows) != before[1:]:
        yield (
            f"its generations make {before.units} units, {before.sequences} sequences"
            f" and {before.rows} rows"
        )


def _added_faults(g: Generation, before: _Sum, layout: Layout) -> Faults:
    """Yield what is wrong with a generation that comes after those `before`."""
    if not g.sites:
        yield "it has no sites"
    if not 0 < g.n_units <= MOST_UNITS:
        yield f"{_shown(g.n_units)} units; 1 to {MOST_UNITS} are possible"
    if not 0 < g.n_sequences <= g.n_units * layout.unit_sequences:
        yield f"{_shown(g.n_sequences)} sequences in {g.n_units} units"
    if not 0 <= g.n_rows <= g.n_sequences * layout.context:
        yield f"{_shown(g.n_rows)} rows of {g.n_sequences} sequences"
    if g.first_unit not in {0, before.units}:
        yield f"it begins at unit {_shown(g.first_unit)}, after {before.units} units"
    is_first = not before.units
    adds_sites = not is_first and g.first_unit == 0
    adds_units = not is_first and g.first_unit > 0
    # New sites are at the same tokens: as many units, sequences and rows as there are.
    if adds_sites and (g.n_units, g.n_sequences, g.n_rows) != before[1:]:
        yield (
            f"it adds sites to {g.n_units} units, {g.n_sequences} sequences and"
            f" {g.n_rows} rows of {before[1:]}"
        )
    if adds_units and g.sites != before.sites:
        yield "it adds units of other sites"


def _count_faults(m: StoreManifest) -> Faults:
    """Yield what is wrong with a manifest's own counts."""
    names = tuple(site.name for site in m.sites)
    if len(m.generations) > 1 and m.spec.sites != names:
        yield "spec.sites are not its sites"
    most_units = min(m.layout.n_units, MOST_UNITS)
    if m.n_units > most_units:
        yield f"n_units {m.n_units}: {most_units} at most"
    if m.n_rows == 0:
        yield "n_rows 0: a store has at least one row"
    if not 0 <= m.n_train_rows <= m.n_rows:
        yield f"n_train_rows {_shown(m.n_train_rows)} of {m.n_rows}"
    if m.n_bytes < 0:
        yield f"n_bytes {m.n_bytes}"


class _WantedFiles(NamedTuple):
    """The keys that `files` must have.

    Attributes:
        exact: Keys whose sizes are known to the byte.
        at_most: Keys that have a largest size.
    """

    exact: dict[str, int]
    at_most: dict[str, int]


def _wanted_files(m: StoreManifest) -> _WantedFiles:
    """Return the keys and sizes that follow from a manifest's generations."""
    exact: dict[str, int] = {}
    at_most = {"README.md": object_sizes.OTHER_FILE}
    # Every generation writes the columns and merged statistics of the store anew.
    for i, store in enumerate(object_sizes.sizes_by_generation(m.generations)):
        exact |= object_sizes.column_bytes(i, store.n_units, store.n_sites)
        exact[object_keys.merged_stats_key(i)] = store.stats_bytes
        at_most[object_keys.plan_key(i)] = object_sizes.RECORD_JSON
        for key in object_sizes.column_metadata(i):
            at_most[key] = object_sizes.SMALL_JSON
    return _WantedFiles(exact, at_most)


def _file_faults(m: StoreManifest) -> Faults:
    """Yield where `files` are not those that follow from the generations.

    A tokenizer's files may be there or not, and so may figure and description.
    """
    for i, g in enumerate(m.generations):
        plan = m.files.get(object_keys.plan_key(i))
        if plan is not None and plan.digest != g.plan_digest:
            yield f"generation {i}: plan_digest is not that in files"
    exact, at_most = _wanted_files(m)
    for key in {*exact, *at_most} - {*m.files}:
        yield f"files: {key} is missing"
    for key, recorded in m.files.items():
        if is_tokenizer_file(key) or (m.format_minor > 1 and key in CARD_FILES):
            most: int | None = object_sizes.OTHER_FILE
        else:
            most = exact.get(key, at_most.get(key))
        if most is None:
            yield f"files: {key[:200]!r} is no file of a store"
        elif recorded.bytes > most or (key in exact and recorded.bytes != most):
            wanted = f"{most}" if key in exact else f"at most {most}"
            yield f"files: {key} has {_shown(recorded.bytes)} bytes, wanted {wanted}"
        if not _DIGEST.fullmatch(recorded.digest):
            yield f"files: the digest of {key} is none"


def _record_faults(
    m: StoreManifest | Plan, generation: int, unit: int, record: UnitRecord
) -> Faults:
    """Yield what keeps a record from being that of a unit."""
    layout = m.layout
    g = m if isinstance(m, Plan) else m.generations[generation]
    if record.unit != unit:
        yield f"it is of unit {_shown(record.unit)}"
    if not 0 <= record.n_sequences <= layout.unit_sequences:
        yield (
            f"{_shown(record.n_sequences)} sequences, a unit has at most"
            f" {layout.unit_sequences}"
        )
    if record.n_rows > record.n_sequences * layout.context:
        yield f"{_shown(record.n_rows)} rows of {record.n_sequences} sequences"
    wanted = object_sizes.unit_bytes(
        m.spec,
        layout,
        g.sites,
        unit,
        record.n_rows,
        object_keys.unit_stats_key(unit, generation),
        # a generation that adds sites has the tokens that are there
        tokens=generation == 0 or g.first_unit > 0,
    )
    for key in sorted({*wanted} ^ {*record.objects}):
        yield f"{key[:200]!r} is {'missing' if key in wanted else 'no object of it'}"
    for key, (least, most) in wanted.items():
        recorded = record.objects[key]
        size_fits = least <= recorded.bytes <= most
        if not size_fits or not _DIGEST.fullmatch(recorded.digest):
            yield (
                f"{key}: {_shown(recorded.bytes)} bytes, digest"
                f" {recorded.digest[:64]!r}; wanted {least} to {most} bytes"
            )


def _shown(n: int) -> str:
    """Return a number as text, in short if it has more digits than anyone reads."""
    if abs(n) < 10**24:
        return str(n)
    return f"about 10^{len(str(abs(n))) - 1}"
