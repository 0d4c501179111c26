"""Fronts compared at the same L0, with differences paired by seed.

Metrics of runs of different L0 say little of their architectures (docs/methods.md, "2.
Normalized SAE"), so each seed's front is read at given L0s, by interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Table
from trainer.analysis.by_layer import metric_of
from trainer.analysis.fronts import L0, POOLED
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    looks,
    number_axis,
    series_of,
    sites_of,
    where,
)
from trainer.analysis.seed_groups import Group, groups_over_layers
from trainer.analysis.statistics_of_seeds import mean_interval
from trainer.errors import RunError
from trainer.runs.run_data import RunData

METRICS = (
    Field("fvu", "FVU"),
    Field("suppression", "suppression"),
    Field("recovered_zero", "CE recovered (zero)"),
    Field("kl", "KL (nats a token)"),
)
EVERY_LAYER = "mean of layers"
N_L0S = 5  # L0s that are taken where none are given
# A front of one point, or one that ends just before an L0, counts there if it is as
# near as this.
NEAR = 0.05
_FIELDS = (
    Field("front", "same but for seed and sparsity"),
    Field("site"),
    Field("layer"),
    Field("metric"),
    Field("l0", "L0", "latents a row"),
    Field("mean", "mean over seeds"),
    Field("low", "95 % interval from"),
    Field("high", "95 % interval to"),
    Field("seeds"),
    Field("difference", "difference from the first"),
    Field("difference_low", "difference, 95 % interval from"),
    Field("difference_high", "difference, 95 % interval to"),
    Field("pairs", "seeds of both"),
)
_BySeed = dict[int, float]
# The value of each seed, by front, site, metric and L0.
_Found = dict[tuple[str, str, str, float], _BySeed]


def compute_matched(
    runs: Sequence[RunData], l0s: Sequence[float] | None = None
) -> Table:
    """Return metrics of fronts at given L0s: of each layer, and of whole runs.

    A front is the runs that are the same but for seed and sparsity; those of one seed
    are joined in the order of L0, and read between two of them linearly in log L0.
    Beyond a front's ends there is no value. The first front is what the others are
    compared with. Columns: `front`, `site`, `layer` (also "pooled" of runs of several
    layers, and "mean of layers" of runs of one layer each, where every layer has the
    L0), `metric`, `l0`, `mean`, `low`, `high`, `seeds`; `difference`, `difference_low`,
    `difference_high`, `pairs`.

    Args:
        runs: The runs.
        l0s: The L0s; None for some that all fronts reach, for each layer by itself.

    Raises:
        RunError: There are not two fronts, or no L0 that all of them reach.
    """
    fronts = groups_over_layers(runs, sparsity=False) if runs else []
    if len(fronts) < 2:
        raise RunError(
            "wanted runs of at least two kinds or settings, to compare at the same L0;"
            f" got {len(fronts)}; add runs that differ in more than seed and sparsity"
        )
    places: list[tuple[str, ...]] = [(site,) for site in sites_of(runs)]
    if all(len(run.record.sites) > 1 for run in runs):
        places.append((POOLED,))
    elif len(places) > 1:
        places.append(tuple(sites_of(runs)))
    if l0s is not None and not all(l0 > 0 and math.isfinite(l0) for l0 in l0s):
        raise RunError(f"--l0: wanted numbers above 0, got {list(l0s)}")
    found: _Found = {}
    for sites in places:
        chosen = _common_l0s(fronts, sites) if l0s is None else l0s
        for front in fronts:
            found |= _read(front, sites, chosen)
    if not any(math.isfinite(value) for of in found.values() for value in of.values()):
        raise RunError(
            "these runs have no L0 in common: some fronts begin above where others end;"
            " train them to the same target_l0, or add sparsities"
        )
    rows = _rows([front.name for front in fronts], found)
    return Table(
        name="matched",
        title="Compared at the same L0",
        text=(
            "Each row is a metric that a front has at an L0, read between the runs next"
            f" to it; differences are from {fronts[0].name}, over the seeds of both. An"
            " interval that holds 0 shows no difference."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts={"compared with": fronts[0].name, "fronts": len(fronts)},
    )


def plot_matched(table: Table) -> tuple[Figure, ...]:
    """Draw each metric of whole runs, or else of the last layer, against L0."""
    figures = []
    sites = distinct(table["site"])
    # Whole runs come last.
    site = sites[-1] if sites else ""
    fronts = distinct(table["front"])
    colours = looks(fronts)
    for field in METRICS:
        series: list[Series] = []
        for front in fronts:
            rows = where(table, metric=field.name, site=site, front=front)
            if not len(rows):
                continue
            one = series_of(
                front,
                table["l0"][rows],
                table["mean"][rows],
                colours[front],
                low=table["low"][rows],
                high=table["high"][rows],
            )
            series.append(one)
        if series:
            figures.append(
                Figure(
                    name=f"{table.name}-{field.name}",
                    x=number_axis(L0, table["l0"]),
                    y=Axis(field.label),
                    series=tuple(series),
                    title=f"{field.label} at the same L0",
                )
            )
    return tuple(figures)


def at_l0(l0: float, l0s: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return a front's value at an L0, linear in log L0 between its points.

    A front with 0.4 at L0 4 and 0.2 at 16 has 0.3 at 8. NaN beyond its ends, unless one
    is within 5 %.

    Args:
        l0: The L0.
        l0s: The L0s of the front's points, [n].
        values: Their values, [n].
    """
    is_known = np.isfinite(l0s) & np.isfinite(values) & (l0s > 0)
    places = np.log(l0s[is_known])
    known = values[is_known]
    if not len(places):
        return math.nan
    order = np.argsort(places, kind="stable")
    at = math.log(l0)
    beyond = max(places.min() - at, at - places.max())
    if beyond > math.log1p(NEAR):
        return math.nan
    return float(np.interp(at, places[order], known[order]))


