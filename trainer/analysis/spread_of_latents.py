"""How the firings of each latent are spread over layers.

The spread of a latent is its effective number of layers (docs/methods.md, "1.
Multi-layer SAE").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Column, Table, Value
from actstore.store.store import Store
from trainer.analysis.run_columns import (
    MOST_COLOURS,
    distinct,
    looks,
    run_values,
    series_of,
    where,
)
from trainer.analysis.seed_groups import group_runs
from trainer.analysis.statistics_of_seeds import mean_interval, shown_interval
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import layer_shares, log_density, spread
from trainer.evaluation.metrics_of_rows import blocks, row_ids
from trainer.runs.run_data import RunData
from trainer.runs.run_store import check_fits
from trainer.runs.trained_sae import TrainedSae, load

# Frequencies of the latents that are shown: rarer ones have few contexts, more frequent
# ones say little.
LOW = 1e-4
HIGH = 2e-2
MOST_ROWS = 20_000  # rows of each site that the variance over layers is taken from
# Latents of a block of rows, at every layer: a quarter of the memory of an evaluation.
BLOCK_LATENTS = 1 << 26
MOST_POINTS = 3000  # of a run on the figure: more do not show
WIDE = 2  # layers; latents of more are counted
BINS = 24  # of the histogram of spreads


def compute_spread(runs: Sequence[RunData], store: Store | None = None) -> Table:
    """Return density and spread over layers of each latent of each run.

    Columns: `run`, `group`, `seed`, `latent`, `log_density` (-10: never), `layers`
    (the effective number of layers, 0 for a silent latent), `share_0`, `share_1`, ...
    (the share of its firings at each layer, as if layers had as many rows as each
    other, in the order of layers), and with a store `variance`: of its activation over
    the layers of one token, as the mean over tokens, in squared activation units.

    Args:
        runs: Runs of the same sites.
        store: The store whose rows the variance is taken from; None: no variance.

    Raises:
        RunError: There is no run, or they are of different sites.
    """
    about = run_values(runs)
    sites = _common_sites(runs)
    order = [runs[0].record.sites.index(site) for site in sites]
    texts: dict[str, list[str]] = {"run": [], "group": []}
    numbers: dict[str, list[NDArray[Any]]] = {}
    for run in runs:
        m = run.record.n_latents
        name, group, *_ = about[run.url]
        texts["run"] += [name] * m
        texts["group"] += [group] * m
        for column, values in _of_latents(run, store, order).items():
            numbers.setdefault(column, []).append(values)
    columns = [Column("run", texts["run"])]
    columns.append(Column("group", texts["group"], "same but for the seed"))
    labels = {"log_density": "log10 density", "layers": "effective number of layers"}
    for place, site in enumerate(sites):
        labels[f"share_{place}"] = f"share at {short_site(site)}"
    labels["variance"] = "variance over layers"
    units = {"variance": "squared activation units"}
    for column, parts in numbers.items():
        values = np.concatenate(parts)
        label = labels.get(column, "")
        columns.append(Column(column, values, label, units.get(column, "")))
    return Table(
        name="spread",
        title="Latents over layers",
        text=(
            "Each row is a latent. Its effective number of layers is 1 where all its"
            " firings are at one layer, and the number of layers where they are spread"
            " evenly; -10 stands for a latent that never fired."
        ),
        columns=tuple(columns),
        facts=_facts(runs, len(sites)),
    )


def plot_spread(table: Table) -> tuple[Figure, ...]:
    """Draw spread against density (of the first run), and the histogram of spreads."""
    shares = [name for name in table.names if name.startswith("share_")]
    top = float(max(1, len(shares)))
    runs = distinct(table["run"])
    if not runs:
        return ()
    groups = distinct(table["group"])
    colours = looks(groups)
    edges = np.linspace(1, max(top, 1.5), BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    histograms: list[Series] = []
    for group in groups:
        layers = table["layers"][where(table, group=group)]
        # Rounding leaves some a little below 1.
        alive = np.clip(layers[layers > 0], 1, None)
        counts, _ = np.histogram(alive, edges)
        share = counts / max(1, len(alive))
        mark = "bars" if len(groups) == 1 else "line"
        histograms.append(series_of(group, centres, share, colours[group], mark=mark))
    layers_axis = Axis("effective number of layers", limits=(0.8, top + 0.2))
    return (
        Figure(
            name=f"{table.name}-density",
            x=Axis("log10 density"),
            y=layers_axis,
            series=(_points(table, runs[0]),),
            title=f"Spread of the latents of {runs[0]}",
        ),
        Figure(
            name=f"{table.name}-histogram",
            x=layers_axis,
            y=Axis("share of the latents that fire", zero=True),
            series=tuple(histograms),
            title="Spread of the latents",
        ),
    )


@torch.no_grad()
def widest(
    firings: Tensor, rows: Tensor, n: int, low: float = LOW, high: float = HIGH
) -> Tensor:
    """Return the latents of widest spread among those of middling frequency.

    Args:
        firings: On how many rows each latent fired, int64 [n_layers, m].
        rows: Rows of each layer, int64 [n_layers].
        n: How many latents are wanted.
        low: The lowest frequency.
        high: The highest. Where no latent is in between, all that fire are considered.

    Returns:
        Numbers of latents, int64 [at most n], widest first.
    """
    frequency = firings.sum(dim=0).double() / rows.sum()
    width = spread(layer_shares(firings, rows))
    eligible = (frequency >= low) & (frequency <= high)
    if not eligible.any():
        eligible = frequency > 0
    n_found = min(n, int(eligible.sum()))
    return width.masked_fill(~eligible, -1).topk(n_found).indices


def variance_over_layers(
    sae: TrainedSae, store: Store, ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the variance of each latent over the layers of a token, mean over tokens.

    Activations are in original units; one of a crosscoder counts at each site by the
    norm of its decoder there. Rows are read once, and no more than a block of them is
    in memory.

    Args:
        sae: The SAE.
        store: The store.
        ids: Ids of the rows, int64 [n], ascending.

    Returns:
        float64 [m].
    """
    total = torch.zeros(sae.n_latents, dtype=torch.float64)
    # A block has as many rows of each site, and a sum and a sum of squares of them.
    size = max(1, BLOCK_LATENTS // sae.n_latents // (len(sae.sites) + 2))
    for block in blocks(store, sae.sites, ids, sae.n_latents):
        for part in zip(*(rows.split(size) for rows in block), strict=True):
            total += _variance_of_rows(sae, part).sum(dim=0, dtype=torch.float64).cpu()
    return (total / max(1, len(ids))).numpy()


def _variance_of_rows(sae: TrainedSae, rows: Sequence[Tensor]) -> Tensor:
    """Return each row's variance over layers, [B, m], from rows of each site [B, d]."""
    on_device = [part.to(sae.device) for part in rows]
    if sae.of_all_sites:
        latents = sae.encode(torch.stack(on_device, dim=1))
        weights = sae.decoder.norm(dim=2) / sae.scale  # [m, n_sites]
        variance: Tensor = latents.square() * weights.var(dim=1, correction=0)
        return variance
    scale = sae.scale_out.tolist()
    mean = torch.zeros(len(on_device[0]), sae.n_latents, device=sae.device)
    squares = torch.zeros_like(mean)
    # Welford's sums, so that equal activations have a variance of exactly 0.
    for n, part in enumerate(on_device, 1):
        latents = sae.encode(part, n - 1) / scale[n - 1]
        from_mean = latents - mean
        mean += from_mean / n
        squares += from_mean * (latents - mean)
    return squares / len(on_device)


def _common_sites(runs: Sequence[RunData]) -> list[str]:
    """Return the sites of all runs, in the order of layers.

    Raises:
        RunError: They differ.
    """
    first = runs[0]
    for run in runs:
        if run.record.sites != first.record.sites:
            raise RunError(
                f"{run.url}: wanted runs of the same sites, so that latents have the"
                f" same layers; it has {', '.join(run.record.sites)}, and {first.url}"
                f" has {', '.join(first.record.sites)}; give runs of one set of sites"
            )
    return in_layer_order(first.record.sites)


def _of_latents(
    run: RunData, store: Store | None, order: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """Return the numbers of each latent of a run, [m] by column.

    order: the places of its sites in the order of layers.
    """
    density = run.firings.sum(dim=0).double() / max(1, int(run.rows.sum()))
    shares = layer_shares(run.firings, run.rows)
    m = run.record.n_latents
    columns: dict[str, NDArray[Any]] = {
        "seed": np.full(m, run.record.seed),
        "latent": np.arange(m),
        "log_density": log_density(density).numpy(),
        "layers": spread(shares).numpy(),
    }
    for place, layer in enumerate(order):
        columns[f"share_{place}"] = shares[layer].numpy()
    if store is not None:
        check_fits(run.record, store)
        sae = load(run.url)
        ids = row_ids(sae, store, run.evaluation.split, run.evaluation.filter is None)
        columns["variance"] = variance_over_layers(sae, store, ids[:MOST_ROWS])
    return columns


def _facts(runs: Sequence[RunData], n_layers: int) -> dict[str, Value]:
    """Return how wide the latents of each group are that fire, over its seeds."""
    facts: dict[str, Value] = {"layers": n_layers}
    groups = group_runs(runs)
    if len(groups) > MOST_COLOURS:
        return facts
    for group in groups:
        means = []
        wide = []
        for run in group.runs:
            widths = spread(layer_shares(run.firings, run.rows)).numpy()
            alive = widths[widths > 0]
            means.append(float(alive.mean()) if len(alive) else math.nan)
            wide.append(float((alive > WIDE).mean()) if len(alive) else math.nan)
        label = f"mean effective number of layers, {group.name}"
        facts[label] = shown_interval(mean_interval(means))
        label = f"share of more than {WIDE} layers, {group.name}"
        facts[label] = shown_interval(mean_interval(wide))
    return facts


def _points(table: Table, run: str) -> Series:
    """Return spread against density of a run's latents that fire."""
    rows = where(table, run=run)
    rows = rows[table["layers"][rows] > 0]
    if len(rows) > MOST_POINTS:
        chosen = np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(np.int64)
        rows = rows[chosen]
    return Series(
        "",
        table["log_density"][rows],
        table["layers"][rows],
        "points",
        labels=[f"latent {table['latent'][row]}" for row in rows],
        colour=0,
    )
