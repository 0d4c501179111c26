"""Holds a site's norms and statistics in a unit against its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from actstore.format import object_keys
from actstore.format.object_sizes import stats_bytes
from actstore.format.statistics import REST, SPECIAL, SiteStats, UnitStats
from actstore.recomputing import allowances
from actstore.recomputing.allowances import UNIT_ROUNDOFF
from actstore.recomputing.site_values import ChunkValues, read_chunks
from actstore.recomputing.unit_rows import UnitRows, place
from actstore.store.store import Store

# Sums in float64 over other orders of the same numbers agree to this.
_SAME = 1e-9
_SHOWN = 3  # rows that are named for each site of a unit
_STRATA = {SPECIAL: "special", REST: "rest"}


def figure_problems(store: Store, rows: UnitRows, site: str) -> Iterator[str]:
    """Yield a line for each of a site's figures in a unit that its values do not make.

    Raises:
        CorruptError: An object cannot be read.
    """
    unit = rows.unit
    norm_key = object_keys.chunk_key(object_keys.norm_key(site), unit)
    slots = store.plain(norm_key, unit, (store.layout.capacity,), np.float32)
    norms = slots[: len(rows.pairs)]
    if slots[len(norms) :].any():
        yield _fill(store, norm_key, unit)
    if store.manifest.spec.dtype == "int8":
        scale, _ = store.int8_parts(site, unit)
        if scale[len(norms) :].any():
            scale_key = object_keys.chunk_key(object_keys.scale_key(site), unit)
            yield _fill(store, scale_key, unit)
    stats, stats_key = _stored_stats(store, unit, site)
    channels = _Channels(stats, rows.special)
    wrong: list[str] = []
    for chunk in read_chunks(store, site, unit):
        if not chunk.filled_up:
            acts_key = object_keys.chunk_key(object_keys.acts_key(site), unit, 0)
            yield _fill(store, acts_key, unit)
        of_chunk = norms[chunk.slots]
        wrong += _wrong_norms(store, rows, chunk, of_chunk)
        channels.add(chunk, np.isfinite(of_chunk))
    yield from _shown(f"{store.url}/{norm_key}", wrong)
    differing = [*_norm_figures(stats, norms, rows.special)]
    differing += channels.differing(_rows_of_forward(store, rows))
    if differing:
        yield (
            f"wrong    {store.url}/{stats_key}: unit {unit}, site {site}: the rows make"
            f" other statistics: {', '.join(differing)}"
        )


def _fill(store: Store, key: str, unit: int) -> str:
    """Return a line about slots without a row that do not hold zeros."""
    return (
        f"wrong    {store.url}/{key}: unit {unit} has {store.rows_in(unit):,} rows, and"
        " values behind them; wanted 0 there"
    )


def _shown(where: str, wrong: Sequence[str]) -> Iterator[str]:
    """Yield lines for the first rows that are wrong, and how many more there are."""
    for text in wrong[:_SHOWN]:
        yield f"wrong    {where}: {text}"
    if len(wrong) > _SHOWN:
        yield f"wrong    {where}: and {len(wrong) - _SHOWN:,} more rows of that unit"


def _wrong_norms(
    store: Store, rows: UnitRows, chunk: ChunkValues, stored: NDArray[np.float32]
) -> list[str]:
    """Return words for each row of a chunk whose stored norm its values do not have."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.linalg.norm(chunk.values, axis=1)
        allowed = allowances.of_norms(exact, chunk.values.shape[1], chunk.quantised)
        wrong = ~(np.abs(stored.astype(np.float64) - exact) <= allowed)
    # Not finite on either side: float32 cannot hold the sum of squares.
    too_large = exact * exact > float(np.finfo(np.float32).max) * (1 - 1e-3)
    wrong &= np.isfinite(stored) | (np.isfinite(exact) & ~too_large)
    first = chunk.slots.start
    return [
        f"{place(store, rows, first + i)}: norm wanted {exact[i]:.6g}, found"
        f" {stored[i]:.6g}"
        for i in np.flatnonzero(wrong).tolist()
    ]


