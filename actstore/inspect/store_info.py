"""What a store holds, for people: lines, a table of norms, and the plot of mean norm by
layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.manifest import QUANTILES, StratumNorms

if TYPE_CHECKING:
    from rich.table import Table


BAR = 8


def norm_table(store: Store) -> Table:
    """Norms by site over training rows, with a bar for the mean."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title="L2 norms over training rows",
        caption="special: position 0 and special tokens",
    )
    table.add_column("site", no_wrap=True)
    for name in ("mean", "", "median", "max", "special", "outliers", "NaN"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    most = (
        max(
            (norms.all.mean_norm for norms in store.manifest.norms if norms.all.count),
            default=0.0,
        )
        or 1.0
    )
    for norms in store.manifest.norms:
        one = norms.all
        at = dict(zip(QUANTILES, one.quantiles, strict=True))
        table.add_row(
            norms.site,
            _of_rows(one, one.mean_norm),
            "█" * max(1, round(BAR * one.mean_norm / most)) if one.count else "",
            _of_rows(one, at[0.5]),
            _of_rows(one, one.max_norm),
            _of_rows(norms.special, norms.special.mean_norm),
            f"{one.outliers:,}",
            f"{one.non_finite:,}",
        )
    return table


def _of_rows(stratum: StratumNorms, figure: float) -> str:
    """A figure of some rows; a dash where there are none (old stores say 0)."""
    return f"{figure:.3g}" if stratum.count else "-"


BUDGETS = (256 << 20, 1 << 30, 2 << 30, 8 << 30)


def shuffle_table(store: Store, batch: int) -> Table:
    """What windows of a few memory budgets mix: chunks per site, sequences in memory,
    and the shortfall (mixing.py).
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from actstore.errors import SpecError
    from actstore.format.dtypes import numpy_dtype
    from actstore.stream.mixing import Mix, mixing_shortfall, window_chunks
    from schemas.stream import StreamSpec

    n_units, n_sites = len(store.units("train")), len(store.sites)
    mix, dtype = Mix(store.layout, n_units, (1,) * n_sites), store.manifest.spec.dtype
    size = 4 if dtype == "int8" else numpy_dtype(dtype).itemsize
    place = (
        sum(site.d for site in store.manifest.sites) * store.layout.chunk_rows * size
    )
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"Shuffling all {n_sites} sites in batches of {batch:,} rows",
        caption=(
            "shortfall: of distinct sequences in a batch, against an i.i.d. draw; the"
            " default memory is 2,048 MB"
        ),
    )
    for name in (
        "memory",
        "takes",
        "chunks per site",
        "sequences in reach",
        "shortfall",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for memory in BUDGETS:
        try:
            chunks = window_chunks(mix, place, StreamSpec(batch=batch, memory=memory))
        except SpecError:
            table.add_row(f"{memory >> 20:,} MB", "-", "too few", "-", "-")
            continue
        reach = min(
            chunks * store.layout.unit_sequences, n_units * store.layout.unit_sequences
        )
        short = mixing_shortfall(mix, chunks, batch)
        takes = 2 * place * min(chunks, mix.group * store.layout.unit_chunks) / 1e6
        table.add_row(
            f"{memory >> 20:,} MB",
            f"{takes:,.0f} MB",
            f"{chunks}",
            f"{reach:,}",
            f"{short:.1%}",
        )
    return table


def norms_figure(store: Store) -> Any:
    """Mean norm by site with the band from the 5 % to the 95 % quantile: a plotly
    figure (methods, section 1).
    """
    import plotly.graph_objects as go

    sites = [site for site in store.sites if store.norms[site].all.count]
    every = [store.norms[site].all for site in sites]
    at = [dict(zip(QUANTILES, one.quantiles, strict=True)) for one in every]
    figure = go.Figure()
    figure.add_scatter(
        x=sites,
        y=[q[0.95] for q in at],
        mode="lines",
        line={"width": 0},
        showlegend=False,
    )
    figure.add_scatter(
        x=sites,
        y=[q[0.05] for q in at],
        mode="lines",
        fill="tonexty",
        fillcolor="#cfdcf0",
        line={"width": 0},
        name="5 % to 95 %",
    )
    figure.add_scatter(
        x=sites,
        y=[one.mean_norm for one in every],
        mode="lines+markers",
        name="mean",
        line={"color": "#3b6fb6"},
    )
    figure.update_layout(
        template="plotly_white",
        xaxis_title="site",
        yaxis_title="L2 norm",
        yaxis_rangemode="tozero",
    )
    return figure


def plot_norms(store: Store, url: str) -> None:
    """Write the plot as a page of its own that needs no network."""
    folder, _, name = url.rpartition("/")
    page = norms_figure(store).to_html(include_plotlyjs=True, full_html=True)
    Storage(folder or ".").put(name, page.encode())
