"""Swaps similar latents group by group, and measures it: the table `stitch_swap`.

With u what the parents reconstruct less what the children do, and r what the small SAE
leaves of a row, a swap changes the squared error by 2 <r, u> + |u|^2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import pairs_above
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.stitching.add import MSE_UNIT
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.compare import MOST_POINTS
from trainer.stitching.components import Swap, swaps_of
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.pair import choice_of, distinct_names, open_sides

NAME = "stitch_swap"
MOST_NUMBERS = 1 << 24  # of the changes u of several swaps at once: 64 MiB
MOST_CODES = 1 << 26  # latents of a block of rows: 256 MiB
NAMED = 6  # latents of a group that a row of the table names


class Effects(NamedTuple):
    """The effect of each swap.

    Attributes:
        delta_mse: Change of the MSE, float64 [n].
        delta_l0: Change of L0, float64 [n].
        rows: Number of rows.
        mse: The MSE of the small SAE.
        l0: Its L0.
    """

    delta_mse: NDArray[np.float64]
    delta_l0: NDArray[np.float64]
    rows: int
    mse: float
    l0: float


class _Group(NamedTuple):
    """Swaps with equally many latents.

    Attributes:
        swaps: Their numbers, int64 [k].
        at: Where their latents are among all that are swapped, int64 [k, s].
    """

    swaps: Tensor
    at: Tensor


@torch.no_grad()
def effects_of_swaps(
    a: Dictionary, b: Dictionary, swaps: Sequence[Swap], rows: Iterable[Tensor]
) -> Effects:
    """Return what each swap alone does to a, in one pass over rows [n, d]."""
    device = a.W_dec.device
    parents = _joined([swap.parents for swap in swaps]).to(device)
    children = _joined([swap.children for swap in swaps]).to(device)
    directions = torch.cat([a.W_dec[parents], b.W_dec[children]])
    groups = _groups(swaps, len(parents), device)
    delta = torch.zeros(len(swaps), dtype=torch.float64, device=device)
    fired = torch.zeros(len(directions), dtype=torch.int64, device=device)
    n_rows = 0
    mse = 0.0
    l0 = 0
    size = max(1, MOST_CODES // max(1, len(directions)))
    for whole in rows:
        for x in whole.split(size):
            again, fires = a.reconstruct(x)
            left = x - again
            codes = torch.cat([a.encode(x, parents), -b.encode(x, children)], dim=1)
            fired += (codes != 0).sum(dim=0)
            n_rows += len(x)
            mse += float(left.double().square().sum())
            l0 += int(fires.sum())
            for group in groups:
                delta[group.swaps] += _changes(codes, directions, left, group.at)
    counts = fired.double().cpu()
    counts[: len(parents)] *= -1
    by_swap = torch.zeros(len(swaps), dtype=torch.float64)
    for group in groups:
        by_swap[group.swaps.cpu()] = counts[group.at.cpu()].sum(dim=1)
    return Effects(
        delta_mse=(delta / n_rows).cpu().numpy(),
        delta_l0=(by_swap / n_rows).numpy(),
        rows=n_rows,
        mse=mse / n_rows,
        l0=l0 / n_rows,
    )


def _changes(codes: Tensor, directions: Tensor, left: Tensor, at: Tensor) -> Tensor:
    """Return the sums over rows of 2 <r, u> + |u|^2 for swaps, float64 [k].

    Args:
        codes: Latents of rows, those of children with a minus, [n, p].
        directions: Their directions, [p, d].
        left: What the small SAE leaves of the rows, r [n, d].
        at: Latents of each swap, int64 [k, s].
    """
    n_at_once = max(1, MOST_NUMBERS // max(1, left.numel()))
    sums = []
    for some in at.split(n_at_once):
        # [k, n, s] times [k, s, d]
        u = codes[:, some].permute(1, 0, 2) @ directions[some]
        change = u * (u + 2 * left)
        sums.append(change.sum(dim=(1, 2), dtype=torch.float64))
    return torch.cat(sums)


def _groups(
    swaps: Sequence[Swap], n_parents: int, device: torch.device
) -> list[_Group]:
    """Return swaps by their number of latents, so that each is one product."""
    by_size: dict[int, list[tuple[int, Tensor]]] = {}
    first_parent = 0
    first_child = n_parents
    for number, swap in enumerate(swaps):
        end_parent = first_parent + len(swap.parents)
        end_child = first_child + len(swap.children)
        at = torch.cat(
            [
                torch.arange(first_parent, end_parent),
                torch.arange(first_child, end_child),
            ]
        )
        by_size.setdefault(len(at), []).append((number, at))
        first_parent = end_parent
        first_child = end_child
    return [
        _Group(
            torch.tensor([number for number, _ in group], device=device),
            torch.stack([at for _, at in group]).to(device),
        )
        for group in by_size.values()
    ]


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


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
def compute_stitch_swap(
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
    """Swap each group of similar latents alone, and measure the change of MSE and L0.

    A group is a connected component of the pairs with a cosine above the threshold: its
    latents of the small SAE are taken out, those of the large one are put in.

    Args:
        a: The run of the small SAE.
        b: The run of the large SAE, of the same site and store.
        site: The site; None for the only one they share.
        threshold: Cosine above which two latents are similar.
        store: The store; None for the one that both were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each swap.

    Raises:
        RunError: The latents of one cannot be moved to the other, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    opened = open_sides([os.fspath(a), os.fspath(b)], choice, tell)
    small, large = (side.latents for side in opened.sides)
    names = distinct_names([side.name for side in opened.sides])
    pairs = pairs_above(small.W_dec, large.W_dec, threshold)
    swaps = swaps_of(pairs, small.n_latents, large.n_latents)
    effects = effects_of_swaps(small, large, swaps, opened.rows)
    facts: dict[str, Value] = {
        "threshold": threshold,
        "rows": effects.rows,
        "swaps": len(swaps),
        f"MSE of {names[0]}": effects.mse,
        f"L0 of {names[0]}": effects.l0,
        "swaps that lower L0": int((effects.delta_l0 < 0).sum()),
        "swaps that raise MSE": int((effects.delta_mse > 0).sum()),
    }
    text = (
        "Each group of similar latents is swapped alone: parents of the small SAE for"
        " their children of the large one. Left of 0 fewer latents fire, below 0 the"
        " reconstruction is better."
    )
    title = f"Latents of {names[0]} swapped for those of {names[1]}"
    return Table(NAME, title, text, _columns(swaps, effects), facts)


