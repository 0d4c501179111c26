"""From a small SAE to a large one, latent by latent: the table `stitch_interpolate`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import max_cosine, pairs_above
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.stitching.add import MSE_UNIT
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.components import Swap, swaps_of
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.pair import choice_of, distinct_names, open_sides
from trainer.stitching.walk import Step, Walk, added_in_order, walk

NAME = "stitch_interpolate"
POINTS = 40
PHASES = ("start", "novel added", "swapped")


@checked(
    a=run_folder,
    b=run_folder,
    site=optional(arguments.text),
    threshold=cosine,
    order=arguments.choice("max", "mean"),
    points=arguments.count,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
)
def compute_stitch_interpolate(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    order: str = "max",
    points: int = POINTS,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> Table:
    """Go from one SAE to another: add novel latents, then swap similar ones.

    Both by ascending cosine, novel latents by their largest one, swaps by the largest
    (or mean) one of their pairs. At the end all latents of the large SAE are in, and
    out are those of the small one that have a similar one; b_dec is the small SAE's
    throughout.

    Args:
        a: The run of the small SAE.
        b: The run of the large SAE, of the same site and store.
        site: The site; None for the only one they share.
        threshold: Cosine above which two latents are similar.
        order: "max" or "mean": the cosine of a swap by which it has its place.
        points: Points on the way, about; half of them for either part.
        store: The store; None for the one that both were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each point of the way, then one for the large SAE.

    Raises:
        RunError: The latents of one cannot be moved to the other, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    opened = open_sides([os.fspath(a), os.fspath(b)], choice, tell)
    small, large = (side.latents for side in opened.sides)
    n_each = max(1, points // 2)
    added, n_novel = _added(small, large, threshold, n_each)
    pairs = pairs_above(small.W_dec, large.W_dec, threshold)
    swaps = swaps_of(pairs, small.n_latents, large.n_latents)
    swapped = swapped_in_order(swaps, order, n_each, small.W_dec.device)
    way = walk(small, large, [*added, *swapped], opened.rows)
    end = walk(large, large, [], opened.rows)
    names = distinct_names([side.name for side in opened.sides])
    n_out = sum(len(swap.parents) for swap in swaps)
    facts: dict[str, Value] = {
        "threshold": threshold,
        "novel latents": n_novel,
        "swaps": len(swaps),
        f"latents of {names[0]} that stay to the end": small.n_latents - n_out,
    }
    return _table((added, swapped), way, end, names, facts)


def _added(
    small: Dictionary, large: Dictionary, threshold: float, n_steps: int
) -> tuple[list[Step], int]:
    """Return steps that add the novel latents of the large SAE, and their number."""
    cosines = max_cosine(small.W_dec, large.W_dec).cosine
    # Those without a direction add nothing, and come first of the novel ones.
    cosines = cosines.nan_to_num(nan=-1.0)
    novel = (cosines <= threshold).nonzero()[:, 0]
    return added_in_order(novel, cosines[novel], n_steps), len(novel)


def swapped_in_order(
    swaps: Sequence[Swap], order: str, n_steps: int, device: torch.device
) -> list[Step]:
    """Return steps that do swaps by ascending cosine, about as many in each.

    order: "max" or "mean": which cosine of a swap.
    """
    by_cosine = [
        swap.max_cosine if order == "max" else swap.mean_cosine for swap in swaps
    ]
    ranks = np.argsort(by_cosine, kind="stable")
    steps = []
    for part in np.array_split(ranks, max(1, min(n_steps, len(ranks)))):
        if len(part):
            chosen = [swaps[i] for i in part]
            steps.append(
                Step(
                    torch.cat([swap.children for swap in chosen]).to(device),
                    torch.cat([swap.parents for swap in chosen]).to(device),
                    by_cosine[part[-1]],
                )
            )
    return steps


def _table(
    parts: tuple[list[Step], list[Step]],
    way: Walk,
    end: Walk,
    names: tuple[str, ...],
    facts: dict[str, Value],
) -> Table:
    """Return the table of `compute_stitch_interpolate`.

    Args:
        parts: Steps that add novel latents, and steps that swap similar ones.
        way: What the steps led to.
        end: The large SAE.
        names: Those of both SAEs.
        facts: Further facts.
    """
    added, swapped = parts
    start, novel_added, swaps_done = PHASES
    phases = [start, *[novel_added] * len(added), *[swaps_done] * len(swapped)]
    reached = [np.nan, *(step.cosine for step in [*added, *swapped]), np.nan]
    columns = (
        Column("phase", [*phases, names[1]]),
        Column("latents", np.append(way.size, end.size)),
        Column("cosine", np.array(reached)),
        Column("mse", np.append(way.mse, end.mse), "MSE", MSE_UNIT),
        Column("l0", np.append(way.l0, end.l0), "L0"),
    )
    text = (
        f"Novel latents of {names[1]} are added to {names[0]}, then similar ones are"
        " swapped, both by ascending cosine. Each point is an SAE that one could choose"
        " for its size, MSE and L0."
    )
    facts = {
        **facts,
        "rows": way.rows,
        f"MSE of {names[1]}": float(end.mse[0]),
        f"L0 of {names[1]}": float(end.l0[0]),
    }
    return Table(NAME, f"From {names[0]} to {names[1]}", text, columns, facts)


def plot_stitch_interpolate(table: Table) -> tuple[Drawing, ...]:
    """Draw the way as MSE against size, L0 against size, and MSE against L0."""
    phases = np.array(table["phase"])
    parts = _parts(phases)
    mse = Axis(f"MSE ({MSE_UNIT})")
    l0 = Axis("L0")
    size = Axis("latents")
    return (
        Figure(f"{NAME}-mse", size, mse, _series(table, parts, "latents", "mse")),
        Figure(f"{NAME}-l0", size, l0, _series(table, parts, "latents", "l0")),
        Figure(
            f"{NAME}-front",
            l0,
            mse,
            _series(table, parts, "l0", "mse"),
            rules=(Rule(float(table["mse"][-1]), f"MSE of {phases[-1]}"),),
        ),
    )


def _parts(phases: NDArray[np.str_]) -> list[tuple[str, NDArray[np.int64]]]:
    """Return the points of each part of the way; each begins where one before ended."""
    parts = []
    for name in PHASES[1:]:
        at = np.flatnonzero(phases[:-1] == name)
        if len(at):
            parts.append((name, np.insert(at, 0, at[0] - 1)))
    return [*parts, (str(phases[-1]), np.array([len(phases) - 1]))]


def _series(
    table: Table,
    parts: list[tuple[str, NDArray[np.int64]]],
    x: str,
    y: str,
) -> tuple[Series, ...]:
    return tuple(
        Series(name, table[x][at], table[y][at], colour=number, large=len(at) == 1)
        for number, (name, at) in enumerate(parts)
    )
