"""Pillars, directions and corrections: the vectors of a dictionary by their geometry.

From the document on the normalized SAE (docs/methods.md, "2. Normalized SAE"): pillar
vectors are the 100 of largest norm, direction vectors pairs that point the same way
with different norms, correction vectors those of small norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Table, Value
from trainer.analysis.decoder_cosines import (
    PAIRS,
    PILLARS,
    cosines_among,
    pillars_of,
    sampled_cosines,
)
from trainer.analysis.decoder_norms import CORRECTION
from trainer.analysis.dictionaries import Dictionary, dictionaries_of, unit_rows
from trainer.analysis.norm_and_l0 import shown_interval
from trainer.analysis.run_columns import (
    MOST_COLOURS,
    Field,
    columns_of,
    distinct,
    layer_axis,
    looks,
    run_values,
    series_of,
    where,
)
from trainer.analysis.statistics_of_seeds import mean_interval
from trainer.runs.run_data import RunData

SIMILAR = 0.9  # cosine from which two directions point the same way
NORMS_APART = 1.1  # their norms differ if the larger is so many times the smaller
BLOCK_COSINES = 1 << 24  # cosines that are in memory at once
QUANTILES = {"norm_05": 0.05, "norm_25": 0.25, "norm_50": 0.5, "norm_75": 0.75}
QUANTILES |= {"norm_95": 0.95, "norm_max": 1.0}
OWN = "the SAE's own units"
UNIT = "activation units"
_FIELDS = (
    Field("run"),
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("site"),
    Field("layer"),
    Field("dictionary"),
    Field("latents"),
    Field("alive", "share of the latents that fire at the layer"),
    Field("norm_mean", "mean norm", OWN),
    *(
        Field(name, f"norm, {100 * q:.0f} % quantile", OWN)
        for name, q in QUANTILES.items()
    ),
    Field("norm_original", "median norm", UNIT),
    Field("corrections", f"share of norm below {CORRECTION} of own units"),
    Field("corrections_original", f"share of norm below {CORRECTION} activation units"),
    Field("cosine_mean", "mean cosine of sampled pairs"),
    Field("cosine_spread", "standard deviation of the cosines"),
    Field("similar", f"share of sampled pairs with a cosine above {SIMILAR}"),
    Field("pillars"),
    Field("pillar_cosine_max", "largest cosine between pillars"),
    Field("pillars_similar", f"share of pairs of pillars above {SIMILAR}"),
    Field("direction_pairs", "direction pairs"),
    Field("directions", "share of latents in direction pairs"),
    Field("overlap", "share of the pillars in direction pairs"),
)
DRAWN = ("directions", "corrections", "overlap", "alive", "norm_50")


class DirectionPairs(NamedTuple):
    """Pairs of rows that point the same way with different norms.

    Attributes:
        n: How many there are.
        latents: Which rows are in one, bool [m].
    """

    n: int
    latents: Tensor


def compute_geometry(
    runs: Sequence[RunData],
    *,
    n_pairs: int = PAIRS,
    seed: int = 0,
    alive_only: bool = False,
    device: str = "cpu",
) -> Table:
    """Return the geometry of the dictionary of each layer of each run.

    A dictionary that several layers share has the same figures at each of them, but for
    those in activation units and `alive`. Columns: `run`, `group`, `kind`, `seed`,
    `site`, `layer`, `dictionary`, `latents`, `alive`; norms in the SAE's own units (in
    which rows have a mean square of 1): `norm_mean`, `norm_05`, ..., `norm_max`;
    `norm_original`, the median in activation units; `corrections`,
    `corrections_original`; of sampled pairs `cosine_mean`, `cosine_spread`, `similar`;
    `pillars`, `pillar_cosine_max`, `pillars_similar`; among all pairs
    `direction_pairs`, `directions`; and `overlap`.

    Args:
        runs: The runs.
        n_pairs: Pairs sampled of each dictionary.
        seed: The seed of the sample.
        alive_only: Leave out latents that never fired on the rows evaluated.
        device: Where cosines are computed.

    Raises:
        RunError: There is no run, or a decoder is not finite.
    """
    about = run_values(runs, over_layers=True)
    rows: list[list[Any]] = []
    for run in runs:
        every = dictionaries_of(run, alive_only=alive_only, device=device)
        for number, dictionary in enumerate(every):
            shape = _shape(dictionary, n_pairs, (seed, number))
            for site, factor in dictionary.factors.items():
                rows.append(_row(run, about[run.url], dictionary, site, factor, shape))
    columns = columns_of(_FIELDS, rows)
    return Table(
        name="geometry",
        title="Geometry of the dictionaries",
        text=(
            f"Pillars are the {PILLARS} directions of largest norm. Directions are"
            f" latents of which another has a cosine above {SIMILAR} and a norm that"
            " differs by more than 10 %, found among all pairs. Corrections have a norm"
            f" below {CORRECTION}. Cosines are the same in all units; rows have a mean"
            " square of 1 in the SAE's own."
        ),
        columns=tuple(columns),
        facts={"latents": "alive" if alive_only else "all", **_facts(rows)},
    )


def plot_geometry(table: Table) -> tuple[Figure, ...]:
    """Draw shares of directions, corrections, overlap and alive latents by layer."""
    sites = in_layer_order(table["site"])
    groups = distinct(table["group"])
    colours = looks(groups)
    figures = []
    for field in _FIELDS:
        if field.name not in DRAWN:
            continue
        series: list[Series] = []
        for group in groups:
            found = [where(table, group=group, site=site) for site in sites]
            there = [place for place, rows in enumerate(found) if len(rows)]
            over = [mean_interval(table[field.name][found[place]]) for place in there]
            one = series_of(
                group,
                np.array(there),
                np.array([interval.mean for interval in over]),
                colours[group],
                low=np.array([interval.low for interval in over]),
                high=np.array([interval.high for interval in over]),
            )
            series.append(one)
        label = f"{field.label} ({field.unit})" if field.unit else field.label
        figures.append(
            Figure(
                name=f"{table.name}-{field.name}",
                x=layer_axis(sites),
                y=Axis(label, zero=True),
                series=tuple(series),
                title=field.label[:1].upper() + field.label[1:],
            )
        )
    return tuple(figures)


def direction_pairs(rows: Tensor) -> DirectionPairs:
    """Return the pairs of a cosine above 0.9 whose norms differ by more than 10 %.

    All pairs are looked at, a block of rows against those after it.

    Args:
        rows: Directions, float32 [m, d]; those of norm 0 are in no pair.
    """
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    m = len(rows)
    in_pair = torch.zeros(m, dtype=torch.bool, device=rows.device)
    n_pairs = 0
    size = max(1, BLOCK_COSINES // max(1, m))
    for start in range(0, m, size):
        end = min(start + size, m)
        cosines = unit[start:end] @ unit[start:].T
        # Few are similar, so norms are compared of those alone.
        first, second = torch.nonzero(cosines > SIMILAR, as_tuple=True)
        is_later = second > first
        first = first[is_later] + start
        second = second[is_later] + start
        larger = torch.maximum(norms[first], norms[second])
        smaller = torch.minimum(norms[first], norms[second])
        apart = larger > NORMS_APART * smaller
        n_pairs += int(apart.sum())
        in_pair[first[apart]] = True
        in_pair[second[apart]] = True
    return DirectionPairs(n_pairs, in_pair.cpu())


class _Shape(NamedTuple):
    """What is the same at all layers of a dictionary: norms [m], and figures."""

    norms: Any
    cosines: tuple[float, float, float]
    pillars: tuple[int, float, float]
    directions: tuple[int, float]
    overlap: float


def _shape(dictionary: Dictionary, n_pairs: int, seed: Sequence[int]) -> _Shape:
    sampled = sampled_cosines(unit_rows(dictionary), n_pairs, seed).astype(np.float64)
    cosines = (math.nan, math.nan, math.nan)
    if len(sampled):
        share = float((sampled > SIMILAR).mean())
        cosines = (float(sampled.mean()), float(sampled.std()), share)
    chosen = pillars_of(dictionary)
    among = cosines_among(dictionary, chosen)
    largest = float(among.max()) if len(among) else math.nan
    similar = float((among > SIMILAR).mean()) if len(among) else math.nan
    pairs = direction_pairs(dictionary.rows)
    share = float(pairs.latents.double().mean()) if len(pairs.latents) else math.nan
    is_both = pairs.latents[chosen.cpu()]
    return _Shape(
        norms=dictionary.rows.double().norm(dim=1).cpu().numpy(),
        cosines=cosines,
        pillars=(len(chosen), largest, similar),
        directions=(pairs.n, share),
        overlap=float(is_both.double().mean()) if len(chosen) else math.nan,
    )


def _row(
    run: RunData,
    about: Sequence[Any],
    dictionary: Dictionary,
    site: str,
    factor: float,
    shape: _Shape,
) -> list[Any]:
    """Return the row of one layer."""
    name, group, _, kind, seed, *_ = about
    place = [layer.site for layer in run.evaluation.layers].index(site)
    alive = float((run.firings[place] > 0).double().mean())
    norms = shape.norms
    of_norms = [math.nan] * (2 + len(QUANTILES))
    corrections = [math.nan, math.nan]
    if len(norms):
        quantiles = [float(np.quantile(norms, q)) for q in QUANTILES.values()]
        median = float(np.median(norms)) * factor
        of_norms = [float(norms.mean()), *quantiles, median]
        corrections = [
            float((norms < CORRECTION).mean()),
            float((norms * factor < CORRECTION).mean()),
        ]
    where_it_is = (site, short_site(site), dictionary.name, len(norms), alive)
    figures = (*shape.cosines, *shape.pillars, *shape.directions, shape.overlap)
    about_run = (name, group, kind, seed)
    return [*about_run, *where_it_is, *of_norms, *corrections, *figures]


def _facts(rows: Sequence[list[Any]]) -> dict[str, Value]:
    """Return shares of each group, as means over seeds of means over layers."""
    place = {field.name: number for number, field in enumerate(_FIELDS)}
    facts: dict[str, Value] = {}
    groups = list(dict.fromkeys(row[place["group"]] for row in rows))
    if len(groups) > MOST_COLOURS:
        return facts
    for group in groups:
        for name, label in (("directions", "directions"), ("overlap", "overlap")):
            # Runs of one layer each are together over the layers of a seed.
            by_seed: dict[int, list[float]] = {}
            for row in rows:
                if row[place["group"]] == group:
                    by_seed.setdefault(row[place["seed"]], []).append(row[place[name]])
            means = [float(np.mean(values)) for values in by_seed.values()]
            facts[f"{label}, {group}"] = shown_interval(mean_interval(means))
    return facts
