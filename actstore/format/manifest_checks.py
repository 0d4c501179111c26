"""A manifest as a whole, before anything is read on its word: names, bounds, and sums
that must come out.

Pure arithmetic. What only other objects can tell (whether rows, records and plans are
those that it says) is told where they are read, and for all of them by `verify`.
FORMAT.md, *What a reader checks*, is the normative text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from actstore.errors import CorruptError, SpecError
from actstore.format import keys, object_sizes
from actstore.format.content_id import content_id
from actstore.format.layout import n_chunks
from actstore.format.norm_checks import norm_faults
from schemas.harvest import HarvestSpec, Layout, Plan
from schemas.manifest import Generation, StoreManifest, UnitRecord
from schemas.source import Site

MOST = 2**31 - 1  # sequences, positions and rows are int32
MOST_UNITS = 1 << 22
MOST_SLOTS = 1 << 28  # of a unit
MOST_D = 1 << 24
MOST_CHUNK = 1 << 30  # decoded bytes
SITE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_FILE = re.compile(r"tokenizer/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Faults = Iterator[str]


def check_manifest(m: StoreManifest, url: str) -> None:
    """Raises CorruptError with the first thing that cannot be."""
    for fault in _faults(m):
        raise CorruptError(
            f"{url}/{keys.MANIFEST}: {fault}; it was changed or badly written: copy the"
            " store again"
        )


def check_plan(plan: Plan, where: str) -> None:
    """The same for a plan alone, as far as it goes."""
    for fault in _plan_faults(plan):
        raise CorruptError(
            f"{where}: {fault}; it was changed or badly written: copy the store again"
        )


def check_writable(plan: Plan) -> None:
    """Raises SpecError where a store of this plan could not be opened again."""
    for fault in _plan_faults(plan):
        raise SpecError(
            f"{fault}; choose other names, or other sizes of units and chunks"
        )
    # an iterator plans for all it might give
    if plan.layout.n_units > MOST_UNITS and plan.layout.n_sequences < MOST:
        raise SpecError(
            f"{plan.layout.n_units} units; {MOST_UNITS} at most, choose a larger"
            " --unit-sequences"
        )


def check_record(
    m: StoreManifest | Plan, generation: int, unit: int, record: UnitRecord, where: str
) -> None:
    """A unit's record against the manifest or its generation's plan: its counts, and
    exactly the objects that such a unit has, with sizes that they can have. Raises
    CorruptError.
    """
    for fault in _record_faults(m, generation, unit, record):
        raise CorruptError(f"{where}: {fault}; it is not the record that was committed")


def layout_faults(layout: Layout, sites: Sequence[Site], spec: HarvestSpec) -> Faults:
    """Find sizes that no store can have: too large ones, and those that do not fit each
    other.
    """
    rows = layout.unit_sequences * layout.context
    capacity = n_chunks(rows, layout.chunk_rows) * layout.chunk_rows
    for name, value, most in (
        ("context", layout.context, MOST),
        ("unit_sequences", layout.unit_sequences, MOST),
        ("n_sequences", layout.n_sequences, 4 * MOST),
        ("n_units", layout.n_units, 4 * MOST),
        ("capacity", layout.capacity, MOST_SLOTS),
        ("d", max(site.d for site in sites), MOST_D),
    ):
        if value > most:
            yield f"{name} {_shown(value)}: at most {most} are possible"
    if layout.capacity != capacity:
        yield (
            f"capacity {layout.capacity}: {layout.unit_sequences} sequences of"
            f" {layout.context} in chunks of {_shown(layout.chunk_rows)} rows make"
            f" {_shown(capacity)}"
        )
    wanted = n_chunks(layout.n_sequences, layout.unit_sequences)
    if spec.context != layout.context:
        yield f"spec.context is {spec.context}, layout.context {layout.context}"
    if layout.n_units != wanted:
        yield (
            f"layout.n_units {layout.n_units}: {layout.n_sequences} sequences make"
            f" {wanted}"
        )
    for site in sites:
        if (size := object_sizes.codec(spec, layout, site.d).chunk_bytes) > MOST_CHUNK:
            yield (
                f"site {site.name}: chunks of {size} bytes; at most {MOST_CHUNK} are"
                " possible"
            )


def _faults(m: StoreManifest) -> Faults:
    """All checks in order; each relies on those before it having found nothing."""
    yield from _name_faults(m.spec, m.sites)
    yield from layout_faults(m.layout, m.sites, m.spec)
    yield from _generation_faults(m)
    yield from _count_faults(m)
    yield from norm_faults(m)
    yield from _file_faults(m)
    if m.content_id != content_id(m.generations):
        yield (
            f"content_id {m.content_id}: its generations make"
            f" {content_id(m.generations)}"
        )
    parent = content_id(m.generations[:-1]) if len(m.generations) > 1 else None
    if m.parent != parent:
        yield f"parent {m.parent}: its generations make {parent}"


def _plan_faults(plan: Plan) -> Faults:
    yield from _name_faults(plan.spec, plan.sites)
    yield from layout_faults(plan.layout, plan.sites, plan.spec)
    if plan.first_unit > min(plan.layout.n_units, MOST_UNITS):
        yield f"first_unit {_shown(plan.first_unit)} of {plan.layout.n_units} units"


def _name_faults(spec: HarvestSpec, sites: Sequence[Site]) -> Faults:
    if not sites:
        yield "there are no sites"
    names = [site.name for site in sites]
    for name in names:
        if not is_site_name(name):
            yield f"site {name[:200]!r}: wanted letters, digits, `.`, `_` and `-`"
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        yield f"site {twice[0]} is there twice"
    for text in (spec.model.name, spec.corpus.name):
        if _CONTROL.search(text):
            yield f"{text[:200]!r}: a name with control characters"


def is_site_name(name: str) -> bool:
    """Tell whether a name can be a site's: it is a part of keys, of patterns, and of
    what is printed.
    """
    return SITE.fullmatch(name) is not None and name != "zarr.json"


def is_tokenizer_file(key: str) -> bool:
    """Tell whether a key is that of a tokenizer file."""
    return _FILE.fullmatch(key) is not None


class _Sum(NamedTuple):
    """Sites, units, sequences and rows of the generations so far."""

    sites: tuple[Site, ...] = ()
    units: int = 0
    sequences: int = 0
    rows: int = 0

    def with_(self, g: Generation) -> _Sum:
        """Add one more generation; `first_unit` says whether it brings sites (0) or
        units.
        """
        if self.units and g.first_unit == 0:
            return self._replace(sites=self.sites + g.sites)
        counts = (
            self.units + g.n_units,
            self.sequences + g.n_sequences,
            self.rows + g.n_rows,
        )
        return _Sum(self.sites or g.sites, *counts)


def _generation_faults(m: StoreManifest) -> Faults:
    """Find what keeps the generations from adding up to the manifest's sites, units and
    sequences.
    """
    before = _Sum()
    for i, g in enumerate(m.generations):
        if (g.plan, g.units) != (keys.plan_key(i), f"{keys.units_prefix(i)}/"):
            yield (
                f"generation {i}: plan {g.plan[:200]!r} and units {g.units[:200]!r} are"
                " not where they must be"
            )
        if not (_DIGEST.fullmatch(g.plan_digest) and _DIGEST.fullmatch(g.units_digest)):
            yield f"generation {i}: its digests are none"
        yield from (
            f"generation {i}: {fault}" for fault in _added_faults(g, before, m.layout)
        )
        before = before.with_(g)
    if m.sites != before.sites:
        yield "its sites are not those of its generations, in their order"
    if (m.n_units, m.n_sequences, m.n_rows) != before[1:]:
        yield (
            f"its generations make {before.units} units, {before.sequences} sequences"
            f" and {before.rows} rows"
        )


def _added_faults(g: Generation, before: _Sum, layout: Layout) -> Faults:
    """Find what is wrong with a generation by itself, and where it does not go on from
    those before it.
    """
    if not g.sites:
        yield "it has no sites"
    if not 0 < g.n_units <= MOST_UNITS:
        yield f"{_shown(g.n_units)} units; 1 to {MOST_UNITS} are possible"
    if not 0 < g.n_sequences <= g.n_units * layout.unit_sequences:
        yield f"{_shown(g.n_sequences)} sequences in {g.n_units} units"
    if not 0 <= g.n_rows <= g.n_sequences * layout.context:
        yield f"{_shown(g.n_rows)} rows of {g.n_sequences} sequences"
    if g.first_unit not in {0, before.units}:
        yield f"it begins at unit {_shown(g.first_unit)}, behind {before.units} units"
    if (
        before.units
        and g.first_unit == 0
        and (g.n_units, g.n_sequences, g.n_rows) != before[1:]
    ):
        yield (
            f"it adds sites to {g.n_units} units, {g.n_sequences} sequences and"
            f" {g.n_rows} rows of {before[1:]}"
        )
    if before.units and g.first_unit > 0 and g.sites != before.sites:
        yield "it adds units of other sites"


def _count_faults(m: StoreManifest) -> Faults:
    if len(m.generations) > 1 and m.spec.sites != tuple(site.name for site in m.sites):
        yield "spec.sites are not its sites"
    if not m.n_units <= min(m.layout.n_units, MOST_UNITS):
        yield f"n_units {m.n_units}: {min(m.layout.n_units, MOST_UNITS)} at most"
    if m.n_rows == 0:
        yield "n_rows 0: a store has at least one row"
    if not 0 <= m.n_train_rows <= m.n_rows:
        yield f"n_train_rows {_shown(m.n_train_rows)} of {m.n_rows}"
    if m.n_bytes < 0:
        yield f"n_bytes {m.n_bytes}"


def _file_faults(m: StoreManifest) -> Faults:
    """Compare `files` with the keys and sizes that follow from the generations; a
    tokenizer may be there.
    """
    exact: dict[str, int] = {}
    loose = {"README.md": object_sizes.OTHER_FILE}
    n_units = n_sites = stats = 0
    for i, g in enumerate(m.generations):
        n_units = max(n_units, g.first_unit + g.n_units)
        if g.first_unit == 0:
            n_sites, stats = (
                n_sites + len(g.sites),
                stats + object_sizes.stats_bytes(g.sites),
            )
        exact |= object_sizes.column_bytes(i, n_units, n_sites)
        exact[keys.merged_stats_key(i)] = stats
        loose |= dict.fromkeys(
            object_sizes.column_metadata(i), object_sizes.SMALL_JSON
        ) | {keys.plan_key(i): object_sizes.RECORD_JSON}
        if (
            m.files.get(keys.plan_key(i)) is not None
            and m.files[keys.plan_key(i)].digest != g.plan_digest
        ):
            yield f"generation {i}: plan_digest is not that in files"
    for key in {*exact, *loose} - {*m.files}:
        yield f"files: {key} is missing"
    for key, one in m.files.items():
        most = (
            object_sizes.OTHER_FILE
            if is_tokenizer_file(key)
            else exact.get(key, loose.get(key))
        )
        if most is None:
            yield f"files: {key[:200]!r} is no file of a store"
        elif one.bytes > most or (key in exact and one.bytes != most):
            yield (
                f"files: {key} has {_shown(one.bytes)} bytes, wanted"
                f" {'' if key in exact else 'at most '}{most}"
            )
        if not _DIGEST.fullmatch(one.digest):
            yield f"files: the digest of {key} is none"


def _record_faults(
    m: StoreManifest | Plan, generation: int, unit: int, record: UnitRecord
) -> Faults:
    g, layout = m if isinstance(m, Plan) else m.generations[generation], m.layout
    if record.unit != unit:
        yield f"it is of unit {_shown(record.unit)}"
    if not 0 <= record.n_sequences <= layout.unit_sequences:
        yield (
            f"{_shown(record.n_sequences)} sequences, a unit has at most"
            f" {layout.unit_sequences}"
        )
    if record.n_rows > record.n_sequences * layout.context:
        yield f"{_shown(record.n_rows)} rows of {record.n_sequences} sequences"
    tokens = generation == 0 or g.first_unit > 0
    stats = keys.unit_stats_key(unit, generation)
    wanted = object_sizes.unit_bytes(
        m.spec, layout, g.sites, unit, record.n_rows, stats, tokens=tokens
    )
    for key in sorted({*wanted} ^ {*record.objects}):
        yield f"{key[:200]!r} is {'missing' if key in wanted else 'no object of it'}"
    for key, (least, most) in wanted.items():
        one = record.objects[key]
        if not (least <= one.bytes <= most and _DIGEST.fullmatch(one.digest)):
            yield (
                f"{key}: {_shown(one.bytes)} bytes, digest {one.digest[:64]!r}; wanted"
                f" {least} to {most} bytes"
            )


def _shown(n: int) -> str:
    """Show a number that may have thousands of digits."""
    return str(n) if abs(n) < 10**24 else f"about 10^{len(str(abs(n))) - 1}"
