"""L0 of the layers against the mean norm of their inputs, with a fitted line.

A plain SAE spends more latents on layers of larger norm; the normalized SAE is meant
not to (docs/methods.md, "2. Normalized SAE").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Table, Value
from actstore.store.store import Store
from trainer.analysis.run_columns import (
    Field,
    Look,
    columns_of,
    distinct,
    looks,
    series_of,
    texts,
    where,
)
from trainer.analysis.seed_groups import Group, groups_over_layers, kind_of_run
from trainer.analysis.statistics_of_seeds import (
    Interval,
    Line,
    fit_line,
    mean_interval,
    shown_interval,
)
from trainer.errors import RunError
from trainer.runs.run_data import RunData
from trainer.runs.run_store import check_fits, store_of
from trainer.runs.trained_sae import TrainedSae, load

UNIT = "activation units"
_FIELDS = (
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("run"),
    Field("site"),
    Field("layer"),
    Field("norm", "mean norm of the input", UNIT),
    Field("norm_seen", "the same as the SAE sees it"),
    Field("l0", "L0", "latents a row"),
    Field("slope", "slope of L0 on the norm", "latents per activation unit"),
    Field("intercept", "L0 of the line at norm 0", "latents a row"),
    Field("r_squared", "R² of the line"),
    Field("p", "p-value of the slope"),
    Field("slope_seen", "slope on the norm seen"),
    Field("p_seen", "p-value of that slope"),
    Field("slope_mean", "slope, mean over seeds"),
    Field("slope_low", "slope, 95 % interval from"),
    Field("slope_high", "slope, 95 % interval to"),
)


class _Layer(NamedTuple):
    """One layer of a run: its site, its mean norm, that norm as seen, and its L0."""

    run: RunData
    site: str
    norm: float
    seen: float
    l0: float


class _Fit(NamedTuple):
    """The layers of one seed, and the lines through them."""

    seed: int
    layers: list[_Layer]
    line: Line
    line_seen: Line


def compute_norm_and_l0(runs: Sequence[RunData], store: Store | None = None) -> Table:
    """Return the L0 of each layer beside its mean norm, with a line for each seed.

    The line is through the layers of one run; through those of all runs of one seed
    where each run is of one layer. Columns: `group`, `kind`, `seed`, `run`, `site`,
    `layer`, `norm`, `norm_seen` (after rescaling; about the mean where rows are
    centred), `l0`; of the line on `norm`: `slope`, `intercept`, `r_squared`, `p`; of
    that on `norm_seen`: `slope_seen`, `p_seen`; over the group's seeds: `slope_mean`,
    `slope_low`, `slope_high`.

    Args:
        runs: The runs; no crosscoders, whose latents fire at all layers alike.
        store: The store whose norms are taken; None for each run's own.

    Raises:
        RunError: There is no run, one is a crosscoder, or a store is not found.
    """
    _check(runs)
    rows: list[list[Any]] = []
    facts: dict[str, Value] = {}
    for group in groups_over_layers(runs):
        fits = _fits(group, store)
        slopes = mean_interval([fit.line.slope for fit in fits])
        for fit in fits:
            rows += _rows(group, fit, slopes)
        facts |= _facts(group.name, fits, slopes)
    return Table(
        name="norm_and_l0",
        title="Norm of the input and L0",
        text=(
            "Each row is a layer of a run: the mean norm of its rows and its L0, with"
            " the line through the layers of one seed. A slope above 0 means that"
            " layers of larger norm get more latents. Where an L0 was asked for each"
            " layer by itself there is nothing to see."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts=facts,
    )


def plot_norm_and_l0(table: Table) -> tuple[Figure, ...]:
    """Draw L0 against the norm in activation units, with a line for each group."""
    groups = distinct(table["group"])
    colours = looks(groups)
    series: list[Series] = []
    for group in groups:
        rows = where(table, group=group)
        labels = [
            f"{run}, {layer}"
            for run, layer in zip(
                texts(table, "run", rows), texts(table, "layer", rows), strict=True
            )
        ]
        points = series_of(
            group,
            table["norm"][rows],
            table["l0"][rows],
            colours[group],
            mark="points",
            labels=labels,
        )
        series.append(points)
        series += _line(table, rows, group, colours[group])
    figure = Figure(
        name=f"{table.name}-lines",
        x=Axis(f"mean norm of the input ({UNIT})"),
        y=Axis("L0 (latents a row)", zero=True),
        series=tuple(series),
        title="L0 against the norm of the input",
    )
    return (figure,)


def norms_seen(sae: TrainedSae, store: Store) -> NDArray[np.float64]:
    """Return the mean norm of each site's rows as an SAE sees them, [n_sites].

    The root mean square about the mean where it centres them, since the mean norm about
    another point is not in a store's statistics.
    """
    scale = sae.scale.double().cpu().numpy()
    return scale * norms_at_sites(sae, store)


def norms_at_sites(sae: TrainedSae, store: Store) -> NDArray[np.float64]:
    """Return the same without the rescaling, in activation units, [n_sites]."""
    if sae.mean is None:
        norms = [store.norms[site].all.mean_norm for site in sae.sites]
    else:
        norms = [math.sqrt(store.variance(site).sum()) for site in sae.sites]
    return np.array(norms, dtype=np.float64)


def _check(runs: Sequence[RunData]) -> None:
    if not runs:
        raise RunError("which runs? give at least one evaluated run")
    for run in runs:
        if run.record.sae.kind == "crosscoder":
            raise RunError(
                f"{run.url}: wanted SAEs that have an L0 for each layer; a crosscoder's"
                " latents fire at all layers alike; leave it out"
            )


def _fits(group: Group, store: Store | None) -> list[_Fit]:
    """Return a fit for each seed of a group, over the layers of all its runs."""
    is_of_one = all(len(run.record.sites) == 1 for run in group.runs)
    parts: dict[Any, list[_Layer]] = {}
    for run in group.runs:
        key = run.record.seed if is_of_one else run.url
        parts.setdefault(key, []).extend(_layers(run, store))
    fits = []
    for layers in parts.values():
        l0 = [layer.l0 for layer in layers]
        fits.append(
            _Fit(
                layers[0].run.record.seed,
                layers,
                fit_line([layer.norm for layer in layers], l0),
                fit_line([layer.seen for layer in layers], l0),
            )
        )
    return fits


def _layers(run: RunData, store: Store | None) -> list[_Layer]:
    opened = store
    if opened is None:
        opened = store_of(run.url, run.record).store
    check_fits(run.record, opened)
    sae = load(run.url)
    seen = norms_seen(sae, opened)
    layers = []
    for place, metrics in enumerate(run.evaluation.layers):
        norm = opened.norms[metrics.site].all.mean_norm
        layers.append(_Layer(run, metrics.site, norm, float(seen[place]), metrics.l0))
    return layers


def _rows(group: Group, fit: _Fit, slopes: Interval) -> list[list[Any]]:
    rows: list[list[Any]] = []
    line = fit.line
    of_line = (line.slope, line.intercept, line.r_squared, line.p)
    of_seen = (fit.line_seen.slope, fit.line_seen.p)
    over_seeds = (slopes.mean, slopes.low, slopes.high)
    for layer in fit.layers:
        about = (group.name, kind_of_run(layer.run), fit.seed, layer.run.name)
        place = (layer.site, short_site(layer.site))
        figures = (layer.norm, layer.seen, layer.l0)
        rows.append([*about, *place, *figures, *of_line, *of_seen, *over_seeds])
    return rows


def _facts(name: str, fits: Sequence[_Fit], slopes: Interval) -> dict[str, Value]:
    """Return what is said of a group: its slope over seeds, and its p-values."""
    p_values = [fit.line.p for fit in fits if not math.isnan(fit.line.p)]
    facts: dict[str, Value] = {f"slope, {name}": shown_interval(slopes)}
    if p_values:
        shown = f"{min(p_values):.2g}"
        if len(p_values) > 1:
            shown += f" to {max(p_values):.2g}"
        facts[f"p-value, {name}"] = shown
    return facts


def _line(
    table: Table, rows: NDArray[np.int64], group: str, look: Look
) -> list[Series]:
    """Return the mean of the lines of a group's seeds, over the norms it has."""
    slope = table["slope_mean"][rows[0]]
    if math.isnan(slope):
        return []
    norms = table["norm"][rows]
    # A mean of lines goes through the mean of their points.
    middle = float(table["l0"][rows].mean() - slope * norms.mean())
    ends = np.array([norms.min(), norms.max()])
    return [series_of(group, ends, middle + slope * ends, look, mark="line")]
