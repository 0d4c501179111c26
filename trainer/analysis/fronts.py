"""FVU against L0: a row for each layer of each run, and the fronts that they make.

Sweep A asks for a front of each layer, sweep B for one of each rescaling and learning
rate (docs/methods.md, "1. Multi-layer SAE"); architectures are compared on one figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Table
from schemas.records import LayerMetrics, ModelMetrics
from trainer.analysis.run_columns import (
    RUN_FIELDS,
    Field,
    columns_of,
    distinct,
    looks,
    number_axis,
    run_values,
    series_of,
    texts,
    where,
)
from trainer.analysis.statistics_of_seeds import mean_interval
from trainer.runs.run_data import RunData

POOLED = "pooled"
METRICS = (
    Field("l0", "L0", "latents a row"),
    Field("fvu", "FVU"),
    Field("mse", "MSE", "squared activation units a row"),
    Field("l1", "L1", "activation units a row"),
    Field("l1_decoder", "L1 times decoder norms", "activation units a row"),
    Field("suppression", "suppression"),
    Field("reconstruction_bias", "reconstruction bias"),
)
EFFECTS = (
    Field("recovered_zero", "CE recovered (zero)"),
    Field("recovered_mean", "CE recovered (mean)"),
    Field("kl", "KL", "nats a token"),
)
DEAD = (Field("dead", "dead latents"), Field("alive", "share alive"))
# Over the runs that are the same but for the seed.
OVER_SEEDS = (
    Field("seeds", "seeds"),
    Field("l0_mean", "L0, mean over seeds", "latents a row"),
    Field("fvu_mean", "FVU, mean over seeds"),
    Field("fvu_low", "FVU, 95 % interval from"),
    Field("fvu_high", "FVU, 95 % interval to"),
)
L0 = "L0 (latents a row)"


def compute_fronts(runs: Sequence[RunData]) -> Table:
    """Return the metrics of each layer of each run; of several layers pooled, too.

    Columns: those of RUN_FIELDS; `site`, `layer` (its short name, or "pooled");
    those of METRICS, EFFECTS (NaN where the language model was not run) and DEAD
    (of the whole run); and OVER_SEEDS, over the runs of one `group`.

    Raises:
        RunError: There is no run.
    """
    about = run_values(runs)
    rows: list[list[Any]] = []
    for run in runs:
        evaluation = run.evaluation
        effects = {effect.site: effect for effect in evaluation.model}
        ends = (evaluation.dead, evaluation.alive_share)
        for layer in evaluation.layers:
            effect = effects.get(layer.site)
            place = (layer.site, short_site(layer.site))
            rows.append([*about[run.url], *place, *_metrics(layer, effect), *ends])
        if len(evaluation.layers) > 1:
            figures = _metrics(evaluation.pooled, evaluation.model_pooled)
            rows.append([*about[run.url], POOLED, POOLED, *figures, *ends])
    fields = (*RUN_FIELDS, Field("site"), Field("layer"), *METRICS, *EFFECTS, *DEAD)
    columns = columns_of((*fields, *OVER_SEEDS), _with_intervals(fields, rows))
    n_groups = len({values[1] for values in about.values()})
    return Table(
        name="fronts",
        title="FVU against L0",
        text=(
            "Each row is a layer of a run, or all its layers pooled. Lower FVU at the"
            " same L0 is better; runs are compared at the same L0 only. Where seeds"
            " differ alone, points are their means and bars their 95 % intervals."
        ),
        columns=tuple(columns),
        facts={"runs": len(runs), "settings": n_groups},
    )


def plot_fronts(table: Table) -> tuple[Figure, ...]:
    """Draw fronts by layer, rescaling, learning rate and kind, where these differ."""
    figures = []
    sites = in_layer_order(site for site in table["site"] if site != POOLED)
    if len(sites) > 1:
        figures.append(_by_layer(table, sites))
    # Of a run of one layer, its row is the pooled one.
    whole = _whole_runs(table)
    if len(distinct(table["rescale"])) > 1:
        figures.append(_by(table, whole, "rescale", "rescaling"))
    if _several_rates(table):
        figures.append(_by(table, whole, "lr", "learning_rate"))
    if len(distinct(table["kind"])) > 1:
        figures.append(_by(table, whole, "kind", "kind"))
    if not figures or len(distinct(table["front"])) <= 8:
        figures.append(_by(table, whole, "front", "runs"))
    return tuple(figures)


def _metrics(layer: LayerMetrics, effect: ModelMetrics | None) -> list[float]:
    """Return the figures of METRICS and EFFECTS."""
    figures = [getattr(layer, field.name) for field in METRICS]
    if effect is None:
        return [*figures, *(math.nan for _ in EFFECTS)]
    return [*figures, *(getattr(effect, field.name) for field in EFFECTS)]


def _with_intervals(
    fields: Sequence[Field], rows: Sequence[list[Any]]
) -> list[list[Any]]:
    """Return the rows with the figures of OVER_SEEDS."""
    place = {field.name: number for number, field in enumerate(fields)}
    same: dict[tuple[str, str], list[list[Any]]] = {}
    for row in rows:
        same.setdefault((row[place["group"]], row[place["site"]]), []).append(row)
    longer = []
    for row in rows:
        seeds = same[row[place["group"]], row[place["site"]]]
        l0 = mean_interval([one[place["l0"]] for one in seeds])
        fvu = mean_interval([one[place["fvu"]] for one in seeds])
        longer.append([*row, len(seeds), l0.mean, fvu.mean, fvu.low, fvu.high])
    return longer


def _whole_runs(table: Table) -> Any:
    """Return the rows of whole runs: pooled, or of the one layer of a run."""
    sites = table["site"]
    runs = table["run"]
    has_pooled = {run for run, site in zip(runs, sites, strict=True) if site == POOLED}
    chosen = [
        row
        for row, site in enumerate(sites)
        if site == POOLED or runs[row] not in has_pooled
    ]
    return np.array(chosen, dtype=np.int64)


def _by_layer(table: Table, sites: Sequence[str]) -> Figure:
    """Draw a front for each layer; layers shaded in their order."""
    of_sites = looks(sites, ordered=True)
    series = []
    for site in sites:
        for front in distinct(table["front"]):
            rows = where(table, site=site, front=front)
            if len(rows):
                series.append(_front(table, rows, short_site(site), of_sites[site]))
    return _figure(table, "layer", "FVU against L0, by layer", series)


def _by(table: Table, whole: Any, column: str, name: str) -> Figure:
    """Draw the fronts of whole runs, with a colour for each value of a column."""
    values = table[column]
    of_values = looks(distinct(values))
    fronts = table["front"]
    series = []
    for front in distinct(fronts):
        rows = [row for row in whole if fronts[row] == front]
        if not rows:
            continue
        value = values[rows[0]]
        value = value.item() if isinstance(value, np.generic) else value
        shown = value if isinstance(value, str) else f"{value:.3g}"
        series.append(_front(table, rows, shown, of_values[value]))
    said = name.replace("_", " ")
    title = "FVU against L0" if name == "runs" else f"FVU against L0, by {said}"
    return _figure(table, name, title, series)


def _front(table: Table, rows: Any, name: str, look: Any) -> Series:
    """Return one front: the means over seeds, joined in the order of L0."""
    groups = texts(table, "group", rows)
    # The figures over seeds are the same on each row of a group.
    first_of_group: dict[str, int] = {}
    for row, group in zip(rows, groups, strict=True):
        first_of_group.setdefault(group, row)
    ordered = sorted(first_of_group.values(), key=lambda row: table["l0_mean"][row])
    places = np.array(ordered, dtype=np.int64)
    return series_of(
        name,
        table["l0_mean"][places],
        table["fvu_mean"][places],
        look,
        low=table["fvu_low"][places],
        high=table["fvu_high"][places],
        labels=tuple(
            f"{group}, {layer}"
            for group, layer in zip(
                texts(table, "group", places),
                texts(table, "layer", places),
                strict=True,
            )
        ),
    )


def _figure(table: Table, name: str, title: str, series: list[Series]) -> Figure:
    return Figure(
        name=f"{table.name}-{name}",
        x=number_axis(L0, table["l0_mean"]),
        y=Axis("FVU"),
        series=tuple(series),
        title=title,
    )


def _several_rates(table: Table) -> bool:
    """Return whether runs of one kind and size have several learning rates.

    Without a rate given it goes by the size, and says nothing of its own.
    """
    sizes = table["n_latents"].tolist()
    pairs = set(zip(table["kind"], sizes, table["lr"].tolist(), strict=True))
    known = [(kind, size) for kind, size, lr in pairs if not math.isnan(lr)]
    return len(known) > len(set(known))
