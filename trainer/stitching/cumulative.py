"""Adds all novel, or all reconstruction latents together: `stitch_cumulative`."""

from __future__ import annotations

import os

import numpy as np

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Rule, Series
from actstore.figures.table import Column, Table
from trainer.analysis.cosines import max_cosine
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.stitching.add import CLASSES, MSE_UNIT
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.pair import choice_of, distinct_names, open_sides
from trainer.stitching.walk import Walk, added_in_order, walk

NAME = "stitch_cumulative"
POINTS = 30


@checked(
    a=run_folder,
    b=run_folder,
    site=optional(arguments.text),
    threshold=cosine,
    points=arguments.count,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
)
def compute_stitch_cumulative(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    points: int = POINTS,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> Table:
    """Add the latents of one SAE to another together, by ascending cosine.

    Novel and reconstruction latents are added to the small SAE apart from each other;
    the MSE is that of the SAE with all of them so far, and no sum of single effects.

    Args:
        a: The run of the small SAE.
        b: The run of the large SAE, of the same site and store.
        site: The site; None for the only one they share.
        threshold: Cosine above which a latent is a reconstruction latent.
        points: Points on each way.
        store: The store; None for the one that both were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each point of each way.

    Raises:
        RunError: The latents of one cannot be moved to the other, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    opened = open_sides([os.fspath(a), os.fspath(b)], choice, tell)
    small, large = (side.latents for side in opened.sides)
    cosines = max_cosine(small.W_dec, large.W_dec).cosine
    is_of_class = {
        "novel": cosines <= threshold,
        "reconstruction": cosines > threshold,
    }
    ways: list[tuple[str, list[float], Walk]] = []
    for name in CLASSES:
        latents = is_of_class[name].nonzero()[:, 0]
        steps = added_in_order(latents, cosines[latents], points)
        reached = [np.nan, *(step.cosine for step in steps)]
        ways.append((name, reached, walk(small, large, steps, opened.rows)))
    names = distinct_names([side.name for side in opened.sides])
    return _table(ways, names, threshold, small.n_latents)


def _table(
    ways: list[tuple[str, list[float], Walk]],
    names: tuple[str, ...],
    threshold: float,
    n_latents: int,
) -> Table:
    walks = [walked for _, _, walked in ways]
    sizes = np.concatenate([walked.size for walked in walks])
    columns = (
        Column("class", [name for name, reached, _ in ways for _ in reached]),
        Column("added", sizes - n_latents, unit="latents"),
        Column("cosine", np.concatenate([reached for _, reached, _ in ways])),
        Column("mse", np.concatenate([way.mse for way in walks]), "MSE", MSE_UNIT),
        Column("l0", np.concatenate([way.l0 for way in walks]), "L0"),
    )
    before = walks[0].mse[0]
    facts = {
        "threshold": threshold,
        "rows": walks[0].rows,
        "MSE before": float(before),
    }
    for name, _, walked in ways:
        facts[f"change of MSE by all {name} latents, relative"] = float(
            walked.mse[-1] / before - 1
        )
    text = (
        f"Latents of {names[1]} are added to {names[0]} by ascending cosine, all novel"
        " ones, or all reconstruction ones; each point is measured with all of them in"
        " the SAE together."
    )
    return Table(NAME, "Latents added together", text, columns, facts)


def plot_stitch_cumulative(table: Table) -> tuple[Drawing, ...]:
    """Draw the MSE against the number of latents that were added."""
    of_class = np.array(table["class"])
    series = []
    for number, name in enumerate(CLASSES):
        at = of_class == name
        x = table["added"][at]
        series.append(Series(name, x, table["mse"][at], colour=number))
    figure = Figure(
        f"{NAME}-mse",
        Axis("latents added"),
        Axis(f"MSE ({MSE_UNIT})"),
        tuple(series),
        rules=(Rule(float(table.facts["MSE before"]), "the small SAE"),),
    )
    return (figure,)
