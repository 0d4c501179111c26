"""Adds each latent of a large SAE to a small one, alone: the table `stitch_add`.

Of a row let r be what the small SAE leaves, and c w what the latent adds to its
reconstruction. The squared error becomes |r - c w|^2 = |r|^2 - 2 c <r, w> + c^2 |w|^2,
so the change of the MSE is the mean of the last two terms: sums over rows, of all
latents in one pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import Matches, max_cosine
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.compare import MOST_POINTS, classes
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.pair import choice_of, distinct_names, open_sides

NAME = "stitch_add"
CLASSES = ("novel", "reconstruction")
MSE_UNIT = "per row"


class Effects(NamedTuple):
    """The effect of each latent of b on a, and the errors of both where it fires.

    Attributes:
        rows: Number of rows.
        delta_mse: Change of a's MSE if the latent alone is added, float64 [m_b].
        fires: Rows on which it fires, int64 [m_b].
        mse_a: The MSE of a.
        mse_b: The MSE of b.
        active_a: MSE of a on the rows where the latent fires, float64 [m_b]; NaN where
            there is none.
        active_b: The same of b.
        inactive_a: MSE of a on the other rows.
        inactive_b: The same of b.
    """

    rows: int
    delta_mse: Tensor
    fires: Tensor
    mse_a: float
    mse_b: float
    active_a: Tensor
    active_b: Tensor
    inactive_a: Tensor
    inactive_b: Tensor


@torch.no_grad()
def effects_of_adding(a: Dictionary, b: Dictionary, rows: Iterable[Tensor]) -> Effects:
    """Return what each latent of b does to a, in one pass over rows [n, d]."""
    device = a.W_dec.device
    delta = torch.zeros(b.n_latents, dtype=torch.float64, device=device)
    fires = torch.zeros(b.n_latents, dtype=torch.int64, device=device)
    active = torch.zeros(b.n_latents, 2, dtype=torch.float64, device=device)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    squares = b.W_dec.double().square().sum(dim=1)
    n_rows = 0
    for x in rows:
        left_a = x - a.reconstruct(x)[0]
        left_b = x - b.reconstruct(x)[0]
        errors = torch.stack([_squared(left_a), _squared(left_b)], dim=1)
        total += errors.sum(dim=0)
        n_rows += len(x)
        for part in b.parts():
            latents = b.encode(x, part)
            is_active = latents > 0
            overlap = latents * (left_a @ b.W_dec[part].T)
            delta[part] -= 2 * overlap.sum(dim=0, dtype=torch.float64)
            strength = latents.double().square().sum(dim=0)
            delta[part] += strength * squares[part]
            fires[part] += is_active.sum(dim=0)
            active[part] += is_active.double().T @ errors
    n_silent = n_rows - fires
    # A mean over no rows is 0 / 0: NaN.
    where_active = active / fires[:, None]
    where_not = (total - active) / n_silent[:, None]
    return Effects(
        rows=n_rows,
        delta_mse=(delta / n_rows).cpu(),
        fires=fires.cpu(),
        mse_a=float(total[0]) / n_rows,
        mse_b=float(total[1]) / n_rows,
        active_a=where_active[:, 0].cpu(),
        active_b=where_active[:, 1].cpu(),
        inactive_a=where_not[:, 0].cpu(),
        inactive_b=where_not[:, 1].cpu(),
    )


def _squared(rows: Tensor) -> Tensor:
    """Return the squared norms of rows [n, d], float64 [n]."""
    return rows.double().square().sum(dim=1)


@checked(
    a=run_folder,
    b=run_folder,
    site=optional(arguments.text),
    threshold=cosine,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
)
def compute_stitch_add(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> Table:
    """Add each latent of one SAE alone to another, and measure the change of its MSE.

    Args:
        a: The run of the small SAE.
        b: The run of the large SAE, of the same site and store.
        site: The site; None for the only one they share.
        threshold: Cosine above which a latent is a reconstruction latent.
        store: The store; None for the one that both were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each latent of b.

    Raises:
        RunError: The latents of one cannot be moved to the other, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    opened = open_sides([os.fspath(a), os.fspath(b)], choice, tell)
    small, large = (side.latents for side in opened.sides)
    names = distinct_names([side.name for side in opened.sides])
    matches = max_cosine(small.W_dec, large.W_dec)
    effects = effects_of_adding(small, large, opened.rows)
    classes_of = classes(matches.cosine.cpu().numpy(), threshold)
    facts: dict[str, Value] = {"threshold": threshold, "split": split}
    return _table(matches, classes_of, effects, names, facts)