def _columns(swaps: Sequence[Swap], effects: Effects) -> tuple[Column, ...]:
    def numbers(values: Iterator[float], kind: type) -> NDArray[np.generic]:
        return np.fromiter(values, kind, len(swaps))

    return (
        Column("parents", numbers((len(s.parents) for s in swaps), np.int64)),
        Column("children", numbers((len(s.children) for s in swaps), np.int64)),
        Column("pairs", numbers((s.pairs for s in swaps), np.int64)),
        Column(
            "max_cosine",
            numbers((s.max_cosine for s in swaps), float),
            "largest cosine",
        ),
        Column(
            "mean_cosine", numbers((s.mean_cosine for s in swaps), float), "mean cosine"
        ),
        Column("delta_mse", effects.delta_mse, "change of MSE", MSE_UNIT),
        Column("delta_l0", effects.delta_l0, "change of L0"),
        Column("small_latents", [_named(swap.parents) for swap in swaps], "out"),
        Column("large_latents", [_named(swap.children) for swap in swaps], "in"),
    )


def _named(latents: Tensor) -> str:
    """Return the numbers of the first latents, and how many more there are."""
    first = " ".join(str(latent) for latent in latents[:NAMED].tolist())
    more = len(latents) - NAMED
    return f"{first} and {more} more" if more > 0 else first


def plot_stitch_swap(table: Table) -> tuple[Drawing, ...]:
    """Draw the change of the MSE against that of L0, swaps of two latents apart."""
    is_pair = (table["parents"] == 1) & (table["children"] == 1)
    labels = [
        f"{out} for {into}"
        for out, into in zip(
            table["small_latents"], table["large_latents"], strict=True
        )
    ]
    series = []
    for number, (name, chosen) in enumerate(
        (("one for one", is_pair), ("several", ~is_pair))
    ):
        at = np.flatnonzero(chosen)
        at = at[:: max(1, -(-len(at) // MOST_POINTS))]
        x = table["delta_l0"][at]
        y = table["delta_mse"][at]
        about = [labels[i] for i in at]
        series.append(Series(name, x, y, "points", labels=about, colour=number))
    figure = Figure(
        f"{NAME}-scatter",
        Axis("change of L0"),
        Axis(f"change of MSE ({MSE_UNIT})"),
        tuple(series),
        rules=(Rule(0.0, ""), Rule(0.0, "", across=False)),
    )
    return (figure,)
