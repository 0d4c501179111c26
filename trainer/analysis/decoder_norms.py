"""Histograms of the norms of decoder directions (docs/methods.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Rule, Series
from actstore.figures.table import Table
from trainer.analysis.decoder_directions import directions_of
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    looks,
    run_values,
    series_of,
    where,
)
from trainer.analysis.statistics_of_seeds import means_at
from trainer.runs.run_data import RunData

BINS = 60
CORRECTION = 0.5  # directions of a smaller norm are corrections
_FIELDS = (
    Field("run"),
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("dictionary"),
    Field("norm", "norm in the SAE's own units"),
    Field("latents"),
    Field("share", "share of the latents"),
)


def compute_decoder_norms(
    runs: Sequence[RunData], *, alive_only: bool = False
) -> Table:
    """Return how many latents have which decoder norm, in the SAE's own units.

    In these, rows have a mean square of 1 over all layers. Columns: `run`, `group`,
    `kind`, `seed`, `dictionary`, `norm` (the middle of a bin), `latents`, `share`.

    Args:
        runs: The runs.
        alive_only: Leave out latents that never fired on the rows evaluated.

    Raises:
        RunError: There is no run, or a decoder is not finite.
    """
    about = run_values(runs, over_layers=True)
    found = []
    for run in runs:
        for dictionary in directions_of(run, alive_only=alive_only):
            norms = dictionary.rows.double().norm(dim=1).numpy()
            found.append((run, dictionary.name, norms))
    largest = max((norms.max() for _, _, norms in found if len(norms)), default=1.0)
    edges = np.linspace(0, max(float(largest), 2 * CORRECTION) * 1.001, BINS + 1)
    rows: list[list[Any]] = []
    for run, name, norms in found:
        rows += _rows(about[run.url], name, norms, edges)
    return Table(
        name="decoder_norms",
        title="Norms of the decoder directions",
        text=(
            "How many latents write a direction of which norm, in the SAE's own units,"
            " in which rows have a mean square of 1. A latent of the normalized SAE is"
            " at most 1, so the norm is its strength; plain SAEs hold norms at 1."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts={"runs": len(runs), "latents": "alive" if alive_only else "all"},
    )


def plot_decoder_norms(table: Table) -> tuple[Figure, ...]:
    """Draw a histogram for each group, the mean over its runs and dictionaries."""
    groups = distinct(table["group"])
    colours = looks(groups)
    series: list[Series] = []
    for group in groups:
        rows = where(table, group=group)
        found = means_at(table["norm"][rows], table["share"][rows])
        mark = "bars" if len(groups) == 1 else "line"
        look = colours[group]
        series.append(series_of(group, found.at, found.mean, look, mark=mark))
    figure = Figure(
        name=f"{table.name}-histogram",
        x=Axis("norm of the direction (the SAE's own units)", zero=True),
        y=Axis("share of the latents", zero=True),
        series=tuple(series),
        title="Norms of the decoder directions",
        rules=(Rule(CORRECTION, "corrections below", across=False),),
    )
    return (figure,)


def _rows(
    about: Sequence[Any],
    name: str,
    norms: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> list[list[Any]]:
    run, group, _, kind, seed, *_ = about
    counts, _ = np.histogram(norms, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    rows: list[list[Any]] = []
    for centre, count in zip(centres, counts, strict=True):
        share = count / max(1, len(norms))
        figures = (float(centre), int(count), float(share))
        rows.append([run, group, kind, seed, name, *figures])
    return rows
