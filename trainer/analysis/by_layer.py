"""Each metric by layer: means over seeds, with their intervals.

Means over layers mislead, so sweep B is judged by layer (docs/methods.md,
"1. Multi-layer SAE"); so is suppression (section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Table
from trainer.analysis.fronts import EFFECTS, METRICS
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    layer_axis,
    looks,
    series_of,
    sites_of,
    where,
)
from trainer.analysis.seed_groups import Group, groups_over_layers, kind_of_run
from trainer.analysis.statistics_of_seeds import mean_interval
from trainer.errors import RunError
from trainer.runs.run_data import RunData, model_effects

CE_LOST = Field("ce_lost", "CE lost", "nats a token")
SHOWN = (*METRICS, *EFFECTS, CE_LOST)
_FIELDS = (
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("rescale", "rescaling"),
    Field("site"),
    Field("layer"),
    Field("metric"),
    Field("mean", "mean over seeds"),
    Field("low", "95 % interval from"),
    Field("high", "95 % interval to"),
    Field("seeds"),
)
MOST_BARS = 4  # more groups than these are drawn as lines


def compute_by_layer(runs: Sequence[RunData]) -> Table:
    """Return each metric of each layer, as the mean over runs that differ in seed.

    Runs of one layer each that are otherwise the same make one group: a dictionary for
    each layer is compared with one for all. Columns: `group`, `kind`, `rescale`,
    `site`, `layer`, `metric`, `mean`, `low`, `high`, `seeds`. Metrics: those of
    `fronts`, and `ce_lost`; what was not evaluated is left out.

    Raises:
        RunError: There is no run.
    """
    if not runs:
        raise RunError("which runs? give at least one evaluated run")
    groups = groups_over_layers(runs)
    rows: list[list[Any]] = []
    for group in groups:
        for site in sites_of(group.runs):
            rows += _rows(group, site)
    return Table(
        name="by_layer",
        title="Metrics by layer",
        text=(
            "Each row is a metric of one layer, in the units of the original"
            " activations. A mean over layers hides that a rescaling moves error from"
            " some layers to others."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts={"runs": len(runs), "layers": len(sites_of(runs))},
    )


def plot_by_layer(table: Table) -> tuple[Figure, ...]:
    """Draw a figure of each metric, over layers in their order."""
    figures = []
    for field in SHOWN:
        rows = where(table, metric=field.name)
        if len(rows):
            figures.append(_figure(table, field))
    return tuple(figures)


def metric_of(run: RunData, site: str, metric: str) -> float:
    """Return a metric of a run at a site, or pooled; NaN where it was not evaluated."""
    evaluation = run.evaluation
    if metric in {field.name for field in METRICS}:
        layers = (*evaluation.layers, evaluation.pooled)
        found = [layer for layer in layers if layer.site == site]
        return float(getattr(found[0], metric)) if found else math.nan
    effects = [one for one in model_effects(evaluation) if one.site == site]
    if not effects:
        return math.nan
    if metric == CE_LOST.name:
        return effects[0].ce_sae - effects[0].ce_clean
    return float(getattr(effects[0], metric))


def _rows(group: Group, site: str) -> list[list[Any]]:
    """Return the rows of one layer of a group, one for each metric that there is."""
    first = group.runs[0]
    about = (group.name, kind_of_run(first), first.record.rescale)
    rows = []
    for field in SHOWN:
        found = mean_interval([metric_of(run, site, field.name) for run in group.runs])
        if found.n:
            place = (site, short_site(site), field.name)
            rows.append([*about, *place, found.mean, found.low, found.high, found.n])
    return rows


def _figure(table: Table, field: Field) -> Figure:
    """Draw one metric; rescalings, or else kinds, or else groups, have the colours."""
    sites = in_layer_order(table["site"])
    place = {site: number for number, site in enumerate(sites)}
    groups = distinct(table["group"])
    by = next(
        (name for name in ("rescale", "kind") if len(distinct(table[name])) > 1),
        "group",
    )
    colours = looks(distinct(table[by]))
    bars = len(groups) <= MOST_BARS and len(sites) > 1
    series: list[Series] = []
    for group in groups:
        rows = where(table, metric=field.name, group=group)
        if not len(rows):
            continue
        of_sites = np.array([place[table["site"][row]] for row in rows])
        rows = rows[np.argsort(of_sites)]
        value = table[by][rows[0]]
        one = series_of(
            str(value),
            np.sort(of_sites),
            table["mean"][rows],
            colours[value],
            mark="bars" if bars else "line and points",
            low=table["low"][rows],
            high=table["high"][rows],
            labels=(group,) * len(rows),
        )
        series.append(one)
    label = f"{field.label} ({field.unit})" if field.unit else field.label
    return Figure(
        name=f"{table.name}-{field.name}",
        x=layer_axis(sites),
        y=Axis(label, zero=True),
        series=tuple(series),
        title=f"{field.label} by layer",
    )
