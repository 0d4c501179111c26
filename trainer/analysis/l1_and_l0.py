"""How far the sum of the latents agrees with their number, by layer.

A penalty on L1 stands for one on L0; where latents are near 0 or 1, as those of the
normalized SAE are meant to be, the two are the same (docs/methods.md, "2. Normalized
SAE").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Table, Value
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    layer_axis,
    looks,
    series_of,
    where,
)
from trainer.analysis.seed_groups import Group, groups_over_layers, kind_of_run
from trainer.analysis.statistics_of_seeds import (
    correlation,
    mean_interval,
    shown_interval,
)
from trainer.errors import RunError
from trainer.runs.run_data import RunData
from trainer.runs.trained_sae import load

_FIELDS = (
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("run"),
    Field("site"),
    Field("layer"),
    Field("l0", "L0", "latents a row"),
    Field("l1_own", "L1 in the SAE's own units"),
    Field("l1", "L1", "activation units a row"),
    Field("ratio", "L1 in own units over L0"),
    Field("apart", "difference of the two over L0"),
    Field("correlation", "correlation of L1 and L0 over layers"),
    Field("ratio_mean", "L1 over L0, mean over seeds"),
    Field("ratio_low", "L1 over L0, 95 % interval from"),
    Field("ratio_high", "L1 over L0, 95 % interval to"),
)


def compute_l1_and_l0(runs: Sequence[RunData]) -> Table:
    """Return L1 beside L0 of each layer of each run.

    Columns: `group`, `kind`, `seed`, `run`, `site`, `layer`, `l0`, `l1_own` (of the
    latents as the SAE has them, whose rows have a mean square of 1), `l1`, `ratio` =
    `l1_own` / `l0`, `apart` = |`l1_own` - `l0`| / `l0`, `correlation` (of `l1_own` and
    `l0` over the layers of the run's seed), and `ratio_mean`, `ratio_low`, `ratio_high`
    of the layer over the group's seeds.

    Raises:
        RunError: There is no run.
    """
    if not runs:
        raise RunError("which runs? give at least one evaluated run")
    rows: list[list[Any]] = []
    facts: dict[str, Value] = {}
    for group in groups_over_layers(runs):
        of_group = _rows(group)
        rows += of_group
        # Of each seed once: the mean over its layers.
        apart: dict[Any, list[float]] = {}
        for row in of_group:
            apart.setdefault(row[2], []).append(row[10])
        means = [float(np.mean(values)) for values in apart.values()]
        facts[f"|L1 - L0| / L0, {group.name}"] = shown_interval(mean_interval(means))
    return Table(
        name="l1_and_l0",
        title="L1 and L0 by layer",
        text=(
            "Each row is a layer of a run. L1 is the sum of a row's latents in the"
            " SAE's own units, L0 their number: the closer the ratio is to 1 at every"
            " layer, the better a penalty on the one stands for the other."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts=facts,
    )


def plot_l1_and_l0(table: Table) -> tuple[Figure, ...]:
    """Draw L1 (solid) and L0 (dashed) by layer, and their ratio."""
    sites = in_layer_order(table["site"])
    groups = distinct(table["group"])
    colours = looks(groups)
    both: list[Series] = []
    ratios: list[Series] = []
    for group in groups:
        found = [where(table, group=group, site=site) for site in sites]
        there = [place for place, rows in enumerate(found) if len(rows)]
        at = np.array(there)
        means = {
            name: np.array([table[name][found[place]].mean() for place in there])
            for name in ("l0", "l1_own", "ratio_mean", "ratio_low", "ratio_high")
        }
        look = colours[group]
        both.append(series_of(group, at, means["l1_own"], look))
        both.append(series_of(group, at, means["l0"], look, dashed=True))
        ratio = series_of(
            group,
            at,
            means["ratio_mean"],
            look,
            low=means["ratio_low"],
            high=means["ratio_high"],
        )
        ratios.append(ratio)
    return (
        Figure(
            name=f"{table.name}-by_layer",
            x=layer_axis(sites),
            y=Axis("L1 in own units (solid) and L0 (dashed)", zero=True),
            series=tuple(both),
            title="L1 and L0 by layer",
        ),
        Figure(
            name=f"{table.name}-ratio",
            x=layer_axis(sites),
            y=Axis("L1 over L0", zero=True),
            series=tuple(ratios),
            title="L1 over L0 by layer",
        ),
    )


def _rows(group: Group) -> list[list[Any]]:
    """Return the rows of a group, without its figures over seeds, then with them."""
    rows: list[list[Any]] = []
    for run in group.runs:
        # `l1` is that of latents over their layer's scale.
        scale = load(run.url).scale_out.tolist()
        for layer, factor in zip(run.evaluation.layers, scale, strict=True):
            own = layer.l1 * factor
            ratio = own / layer.l0 if layer.l0 else math.nan
            place = (layer.site, short_site(layer.site))
            figures = (layer.l0, own, layer.l1, ratio, abs(ratio - 1))
            about = (group.name, kind_of_run(run), run.record.seed, run.name)
            rows.append([*about, *place, *figures])
    longer = []
    for row in rows:
        of_seed = [other for other in rows if other[2] == row[2]]
        together = correlation(
            [other[6] for other in of_seed], [other[7] for other in of_seed]
        )
        over = mean_interval([other[9] for other in rows if other[4] == row[4]])
        longer.append([*row, together, over.mean, over.low, over.high])
    return longer
