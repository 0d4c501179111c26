"""The norms of a store's sites by layer, as a table and as a figure.

The figure is the first one of `docs/methods.md`, "1. Multi-layer SAE".
"""

from __future__ import annotations

import numpy as np

from actstore.figures.draw_svg import draw
from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import family, in_layer_order, short_site
from actstore.figures.page import Section, page
from actstore.figures.table import Column, Table
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.manifest import QUANTILES

UNIT = "activation units"
_COLUMNS = {
    "mean": "mean",
    "low": "5 % quantile",
    "median": "median",
    "high": "95 % quantile",
    "max": "largest",
}


def compute_norms(store: Store) -> Table:
    """Return the L2 norms of each site's training rows, sites in the order of layers.

    Columns: `site`, `layer` (its short name), `rows`, `mean`, `low`, `median`, `high`,
    `max`. Sites without a finite row are left out, and counted in a fact.
    """
    sites = in_layer_order(store.sites)
    with_rows = [site for site in sites if store.norms[site].all.count]
    every = [store.norms[site].all for site in with_rows]
    quantiles = [dict(zip(QUANTILES, norms.quantiles, strict=True)) for norms in every]
    figures = {
        "mean": [norms.mean_norm for norms in every],
        "low": [of_site[0.05] for of_site in quantiles],
        "median": [of_site[0.5] for of_site in quantiles],
        "high": [of_site[0.95] for of_site in quantiles],
        "max": [norms.max_norm for norms in every],
    }
    columns = [
        Column("site", with_rows),
        Column("layer", [short_site(site) for site in with_rows]),
        Column("rows", np.array([norms.count for norms in every], dtype=np.int64)),
    ]
    for name, label in _COLUMNS.items():
        values = np.array(figures[name], dtype=np.float64)
        columns.append(Column(name, values, label, UNIT))
    facts: dict[str, str | int | float] = {"sites": len(with_rows)}
    if len(with_rows) < len(sites):
        facts["sites without a finite row"] = len(sites) - len(with_rows)
    return Table(
        name="norms",
        title="Norm by layer",
        text=(
            "L2 norms of the activations over training rows, from the store's manifest;"
            " the band is from the 5 % to the 95 % quantile. Layers of larger norm have"
            " more of the loss, unless rows are rescaled."
        ),
        columns=tuple(columns),
        facts=facts,
    )


def plot_norms(table: Table) -> tuple[Figure, ...]:
    """Draw the mean norm by layer with its band; sites of one family are joined."""
    sites = list(table["site"])
    families = list(dict.fromkeys(family(site) for site in sites))
    series: list[Series] = []
    for colour, of_family in enumerate(families):
        rows = [row for row, site in enumerate(sites) if family(site) == of_family]
        places = np.array(rows, dtype=np.int64)
        name = "mean" if len(families) == 1 else of_family
        low = table["low"][places]
        high = table["high"][places]
        means = table["mean"][places]
        band = "5 % to 95 %" if len(families) == 1 else name
        series.append(
            Series(band, places, means, "band", low=low, high=high, colour=colour)
        )
        series.append(Series(name, places, means, colour=colour))
    figure = Figure(
        name=f"{table.name}-by_layer",
        x=Axis("layer", categories=tuple(table["layer"])),
        y=Axis(f"L2 norm ({UNIT})", zero=True),
        series=tuple(series),
        title="Norm by layer",
    )
    return (figure,)


def write_norms(store: Store, url: str) -> None:
    """Write the figure as SVG where the file's name ends in .svg, else as a page."""
    folder, _, name = url.rpartition("/")
    table = compute_norms(store)
    (figure,) = plot_norms(table)
    if name.endswith(".svg"):
        text = draw(figure)
    else:
        section = Section("norms", table.title, table.text, (figure,), table)
        text = page(f"Norms of {store.manifest.spec.model.name}", (), (section,))
    Storage(folder or ".").put(name, text.encode())