def _read(front: Group, sites: Sequence[str], l0s: Sequence[float]) -> _Found:
    """Return what a front has at some L0s, for each of its seeds.

    sites: a site, or several whose mean is taken.
    """
    found: _Found = {}
    name = sites[0] if len(sites) == 1 else EVERY_LAYER
    for field in METRICS:
        for l0 in l0s:
            by_seed = found.setdefault((front.name, name, field.name, l0), {})
            for seed in _seeds(front):
                values = [
                    _value(_points(front, seed, site, field.name), l0) for site in sites
                ]
                by_seed[seed] = float(np.mean(values))
    return found


def _seeds(front: Group) -> list[int]:
    return list(dict.fromkeys(run.record.seed for run in front.runs))


def _points(
    front: Group, seed: int, site: str, metric: str
) -> list[tuple[float, float]]:
    """Return L0 and a metric of the runs of one seed at a site."""
    points = []
    for run in front.runs:
        if run.record.seed == seed:
            l0 = metric_of(run, site, "l0")
            points.append((l0, metric_of(run, site, metric)))
    return points


def _value(points: Sequence[tuple[float, float]], l0: float) -> float:
    every = np.array(points, dtype=np.float64)
    return at_l0(l0, every[:, 0], every[:, 1])


def _common_l0s(fronts: Sequence[Group], sites: Sequence[str]) -> list[float]:
    """Return L0s that every seed of every front reaches at all the sites; or none."""
    lows = []
    highs = []
    for front in fronts:
        for seed in _seeds(front):
            for site in sites:
                points = _points(front, seed, site, "l0")
                l0s = [l0 for l0, _ in points if l0 > 0]
                if l0s:
                    lows.append(min(l0s))
                    highs.append(max(l0s))
    if not lows:
        return []
    low = max(lows)
    high = min(highs)
    # Runs that were steered to one L0 do not meet it exactly.
    if low / (1 + NEAR) > high * (1 + NEAR):
        return []
    if high <= low * (1 + NEAR):
        return _rounded([math.sqrt(low * high)])
    return _rounded(np.geomspace(low, high, N_L0S).tolist())


def _rounded(l0s: Sequence[float]) -> list[float]:
    """Return L0s of three digits; the allowance at a front's ends covers the rest."""
    return list(dict.fromkeys(float(f"{l0:.3g}") for l0 in l0s))


def _rows(fronts: Sequence[str], found: Mapping[Any, _BySeed]) -> list[list[Any]]:
    """Return the rows: means over seeds, and differences from the first front."""
    rows: list[list[Any]] = []
    sites = list(dict.fromkeys(site for _, site, _, _ in found))
    for key in sorted(
        found, key=lambda one: (sites.index(one[1]), fronts.index(one[0]))
    ):
        front, site, metric, l0 = key
        by_seed = found[key]
        over = mean_interval(list(by_seed.values()))
        if not over.n:
            continue
        first = found.get((fronts[0], site, metric, l0), {})
        pairs = [by_seed[seed] - first[seed] for seed in by_seed if seed in first]
        apart = mean_interval(pairs if front != fronts[0] else [])
        figures = (over.mean, over.low, over.high, over.n)
        differences = (apart.mean, apart.low, apart.high, apart.n)
        rows.append([front, site, short_site(site), metric, l0, *figures, *differences])
    return rows
