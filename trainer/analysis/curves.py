"""Curves over training, from the journals of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Table
from schemas.records import StepRecord
from trainer.analysis.run_columns import (
    RUN_FIELDS,
    SHOWN_BY,
    Field,
    Look,
    columns_of,
    distinct,
    looks_by,
    number_axis,
    run_values,
    series_of,
    shown_by,
    site_of,
    where,
)
from trainer.analysis.seed_groups import spec_of
from trainer.analysis.statistics_of_seeds import means_at
from trainer.runs.run_data import RunData

MOST_POINTS = 300  # of a run's journal; more do not show on a figure
LINES = (
    Field("fvu", "FVU"),
    Field("l0", "L0", "latents a row"),
    Field("dead", "dead latents"),
    Field("lr", "learning rate"),
    Field("mse", "MSE", "squared units of training a row"),
    Field("loss", "loss"),
)
DRAWN = ("fvu", "l0", "dead", "lr")
ROWS = "rows of training"


def compute_curves(runs: Sequence[RunData]) -> Table:
    """Return the lines of the runs' journals, at most MOST_POINTS of each run.

    Columns: `run`, `group`, `kind`, `seed`, `rescale`, `site` (of a run of one
    layer), `resample` ("on" or "off"; "unknown" for a run without its spec), `step`,
    `rows`, and those of LINES. Runs without a journal (imported ones) have no rows.

    Raises:
        RunError: There is no run.
    """
    about = run_values(runs)
    chosen = [field.name for field in RUN_FIELDS]
    names = ("run", "group", "kind", "seed", "rescale")
    rows: list[list[Any]] = []
    for run in runs:
        values = dict(zip(chosen, about[run.url], strict=True))
        fixed = [*(values[name] for name in names), site_of(run), resampling_of(run)]
        for step in thinned(run.steps):
            figures = [getattr(step, field.name) for field in LINES]
            rows.append([*fixed, step.step, step.rows, *figures])
    fields = (
        *(field for field in RUN_FIELDS if field.name in names),
        Field("site"),
        Field("resample", "resampling"),
        Field("step"),
        Field("rows", ROWS),
        *LINES,
    )
    return Table(
        name="curves",
        title="Over training",
        text=(
            "Each row is a line of a run's journal: means over the steps since the line"
            " before, on rows of training. Curves are means over seeds, where groups"
            " have several, with the band of their 95 % intervals."
        ),
        columns=tuple(columns_of(fields, rows)),
        facts={"runs": len(runs)},
    )


def plot_curves(table: Table) -> tuple[Figure, ...]:
    """Draw FVU, L0, dead latents and the learning rate against rows of training."""
    if not len(table):
        return ()
    by = shown_by(table)
    return tuple(
        curve_figure(table, field, by) for field in LINES if field.name in DRAWN
    )


def resampling_of(run: RunData) -> str:
    """Return whether dead latents were resampled: "on", "off" or "unknown"."""
    spec = spec_of(run)
    if spec is None:
        return "unknown"
    return "off" if spec.resample is None else "on"


def thinned(steps: Sequence[StepRecord], most: int = MOST_POINTS) -> list[StepRecord]:
    """Return at most so many records, evenly chosen, the last among them."""
    if len(steps) <= most:
        return list(steps)
    chosen = np.linspace(0, len(steps) - 1, most).round().astype(int)
    return [steps[place] for place in chosen]


def curve_figure(table: Table, field: Field, by: str) -> Figure:
    """Draw a figure of training against rows, a curve for each value of a column.

    Args:
        table: A table with the columns of `curves`.
        field: What is drawn.
        by: The column: `group`, `resample`.
    """
    colours = looks_by(table, by)
    series: list[Series] = []
    # Groups of one colour have a curve each.
    per = "group" if by in SHOWN_BY else by
    for value in distinct(table[per]):
        rows = where(table, **{per: value})
        name = table[by][rows[0]]
        series += _curve(table, rows, field.name, short_site(name), colours[name])
    label = f"{field.label} ({field.unit})" if field.unit else field.label
    values = table[field.name]
    return Figure(
        name=f"{table.name}-{field.name}",
        x=Axis(ROWS, zero=True),
        y=number_axis(label, values, zero=True),
        series=tuple(series),
        title=f"{field.label[:1].upper()}{field.label[1:]} over training",
    )


def _curve(
    table: Table, rows: NDArray[np.int64], field: str, name: str, look: Look
) -> list[Series]:
    """Return the curve of some rows; with several runs, their mean and its interval."""
    places = table["rows"][rows]
    values = table[field][rows]
    if len({table["run"][row] for row in rows}) == 1:
        return [series_of(name, places, values, look, mark="line")]
    # Runs of one group log at the same rows; where one stopped early, fewer count.
    at, means, low, high = means_at(places, values)
    line = series_of(name, at, means, look, mark="line")
    if not np.isfinite(low).any():
        return [line]
    band = series_of(name, at, means, look, mark="band", low=low, high=high)
    return [band, line]