def _stored_stats(store: Store, unit: int, site: str) -> tuple[SiteStats, str]:
    """Return a site's statistics over a unit, and the key of their object."""
    for i, generation in enumerate(store.manifest.generations):
        end = generation.first_unit + generation.n_units
        names = [one.name for one in generation.sites]
        if site in names and generation.first_unit <= unit < end:
            key = object_keys.unit_stats_key(unit, i)
            data = store.storage.read(key, stats_bytes(generation.sites))
            where = f"{store.url}/{key}"
            stats = UnitStats.from_bytes(generation.sites, data, where)
            return stats.sites[site], key
    raise AssertionError(f"no generation has {site} in unit {unit}")


def _norm_figures(
    stats: SiteStats, norms: NDArray[np.float32], special: NDArray[np.bool_]
) -> Iterator[str]:
    """Yield the figures of norms that differ from those of the stored norms."""
    again = SiteStats(stats.d)
    finite = again.add_norms(norms, special)
    for stratum in _STRATA:
        in_stratum = special == (stratum == SPECIAL)
        again.count[stratum] = np.count_nonzero(in_stratum & finite)
    for name in ("count", "non_finite", "histogram"):
        if (getattr(again, name) != getattr(stats, name)).any():
            yield name
    for name in ("sum_norm", "sum_sq_norm", "max_norm"):
        if not np.allclose(getattr(again, name), getattr(stats, name), rtol=_SAME):
            yield name


def _rows_of_forward(store: Store, rows: UnitRows) -> int:
    """Return how many rows the harvest summed in float32 at most before float64."""
    manifest = store.manifest
    if manifest.imported is not None:
        return len(rows.pairs)
    return min(len(rows.pairs), manifest.spec.batch * store.layout.context)


class _Channels:
    """Sums of a site's values over the finite rows of a unit, around stored means."""

    def __init__(self, stats: SiteStats, special: NDArray[np.bool_]) -> None:
        self.stats = stats
        self.special = special
        self.count = np.zeros(2)
        self.first = np.zeros((2, stats.d))
        self.second = np.zeros((2, stats.d))
        self.error = np.zeros((2, stats.d))
        self.low = np.full(stats.d, np.inf)
        self.high = np.full(stats.d, -np.inf)

    def add(self, chunk: ChunkValues, finite: NDArray[np.bool_]) -> None:
        """Add the finite rows of a chunk; finite: bool [n]."""
        finite = finite & np.isfinite(chunk.values).all(axis=1)
        if not finite.any():
            return
        self.low = np.minimum(self.low, chunk.values[finite].min(axis=0))
        self.high = np.maximum(self.high, chunk.values[finite].max(axis=0))
        special = self.special[chunk.slots]
        for stratum in _STRATA:
            chosen = finite & (special == (stratum == SPECIAL))
            deviations = chunk.values[chosen] - self.stats.mean[stratum]
            self.count[stratum] += len(deviations)
            self.first[stratum] += deviations.sum(axis=0)
            self.second[stratum] += np.square(deviations).sum(axis=0)
            if chunk.quantised is not None:
                coarse = chunk.quantised.element_error()[chosen]
                self.error[stratum] += np.square(coarse).sum(axis=0)

    def differing(self, n_summed: int) -> Iterator[str]:
        """Yield the strata whose means or squared deviations are not the stored ones.

        n_summed: Rows that were summed in float32, around a shift among the values.
        """
        if not self.count.any():
            return
        # The shift was the mean of some rows, so no value was further from it than the
        # largest is from the smallest.
        spread = self.high - self.low
        largest = np.maximum(np.abs(self.high), np.abs(self.low))
        u = UNIT_ROUNDOFF["float32"]
        rounding = u * (n_summed * spread + largest)
        for stratum, name in _STRATA.items():
            n = self.count[stratum]
            if n == 0:
                continue
            offset = self.first[stratum] / n
            coarse = np.sqrt(self.error[stratum] / n)
            if (np.abs(offset) > rounding + coarse).any():
                yield f"mean of {name}"
            m2 = self.second[stratum] - n * np.square(offset)
            # Of squares, and of the square of the mean that is taken off them.
            allowed = 2 * n * spread * rounding
            allowed += 2 * n * coarse * (np.sqrt(np.maximum(m2, 0) / n) + coarse)
            if (np.abs(m2 - self.stats.m2[stratum]) > allowed).any():
                yield f"m2 of {name}"
