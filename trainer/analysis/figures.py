"""Figures of one or more runs: tables in, plotly figures out. Every metric is in
original activation units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from actstore.store.store import Store
from trainer.evaluate.metrics import log_density
from trainer.runs.run_data import RunData, short

MOST_NAMES = 16
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
    """Mean L2 norm against layer, with its 5 to 95 % band."""
    from actstore.inspect.store_info import norms_figure

    figure = norms_figure(store)
    return _styled(
        figure, "layer", "mean L2 norm", ticks=[short(site) for site in sites]
    )


def pareto(runs: Sequence[RunData]) -> Any:
    """FVU against L0: a small point per layer, a large one pooled, a colour per run."""
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        layers, pooled = run.evaluation.layers, run.evaluation.pooled
        figure.add_scatter(
            x=[one.l0 for one in layers],
            y=[one.fvu for one in layers],
            text=[short(one.site) for one in layers],
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
        figure.add_scatter(
            x=[pooled.l0],
            y=[pooled.fvu],
            mode="markers",
            name=run.name,
            legendgroup=run.name,
            marker={
                "size": 15,
                "color": colour,
                "symbol": "diamond",
                "line": {"width": 1, "color": "white"},
            },
            hovertemplate=(
                f"{run.name}, pooled<br>L0 %{{x:.1f}}, FVU %{{y:.3f}}<extra></extra>"
            ),
        )
    return _styled(figure, "L0 (latents above 0 per row)", "FVU")


def curve_of(runs: Sequence[RunData]) -> str | None:
    """What the curves of FVU against L0 are by: "layer" for SAEs of one layer each,
    "rescaling"; None for none.
    """
    if len({run.record.sites for run in runs}) > 1 and all(
        len(run.record.sites) == 1 for run in runs
    ):
        return "layer"
    return (
        "rescaling"
        if 1 < len({run.record.rescale for run in runs}) < len(runs)
        else None
    )


def curves(runs: Sequence[RunData], by: str) -> Any:
    """Pooled FVU against L0: a point per run, joined in the order of L0 to a curve per
    layer, or per rescaling.
    """
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(
            short(run.record.sites[0]) if by == "layer" else run.record.rescale, []
        ).append(run)
    figure = go.Figure()
    for (name, group), colour in zip(
        groups.items(), _colours(len(groups)), strict=True
    ):
        found = sorted(group, key=lambda run: run.evaluation.pooled.l0)
        figure.add_scatter(
            x=[run.evaluation.pooled.l0 for run in found],
            y=[run.evaluation.pooled.fvu for run in found],
            text=[run.name for run in found],
            mode="lines+markers" if by == "layer" else "markers",
            name=name,
            marker={"color": colour, "size": 8},
            hovertemplate="%{text}<br>L0 %{x:.1f}, FVU %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(type="log")
    return _styled(figure, "L0 (latents above 0 per row; log)", "FVU")


def by_layer(runs: Sequence[RunData], metric: str, label: str) -> Any:
    """One metric by layer, a line per run."""
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        layers = run.evaluation.layers
        figure.add_scatter(
            x=[short(one.site) for one in layers],
            y=[getattr(one, metric) for one in layers],
            mode="lines+markers",
            name=run.name,
            line={"color": colour},
        )
    figure.update_yaxes(rangemode="tozero")
    return _styled(figure, "layer", label)


def density(runs: Sequence[RunData]) -> Any:
    """Histogram of log10 density over latents, pooled over layers; 1e-10 for a latent
    that never fired.
    """
    figure = go.Figure()
    bins = np.linspace(-10.25, 0.25, 43)
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        pooled = run.firings.sum(dim=0).double() / float(run.rows.sum())
        counts, _ = np.histogram(log_density(pooled).numpy(), bins)
        figure.add_bar(
            x=(bins[1:] + bins[:-1]) / 2,
            y=counts,
            name=run.name,
            marker_color=colour,
            opacity=0.75,
        )
    figure.update_layout(barmode="group", bargap=0.05)
    return _styled(figure, "log10 density", "latents")


def losses(runs: Sequence[RunData]) -> Any:
    """FVU in training against rows seen."""
    figure = go.Figure()
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        x, y = [step.rows for step in run.steps], [step.fvu for step in run.steps]
        figure.add_scatter(
            x=x, y=y, mode="lines", name=run.name, line={"color": colour}
        )
    figure.update_yaxes(type="log")
    return _styled(figure, "rows seen", "FVU while training (log)")


def spreads(values: np.ndarray, frequency: np.ndarray, n_layers: int) -> Any:
    """Effective number of layers of each latent against its frequency."""
    alive = frequency > 0
    figure = go.Figure()
    figure.add_scattergl(
        x=np.log10(frequency[alive]),
        y=values[alive],
        text=[f"latent {i}" for i in np.flatnonzero(alive)],
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
    if sum(trace.showlegend is not False for trace in figure.data) > MOST_NAMES:
        # it would leave no room for the figure; names come with the pointer
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
