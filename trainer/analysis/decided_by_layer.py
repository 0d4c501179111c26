"""Tables and figures of `deciding_layers.py`: what is decided after which layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.deciding_layers import Memorised
from trainer.analysis.statistics_of_seeds import mean_interval, means_at, shown_interval

DECIDED = 0.1  # loss below which a datapoint counts as decided
SHOWN = 6  # single datapoints


def compute_decided_by_layer(trained: Sequence[Memorised]) -> Table:
    """Return loss, share of decided datapoints and share of the gradient by layer.

    Args:
        trained: The networks of `memorise_all`.
    """
    rows = [
        (one.datapoints, one.seed, layer, *_figures(one, layer))
        for one in trained
        for layer in range(len(one.loss))
    ]
    table = np.array(rows)
    columns = (
        Column("datapoints", table[:, 0].astype(np.int64)),
        Column("seed", table[:, 1].astype(np.int64)),
        Column("layer", table[:, 2].astype(np.int64)),
        Column("loss", table[:, 3], "mean loss", "nats"),
        Column("decided", table[:, 4], f"share with a loss below {DECIDED}"),
        Column("gradient", table[:, 5], "share of the gradient"),
    )
    return Table(
        "decided_by_layer",
        "When a residual network decides",
        "The loss of the stream after each layer, the share of datapoints whose loss is"
        f" below {DECIDED} there, and the layer's share of the gradient of the correct"
        " output. Layer 0 is the stream before the first one.",
        columns,
        _facts(trained),
    )


def compute_loss_trajectories(trained: Sequence[Memorised]) -> Table:
    """Return the loss of a few datapoints after each layer, of each number of them.

    They are of the first seed.
    """
    parts = []
    for one in {one.datapoints: one for one in reversed(trained)}.values():
        n_layers = len(one.loss)
        shown = min(SHOWN, one.datapoints)
        for point in range(shown):
            losses = one.loss[:, point].double().numpy()
            layers = np.arange(n_layers)
            numbers = np.full(n_layers, one.datapoints)
            parts.append((numbers, np.full(n_layers, point), layers, losses))
    numbers, points, layers, losses = map(np.concatenate, zip(*parts, strict=True))
    columns = (
        Column("datapoints", numbers),
        Column("point", points, "datapoint"),
        Column("layer", layers),
        Column("loss", losses, "loss", "nats"),
    )
    return Table(
        "loss_trajectories",
        "Single datapoints, layer by layer",
        "The loss of a few datapoints, drawn by chance, after each layer. A datapoint"
        " that one layer decides falls in one step; one that all refine falls slowly.",
        columns,
        {"seed": min(one.seed for one in trained)},
    )


def plot_decided_by_layer(table: Table) -> tuple[Figure, ...]:
    """Return the figures of `compute_decided_by_layer`."""
    rule = (Rule(DECIDED, "threshold"),)
    n_layers = int(np.max(table["layer"]))
    even = (Rule(1 / n_layers, "even shares"),)
    return (
        _figure(table, "loss", "mean loss (nats)", "Loss after each layer", rule),
        _figure(table, "decided", f"share with a loss below {DECIDED}", "Decided", ()),
        _figure(table, "gradient", "share of the gradient", "Gradient by layer", even),
    )


def plot_loss_trajectories(table: Table) -> tuple[Figure, ...]:
    """Return a figure for each number of datapoints."""
    numbers = np.asarray(table["datapoints"])
    points = np.asarray(table["point"])
    figures = []
    for n in np.unique(numbers).tolist():
        series = []
        for point in np.unique(points[numbers == n]).tolist():
            mine = (numbers == n) & (points == point)
            x, y = np.asarray(table["layer"])[mine], np.asarray(table["loss"])[mine]
            series.append(Series(f"datapoint {point}", x, y))
        one = Figure(
            f"loss_trajectories-{n}",
            Axis("layer"),
            Axis("loss (nats)", zero=True),
            tuple(series),
            f"{n:,} datapoints",
            (Rule(DECIDED, "threshold"),),
        )
        figures.append(one)
    return tuple(figures)


def _figures(one: Memorised, layer: int) -> tuple[float, float, float]:
    """Return mean loss, share decided and share of the gradient of a layer."""
    loss = one.loss[layer]
    # Before the first layer there is none that could have a gradient.
    gradient = float("nan") if layer == 0 else float(one.gradient[layer - 1].mean())
    decided = (loss < DECIDED).double().mean()
    return float(loss.double().mean()), float(decided), gradient


def _facts(trained: Sequence[Memorised]) -> dict[str, Value]:
    facts: dict[str, Value] = {"seeds": len({one.seed for one in trained})}
    for n in sorted({one.datapoints for one in trained}):
        mine = [one for one in trained if one.datapoints == n]
        at_the_end = [_figures(one, len(one.loss) - 1)[1] for one in mine]
        before = [_figures(one, len(one.loss) - 2)[1] for one in mine]
        steepest = [_largest_fall(one) for one in mine]
        over_seeds = {
            "learned at the end": at_the_end,
            "decided before the last layer": before,
            "share of a fall in its largest step": steepest,
        }
        for name, figures in over_seeds.items():
            shown = shown_interval(mean_interval(figures))
            facts[f"{n:,} datapoints: {name}"] = shown
    return facts


def _largest_fall(one: Memorised) -> float:
    """Return the mean share of a datapoint's fall in loss that its best layer makes.

    1 would mean that one layer decides; 1 / layers that all do alike.
    """
    falls = (one.loss[:-1] - one.loss[1:]).double()
    total = (one.loss[0] - one.loss[-1]).double()
    known = total > 0
    shares = falls.max(dim=0).values[known] / total[known]
    return float(shares.mean()) if bool(known.any()) else float(torch.nan)


def _figure(
    table: Table, name: str, label: str, title: str, rules: tuple[Rule, ...]
) -> Figure:
    numbers = np.asarray(table["datapoints"])
    distinct = np.unique(numbers).tolist()
    series = [
        _line(
            table,
            name,
            numbers == n,
            f"{n:,} datapoints",
            i / max(1, len(distinct) - 1),
        )
        for i, n in enumerate(distinct)
    ]
    return Figure(
        f"decided_by_layer-{name}",
        Axis("layer"),
        Axis(label, zero=True),
        tuple(series),
        title,
        rules,
    )


def _line(
    table: Table, name: str, mine: NDArray[np.bool_], label: str, shade: float
) -> Series:
    layers = np.asarray(table["layer"])[mine]
    values = np.asarray(table[name])[mine]
    at, means, low, high = means_at(layers, values)
    return Series(label, at, means, low=low, high=high, shade=shade)
