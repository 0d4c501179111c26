"""Figures with a line or a point for each run, whose colours the page's legend sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actstore.figures.figure import Axis, Figure, Mark, Series
from actstore.figures.layer_order import short_site
from actstore.figures.page import RunLegend
from schemas.records import LayerMetrics
from trainer.analysis.curves import thinned
from trainer.analysis.run_columns import layer_axis, number_axis, sites_of
from trainer.analysis.seed_groups import kind_of_run, sparsity_of
from trainer.runs.run_data import RunData

FVU = "FVU"
L0 = "L0 (latents a row)"
# What runs may be coloured by: key, label, and whether its values have an order.
_FIELDS = (
    ("sparsity", "L0 or penalty asked for", True),
    ("layer", "layer", True),
    ("rescale", "rescaling", False),
    ("kind", "kind", False),
    ("latents", "latents", True),
    ("lr", "learning rate", True),
    ("seed", "seed", True),
    ("run", "run", False),
)
_CURVES = (
    ("fvu", "FVU"),
    ("l0", L0),
    ("dead", "dead latents"),
    ("loss", "loss"),
)
_METRICS = (
    ("fvu", FVU),
    ("l0", L0),
    ("mse", "MSE (squared activation units a row)"),
    ("l1", "L1 (activation units a row)"),
    ("suppression", "suppression"),
)


def legend_of(runs: Sequence[RunData]) -> RunLegend:
    """Return what the page's legend knows of runs.

    They are coloured at first by what most of them differ in: runs of few sparsities
    and many layers by layer, for example.
    """
    values = [_values(run) for run in runs]
    differing = [
        field for field in _FIELDS if len({str(one[field[0]]) for one in values}) > 1
    ]
    fields = differing or [_FIELDS[-1]]
    chosen = "run" if len(runs) <= 8 else fields[0][0]
    return RunLegend(values, fields, chosen)


def scatter(runs: Sequence[RunData]) -> Figure:
    """Draw FVU against L0: a large point for each run, a small one for its layers."""
    series = []
    for number, run in enumerate(runs):
        pooled = run.evaluation.pooled
        layers = run.evaluation.layers
        if len(layers) > 1:
            series += [_small(number, run, layer) for layer in layers]
        large = Series(
            run.name,
            np.array([pooled.l0]),
            np.array([pooled.fvu]),
            "points",
            labels=[short_site(layers[0].site) if len(layers) == 1 else "all layers"],
            run=number,
            large=True,
            layer=short_site(layers[0].site) if len(layers) == 1 else "",
        )
        series.append(large)
    every_l0 = [layer.l0 for run in runs for layer in run.evaluation.layers]
    return Figure(
        name="runs-fvu_l0",
        x=number_axis(L0, every_l0),
        y=Axis(FVU, zero=True),
        series=tuple(series),
        title="FVU against L0",
    )


def by_layer(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """Draw each metric by layer, a line for each run."""
    sites = sites_of(runs)
    if len(sites) < 2:
        return ()
    place = {site: number for number, site in enumerate(sites)}
    figures = []
    for metric, label in _METRICS:
        series = []
        for number, run in enumerate(runs):
            layers = sorted(run.evaluation.layers, key=lambda one: place[one.site])
            series.append(
                Series(
                    run.name,
                    np.array([place[layer.site] for layer in layers]),
                    np.array([getattr(layer, metric) for layer in layers]),
                    run=number,
                )
            )
        figures.append(
            Figure(
                name=f"runs-{metric}_by_layer",
                x=layer_axis(sites),
                y=Axis(label, zero=True),
                series=tuple(series),
                title=f"{label.partition(' (')[0]} by layer",
            )
        )
    return tuple(figures)


def curves(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """Draw FVU, L0, dead latents and loss over training, a line for each run."""
    if not any(run.steps for run in runs):
        return ()
    figures = []
    for name, label in _CURVES:
        series = []
        for number, run in enumerate(runs):
            steps = thinned(run.steps)
            rows = np.array([step.rows for step in steps], dtype=np.float64)
            values = np.array([getattr(step, name) for step in steps], dtype=np.float64)
            # A line of one point would not be seen.
            mark: Mark = "line" if len(rows) > 1 else "points"
            series.append(Series(run.name, rows, values, mark, run=number))
        every = [value for one in series for value in np.asarray(one.y).tolist()]
        figures.append(
            Figure(
                name=f"runs-{name}_over_training",
                x=Axis("rows of training", zero=True),
                y=number_axis(label, every, zero=True),
                series=tuple(series),
                title=f"{label.partition(' (')[0]} over training",
            )
        )
    return tuple(figures)


def _small(number: int, run: RunData, layer: LayerMetrics) -> Series:
    return Series(
        run.name,
        np.array([layer.l0]),
        np.array([layer.fvu]),
        "points",
        labels=[short_site(layer.site)],
        run=number,
        layer=short_site(layer.site),
    )


def _values(run: RunData) -> dict[str, str | int | float | None]:
    record = run.record
    sparsity = sparsity_of(run)
    layers = record.sites
    return {
        "sparsity": None if np.isnan(sparsity) else sparsity,
        "layer": short_site(layers[0]) if len(layers) == 1 else "all",
        "rescale": record.rescale,
        "kind": kind_of_run(run),
        "latents": record.n_latents,
        "lr": record.lr if record.lr is None else float(f"{record.lr:.3g}"),
        "seed": record.seed,
        "run": run.name,
    }
