"""Draws figures of several runs of the service: FVU against L0, and FVU by layer.

Runs that were evaluated have held-out figures; of the others the last line of the
journal counts, which is on rows of training. Where both are there, their labels say so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from actstore.figures.figure import Axis, Figure, Mark, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.page import RunLegend
from schemas.records import EvalRecord, StepRecord
from schemas.sae import inner_of
from schemas.service import ServiceRun
from trainer.analysis.curves import thinned
from trainer.analysis.run_columns import layer_axis, number_axis

FVU = "FVU"
L0 = "L0 (latents a row)"
MOST_POINTS = 2_400  # of the curves of all runs together
_CURVES = (("fvu", FVU), ("l0", L0), ("loss", "loss"))


class DrawnRun(NamedTuple):
    """A run as figures show it.

    Attributes:
        run: The run.
        label: What figures call it.
        l0: Its L0 over all rows; None before there is one.
        fvu: Its FVU over all rows.
        layers: Its FVU at each site, where there are several.
        held_out: Whether these are of held-out rows; else they are of training's last.
        steps: Its journal.
    """

    run: ServiceRun
    label: str
    l0: float | None
    fvu: float | None
    layers: dict[str, float]
    held_out: bool
    steps: Sequence[StepRecord]


def drawn_run(
    run: ServiceRun, steps: Sequence[StepRecord], evaluation: EvalRecord | None
) -> DrawnRun:
    """Return a run as figures show it, from its evaluation or else its journal."""
    if evaluation is not None:
        pooled = evaluation.pooled
        layers = {layer.site: layer.fvu for layer in evaluation.layers}
        return DrawnRun(run, run.name, pooled.l0, pooled.fvu, layers, True, steps)
    if not steps:
        return DrawnRun(run, run.name, None, None, {}, False, steps)
    last = steps[-1]
    layers = {site: math.nan if v is None else v for site, v in last.layers.items()}
    return DrawnRun(run, run.name, last.l0, last.fvu, layers, False, steps)


def told_apart(runs: Sequence[DrawnRun]) -> list[DrawnRun]:
    """Return runs whose labels are all different, and say which rows they are on."""
    is_mixed = len({one.held_out for one in runs}) > 1
    count: Counter[str] = Counter()
    apart = []
    for one in runs:
        label = one.label
        if is_mixed and not one.held_out:
            label = f"{label} (training rows)"
        count[label] += 1
        if count[label] > 1:
            label = f"{label} #{count[label]}"
        apart.append(one._replace(label=label))
    return apart


def legend_of(runs: Sequence[DrawnRun]) -> RunLegend:
    """Return the legend that figures of these runs share."""
    values = [
        {
            "run": one.label,
            "kind": one.run.spec.sae.kind,
            "rescale": one.run.spec.stream.rescale,
            "user": one.run.user,
        }
        for one in runs
    ]
    differing = [
        field
        for field in ("kind", "rescale", "user")
        if len({one[field] for one in values}) > 1
    ]
    fields = [(field, field, False) for field in ("run", *differing)]
    return RunLegend(values, fields, "run")


def scatter(runs: Sequence[DrawnRun]) -> Figure | None:
    """Draw FVU against L0, a point for each run; None where no run has any."""
    series = [
        Series(one.label, [one.l0], [one.fvu], "points", run=number, large=True)
        for number, one in enumerate(runs)
        if one.l0 is not None and one.fvu is not None
    ]
    if not series:
        return None
    every_l0 = [one.l0 for one in runs if one.l0 is not None]
    return Figure(
        name="runs-fvu_l0",
        x=number_axis(L0, every_l0),
        y=Axis(FVU, zero=True),
        series=tuple(series),
        title="FVU against L0",
    )


def by_layer(runs: Sequence[DrawnRun]) -> Figure | None:
    """Draw FVU by layer, a line for each run; None where there is no second layer."""
    sites = in_layer_order(site for one in runs for site in one.layers)
    if len(sites) < 2:
        return None
    place = {site: number for number, site in enumerate(sites)}
    series = []
    for number, one in enumerate(runs):
        shown = sorted(one.layers, key=place.__getitem__)
        if shown:
            places = [place[site] for site in shown]
            values = [one.layers[site] for site in shown]
            series.append(Series(one.label, places, values, run=number))
    return Figure(
        name="runs-fvu_by_layer",
        x=layer_axis(sites),
        y=Axis(FVU, zero=True),
        series=tuple(series),
        title="FVU by layer",
    )


def curves(runs: Sequence[DrawnRun]) -> list[Figure]:
    """Draw FVU, L0 and loss over training, a line for each run."""
    begun = [(number, one) for number, one in enumerate(runs) if one.steps]
    if not begun:
        return []
    most = max(20, MOST_POINTS // len(begun))
    figures = []
    for name, label in _CURVES:
        series = []
        for number, one in begun:
            steps = thinned(one.steps, most)
            rows = [float(step.rows) for step in steps]
            values = [float(getattr(step, name)) for step in steps]
            mark: Mark = "line" if len(rows) > 1 else "points"
            series.append(Series(one.label, rows, values, mark, run=number))
        every = [value for one in series for value in one.y]
        figure = Figure(
            name=f"runs-{name}_over_training",
            x=Axis("rows of training", zero=True),
            y=number_axis(label, every, zero=True),
            series=tuple(series),
            title=f"{label.partition(' (')[0]} over training",
        )
        figures.append(figure)
    return figures


def sparsity_text(run: ServiceRun) -> str:
    """Return what sets a run's sparsity: `k 32`, `L0 32`, `l1 0.1`."""
    sae = inner_of(run.spec.sae)
    k = sae.latents_per_row
    if k is not None:
        return f"k {k}"
    if sae.steered_l0 is not None:
        return f"L0 {sae.steered_l0:g}"
    weight = sae.penalty_weight
    return "" if weight is None else f"{sae.penalty_field} {weight:g}"


def sites_text(run: ServiceRun) -> str:
    """Return which sites a run sees, shortly."""
    sites = run.spec.stream.sites
    if sites is None:
        return "all sites"
    if len(sites) > 2:
        return f"{len(sites)} sites"
    return ", ".join(short_site(site) for site in sites)
