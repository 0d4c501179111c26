"""Draws figures of one or more runs with plotly.

Every metric is in original activation units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from actstore.store.store import Store
from trainer.evaluation.metric_definitions import log_density
from trainer.runs.run_data import RunData, short_site

MOST_NAMES = 16  # more runs than these leave no room for a legend
COLOURS = (
    "#3b6fb6",
    "#d1672e",
    "#4b9b5f",
    "#a3498f",
    "#8a7a3c",
    "#555555",
    "#2f9e9e",
    "#c0392b",
)


def norms(store: Store, sites: Sequence[str]) -> Any:
    """Draw the mean L2 norm against layer, with its 5 to 95 % band."""
    from actstore.inspect.store_info import norms_figure

    figure = norms_figure(store)
    ticks = [short_site(site) for site in sites]
    return _styled(figure, "layer", "mean L2 norm", ticks=ticks)


def pareto(runs: Sequence[RunData]) -> Any:
    """Draw FVU against L0: for each run a large point pooled, a small one per layer."""
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        layers = run.evaluation.layers
        pooled = run.evaluation.pooled
        figure.add_scatter(
            x=[layer.l0 for layer in layers],
            y=[layer.fvu for layer in layers],
            text=[short_site(layer.site) for layer in layers],
            mode="markers+text" if len(runs) == 1 else "markers",
            textposition="top center",
            marker={"size": 7, "color": colour, "opacity": 0.6},
            legendgroup=run.name,
            showlegend=False,
            hovertemplate=(
                f"{run.name}<br>layer %{{text}}<br>L0 %{{x:.1f}}, FVU"
                " %{y:.3f}<extra></extra>"
            ),
        )
        diamond = {
            "size": 15,
            "color": colour,
            "symbol": "diamond",
            "line": {"width": 1, "color": "white"},
        }
        figure.add_scatter(
            x=[pooled.l0],
            y=[pooled.fvu],
            mode="markers",
            name=run.name,
            legendgroup=run.name,
            marker=diamond,
            hovertemplate=(
                f"{run.name}, pooled<br>L0 %{{x:.1f}}, FVU %{{y:.3f}}<extra></extra>"
            ),
        )
    return _styled(figure, "L0 (latents above 0 per row)", "FVU")


def curve_of(runs: Sequence[RunData]) -> str | None:
    """Return what the curves of FVU against L0 are drawn by.

    "layer" where each run is of one layer and they differ, "rescaling" where several
    runs share one of several rescalings, None where there are no curves to draw.
    """
    layers = {run.record.sites for run in runs}
    if len(layers) > 1 and all(len(sites) == 1 for sites in layers):
        return "layer"
    rescalings = {run.record.rescale for run in runs}
    return "rescaling" if 1 < len(rescalings) < len(runs) else None


def curves(runs: Sequence[RunData], by: str) -> Any:
    """Draw pooled FVU against L0, a point per run, a colour per layer or rescaling.

    Points of one layer are joined in the order of L0.

    Args:
        runs: The runs.
        by: What `curve_of` gave.
    """
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        name = short_site(run.record.sites[0]) if by == "layer" else run.record.rescale
        groups.setdefault(name, []).append(run)
    figure = go.Figure()
    colours = _colours(len(groups))
    for (name, group), colour in zip(groups.items(), colours, strict=True):
        by_l0 = sorted(group, key=lambda run: run.evaluation.pooled.l0)
        figure.add_scatter(
            x=[run.evaluation.pooled.l0 for run in by_l0],
            y=[run.evaluation.pooled.fvu for run in by_l0],
            text=[run.name for run in by_l0],
            mode="lines+markers" if by == "layer" else "markers",
            name=name,
            marker={"color": colour, "size": 8},
            hovertemplate="%{text}<br>L0 %{x:.1f}, FVU %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(type="log")
    return _styled(figure, "L0 (latents above 0 per row; log)", "FVU")


def by_layer(runs: Sequence[RunData], metric: str, label: str) -> Any:
    """Draw one metric by layer, a line per run.

    Args:
        runs: The runs.
        metric: A field of LayerMetrics.
        label: What the axis says.
    """
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        layers = run.evaluation.layers
        figure.add_scatter(
            x=[short_site(layer.site) for layer in layers],
            y=[getattr(layer, metric) for layer in layers],
            mode="lines+markers",
            name=run.name,
            line={"color": colour},
        )
    figure.update_yaxes(rangemode="tozero")
    return _styled(figure, "layer", label)


def density(runs: Sequence[RunData]) -> Any:
    """Draw a histogram of log10 density over latents, pooled over layers.

    A latent that never fired counts as 1e-10.
    """
    figure = go.Figure()
    # Bins of a quarter, from below -10 (never) to above 0 (on every row).
    edges = np.linspace(-10.25, 0.25, 43)
    centres = (edges[1:] + edges[:-1]) / 2
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        pooled = run.firings.sum(dim=0).double() / float(run.rows.sum())
        counts, _ = np.histogram(log_density(pooled).numpy(), edges)
        figure.add_bar(
            x=centres, y=counts, name=run.name, marker_color=colour, opacity=0.75
        )
    figure.update_layout(barmode="group", bargap=0.05)
    return _styled(figure, "log10 density", "latents")


def losses(runs: Sequence[RunData]) -> Any:
    """Draw FVU in training against rows seen."""
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        figure.add_scatter(
            x=[step.rows for step in run.steps],
            y=[step.fvu for step in run.steps],
            mode="lines",
            name=run.name,
            line={"color": colour},
        )
    figure.update_yaxes(type="log")
    return _styled(figure, "rows seen", "FVU while training (log)")


def spreads(
    widths: NDArray[np.float64], frequency: NDArray[np.float64], n_layers: int
) -> Any:
    """Draw the effective number of layers of each latent against its frequency.

    Args:
        widths: Effective numbers of layers, [m].
        frequency: Shares of rows on which each latent fires, [m].
        n_layers: How many layers there are.
    """
    fires = frequency > 0
    figure = go.Figure()
    figure.add_scattergl(
        x=np.log10(frequency[fires]),
        y=widths[fires],
        text=[f"latent {i}" for i in np.flatnonzero(fires)],
        mode="markers",
        marker={"size": 5, "opacity": 0.5, "color": COLOURS[0]},
        hovertemplate=(
            "%{text}<br>log10 density %{x:.2f}, %{y:.2f} layers<extra></extra>"
        ),
    )
    figure.update_yaxes(range=[0.8, n_layers + 0.2])
    return _styled(figure, "log10 density", "effective number of layers")


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _styled(figure: Any, x: str, y: str, ticks: Sequence[str] | None = None) -> Any:
    """Give a figure the style of all, and its axes their titles and ticks."""
    n_names = sum(trace.showlegend is not False for trace in figure.data)
    if n_names > MOST_NAMES:
        # The pointer still shows the name of each point.
        figure.update_layout(showlegend=False)
    figure.update_layout(
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 16, "t": 16, "b": 60},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    if ticks is not None:
        figure.update_xaxes(
            tickmode="array", tickvals=list(range(len(ticks))), ticktext=list(ticks)
        )
    return figure