def _table(
    matches: Matches,
    classes_of: list[str],
    effects: Effects,
    names: tuple[str, ...],
    facts: dict[str, Value],
) -> Table:
    """Return the table of `compute_stitch_add`; `names` are those of both SAEs."""
    cosines = matches.cosine.cpu().numpy()
    columns = (
        Column("latent", np.arange(len(cosines))),
        Column("match", matches.latent.cpu().numpy(), "most similar"),
        Column("max_cosine", cosines, "largest cosine"),
        Column("class", classes_of),
        Column("delta_mse", effects.delta_mse.numpy(), "change of MSE", MSE_UNIT),
        Column("fires", effects.fires.numpy(), "fires on", "rows"),
        Column("active_a", effects.active_a.numpy(), f"MSE of {names[0]}, active"),
        Column("inactive_a", effects.inactive_a.numpy(), f"MSE of {names[0]}, not"),
        Column("active_b", effects.active_b.numpy(), f"MSE of {names[1]}, active"),
        Column("inactive_b", effects.inactive_b.numpy(), f"MSE of {names[1]}, not"),
    )
    facts = {
        **facts,
        "rows": effects.rows,
        f"MSE of {names[0]}": effects.mse_a,
        f"MSE of {names[1]}": effects.mse_b,
        **_differences(columns),
    }
    text = (
        f"Each latent of {names[1]} is added alone to {names[0]}: below 0 the"
        " reconstruction gets better. Active and not: the MSE where the latent fires,"
        " and where it does not; it is large where a SAE lacks what the latent tells."
    )
    return Table(
        NAME, f"Latents of {names[1]} added to {names[0]}", text, columns, facts
    )


def _differences(columns: tuple[Column, ...]) -> dict[str, Value]:
    """Return how much larger the MSE is where novel latents fire, on average."""
    values = {column.name: column.values for column in columns}
    is_novel = np.array([name == "novel" for name in values["class"]])
    facts: dict[str, Value] = {}
    for side, about in (("a", "small"), ("b", "large")):
        active = np.asarray(values[f"active_{side}"])[is_novel]
        inactive = np.asarray(values[f"inactive_{side}"])[is_novel]
        difference = (active - inactive)[~np.isnan(active - inactive)]
        mean = float(difference.mean()) if len(difference) else np.nan
        facts[f"MSE active less inactive, novel, {about} SAE"] = mean
    return facts


def plot_stitch_add(table: Table) -> tuple[Drawing, ...]:
    """Draw the change of the MSE against the largest cosine, by class."""
    of_class = np.array(table["class"])
    fires = table["fires"] > 0
    series = []
    for number, name in enumerate(CLASSES):
        at = np.flatnonzero((of_class == name) & fires)
        at = _thinned(at)
        labels = [f"latent {latent}" for latent in table["latent"][at]]
        x = table["max_cosine"][at]
        y = table["delta_mse"][at]
        series.append(Series(name, x, y, "points", labels=labels, colour=number))
    rules = (
        Rule(0.0, ""),
        Rule(float(table.facts["threshold"]), "threshold", across=False),
    )
    figure = Figure(
        f"{NAME}-scatter",
        Axis("largest cosine with a latent of the small SAE"),
        Axis(f"change of MSE ({MSE_UNIT})"),
        tuple(series),
        rules=rules,
    )
    return (figure,)


def _thinned(at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most `MOST_POINTS` of some places, evenly."""
    return at[:: max(1, -(-len(at) // MOST_POINTS))]
