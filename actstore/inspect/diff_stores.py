"""Says in what two stores differ: tokens, sites, rows, settings, values.

Manifests and records are read first. Values are read where the records' digests differ,
and of those a sample. What the records say is believed here: `actstore verify` proves
it.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked
from actstore.format.manifest import read_plan
from actstore.inspect.matched_rows import MatchedRows, UnitRows
from actstore.store.open_store import opened
from actstore.store.store import Store
from schemas.base import FieldDifference, field_differences

# Units that a site's sample comes from.
_SAMPLED_UNITS = 8
# What is told elsewhere: which sites there are, and how many tokens and sequences.
_COUNTED = {"sites", "tokens", "n_sequences", "n_units"}


class Shared(NamedTuple):
    """How many of something are in both stores, and in one of them alone.

    Attributes:
        both: In both.
        only_a: In the first store alone.
        only_b: In the second store alone.
    """

    both: int
    only_a: int
    only_b: int


class SharedSites(NamedTuple):
    """Names of the sites in both stores, and in one of them alone; see `Shared`."""

    both: list[str]
    only_a: list[str]
    only_b: list[str]


class SiteValues(NamedTuple):
    """How far the values of a site agree, on the rows that both stores have.

    Attributes:
        site: Its name.
        units: Units of the first store that have such rows.
        same_units: Those whose values have the same digests in both stores.
        rows: Rows of the other units that were read from both and compared.
        equal_rows: Those whose values are all equal.
        largest: The largest absolute difference of two values; infinite where only one
            of them is finite.
        relative: Relative error: the norm of all differences over that of all values of
            the first store.
    """

    site: str
    units: int
    same_units: int
    rows: int
    equal_rows: int
    largest: float
    relative: float


class StoreDiff(NamedTuple):
    """The result of `diff`.

    Attributes:
        a: The first store's URL.
        b: The second store's URL.
        content_ids: Content ids of both.
        parents: For each, the content id of the store that it is a part of; None: it is
            no part.
        fields: Settings that differ: of the model, corpus, layout, numerics and so on.
        sites: Which sites are in both.
        sequences: How many sequences have the same tokens.
        rows: How many rows are of the same sequence and position.
        values: How far the values agree, by site.
    """

    a: str
    b: str
    content_ids: tuple[str, str]
    parents: tuple[str | None, str | None]
    fields: list[FieldDifference]
    sites: SharedSites
    sequences: Shared
    rows: Shared
    values: list[SiteValues]

    @property
    def same(self) -> bool:
        """True where nothing that was compared differs."""
        shared = (self.sequences, self.rows)
        nothing_alone = all(not one.only_a and not one.only_b for one in shared)
        same_sites = not self.sites.only_a and not self.sites.only_b
        same_values = all(one.rows == one.equal_rows for one in self.values)
        return not self.fields and nothing_alone and same_sites and same_values


@checked(rows=arguments.count, seed=arguments.count_from_0)
def diff(
    a: Store | str | os.PathLike[str],
    b: Store | str | os.PathLike[str],
    *,
    rows: int = 1024,
    seed: int = 0,
) -> StoreDiff:
    """Compare two stores, wherever they lie and however they are laid out.

    Rows are matched by their tokens, sequence and position, so that units of other
    sizes, other seeds, and stores with some of the other's sites or units can be
    compared.

    Args:
        a: An open store, or its folder or URL.
        b: The other one.
        rows: Rows of each site that are read and compared where digests differ.
        seed: Which rows these are.

    Raises:
        SpecError: One is neither a store nor a folder or URL.
        StoreError: One cannot be read.

    Examples:
        >>> import actstore
        >>> found = actstore.diff("stores/small", "int8")
        >>> found.same, found.rows.both
        (False, 1024)
        >>> [field.path for field in found.fields]
        ['spec.dtype']
        >>> found.values[0].relative < 0.02
        True
    """
    first = opened(a, "diff: a")
    second = opened(b, "diff: b")
    matched = MatchedRows(first, second)
    sites = _shared_sites(first, second)
    n_both = sum(matched.n_in_unit(unit) for unit in first.units())
    n_sequences = len(matched.sequences)
    return StoreDiff(
        a=first.url,
        b=second.url,
        content_ids=(first.manifest.content_id, second.manifest.content_id),
        parents=(_parent(first), _parent(second)),
        fields=field_differences(_settings(first), _settings(second)),
        sites=sites,
        sequences=_shared(
            n_sequences, first.manifest.n_sequences, second.manifest.n_sequences
        ),
        rows=_shared(n_both, first.manifest.n_rows, second.manifest.n_rows),
        values=[_values(matched, site, rows, seed) for site in sites.both],
    )


def _parent(store: Store) -> str | None:
    """Return the content id of the store that one is a part of; None: of none."""
    subset = store.manifest.subset
    return None if subset is None else subset.parent


def _shared(n_both: int, n_a: int, n_b: int) -> Shared:
    """Return how many are in both, and in each alone."""
    return Shared(n_both, n_a - n_both, n_b - n_both)


def _shared_sites(a: Store, b: Store) -> SharedSites:
    """Return which sites are in both; one of another width is another site."""
    sites_a = set(a.manifest.sites)
    sites_b = set(b.manifest.sites)
    return SharedSites(
        both=[site.name for site in a.manifest.sites if site in sites_b],
        only_a=[site.name for site in a.manifest.sites if site not in sites_b],
        only_b=[site.name for site in b.manifest.sites if site not in sites_a],
    )


def _settings(store: Store) -> dict[str, Any]:
    """Return what decided how a store was made, as JSON has it."""
    manifest = store.manifest.model_dump(mode="json")
    # What the manifest leaves to the plan.
    plan = read_plan(store.storage).model_dump(mode="json")
    return {
        "format": [store.manifest.format_version, store.manifest.format_minor],
        "corpus_digest": plan["corpus_digest"],
        "separator_token": plan.get("separator_token"),
        "imported": manifest.get("imported"),
        "model": manifest["model"],
        "numerics": manifest["numerics"],
        "spec": _without_counts(manifest["spec"]),
        "layout": _without_counts(manifest["layout"]),
    }


def _without_counts(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in _COUNTED}


def _values(matched: MatchedRows, site: str, n_rows: int, seed: int) -> SiteValues:
    """Compare a site's values on a sample of the rows that both stores have."""
    units = [unit for unit in matched.a.units() if matched.n_in_unit(unit)]
    others = [unit for unit in units if not matched.same_values(unit, site)]
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.permutation(others)[:_SAMPLED_UNITS]).tolist()
    parts_a = []
    parts_b = []
    for unit in sampled:
        ids = _sample(matched, unit, -(-n_rows // len(sampled)), rng)
        parts_a.append(matched.a.read(site, ids.a))
        parts_b.append(matched.b.read(site, ids.b))
    n_same = len(units) - len(others)
    if not parts_a:
        return SiteValues(site, len(units), n_same, 0, 0, 0.0, 0.0)
    a = np.concatenate(parts_a)
    b = np.concatenate(parts_b)
    return SiteValues(site, len(units), n_same, len(a), *_compared(a, b))


def _sample(
    matched: MatchedRows, unit: int, n_rows: int, rng: np.random.Generator
) -> UnitRows:
    """Return some rows of a unit, neighbours so that few chunks are read."""
    ids = matched.of_unit(unit)
    start = int(rng.integers(max(len(ids.a) - n_rows, 0) + 1))
    run = slice(start, start + n_rows)
    return UnitRows(ids.a[run], ids.b[run])


def _compared(
    a: NDArray[np.float32], b: NDArray[np.float32]
) -> tuple[int, float, float]:
    """Return equal rows, largest difference and relative error of values [n, d]."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    both = np.where(finite, a, 0).astype(np.float64)
    distances = np.where(finite, b, 0) - both
    largest = float(np.abs(distances).max())
    if (~finite & ~same).any():
        largest = float("inf")
    norm = float(np.linalg.norm(both))
    error = float(np.linalg.norm(distances))
    relative = error / norm if norm else float(error > 0)
    return int(same.all(axis=1).sum()), largest, relative
