"""Sizes, L0, MSE and recovered cross-entropy of runs: the table `sae_table`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked
from actstore.figures.figure import Axis, Drawing, Figure, Series
from actstore.figures.table import Column, Table, Value
from actstore.format.storage import Storage
from schemas.records import ModelMetrics
from trainer.errors import RunError
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import RunData, read_run

NAME = "sae_table"
SORTS = ("trained", "stitched")


@checked(runs=run_folders)
def compute_sae_table(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Table:
    """Return what evaluations say of runs, by ascending size.

    Figures are those of all layers together (docs/metrics.md); cross-entropies are NaN
    where `trainer eval` was not asked for them with --ce.

    Args:
        runs: Folders of evaluated runs.

    Returns:
        A row for each run.

    Raises:
        RunError: A run is not finished, or not evaluated.
    """
    urls = arguments.folders(runs)
    if not urls:
        raise RunError("which runs? give at least one run folder")
    data = sorted((read_run(url) for url in urls), key=lambda run: run.record.n_latents)
    rows = {run.evaluation.rows for run in data}
    facts: dict[str, Value] = {"runs": len(data)}
    if len(rows) == 1:
        facts["rows"] = rows.pop()
    text = (
        "Each run on its held-out rows, by size. Compare errors at the same L0: more"
        " latents that fire reconstruct better whatever the dictionary."
    )
    return Table(NAME, "Size, sparsity and error of SAEs", text, _columns(data), facts)


def _columns(data: Sequence[RunData]) -> tuple[Column, ...]:
    return (
        Column("run", [run.name for run in data]),
        Column("kind", [run.record.sae.kind for run in data]),
        Column("sort", [_sort(run) for run in data]),
        Column("seed", _numbers(data, lambda run: run.record.seed)),
        Column(
            "n_latents", _numbers(data, lambda run: run.record.n_latents), "latents"
        ),
        Column("l0", _numbers(data, lambda run: run.evaluation.pooled.l0), "L0"),
        Column(
            "mse",
            _numbers(data, lambda run: run.evaluation.pooled.mse),
            "MSE",
            "per row",
        ),
        Column(
            "mse_per_element",
            _numbers(data, lambda run: run.evaluation.pooled.mse_per_element),
            "MSE",
            "per element",
        ),
        Column("fvu", _numbers(data, lambda run: run.evaluation.pooled.fvu), "FVU"),
        Column("dead", _numbers(data, lambda run: run.evaluation.dead)),
        Column("ce_sae", _effects(data, lambda model: model.ce_sae), "CE", "nats"),
        Column(
            "recovered_zero",
            _effects(data, lambda model: model.recovered_zero),
            "CE recovered from zeros",
        ),
        Column(
            "recovered_mean",
            _effects(data, lambda model: model.recovered_mean),
            "CE recovered from the mean",
        ),
    )


def _sort(run: RunData) -> str:
    is_stitched = Storage(run.url).exists("stitch.json")
    return SORTS[1] if is_stitched else SORTS[0]


def _numbers(
    data: Sequence[RunData], figure: Callable[[RunData], float]
) -> NDArray[np.generic]:
    return np.array([figure(run) for run in data])


def _effects(
    data: Sequence[RunData], figure: Callable[[ModelMetrics], float]
) -> NDArray[np.float64]:
    """Return a figure of the effect on the language model; NaN where it was not run."""
    effects = [run.evaluation.model_pooled for run in data]
    return np.array(
        [np.nan if effect is None else figure(effect) for effect in effects]
    )


def plot_sae_table(table: Table) -> tuple[Drawing, ...]:
    """Draw MSE against L0, trained and stitched runs apart, and MSE against size."""
    return (
        Figure(
            f"{NAME}-front",
            Axis("L0", zero=True),
            Axis("MSE (per row)", zero=True),
            _series(table, "l0"),
        ),
        Figure(
            f"{NAME}-size",
            Axis("latents", log=True),
            Axis("MSE (per row)", zero=True),
            _series(table, "n_latents"),
        ),
    )


def _series(table: Table, x: str) -> tuple[Series, ...]:
    sort_of = np.array(table["sort"])
    series = []
    for number, sort in enumerate(SORTS):
        at = np.flatnonzero(sort_of == sort)
        if len(at):
            labels = [
                f"{table['run'][i]}, {table['n_latents'][i]:,} latents" for i in at
            ]
            series.append(
                Series(
                    sort,
                    table[x][at],
                    table["mse"][at],
                    "line and points",
                    labels=labels,
                    colour=number,
                )
            )
    return tuple(series)
