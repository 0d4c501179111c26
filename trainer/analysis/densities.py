"""Histograms of the latents' densities: how often they fire (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure
from actstore.figures.layer_order import short_site
from actstore.figures.table import Table
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    looks_by,
    run_values,
    series_of,
    shown_by,
    site_of,
    where,
)
from trainer.analysis.statistics_of_seeds import means_at
from trainer.evaluation.metric_definitions import log_density
from trainer.runs.run_data import RunData

# Bins of a quarter, about -10 (never), -9.75, ... and 0 (on every row).
EDGES: NDArray[np.float64] = np.linspace(-10.125, 0.125, 42)
MOST_BARS = 3  # more groups than these are drawn as lines
_FIELDS = (
    Field("run"),
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("rescale", "rescaling"),
    Field("site"),
    Field("log_density", "log10 density"),
    Field("latents", "latents"),
    Field("share", "share of the latents"),
)


def compute_densities(runs: Sequence[RunData]) -> Table:
    """Return how many latents of each run have which log10 density, over all layers.

    Columns: `run`, `group`, `kind`, `seed`, `rescale`, `site` (of a run of one
    layer), `log_density` (the middle of a bin 0.25 wide; -10 stands for never),
    `latents`, `share`.

    Raises:
        RunError: There is no run.
    """
    about = run_values(runs)
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    rows: list[list[Any]] = []
    for run in runs:
        name, group, _, kind, seed, rescale, *_ = about[run.url]
        every_row = max(1, int(run.rows.sum()))
        density = run.firings.sum(dim=0).double() / every_row
        counts, _ = np.histogram(log_density(density).numpy(), EDGES)
        for centre, count in zip(centres, counts, strict=True):
            share = count / run.record.n_latents
            figures = (float(centre), int(count), float(share))
            rows.append([name, group, kind, seed, rescale, site_of(run), *figures])
    return Table(
        name="densities",
        title="Density of the latents",
        text=(
            "How many latents fire on which share of the rows evaluated, over all"
            " layers, as the logarithm to base 10; -10 stands for never."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts={"runs": len(runs)},
    )


def plot_densities(table: Table) -> tuple[Figure, ...]:
    """Draw the histogram of each group of runs, as the mean over seeds."""
    groups = distinct(table["group"])
    by = shown_by(table)
    colours = looks_by(table, by)
    series = []
    for group in groups:
        rows = where(table, group=group)
        found = means_at(table["log_density"][rows], table["share"][rows])
        name = table[by][rows[0]]
        one = series_of(
            short_site(name),
            found.at,
            found.mean,
            colours[name],
            mark="bars" if len(groups) <= MOST_BARS else "line",
        )
        series.append(one)
    figure = Figure(
        name=f"{table.name}-histogram",
        x=Axis("log10 density"),
        y=Axis("share of the latents", zero=True),
        series=tuple(series),
        title="Density of the latents",
    )
    return (figure,)
