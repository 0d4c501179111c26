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

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Table, Value
from trainer.analysis.cosines import known_directions
from trainer.analysis.decoder_cosines import (
    PAIRS,
    PILLARS,
    cosines_among,
    pillars_of,
    sampled_cosines,
)
from trainer.analysis.decoder_directions import Directions, directions_of
from trainer.analysis.decoder_norms import CORRECTION
from trainer.analysis.direction_pairs import SIMILAR, direction_pairs
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
from trainer.analysis.statistics_of_seeds import mean_interval, shown_interval
from trainer.runs.run_data import RunData

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
    # What a terminal has room for comes first.
    Field("directions", "share of latents in direction pairs"),
    Field("overlap", "share of the pillars in direction pairs"),
    Field("corrections", f"share of norm below {CORRECTION} of own units"),
    Field("latents"),
    Field("alive", "share of the latents that fire at the layer"),
    Field("without_direction", "latents of norm 0"),
    Field("norm_mean", "mean norm", OWN),
    *(
        Field(name, f"norm, {100 * q:.0f} % quantile", OWN)
        for name, q in QUANTILES.items()
    ),
    Field("norm_original", "median norm", UNIT),
    Field("corrections_original", f"share of norm below {CORRECTION} activation units"),
    Field("cosine_mean", "mean cosine of sampled pairs"),
    Field("cosine_spread", "standard deviation of the cosines"),
    Field("similar", f"share of sampled pairs with a cosine above {SIMILAR}"),
    Field("pillars"),
    Field("pillar_cosine_max", "largest cosine between pillars"),
    Field("pillars_similar", f"share of pairs of pillars above {SIMILAR}"),
    Field("direction_pairs", "direction pairs"),
)
DRAWN = ("directions", "corrections", "overlap", "alive", "norm_50")


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
    `site`, `layer`, `dictionary`; `directions`, `overlap`, `corrections`; `latents`,
    `alive`, `without_direction`; norms in the SAE's own units (in which rows have a
    mean square of 1): `norm_mean`, `norm_05`, ..., `norm_max`; `norm_original`, the
    median in activation units; `corrections_original`; of sampled pairs `cosine_mean`,
    `cosine_spread`, `similar`; `pillars`, `pillar_cosine_max`, `pillars_similar`; and
    among all pairs `direction_pairs`.

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
        every = directions_of(run, alive_only=alive_only, device=device)
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


class _Shape(NamedTuple):
    """The norms [m] and figures of a dictionary that are the same at all its layers."""

    norms: Any
    without_direction: int
    cosines: tuple[float, float, float]
    pillars: tuple[int, float, float]
    n_pairs: int
    directions: float
    overlap: float


def _shape(dictionary: Directions, n_pairs: int, seed: Sequence[int]) -> _Shape:
    unit = known_directions(dictionary.rows)
    sampled = sampled_cosines(unit, n_pairs, seed).astype(np.float64)
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
        without_direction=len(dictionary.rows) - len(unit),
        cosines=cosines,
        pillars=(len(chosen), largest, similar),
        n_pairs=pairs.n,
        directions=share,
        overlap=float(is_both.double().mean()) if len(chosen) else math.nan,
    )


def _row(
    run: RunData,
    about: Sequence[Any],
    dictionary: Directions,
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
    corrections = math.nan
    corrections_original = math.nan
    if len(norms):
        quantiles = [float(np.quantile(norms, q)) for q in QUANTILES.values()]
        median = float(np.median(norms)) * factor
        of_norms = [float(norms.mean()), *quantiles, median]
        corrections = float((norms < CORRECTION).mean())
        corrections_original = float((norms * factor < CORRECTION).mean())
    about_run = (name, group, kind, seed)
    where_it_is = (site, short_site(site), dictionary.name)
    shares = (shape.directions, shape.overlap, corrections)
    latents = (len(norms), alive, shape.without_direction)
    figures = (*shape.cosines, *shape.pillars, shape.n_pairs)
    return [
        *about_run,
        *where_it_is,
        *shares,
        *latents,
        *of_norms,
        corrections_original,
        *figures,
    ]


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
